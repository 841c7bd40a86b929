"""Several soft prompts over the same aspects in one adapter: put together, loaded, switched and mixed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import tiny
from fixtures.adapters import name_a_place, write_adapter
from masp.adapters import AdapterInfo, DataRecord, combine, load_adapter, read_info, save_adapter, shipped
from masp.backbones.export import export_embedding_rows
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.errors import AdapterError, UsageError
from masp.model.aspect_attention import AspectModules
from masp.model.soft_prompt import SoftPrompt
from masp.predictor import Failure, Masp

KINDS: dict[str, dict[str, Any]] = {
    "emoset": {"labels": ("joy", "fear", "awe"), "length": 7, "seed": 11},
    "emotion6": {"labels": ("joy", "sadness", "anger", "disgust"), "length": 3, "seed": 12},
    "sentiment": {"labels": ("positive", "negative"), "length": 5, "seed": 13, "places": "both"},
}


def write_task(folder: Path, kind: str, aspects: Path | None, include_aspects: bool = True) -> Path:
    """A soft prompt of its own over the aspects of another adapter, or over none."""
    backbone, one = tiny.backbone(), KINDS[kind]
    donor = None if aspects is None else load_adapter(aspects, backbone)
    base = read_info(aspects) if aspects is not None else read_info(write_adapter(folder, aspects=()))
    length, seed = one["length"], one["seed"]
    method = MethodConfig(prompt_length=length, queries=2, prompt_places=one.get("places")).resolved()
    data = DataRecord(name=kind.capitalize(), fingerprint=str(seed) * 32, images={"train": seed})
    training = {"labels": one["labels"], "data": {"prompt": data}, "seeds": {"prompt": seed}, "method": method}
    training["imported"] = {f"soft_prompt_{kind}.pt": str(seed) * 64}
    training["metrics"] = {"aspects/score": 0.5, "prompt/accuracy": seed / 100}
    info = AdapterInfo.model_validate(base.model_dump() | training | {"aspects_sha256": {}})
    generator = torch.Generator().manual_seed(seed)
    prompt = SoftPrompt(length, backbone.dim, torch.randn(length, backbone.dim, generator=generator))
    modules = None if donor is None else donor.aspects
    save_adapter(folder, info, modules, prompt, include_aspects=include_aspects)
    name_a_place(folder, str(tiny.checkpoint()))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Three tasks over the aspects of the adapter `aspects`, and all of them together."""
    folder = tmp_path_factory.mktemp("tasks")
    write_adapter(folder / "aspects", prompt=False)
    singles = [write_task(folder / kind, kind, folder / "aspects") for kind in KINDS]
    combine(folder / "all", singles)
    name_a_place(folder / "all", str(tiny.checkpoint()))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        tiny.picture(84 + 28 * (number % 3), 112, seed=number).save(path)
    return paths


@pytest.fixture
def model(home) -> Masp:
    return Masp.from_pretrained(home / "all", tiny.backbone())


def single(home: Path, kind: str) -> Masp:
    return Masp.from_pretrained(home / kind, tiny.backbone())


def same(found, expected) -> bool:
    """Whether two predictions say the same to the last bit; the adapter's name and the task's aside."""
    left, right = found.to_json(), expected.to_json()
    return all(left[key] == right[key] for key in left.keys() - {"adapter", "task"})


def test_nothing_is_lost_by_combining(home):
    info = read_info(home / "all")
    assert tuple(info.tasks) == tuple(KINDS)  # names of the data sets, in small letters
    assert info.parts == ("aspects", "prompt")
    assert (info.labels, info.prompt_length, info.results, info.imported) == ((), 0, (), {})
    assert info.metrics == {"aspects/score": 0.5}
    for kind in KINDS:
        assert info.for_task(kind) == read_info(home / kind)
    backbone = tiny.backbone()
    model = load_adapter(home / "all", backbone)
    for kind in KINDS:
        one, alone = model.for_task(kind), load_adapter(home / kind, backbone)
        assert one.aspects is model.aspects  # in memory once
        assert torch.equal(one.prompt.vectors, alone.prompt.vectors)
        for name, value in alone.aspects.state_dict().items():
            assert torch.equal(one.aspects.state_dict()[name], value)
    sizes = {name: (home / name / "weights.safetensors").stat().st_size for name in ("all", "emoset")}
    assert sizes["all"] < 1.2 * sizes["emoset"]  # and on the disk


@pytest.mark.parametrize("explain", [True, False])
def test_each_task_predicts_as_its_own_adapter_does(home, model, pictures, explain):
    for kind in KINDS:
        expected = single(home, kind).predict(pictures, explain=explain)
        found = model.predict(pictures, explain=explain, task=kind)
        assert all(map(same, found, expected))
        assert {one.task for one in found} == {kind}
        assert {one.task for one in expected} == {None}
        assert tuple(found[0].probabilities) == KINDS[kind]["labels"]


def test_tasks_are_mixed_per_image(home, model, pictures):
    order = ["emoset", "sentiment", "emoset", "emotion6", "sentiment", "emoset"]
    mixed = model.predict(pictures, task=order)
    assert [one.task for one in mixed] == order
    assert [one.image for one in mixed] == [str(path) for path in pictures]
    for kind in KINDS:
        rows = [row for row, name in enumerate(order) if name == kind]
        expected = single(home, kind).predict([pictures[row] for row in rows])
        assert all(map(same, [mixed[row] for row in rows], expected))
    both = model.predict([pictures[0]] * 2, task=["emoset", "emotion6"], explain=False)  # one image, two tasks
    assert [tuple(one.probabilities) for one in both] == [KINDS[kind]["labels"] for kind in ("emoset", "emotion6")]
    assert model.predict([], task=[]) == []


def test_a_loaded_model_switches(home, model, pictures):
    assert model.tasks == tuple(KINDS)
    assert model.task_name is None
    found = model.use("emotion6").predict(pictures[0])
    assert same(found, single(home, "emotion6").predict(pictures[0]))
    assert (model.labels, model.task_name) == (KINDS["emotion6"]["labels"], "emotion6")
    assert model.info == read_info(home / "emotion6")
    assert model.predict(pictures[0], task="emoset").task == "emoset"
    assert model.task_name == "emotion6"  # a single call does not switch
    model.use("sentiment")
    assert model.predict(pictures[0]).task == "sentiment"
    named = Masp.from_pretrained(home / "all", tiny.backbone(), task="emoset")
    assert named.predict(pictures[0]).task == "emoset"


def test_a_stream_takes_a_task(home, model, pictures, tmp_path):
    found = list(model.predict_stream([*pictures[:3], tmp_path / "gone.png"], task="sentiment", batch_size=2))
    expected = list(single(home, "sentiment").predict_stream(pictures[:3], batch_size=2))
    assert all(map(same, found[:3], expected))
    assert isinstance(found[3], Failure)


@pytest.mark.parametrize("explain", [True, False])
def test_all_tasks_of_an_image_at_once(home, model, pictures, tmp_path, explain):
    """Two of the three share what stands before their soft prompts; the last digits may differ by that."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    shown = [pictures[0], tmp_path / "bad.png", *pictures[1:3]]
    found = model.predict_tasks(shown, explain=explain, batch_size=2, on_error="return")
    assert isinstance(found[1], Failure)
    for image, by_task in zip([pictures[0], *pictures[1:3]], [found[0], *found[2:]], strict=True):
        assert isinstance(by_task, dict)
        assert list(by_task) == list(KINDS)
        for kind, one in by_task.items():
            alone = model.predict(image, explain, task=kind)
            assert (one.label, one.task, one.answer) == (alone.label, kind, alone.answer)
            assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
            assert list(one.aspects) == list(alone.aspects)
    streamed = list(model.predict_stream(shown, 2, explain, 0, ["sentiment", "emoset"]))
    assert [getattr(one, "task", None) for one in streamed] == ["sentiment", "emoset", None] + [
        "sentiment",
        "emoset",
    ] * 2
    with pytest.raises(UsageError, match="no task 'nothing'"):
        model.predict_tasks(pictures[:1], ["emoset", "nothing"])
    with pytest.raises(UsageError, match="no tasks"):
        single(home, "emoset").predict_tasks(pictures[:1])


def test_a_task_has_to_be_named_and_known(home, model, pictures):
    calls = (
        lambda: model.predict(pictures),
        lambda: list(model.predict_stream(pictures)),
        lambda: model.labels,
        lambda: model.model,
    )
    for call in calls:
        with pytest.raises(UsageError, match=r"several tasks \(emoset, emotion6, sentiment\).*--task NAME"):
            call()
    assert model.backbone is tiny.backbone()
    for call in (
        lambda: model.use("emotion8"),
        lambda: model.predict(pictures, task=["emoset"] * 5 + ["emotion8"]),
    ):
        with pytest.raises(UsageError, match=r"no task 'emotion8'.*Did you mean 'emotion6'"):
            call()
    with pytest.raises(UsageError, match="no task 'emotion8'"):
        Masp.from_pretrained(home / "all", tiny.backbone(), task="emotion8")
    with pytest.raises(UsageError, match="one task"):
        single(home, "emoset").use("emoset")
    with pytest.raises(UsageError, match="a list of 2 tasks for 6 images"):
        model.predict(pictures, task=["emoset", "emoset"])
    with pytest.raises(UsageError, match="for one image"):
        model.predict(pictures[0], task=["emoset"])


def test_prompts_that_only_name_their_aspects_are_combined_too(home, pictures, tmp_path):
    light = [
        write_task(tmp_path / kind, kind, home / "aspects", include_aspects=False) for kind in ("emoset", "sentiment")
    ]
    info = combine(tmp_path / "light", light)
    assert info.parts == ("prompt",)
    found = Masp.from_pretrained(tmp_path / "light", tiny.backbone(), aspects=home / "aspects")
    assert same(found.predict(pictures[0], task="emoset"), single(home, "emoset").predict(pictures[0]))
    with pytest.raises(AdapterError, match="does not hold its aspects"):
        Masp.from_pretrained(tmp_path / "light", tiny.backbone())
    assert combine(tmp_path / "whole", [light[0], f"other={home / 'emotion6'}"]).parts == ("aspects", "prompt")


def test_of_an_adapter_that_ships_the_first_task_is_used_at_once(home, pictures, monkeypatch):
    monkeypatch.setattr(shipped, "shipped_adapter", lambda name: home / "all")
    monkeypatch.setattr("masp.predictor.shipped_adapter", lambda name: home / "all")
    model = Masp.from_pretrained(dtype="float32")
    assert model.task_name == "emoset"
    assert same(model.predict(pictures[0], explain=False), single(home, "emoset").predict(pictures[0], explain=False))
    assert Masp.from_pretrained(task="sentiment", dtype="float32").task_name == "sentiment"
    assert Masp.from_pretrained(home / "all", tiny.backbone()).task_name is None


def test_an_adapter_with_several_tasks_takes_one_more(home, tmp_path):
    combine(tmp_path / "two", [home / "emoset", f"six={home / 'emotion6'}"])
    info = combine(tmp_path / "three", [tmp_path / "two", home / "sentiment"])
    assert tuple(info.tasks) == ("emoset", "six", "sentiment")
    assert info.for_task("six") == read_info(home / "emotion6").model_copy(
        update={"backbone": info.backbone}
    )  # the name of the backbone lost its place
    with pytest.raises(UsageError, match=r"holds several tasks, which have names.*Leave both= out"):
        combine(tmp_path / "x", [f"both={tmp_path / 'two'}", home / "sentiment"])


def test_the_same_content_gives_the_same_bytes_and_saving_keeps_all(home, tmp_path):
    again = combine(tmp_path / "again", [home / kind for kind in KINDS])
    model = Masp.from_pretrained(home / "all", tiny.backbone(), task="emoset")
    model.save_pretrained(tmp_path / "saved")
    assert read_info(tmp_path / "saved") == again
    for name in ("weights.safetensors", "README.md", "adapter.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_refused(home, tmp_path):
    first = home / "emoset"
    other = write_adapter(tmp_path / "other backbone", family="qwen2_5_vl")
    with pytest.raises(AdapterError, match=r"other backbone was trained on .*Combine adapters of one backbone"):
        combine(tmp_path / "x", [first, other])
    write_task(tmp_path / "plain", "emotion6", None)
    with pytest.raises(AdapterError, match=r"plain has the aspects none; expected facial_expression, .*emoset"):
        combine(tmp_path / "x", [first, tmp_path / "plain"])
    write_adapter(tmp_path / "seed 5", seed=5)
    with pytest.raises(AdapterError, match=r"aspect facial_expression of .*seed 5 is another module"):
        combine(tmp_path / "x", [first, tmp_path / "seed 5"])
    with pytest.raises(AdapterError, match="has neither a soft prompt nor a concept bottleneck"):
        combine(tmp_path / "x", [first, home / "aspects"])
    with pytest.raises(AdapterError, match="does not exist"):
        combine(tmp_path / "x", [first, tmp_path / "nowhere"])
    assert not (tmp_path / "x").exists()


def test_names_are_checked(home, tmp_path):
    first, second = home / "emoset", home / "emotion6"
    with pytest.raises(UsageError, match="two tasks are called emoset"):
        combine(tmp_path / "x", [first, f"emoset={second}"])
    with pytest.raises(UsageError, match=r"'a b' is no name for a task"):
        combine(tmp_path / "x", [first, f"a b={second}"])
    with pytest.raises(UsageError, match="there are 1 tasks"):
        combine(tmp_path / "x", [first])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(AdapterError, match=r"holds thesis\.txt"):
        combine(tmp_path / "mine", [first, second])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info | {"labels": ["joy"]}, "parts, labels and prompt_length do not fit"),
        (lambda info: info | {"tasks": {"a/b": info["tasks"]["emoset"]}}, "'a/b' is no name for a task"),
        (lambda info: info | {"tasks": {"a": info["tasks"]["emoset"] | {"labels": []}}}, "tasks.a: the label set"),
        (lambda info: info | {"tasks": {"a": info["tasks"]["emoset"] | {"x": 1}}}, "tasks.a.x: Extra"),
        (lambda info: info | {"tasks": {"a": info["tasks"]["emoset"]}}, "lacks tensor prompts.a.vectors"),
    ],
)
def test_a_description_of_tasks_that_does_not_fit_is_refused(home, tmp_path, change, message):
    combine(tmp_path / "a", [home / "emoset", home / "emotion6"])
    path = tmp_path / "a" / "adapter.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(AdapterError, match=message):
        load_adapter(tmp_path / "a", tiny.backbone())


def test_aspects_that_are_not_what_their_hash_says_are_refused(home, tmp_path):
    light = [write_task(tmp_path / kind, kind, home / "aspects", include_aspects=False) for kind in ("emotion6",)]
    donor = load_adapter(home / "emoset", tiny.backbone())
    changed = AspectModules(tiny.DIM, ASPECTS, 2, "single", torch.Generator().manual_seed(9))
    info = save_adapter(tmp_path / "damaged", donor.info, changed, donor.prompt)
    path = tmp_path / "damaged" / "adapter.json"
    path.write_text(json.dumps(info.model_dump(mode="json") | {"aspects_sha256": donor.info.aspects_sha256}))
    with pytest.raises(AdapterError, match=r"aspect facial_expression of .*damaged is not what its hash says"):
        combine(tmp_path / "x", [*light, tmp_path / "damaged"])


# --- the commands ---------------------------------------------------------------------------------------------------


def test_the_commands_combine_predict_evaluate_and_export(home, pictures, tmp_path, masp):
    plain = [write_task(tmp_path / kind, kind, None) for kind in ("emoset", "emotion6")]
    both = tmp_path / "both"
    code, out, err = masp("combine", "--out", both, plain[0], f"six={plain[1]}")
    assert (code, out, "2 tasks: emoset, six" in err) == (0, f"{both}\n", True)
    place = ("--adapter", both, "--backbone", tiny.checkpoint())
    code, out, _ = masp("predict", pictures[0], *place, "--task", "six", "--json", "--no-explain")
    found = json.loads(out)
    assert (code, found["task"], tuple(found["probabilities"])) == (0, "six", KINDS["emotion6"]["labels"])
    code, out, _ = masp("predict", *pictures[:2], *place, "--all-tasks", "--json", "--no-explain")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["task"] for line in lines] == ["emoset", "six"] * 2
    assert lines[1]["probabilities"] == pytest.approx(found["probabilities"], abs=1e-4)
    code, out, err = masp("predict", pictures[0], *place, "--all-tasks", "--task", "six")
    assert (code, "--task was given with --all-tasks" in err) == (2, True)
    code, out, err = masp("predict", pictures[0], *place)
    assert (code, out, "several tasks (emoset, six)" in err) == (2, "", True)
    for label in KINDS["emotion6"]["labels"]:
        (tmp_path / "data" / "test" / label).mkdir(parents=True)
        tiny.picture(84, 84, seed=len(label)).save(tmp_path / "data" / "test" / label / "a.png")
    code, _, err = masp("evaluate", *place, "--data", tmp_path / "data", "--task", "six", "--record")
    assert code == 0, err
    tasks = read_info(both).tasks
    assert (len(tasks["six"].results), len(tasks["emoset"].results)) == (1, 0)
    code, _, err = masp("evaluate", *place, "--data", tmp_path / "data")
    assert (code, "several tasks" in err) == (2, True)
    made = export_embedding_rows(both, tmp_path / "out", str(tiny.checkpoint()), task="six")
    assert len(made.tokens) == KINDS["emotion6"]["length"]
    with pytest.raises(UsageError, match="several tasks"):
        export_embedding_rows(both, tmp_path / "out2", str(tiny.checkpoint()))
