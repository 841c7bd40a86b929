"""Importing the authors' checkpoints: what fits becomes an adapter that predicts, everything else is refused whole."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import tiny
from fixtures.released_files import NAME, PROMPT, QUERIES, aspect_tables, prompt_table, saved
from masp import Masp
from masp.adapters import load_adapter, read_info
from masp.adapters.import_released import import_released, labels_of, read_aspects, read_soft_prompt
from masp.core.aspects import ASPECTS
from masp.core.errors import AdapterError, BackboneError, DataError, UsageError
from masp.core.labels import RELEASED_LABELS

EMOTION6 = ("sadness", "fear", "surprise", "anger", "joy", "disgust")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path / "aspect.pth", aspect_tables()), saved(tmp_path / "soft_prompt_emotion6.pt", prompt_table())


@pytest.fixture
def backbone() -> str:
    return str(tiny.checkpoint())


# --- what fits -----------------------------------------------------------------------------------------------------


def test_both_files_become_an_adapter_that_predicts(tmp_path, files, backbone) -> None:
    info = import_released(tmp_path / "out", backbone, *files)
    assert info == read_info(tmp_path / "out")
    assert (info.parts, info.aspects, info.labels) == (("aspects", "prompt"), ASPECTS, EMOTION6)
    assert (info.method.variant, info.method.queries, info.prompt_length) == ("released", QUERIES, PROMPT)
    assert (info.method.prompt_places, info.method.attention, info.longest_side) == ("both", "multihead", 1024)
    assert set(info.imported) == {"aspect.pth", "soft_prompt_emotion6.pt"}
    found = Masp.from_pretrained(tmp_path / "out", backbone, dtype="float32")
    prediction = found.predict(tiny.picture(84, 84))
    assert tuple(prediction.probabilities) == EMOTION6
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(prediction.aspects) == ASPECTS
    assert "['sadness', 'fear', 'surprise', 'anger', 'joy', 'disgust']" in found.task.question
    card = (tmp_path / "out" / "README.md").read_text()
    assert "converted from aspect.pth" in card
    assert "masp has not measured it" in card


def test_every_number_comes_through_by_its_name(tmp_path, files, backbone) -> None:
    import_released(tmp_path / "out", backbone, *files)
    adapter = load_adapter(tmp_path / "out", tiny.backbone())
    expected = aspect_tables()
    assert list(expected["q_view"]) != list(expected["cross_attn"]) == list(ASPECTS)
    for aspect in ASPECTS:
        module = adapter.aspects.module(aspect).state_dict()
        assert torch.equal(module.pop("queries"), expected["q_view"][aspect])
        assert module.keys() == expected["cross_attn"][aspect].keys()
        assert all(torch.equal(value, expected["cross_attn"][aspect][name]) for name, value in module.items())
    assert torch.equal(adapter.prompt.vectors, torch.stack(list(prompt_table().values())))


def test_a_prompt_alone_is_v_plus_s(tmp_path, files, backbone) -> None:
    info = import_released(tmp_path / "out", backbone, soft_prompt=files[1], labels=("a", "b"))
    assert (info.parts, info.aspects, info.labels, info.method.queries) == (("prompt",), (), ("a", "b"), 5)
    prediction = Masp.from_pretrained(tmp_path / "out", backbone, dtype="float32").predict(tiny.picture(84, 84))
    assert (tuple(prediction.probabilities), prediction.aspects) == (("a", "b"), {})


def test_aspects_alone_read_and_can_be_trained_on(tmp_path, files, backbone) -> None:
    info = import_released(tmp_path / "out", backbone, aspects=files[0])
    assert (info.parts, info.aspects, info.labels, info.prompt_length) == (("aspects",), ASPECTS, (), 0)
    with pytest.raises(AdapterError, match="reads aspects but has no labels"):
        Masp.from_pretrained(tmp_path / "out")
    found = Masp.from_pretrained(tmp_path / "out", backbone, labels=EMOTION6, dtype="float32").predict(
        tiny.picture(84, 84)
    )
    assert tuple(found.aspects) == ASPECTS


def test_other_orders_and_formats_of_the_same_numbers(tmp_path) -> None:
    table = prompt_table()
    path = saved(tmp_path / "a.pt", dict(reversed(table.items())))
    assert torch.equal(read_soft_prompt(path, tiny.DIM).vectors, torch.stack(list(table.values())))
    half = {name: torch.nn.Parameter(row.bfloat16()) for name, row in table.items()}
    found = read_soft_prompt(saved(tmp_path / "b.pt", half), tiny.DIM).vectors
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.stack(list(half.values())).float())
    content = aspect_tables()
    plain = read_aspects(saved(tmp_path / "c.pth", content), tiny.DIM).state_dict()
    turned = {"cross_attn": content["cross_attn"], "q_view": {n: content["q_view"][n].T.clone().T for n in ASPECTS}}
    again = read_aspects(saved(tmp_path / "d.pth", turned), tiny.DIM).state_dict()  # no fuser, other strides
    assert all(torch.equal(again[name], value) for name, value in plain.items())


def test_the_same_files_give_the_same_bytes(tmp_path, files, backbone) -> None:
    for name in ("one", "two"):
        import_released(tmp_path / name, backbone, *files)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_questions_of_ones_own(tmp_path, files, backbone) -> None:
    own = {name: [f"What about {name}?"] for name in ASPECTS} | {"emotion": ["Feeling? {}", "Other? {}"]}
    (tmp_path / "prompts.json").write_text(json.dumps(own))
    info = import_released(tmp_path / "out", backbone, *files, questions=tmp_path / "prompts.json")
    assert (info.questions["emotion"], info.questions["scene"]) == ("Feeling? {}", "What about scene?")


# --- what does not -------------------------------------------------------------------------------------------------


def changed(**parts: object) -> dict[str, Any]:
    return {**aspect_tables(), **parts}


def with_queries(value: object) -> dict[str, Any]:
    return changed(q_view={**aspect_tables()["q_view"], "scene": value})


def with_attention(name: str, value: object) -> dict[str, Any]:
    tables = aspect_tables()
    tables["cross_attn"]["object"][name] = value
    return tables


def without(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


D = tiny.DIM
BAD_ASPECTS = {
    "a tensor": (
        torch.zeros(3),
        "holds a tensor of float32 with the shape .3,.; expected a table of q_view, cross_attn",
    ),
    "nothing": ({}, "lacks 'q_view'"),
    "no queries": (without(aspect_tables(), "q_view"), "lacks 'q_view'"),
    "no attention": (without(aspect_tables(), "cross_attn"), "lacks 'cross_attn'"),
    "one more part": (changed(extra=torch.zeros(2)), "has the unknown 'extra'"),
    "a fuser": (changed(fuser=torch.zeros(2)), "has the unknown 'fuser'"),
    "an aspect too few": (changed(q_view=without(aspect_tables()["q_view"], "scene")), "q_view lacks 'scene'"),
    "an aspect misspelt": (
        changed(cross_attn={**aspect_tables()["cross_attn"], "colourfulness": {}}),
        "cross_attn has the unknown 'colourfulness'",
    ),
    "a text": (with_queries("hello"), r"queries of scene is str; expected a dense tensor"),
    "a table for a tensor": (with_queries({}), "queries of scene is dict with 0 keys"),
    "a tensor for a table": (changed(q_view=torch.zeros(3, D)), "q_view holds a tensor"),
    "a tensor for an aspect": (
        changed(cross_attn={**aspect_tables()["cross_attn"], "scene": torch.zeros(2)}),
        "cross_attn.scene holds a tensor",
    ),
    "other counts": (with_queries(torch.zeros(QUERIES + 1, D)), rf"has the shape \(4, {D}\); expected \(3, {D}\)"),
    "one axis": (with_queries(torch.zeros(D)), rf"queries of scene has the shape \({D},\)"),
    "not a number": (with_queries(torch.full((QUERIES, D), float("nan"))), "holds values that are not finite"),
    "infinite": (
        with_attention("in_proj_bias", torch.full((3 * D,), float("inf"))),
        "in_proj_bias of object holds val",
    ),
    "turned": (
        with_attention("in_proj_weight", torch.zeros(D, 3 * D)),
        rf"in_proj_weight of object .* \({D}, {3 * D}\)",
    ),
    "no bias": (
        changed(cross_attn={a: without(t, "out_proj.bias") for a, t in aspect_tables()["cross_attn"].items()}),
        "lacks 'out_proj.bias'",
    ),
    "a tensor more": (with_attention("bias_k", torch.zeros(D)), "has the unknown 'bias_k'"),
    "double": (with_queries(torch.zeros(QUERIES, D).double()), "asks for 'torch.DoubleStorage'"),
    "whole": (with_queries(torch.zeros(QUERIES, D).int()), "asks for 'torch.IntStorage'"),
    "8 bits": (with_queries(torch.zeros(QUERIES, D).to(torch.float8_e4m3fn)), "asks for"),
    "complex": (with_queries(torch.zeros(QUERIES, D, dtype=torch.complex64)), "asks for 'torch.ComplexFloatStorage'"),
    "sparse": (with_queries(torch.eye(QUERIES, D).to_sparse()), "asks for 'torch._utils._rebuild_sparse_tensor'"),
    "meta": (with_queries(torch.zeros(QUERIES, D, device="meta")), "asks for 'torch._utils._rebuild_meta_tensor_no"),
    "huge by strides": (
        changed(q_view={a: torch.zeros(1).expand(10**9, D) for a in ASPECTS}),
        rf"q_view.facial_expression holds a tensor of float32 with the shape \(1000000000, {D}\)",
    ),
    "no queries at all": (changed(q_view={a: torch.zeros(0, D) for a in ASPECTS}), "expected queries of the shape"),
    "a prompt": (prompt_table(), "lacks 'q_view'"),
}


def with_vector(value: object, name: str = NAME.format(3)) -> dict[str, Any]:
    return {**prompt_table(), name: value}


BAD_PROMPTS = {
    "nothing": ({}, "holds dict with 0 keys; expected a table of numbered vectors"),
    "a tensor": (torch.zeros(PROMPT, D), "expected a table of numbered vectors"),
    "a gap": (without(prompt_table(), NAME.format(2)), "has 6 vectors, but none with the number 2"),
    "no first": (without(prompt_table(), NAME.format(0)), "none with the number 0"),
    "a gap behind": (with_vector(torch.zeros(D), NAME.format(9)), "has 8 vectors, but none with the number 7"),
    "a leading zero": (
        with_vector(torch.zeros(D), NAME.format("07")),
        r"has the key '<\|reserved_special_token_07\|>'",
    ),
    "a sign": (with_vector(torch.zeros(D), NAME.format("+7")), "has the key"),
    "other digits": (with_vector(torch.zeros(D), NAME.format("٧")), "has the key"),
    "a long number": (with_vector(torch.zeros(D), NAME.format("7" * 5000)), "has the key"),
    "another name": (with_vector(torch.zeros(D), "soft_prompt"), "has the key 'soft_prompt'"),
    "a number as key": ({0: torch.zeros(D)}, "has the key 0"),
    "a text": (with_vector("x"), "vector 3 is str; expected a dense tensor of float32"),
    "nothing for a vector": (with_vector(None), "vector 3 is NoneType"),
    "a matrix": (with_vector(torch.zeros(1, D)), rf"vector 3 has the shape \(1, {D}\); expected \({D},\)"),
    "not a number": (with_vector(torch.full((D,), float("nan"))), "vector 3 holds values that are not finite"),
    "too small for itself": (with_vector(torch.zeros(D, dtype=torch.int8)), "asks for 'torch.CharStorage'"),
    "aspects": (aspect_tables(), "has the key 'q_view'"),
}


@pytest.mark.parametrize(
    ("which", "kind"), [*(("aspects", kind) for kind in BAD_ASPECTS), *(("soft_prompt", kind) for kind in BAD_PROMPTS)]
)
def test_what_is_refused(tmp_path, backbone, which: str, kind: str) -> None:
    content, complaint = (BAD_ASPECTS if which == "aspects" else BAD_PROMPTS)[kind]
    tables = {"aspects": aspect_tables(), "soft_prompt": prompt_table(), which: content}
    files = {name: saved(tmp_path / f"{name}.pt", table) for name, table in tables.items()}
    with pytest.raises(AdapterError, match=complaint):
        import_released(tmp_path / "out", backbone, **files)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["aspects.pt", "soft_prompt.pt"]


@pytest.mark.parametrize("which", ["aspects", "soft_prompt"])
def test_a_hidden_size_of_another_backbone(tmp_path, backbone, which: str) -> None:
    content = aspect_tables(dim=46) if which == "aspects" else prompt_table(dim=46)
    with pytest.raises(AdapterError, match=r"\(.*46.*\); expected .*30.* for this backbone\. Name the backbone"):
        import_released(tmp_path / "out", backbone, **{which: saved(tmp_path / "a.pth", content)})
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_stays(tmp_path, files, backbone) -> None:
    (tmp_path / "out").mkdir()
    import_released(tmp_path / "out", backbone, *files)  # an empty folder is fine
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for place in (tmp_path / "out", files[0]):
        with pytest.raises(UsageError, match="exists already; expected a folder that is new or empty"):
            import_released(place, backbone, *files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_calls_that_make_no_sense(tmp_path, files, backbone) -> None:
    with pytest.raises(UsageError, match="there is nothing to import"):
        import_released(tmp_path / "out", backbone)
    with pytest.raises(BackboneError, match="is neither a folder nor the id of a model"):
        import_released(tmp_path / "out", "no such/folder/here", *files)
    with pytest.raises(DataError, match="too few labels"):
        import_released(tmp_path / "out", backbone, *files, labels=("joy",))
    assert not (tmp_path / "out").exists()


def test_a_backbone_that_names_no_width(tmp_path, files) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with pytest.raises(BackboneError, match="names no hidden_size"):
        import_released(tmp_path / "out", str(folder), *files)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 30}))
    with pytest.raises(BackboneError, match="is of the family 'bert'"):
        import_released(tmp_path / "out", str(folder), *files)


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (None, "soft_prompt_emotion6.pt", EMOTION6),
        (None, "soft_prompt.pt", EMOTION6),
        (None, "confident.pt", EMOTION6),
        ("emotion6", "soft_prompt_emoset.pt", EMOTION6),
        ("Flickr", "soft_prompt.pt", ("positive", "negative")),
        ("emoset", "soft_prompt.pt", RELEASED_LABELS["emoset"]),
        ("joy, calm", "soft_prompt.pt", ("joy", "calm")),
    ],
)
def test_labels(text: str | None, name: str, expected: tuple[str, ...]) -> None:
    assert labels_of(text, Path(name)) == expected


def test_labels_that_are_not_clear() -> None:
    with pytest.raises(UsageError, match=r"'emotoin6' is unknown; expected one of .*Did you mean 'emotion6'\?"):
        labels_of("emotoin6", Path("p.pt"))
    with pytest.raises(UsageError, match=r"is named after emoset, and its labels are not given.* Add --labels emoset"):
        labels_of(None, Path("folder/Soft_Prompt_EmoSet.pt"))
    with pytest.raises(DataError, match="are the same answer"):
        labels_of("joy, Joy", Path("p.pt"))


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_took_and_where_it_is(tmp_path, files, backbone, masp) -> None:
    out = tmp_path / "out"
    named = ("--aspects", files[0], "--soft-prompt", files[1], "--backbone", backbone, "--out", out)
    code, printed, said = masp("import-released", *named)
    assert (code, printed) == (0, f"{out}\n")
    assert "labels: sadness, fear, surprise, anger, joy, disgust (Emotion6" in said
    assert "questions: the package's own" in said
    assert f"imported 6 aspects with {QUERIES} queries each and a soft prompt of {PROMPT} vectors" in said
    code, printed, _ = masp(
        "predict", saved_picture(tmp_path), "--adapter", out, "--backbone", backbone, "--json", "--no-explain"
    )
    assert code == 0
    assert tuple(json.loads(printed)["probabilities"]) == EMOTION6


def saved_picture(folder: Path) -> Path:
    tiny.picture(84, 84).save(folder / "p.png")
    return folder / "p.png"


class Runs:
    """A pickle of it makes a folder when it is read in the ordinary way."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("which", ["--aspects", "--soft-prompt"])
def test_the_command_refuses_a_hostile_file_in_one_line(tmp_path, backbone, masp, which: str) -> None:
    path = saved(tmp_path / "a.pth", {NAME.format(0): Runs(tmp_path / "it-ran")})
    code, printed, said = masp("import-released", which, path, "--backbone", backbone, "--out", tmp_path / "out")
    assert (code, printed) == (1, "")
    (line,) = said.splitlines()
    assert line.startswith("masp: error: the pickle in ")
    assert "asks for 'posix.mkdir'; expected dense tensors" in line
    assert [found.name for found in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ((), 2, "there is nothing to import"),
        (("--labels", "emotion6"), 2, "--labels was given without a soft prompt"),
        (("--soft-prompt", "missing.pt"), 1, "cannot be read"),
        (("--soft-prompt", "missing.pt", "--labels", "emotion5"), 2, "Did you mean 'emotion6'"),
    ],
)
def test_wrong_use_of_the_command(tmp_path, backbone, masp, words, code, complaint) -> None:
    found, printed, said = masp("import-released", *words, "--backbone", backbone, "--out", tmp_path / "out")
    assert (found, printed) == (code, "")
    assert complaint in said
    assert "Traceback" not in said


def test_a_place_that_cannot_be_written(tmp_path, files, backbone, masp) -> None:
    (tmp_path / "closed").write_text("a file where a folder is needed")
    named = ("--soft-prompt", files[1], "--backbone", backbone, "--out", tmp_path / "closed" / "out")
    code, _, said = masp("import-released", *named)
    assert code == 1
    assert "writing the adapter" in said
    assert "Traceback" not in said
