"""What decides a cell's figures is in its identity, so that a change runs it again; nothing else is."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures import tiny
from fixtures.adapters import write_adapter, write_questions
from fixtures.reproduction import PLAN, small_config
from masp.baselines import registry as catalogue
from masp.core.aspects import ASPECTS
from masp.core.prompts import load_questions
from masp.demo import pictures
from masp.reproduce import library
from masp.reproduce.dag import Experiment
from masp.reproduce.runner import Runner
from masp.reproduce.specs import ATTENTION, FULL, PLAIN, Spec, divided, masp, read_by, spec_of

ALONE, RANDOM = masp(ASPECTS, "none"), masp((), "random")
LETTERS, PROBE, LORA, DISTILLED = (spec_of(name) for name in ("zero-shot-letters", "probe", "qlora", "distilled"))
CONCEPTS = spec_of("concepts")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("identity")
    pictures.draw_dataset(folder / "scratch" / "data" / "emoji-scenes", PLAN, lambda _: None)
    write_questions(folder / "own.json")
    write_adapter(folder / "adapter", prompt=False)
    return folder


@pytest.fixture(autouse=True)
def _loaded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one backbone, instead of loading it for each identity."""
    monkeypatch.setattr(library, "load_backbone", lambda _: tiny.backbone())


def identity(out: Path, spec: Spec, *changes: str, seed: int = 0, adapter: bool = False) -> dict[str, Any]:
    """The identity of a cell under changed settings; those of other systems begin with the system's name."""
    own, others = divided([change.replace("OWN", str(out / "own.json")) for change in changes])
    config = small_config(out, "table1", changes=tuple(own))
    config = replace(config, others=(*config.others, *others), adapter=out / "adapter" if adapter else None)
    return Runner(config).identity(Experiment("emoji-scenes", spec, seed))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {key for key in {**one, **other} if one.get(key, ...) != other.get(key, ...)}


@pytest.mark.parametrize(
    ("spec", "change", "key"),
    [
        (PLAIN, "questions=OWN", "questions"),
        (PLAIN, "method.label_list=python", "method.label_list"),
        (PLAIN, "method.positions=sequential", "method.positions"),
        (RANDOM, "questions=OWN", "questions"),
        (RANDOM, "method.label_list=python", "method.label_list"),
        (RANDOM, "method.prompt_length=5", "method.prompt_length"),
        (RANDOM, "method.prompt_places=both", "method.prompt_places"),
        (RANDOM, "prompt.init.kind=vocabulary", "prompt.init.kind"),
        (LETTERS, "questions=OWN", "questions"),
        (PROBE, "questions=OWN", "questions"),
        (spec_of("sepm"), "sepm.dropped=0.3", "settings.dropped"),
        (LORA, "qlora.rank=4", "settings.rank"),
        (DISTILLED, "questions=OWN", "questions"),
        (DISTILLED, "distilled.hidden=7", "settings.hidden"),
        (DISTILLED, "qlora.rank=4", "settings.over.rank"),
        (CONCEPTS, "concepts.fewest=7", "settings.fewest"),
        (CONCEPTS, "prompt.learning_rate=0.5", "prompt"),
        (CONCEPTS, "aspects.max_steps=2", "stage 1"),
    ],
)
def test_what_decides_the_figures_is_in_it(out: Path, spec: Spec, change: str, key: str) -> None:
    assert differences(identity(out, spec), identity(out, spec, change)) == {key}


@pytest.mark.parametrize("change", ["questions=OWN", "method.label_list=python"])
def test_aspects_from_elsewhere_do_not_hide_the_question(out: Path, change: str) -> None:
    """Their tensors are in it, but not how the model is asked."""
    found = differences(identity(out, ALONE, adapter=True), identity(out, ALONE, change, adapter=True))
    assert found == {change.partition("=")[0]}


def test_aspects_from_elsewhere_bring_their_positions(out: Path) -> None:
    """The model is put together by the adapter's method, so the setting of this run changes nothing."""
    before = identity(out, ALONE, adapter=True)
    assert before["method.positions"] == "native"
    assert identity(out, ALONE, "method.positions=sequential", adapter=True) == before
    assert identity(out, PLAIN, "method.positions=sequential", adapter=True)["method.positions"] == "sequential"


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (PLAIN, ("prompt.learning_rate=0.5", "method.prompt_length=5", "prompt.init.kind=vocabulary")),
        (PLAIN, ("method.queries=3", "aspects.max_steps=2", "method.label_order=shuffled", "data.workers=0")),
        (
            RANDOM,
            ("prompt.learning_rate=0.5", "prompt.max_steps=3", "method.queries=3", "method.supervised=answer_end"),
        ),
        (ALONE, ("prompt.learning_rate=0.5", "prompt.batch_size=2")),
        (LETTERS, ("method.label_list=python", "method.prompt_length=5", "qlora.rank=4")),
        (PROBE, ("prompt.learning_rate=0.5", "qlora.rank=4", "distilled.hidden=7")),
        (LORA, ("qlora.checkpoint_every=7", "instruction.rank=4", "aspects.max_steps=2")),
        (DISTILLED, ("qlora.checkpoint_every=7", "distilled.checkpoint_every=7", "instruction.rank=4")),
        (CONCEPTS, ("qlora.rank=4", "distilled.hidden=7", "prompt.checkpoint_every=7")),
    ],
)
def test_what_has_no_part_in_the_figures_is_not(out: Path, spec: Spec, changes: tuple[str, ...]) -> None:
    assert identity(out, spec, *changes) == identity(out, spec)


@pytest.mark.parametrize(("name", "key"), [("qlora", "settings.over.rank"), ("distilled", "settings.hidden")])
def test_other_defaults_are_another_system(out: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    """A package with other defaults must not take the figures of this one for its own."""
    before, entries = identity(out, DISTILLED), catalogue.CATALOGUE
    changed = replace(entries[name], defaults={key.rpartition(".")[2]: 3})
    monkeypatch.setattr(catalogue, "CATALOGUE", {**entries, name: changed})
    assert differences(before, identity(out, DISTILLED)) == {key}


def test_it_holds_every_setting_by_name(out: Path) -> None:
    found = identity(out, DISTILLED, "qlora.learning_rate=3e-3", seed=1)
    assert (found["settings.over"], found["settings.over.learning_rate"]) == ("qlora", 0.003)
    assert (found["settings.over.max_steps"], found["settings.over.rank"]) == (2, 8)
    assert (found["settings.hidden"], found["settings.head_epochs"]) == (1024, 1)
    assert (found["seed"], found["questions"]) == (1, load_questions().fingerprint())
    assert found["backbone"] == tiny.backbone().fingerprint()
    plain = identity(out, LETTERS, seed=1)
    assert (plain["settings.options"], plain["settings.reading"], plain["seed"]) == ("letters", "score", None)
    assert identity(out, PROBE, seed=1)["seed"] is None


def test_what_stands_on_a_training_follows_it(out: Path) -> None:
    changed = ("prompt.learning_rate=0.5",)
    assert differences(identity(out, FULL), identity(out, FULL, *changed)) == {"prompt.learning_rate"}
    assert differences(identity(out, ATTENTION), identity(out, ATTENTION, *changed)) == {"prompt"}
    again = ("aspects.learning_rate=0.5",)
    for spec in (ALONE, FULL, masp(ASPECTS, "random")):
        assert differences(identity(out, spec), identity(out, spec, *again)) == {"stage 1"}


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        (PLAIN, {"reading"}),
        (RANDOM, {"reading"}),
        (FULL, {"reading"}),
        (LETTERS, {"settings.reading"}),
        (LORA, {"settings.reading"}),
        (DISTILLED, {"settings.over.reading"}),  # its gate learns from what the other system answers
        (PROBE, set()),
        (CONCEPTS, set()),
        (ATTENTION, set()),
    ],
)
def test_the_reading_is_in_the_identity_of_what_can_be_asked_for_a_text(out: Path, spec: Spec, keys: set[str]) -> None:
    config, cell = small_config(out, "table1"), Experiment("emoji-scenes", spec, 0)
    other = replace(config, others=(*config.others, *read_by("generate")), reading="generate")
    scored, generated = Runner(config), Runner(other)
    assert differences(scored.identity(cell), generated.identity(cell)) == keys
    trained_again = "settings.over.reading" in keys
    assert (scored.folder(cell) == generated.folder(cell)) == (not trained_again)


SEPM, SIZE = spec_of("sepm"), "data.longest_side=1000"


@pytest.mark.parametrize(
    ("spec", "changes", "side"),
    [
        (PLAIN, (), None),  # as the backbone's own processor says
        (LETTERS, (), None),
        (SEPM, (), None),
        (PLAIN, (SIZE,), 1000),
        (SEPM, (SIZE,), 1000),
        (PLAIN, ("data.longest_side=1024",), 1024),  # said, though it is the default
        (PLAIN, ("method.variant=released",), 1024),  # the authors shrink for everything
        (RANDOM, (), 1024),
        (ALONE, (), 1024),
        (FULL, (), 1024),
        (PROBE, (), 1024),
        (LORA, (), 1024),
    ],
)
def test_the_backbone_alone_reads_images_as_its_own_processor_says(
    out: Path, spec: Spec, changes: tuple[str, ...], side: int | None
) -> None:
    assert identity(out, spec, *changes)["longest_side"] == side


def test_packed_weights_are_others(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone in 4 bits has the same fingerprint and computes in the same format."""
    runner = Runner(small_config(out, "table1"))
    cell = Experiment("emoji-scenes", PLAIN, 0)
    before = runner.identity(cell)
    monkeypatch.setattr(runner.library.backbone, "weight_dtype", "nf4/float32")
    assert differences(before, runner.identity(cell)) == {"backbone.dtype"}
