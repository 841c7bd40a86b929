"""What is asked becomes cells: each once, behind what it needs; what cannot be run is said with its reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.pictures import put
from fixtures.reproduction import small_config
from masp.adapters import portable
from masp.baselines.registry import checked
from masp.core.aspects import ASPECTS
from masp.core.config import DataConfig, PromptTraining, RunConfig, TrainConfig, parsed_override
from masp.core.errors import ConfigError, UsageError
from masp.data.readers.open_dataset import open_dataset
from masp.data.splits import Batches
from masp.reproduce.config import (
    DatasetSource,
    ReproduceConfig,
    Request,
    config_of,
    drawn_source,
    find_sources,
    find_teacher,
)
from masp.reproduce.dag import NO_ANNOTATIONS, Experiment, ExperimentGraph, ExperimentResult, plan_cells
from masp.reproduce.specs import (
    LENGTHS,
    OTHERS,
    STAGE1,
    StepBudget,
    all_specs,
    budget_settings,
    changes_of,
    divided,
    load_paper,
    step_budget,
)
from masp.reproduce.tables import Results, accuracy_table, budgets
from masp.training.run_stage import loop_settings

PAPER = load_paper()
ALL = ("table1", "table2", "table3", "table4", "figure3", "figure4")


def pictures(folder: Path, layout: str, count: int = 12) -> None:
    """Images of two labels: in folders of labels, or in split folders."""
    for number in range(count):
        split = ("train", "test")[number % 3 == 2] if layout == "splits" else ""
        place = folder / split / ("fear", "joy")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        tiny.picture(56, 56, seed=number).save(place / f"{number}.png")


def named(plan: ExperimentGraph, name: str) -> Experiment:
    return next(cell for cell in plan.cells if cell.name == name)


def test_every_cell_is_there_once_and_behind_its_needs(tmp_path: Path) -> None:
    cells = plan_cells(small_config(tmp_path, *ALL), PAPER, all_specs()).cells
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    for place, cell in enumerate(cells):
        assert set(cell.needs) <= set(names[:place])
    assert [cell.seed for cell in cells if cell.spec == STAGE1] == [0, 1]
    assert [cell.seed for cell in cells if cell.spec.name == "V"] == [0], "nothing in V depends on a seed"
    assert [cell.seed for cell in cells if cell.spec.name == "V+A"] == [0, 1], "its aspects do"


def test_trainings_are_shared_between_tables(tmp_path: Path) -> None:
    """The usual length (3 here) is V+A+S; where the usual length is 32, Table 3 trains four prompts and borrows one."""
    usual = small_config(tmp_path, "table2", "table3", seeds=1, changes=("method.prompt_length=32",))
    lengths = [
        cell.spec.length for cell in plan_cells(usual, PAPER, all_specs()).cells if cell.spec.name[:5] == "V+A+S"
    ]
    assert lengths == [None, 8, 16, 64, 128]
    other = small_config(tmp_path, "table3", seeds=1)
    own = [cell.spec.length for cell in plan_cells(other, PAPER, all_specs()).cells if cell.spec.kind == "masp"]
    assert own == list(LENGTHS)


def test_a_system_over_another_waits_for_it(tmp_path: Path) -> None:
    plan = plan_cells(small_config(tmp_path, "table1"), PAPER, all_specs())
    assert "emoji-scenes/qlora/seed1" in named(plan, "emoji-scenes/distilled/seed1").needs
    assert changes_of("distilled", ("qlora.max_steps=7", "distilled.hidden=5")) == (
        "hidden=5",
        "over=qlora",
        "over.max_steps=7",
    )


def test_the_concept_bottleneck_waits_for_the_prompt_and_the_aspects_it_reads(tmp_path: Path) -> None:
    plan = plan_cells(small_config(tmp_path, "table1"), PAPER, all_specs())
    needs = named(plan, "emoji-scenes/concepts/seed1").needs
    assert {"emoji-scenes/V+S/seed1", "emoji-scenes/stage-1/seed1"} <= set(needs)
    given = replace(small_config(tmp_path, "table1"), adapter=tmp_path)
    needs = named(plan_cells(given, PAPER, all_specs()), "emoji-scenes/concepts/seed1").needs
    assert "emoji-scenes/V+S/seed1" in needs
    assert "emoji-scenes/stage-1/seed1" not in needs


def test_systems_that_learn_annotations_need_them(tmp_path: Path) -> None:
    """Aspects from elsewhere let MASP be measured. The bottleneck learns the words of these images, and instruction
    tuning without annotations would be a second `qlora`."""
    config = small_config(tmp_path, "table1", seeds=1)
    bare = tuple(replace(source, annotated=False) for source in config.sources)
    plan = plan_cells(replace(config, sources=bare, adapter=tmp_path), PAPER, all_specs())
    assert named(plan, "emoji-scenes/V+A+S/seed0")
    skipped = [(one.system, one.reason) for one in plan.skipped]
    assert skipped == [("instruction", NO_ANNOTATIONS), ("concepts", NO_ANNOTATIONS)]
    assert "qlora" in {cell.spec.name for cell in plan.cells}


@pytest.mark.parametrize("setting", ["aspects", "prompt"])
def test_adapters_of_the_concept_bottleneck_are_not_set(setting: str) -> None:
    with pytest.raises(UsageError, match=f"no setting '{setting}'"):
        divided([f"concepts.{setting}=runs/other"])


def test_the_former_name_of_a_system_still_sets_it(caplog: pytest.LogCaptureFixture) -> None:
    assert divided(["cues.fewest=7", "prompt.lr=1"]) == (["prompt.lr=1"], ["concepts.fewest=7"])
    assert "cues is named concepts now" in caplog.text


def test_what_no_seed_changes_is_run_once_and_a_table_says_so(tmp_path: Path) -> None:
    config = small_config(tmp_path, "table1", seeds=3)
    cells = plan_cells(config, PAPER, all_specs()).cells
    assert [cell.seed for cell in cells if cell.spec.name == "probe"] == [0]
    assert [cell.seed for cell in cells if cell.spec.name == "qlora"] == [0, 1, 2]
    measured = {"accuracy": {"value": 0.5}, "images": 8}
    outcomes = {
        cell.name: ExperimentResult(cell.name, "done", measured, {}, {}) for cell in cells if cell.spec.kind != "data"
    }
    table = accuracy_table(Results(config, PAPER, outcomes, ()), "table1")
    entries = {row.name: row.entries["emoji-scenes"] for row in table.rows}
    assert (entries["probe"].values, entries["probe"].spread, entries["probe"].reason) == ((0.5,), None, "")
    assert entries["qlora"].values == (0.5, 0.5, 0.5)
    (note,) = [note for note in table.notes if note.startswith("Run once")]
    own = f"zero-shot ({portable(config.settings.backbone.id)})"
    assert note == f"Run once, since nothing in them depends on a seed: {own}, zero-shot-letters, sepm, probe."
    single = accuracy_table(Results(replace(config, seeds=(0,)), PAPER, outcomes, ()), "table1")
    assert not [note for note in single.notes if note.startswith("Run once")], "there, everything was run once"


def test_data_sets_are_found_by_their_names(tmp_path: Path) -> None:
    pictures(tmp_path / "fi", "folders")
    pictures(tmp_path / "Emotion6", "splits")
    pictures(tmp_path / "mine", "folders")
    found, missing = find_sources(tmp_path, None, DataConfig(), PAPER)
    assert [source.name for source in found] == ["FI", "Emotion6"]
    assert [source.data.splits.kind for source in found] == ["paper-like", "auto"], "a published split stays"
    assert open_dataset(found[0].data).split_by == "paper-like"
    assert {skipped.dataset: skipped.reason for skipped in missing}["Flickr"].startswith("no data at ")
    assert len(missing) == 5
    (own,), none = find_sources(tmp_path, ("mine",), DataConfig(), PAPER)
    assert (own.name, none) == ("mine", ())
    with pytest.raises(UsageError, match="some of yours"):
        find_sources(tmp_path, ("yours",), DataConfig(), PAPER)


def test_where_labels_come_from_counts_for_ones_own_data_sets_not_for_those_that_are_drawn(tmp_path: Path) -> None:
    for number, name in enumerate(("joy1.png", "joy2.png", "sad1.png", "sad2.png")):
        put(tmp_path / "mine" / name, number)
    budget_settings = DataConfig(label_pattern=r"(?P<label>[a-z]+)\d")
    (own,), _ = find_sources(tmp_path, ("mine",), budget_settings, PAPER)
    assert open_dataset(own.data).labels == ("joy", "sad")
    assert drawn_source(tmp_path, budget_settings).data.label_pattern is None


def test_without_annotations_rows_with_aspects_are_not_run(tmp_path: Path) -> None:
    pictures(tmp_path / "FI", "folders")
    found, missing = find_sources(tmp_path, None, DataConfig(), PAPER)
    assert find_teacher(tmp_path, DataConfig(), found, PAPER) is None
    config = replace(small_config(tmp_path, "table2"), sources=found, missing=missing, drawn=None)
    plan = plan_cells(config, PAPER, all_specs())
    assert {cell.spec.name for cell in plan.cells} == {"data", "V", "V+S"}
    reasons = {skipped.system: skipped.reason for skipped in plan.skipped if skipped.dataset == "FI"}
    assert set(reasons) == {"V+A", "V+A+rS", "V+A+S"}
    assert "--aspects ADAPTER" in reasons["V+A+S"]
    given = plan_cells(replace(config, adapter=tmp_path), PAPER, all_specs())
    names = [cell.name for cell in given.cells]
    assert "FI/V+A+S/seed1" in names
    assert not any("stage-1" in name for name in names)
    assert names.count("FI/V+A/seed0") == 1
    assert "FI/V+A/seed1" not in names, "with aspects from elsewhere nothing in V+A depends on a seed"


def test_a_folder_of_aspects_teaches_them_where_emoset_is_missing(tmp_path: Path) -> None:
    pictures(tmp_path / "FI", "folders")
    put(tmp_path / "aspects" / "beach.png", 1)
    (tmp_path / "aspects" / "list.csv").write_text("image,aspect,value,split\nbeach.png,scene,beach,train\n")
    found, _ = find_sources(tmp_path, None, DataConfig(), PAPER)
    teacher = find_teacher(tmp_path, DataConfig(), found, PAPER)
    assert (teacher.name, teacher.annotated, [source.name for source in found]) == ("aspects", True, ["FI"])
    config = replace(small_config(tmp_path, "table2", seeds=1), sources=found, teacher=teacher, drawn=None)
    assert "aspects/stage-1/seed0" in named(plan_cells(config, PAPER, all_specs()), "FI/V+A+S/seed0").needs


def test_emoset_teaches_the_aspects_of_all(tmp_path: Path) -> None:
    teacher = DatasetSource("EmoSet", DataConfig(path=tmp_path / "EmoSet"), annotated=True)
    fi = DatasetSource("FI", DataConfig(path=tmp_path / "FI"), annotated=False)
    config: ReproduceConfig = replace(small_config(tmp_path, "table2", seeds=1), sources=(fi,), teacher=teacher)
    plan = plan_cells(config, PAPER, all_specs())
    assert "EmoSet/stage-1/seed0" in named(plan, "FI/V+A+S/seed0").needs
    assert "EmoSet/data/seed0" not in {cell.name for cell in plan.cells}, "its test images are not needed"
    assert {cell.dataset for cell in plan.cells if cell.spec.kind == "masp"} == {"FI"}


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request("all", Path("out"), data=Path("somewhere")), UsageError, "--data was given without --backbone"),
        (Request("all", Path("out"), datasets=("FI",)), UsageError, "--datasets was given without --data"),
        (Request("all", Path("out"), config=Path("a.yaml"), quick=True), UsageError, "--quick"),
        (Request("table5", Path("out")), UsageError, "table5"),
        (Request("all", Path("out"), changes=("qlora.ranks=4",)), UsageError, "qlora has no setting 'ranks'"),
        (Request("all", Path("out"), changes=("prompt.rate=4",)), ConfigError, "prompt.rate"),
        (Request("all", Path("out"), changes=("method.prompt_length=0",)), UsageError, "prompt_length is 0"),
        (Request("all", Path(__file__)), UsageError, "is a file"),
    ],
)
def test_what_makes_no_sense_is_refused(request_: Request, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        config_of(request_)


def test_the_record_of_a_command_names_no_place(tmp_path: Path) -> None:
    request = Request("table2", tmp_path, tmp_path, str(tmp_path), ("FI",), 2, changes=("prompt.epochs=2",))
    assert request.command(4) == (
        "masp reproduce table2 --data ROOT --backbone FOLDER --datasets FI --seeds 2 --jobs 4 prompt.epochs=2"
    )


def settings_with(config: ReproduceConfig, prompt: PromptTraining) -> RunConfig:
    """The settings of a call with another stage 2."""
    return config.settings.model_copy(update={"prompt": prompt})


def test_table_1_says_the_budget_that_all_systems_share(tmp_path: Path) -> None:
    config = replace(small_config(tmp_path, "table1"), others=("qlora.rank=4", "sepm.dropped=0.3"))
    prompt = PromptTraining(max_steps=110, batch_size=64, epochs=100)
    config = replace(config, settings=settings_with(config, prompt))
    facts = {"splits": {"train": 5000, "test": 8}, "split_by": "published", "majority": {"value": 0.5}, "guess": 0.5}
    data = ExperimentResult("emoji-scenes/data/seed0", "done", facts, {}, {})
    results = Results(config, PAPER, {data.cell: data}, ())
    assert budgets(results, ["emoji-scenes"]) == {"emoji-scenes": StepBudget(5000, 110, 64)}
    (note,) = [note for note in accuracy_table(results, "table1").notes if note.startswith("One budget")]
    assert "110 steps of 64 (1.4 × its 5,000 training images)" in note
    assert note.endswith("Set otherwise: qlora.rank=4.")
    assert "prompt.loss" not in note
    other = prompt.model_copy(update={"loss": "labels"})
    results = replace(results, config=replace(config, settings=settings_with(config, other)))
    (note,) = [note for note in accuracy_table(results, "table1").notes if note.startswith("One budget")]
    assert "The soft prompts learn which label is the most probable (prompt.loss=labels)" in note
    assert "instruction has as many questions" in note
    assert "qlora and instruction the tokens of the right answer" in note
    set_here = ("qlora.rank=4", "instruction.rank=4", "concepts.strength=0.5")
    bare = replace(
        config, others=set_here, sources=tuple(replace(source, annotated=False) for source in config.sources)
    )
    notes = accuracy_table(replace(results, config=bare), "table1").notes
    (note,) = [note for note in notes if note.startswith("One budget")]
    assert "instruction" not in note
    assert "concept" not in note
    assert note.endswith("Set otherwise: qlora.rank=4.")
    assert not [note for note in accuracy_table(results, "table2").notes if note.startswith("One budget")]


@pytest.mark.parametrize(
    ("stage", "examples", "expected"),
    [
        (TrainConfig(max_steps=110, batch_size=64, epochs=100), 5000, StepBudget(5000, 110, 64)),
        (TrainConfig(batch_size=8, epochs=3), 182, StepBudget(182, 69, 8)),
        (TrainConfig(batch_size=1, epochs=3), 1386, StepBudget(1386, 4158, 1)),
    ],
)
def test_the_budget_is_what_the_soft_prompt_learns_from(
    stage: TrainConfig, examples: int, expected: StepBudget
) -> None:
    assert step_budget(stage, examples) == expected
    order = Batches(examples, stage.batch_size, 0)
    assert loop_settings(stage, order, "").steps == expected.steps, "as the loop counts"


def test_the_rule_gives_every_system_the_steps_of_the_soft_prompt() -> None:
    """182 images: ten epochs of a distilled head would be 60 steps, so that it gets more of them."""
    stage = TrainConfig(max_steps=300, batch_size=8, epochs=100)
    ruled = budget_settings(stage, step_budget(stage, 182), 256)
    for name in ("qlora", "instruction"):
        found = checked(name, dict(map(parsed_override, changes_of(name, ruled))))
        assert (found.max_steps, found.batch_size, found.schedule, found.warmup) == (300, 8, "cosine", 0.03)
        assert found.learning_rate == 0.00195
        assert found.epochs * -(-182 // 8) >= 300
    heads = checked(
        "distilled", dict(map(parsed_override, [c for c in changes_of("distilled", ruled) if "over" not in c]))
    )
    epochs = (heads.teacher_epochs, heads.head_epochs, heads.gate_epochs)
    assert epochs == (53, 53, 53)
    assert 53 * -(-182 // heads.batch_size) >= 300
    many = changes_of("distilled", budget_settings(stage, step_budget(stage, 100_000), 256))
    assert {"teacher_epochs=10", "head_epochs=5", "gate_epochs=10", "over.max_steps=300"} <= set(many)


def test_the_reading_is_a_setting_of_all_systems_that_generate(tmp_path: Path) -> None:
    request = Request("table1", tmp_path, reading="generate", changes=("sepm.reading=score",))
    config = config_of(request)
    assert config.reading == "generate"
    own = {name: changes_of(name, config.others) for name in OTHERS}
    assert own["qlora"] == own["instruction"] == own["zero-shot-letters"] == ("reading=generate",)
    assert own["sepm"] == ("reading=generate", "reading=score"), "the last one wins"
    assert own["distilled"] == ("over=qlora", "over.reading=generate")
    assert own["probe"] == own["concepts"] == ()
    assert request.command(1) == "masp reproduce table1 --reading generate --seeds 3 --jobs 1 sepm.reading=score"
    assert config_of(replace(request, reading="score", changes=())).others == ()


def test_settings_of_reading_hold_for_the_drawn_pictures_too(tmp_path: Path) -> None:
    """Training has them from the budget_settings, testing from the data set."""
    config = config_of(Request("table2", tmp_path, changes=("data.longest_side=84",)))
    (source,) = config.sources
    assert (config.settings.data.longest_side, source.data.longest_side) == (84, 84)
    assert (source.data.path, source.data.layout) == (tmp_path / "scratch" / "data" / "emoji-scenes", "emoset")


def test_a_mean_of_aspects_takes_the_seeds_that_all_of_them_have(tmp_path: Path) -> None:
    """Each aspect lacks one seed: another one for each half, so that only seed 2 is in all of them."""
    config = small_config(tmp_path, "figure3", seeds=3)
    missing = {f"emoji-scenes/V+{name}+S/seed{place % 2}" for place, name in enumerate(ASPECTS)}
    outcomes = {}
    for cell in plan_cells(config, PAPER, all_specs()).cells:
        figures = {"accuracy": {"value": 0.1 * (cell.seed + 1)}, "images": 8}
        state = "failed" if cell.name in missing else "done"
        if cell.spec.kind != "data":
            outcomes[cell.name] = ExperimentResult(cell.name, state, figures, {}, {}, error="no memory")
    table = accuracy_table(Results(config, PAPER, outcomes, ()), "figure3")
    rows = {row.name: row.entries["emoji-scenes"] for row in table.rows}
    assert (rows[ASPECTS[0]].seeds, rows[ASPECTS[1]].seeds) == ((1, 2), (0, 2))
    mean = rows["mean of single aspects"]
    assert (mean.seeds, mean.values) == ((2,), pytest.approx((0.3,)))
    assert mean.reason == "seed 0: no memory"
