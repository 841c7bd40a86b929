"""A soft prompt as embedding rows: plain transformers gives the logits that masp gives; all else is as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from fixtures.models import last_logits
from masp.adapters import AdapterInfo, BackboneRecord, save_adapter
from masp.backbones.base import Backbone
from masp.backbones.export import export_embedding_rows, export_rows, mean_row, opened, rewrite
from masp.backbones.files import find
from masp.backbones.loading import load_backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig
from masp.core.errors import AdapterError, BackboneError
from masp.core.prompts import load_questions
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import generate
from masp.model.soft_prompt import SoftPrompt
from masp.predictor import task_of

SPARE = tiny.VOCABULARY - len(tiny.tiny_tokenizer())
PICTURES = ((90, 62), (58, 140))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints by kind: a head of its own, a tied one, and one in several files."""
    home = tmp_path_factory.mktemp("checkpoints")
    kinds = {"untied": tiny.checkpoint(), "qwen2_5_vl": tiny.checkpoint("qwen2_5_vl")}
    for name in ("tied", "tied but stored", "flat"):
        kinds[name] = home / name
        shutil.copytree(tiny.checkpoint(), kinds[name])
    for name in ("tied", "tied but stored"):
        edit(kinds[name] / "config.json", tie_word_embeddings=True)
        weights = load_file(kinds[name] / "model.safetensors")
        head = {} if name == "tied" else {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
        kept = {key: value for key, value in weights.items() if key != "lm_head.weight"}
        save_file(kept | head, kinds[name] / "model.safetensors", {"format": "pt"})
    config = json.loads((kinds["flat"] / "config.json").read_text())  # as the first Qwen2-VL checkpoints have it
    edit(kinds["flat"] / "config.json", **config.pop("text_config") | config)
    kinds["sharded"] = home / "sharded"
    shutil.copytree(tiny.checkpoint(), kinds["sharded"], ignore=shutil.ignore_patterns("*.safetensors"))
    model = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint())
    model.save_pretrained(kinds["sharded"], max_shard_size="40KB")
    return kinds


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


def write_prompt(folder: Path, backbone: Backbone, length: int, **method: object) -> MaspModel:
    """A V+S adapter with a random soft prompt that is large enough to matter, and the model that masp makes of it."""
    settings = MethodConfig(prompt_length=length, **method).resolved()
    generator = torch.Generator().manual_seed(length)
    prompt = SoftPrompt(length, backbone.dim, torch.randn(length, backbone.dim, generator=generator))
    questions = load_questions()
    asked = {name: questions.aspect(name)[0] for name in ASPECTS} | {"emotion": questions.emotion[0]}
    record = BackboneRecord.of(backbone)
    info = AdapterInfo(backbone=record, method=settings, aspects=(), labels=LABELS, questions=asked, data={})
    save_adapter(folder, info, prompt=prompt)
    return MaspModel(backbone, settings, prompt=prompt)


def plain_logits(folder: Path, backbone: Backbone, size: tuple[int, int]) -> torch.Tensor:
    """Logits after the prompt by plain transformers, from nothing but the exported folder and its note."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids, pixels = plain_inputs(folder, backbone, size)
    with torch.no_grad():
        shown = {"pixel_values": pixels.values, "image_grid_thw": pixels.grid}
        kinds = (ids == model.config.image_token_id).int()
        return model(input_ids=ids, mm_token_type_ids=kinds, **shown).logits[0, -1]


def plain_inputs(folder: Path, backbone: Backbone, size: tuple[int, int]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = backbone.preprocess([tiny.picture(*size)])
    count = int(pixels.grid.prod()) // 4
    prompt = json.loads((folder / "masp_prompt.json").read_text())["prompt"]
    assert prompt.count("<|image_pad|>") == 1
    text = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids, pixels


@pytest.mark.parametrize("length", [SPARE - 1, SPARE + 5])
@pytest.mark.parametrize("kind", ["untied", "tied", "tied but stored", "flat", "sharded", "qwen2_5_vl"])
def test_plain_transformers_gives_the_same_logits(checkpoints, tmp_path, kind, length):
    backbone = load_backbone(str(checkpoints[kind]), dtype="float32")
    model = write_prompt(tmp_path / "a", backbone, length)
    made = export_embedding_rows(tmp_path / "a", tmp_path / "out", str(checkpoints[kind]))
    grown = max(0, length - SPARE)
    assert (made.first, made.rows) == (tiny.VOCABULARY - SPARE, tiny.VOCABULARY + grown)
    assert made.tied is kind.startswith("tied")
    question = task_of(model_info(tmp_path / "a")).question
    for size in PICTURES:
        visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(*size)]))
        ours = last_logits(model, visual, [question])[0]
        found = plain_logits(tmp_path / "out", backbone, size)
        assert len(found) == tiny.VOCABULARY + grown
        scale = ours.abs().max()
        assert (found[: made.first] - ours[: made.first]).abs().max() <= 1e-5 * scale
        without = last_logits(model, visual, [question], ActiveParts(prompt=False))[0]
        assert (without - ours).abs().max() > 1e-3 * scale  # the soft prompt does something
        if grown and not made.tied:  # a grown head's new rows never win
            assert found[tiny.VOCABULARY :].max() < found[: made.first].max()


def model_info(folder: Path) -> AdapterInfo:
    return AdapterInfo.model_validate_json((folder / "adapter.json").read_bytes())


def test_both_places_of_the_soft_prompt(tmp_path):
    backbone = tiny.backbone()
    model = write_prompt(tmp_path / "a", backbone, 3, prompt_places="both")
    made = export_embedding_rows(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint()))
    assert made.before_image == "<|masp_0|><|masp_1|><|masp_2|>"
    assert made.before_image in (tmp_path / "out" / "README.md").read_text().split("Directly before the image")[1]
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(*PICTURES[0])]))
    ours = last_logits(model, visual, [task_of(model_info(tmp_path / "a")).question])[0][: made.first]
    found = plain_logits(tmp_path / "out", backbone, PICTURES[0])[: made.first]
    assert (found - ours).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_greedy_answers_agree_and_never_hold_a_new_token(checkpoints, tmp_path, kind):
    backbone = load_backbone(str(checkpoints[kind]), dtype="float32")
    model = write_prompt(tmp_path / "a", backbone, SPARE + 5)
    with torch.no_grad():  # so long that a tied head would answer with it
        model.prompt.vectors.mul_(30)
    save_adapter(tmp_path / "b", model_info(tmp_path / "a"), prompt=model.prompt)
    made = export_embedding_rows(tmp_path / "b", tmp_path / "out", str(checkpoints[kind]))
    ids, pixels = plain_inputs(tmp_path / "out", backbone, PICTURES[0])
    served: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    shown = {"pixel_values": pixels.values, "image_grid_thw": pixels.grid}
    kinds = (ids == served.config.image_token_id).int()
    said = served.generate(ids, mm_token_type_ids=kinds, **shown, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert not set(said.tolist()) & set(made.ids)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = generate(model, backbone.visual_tokens(pixels), task_of(model_info(tmp_path / "b")).question, None, 5)
    assert [tokenizer.decode(said, skip_special_tokens=True)] == ours


def test_everything_else_is_as_it_was(checkpoints, tmp_path):
    source = checkpoints["sharded"]
    write_prompt(tmp_path / "a", load_backbone(str(source), dtype="float32"), SPARE + 5)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    export_embedding_rows(tmp_path / "a", tmp_path / "out", str(source))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after.keys() - before.keys() == {"README.md", "masp_prompt.json"}
    shards = [name for name in before if name.endswith(".safetensors")]
    assert len(shards) > 3
    changed = [name for name in shards if before[name] != after[name]]
    assert len(changed) in (1, 2)  # the embedding matrix and the head
    for name in shards:
        old, new = load_file(source / name), load_file(tmp_path / "out" / name)
        for key, value in old.items():
            rows = tiny.VOCABULARY - SPARE if key.endswith(("embed_tokens.weight", "lm_head.weight")) else len(value)
            assert torch.equal(new[key][:rows], value[:rows]), key
    old, new = (json.loads(files["model.safetensors.index.json"])["metadata"] for files in (before, after))
    assert set(old) - set(new) == {"total_parameters"}  # of the rows before the export
    assert new["total_size"] - old["total_size"] == 2 * 5 * tiny.DIM * 4  # embedding and head, five rows each, fp32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    words = "Which emotion does this image evoke? <|im_end|>\n"
    assert tokenizer(words).input_ids == tiny.tiny_tokenizer()(words).input_ids
    again = load_backbone(str(tmp_path / "out"), dtype="float32")  # masp itself can use the copy as a backbone
    assert len(again.embedding_rows()) == tiny.VOCABULARY + 5


def test_rows_in_bf16_are_rounded_as_masp_rounds_them(tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny.checkpoint(), folder)
    weights = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = write_prompt(tmp_path / "a", load_backbone(str(folder), dtype="bfloat16"), 3)
    made = export_embedding_rows(tmp_path / "a", tmp_path / "out", str(folder))
    rows = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[made.first : made.first + 3], model.prompt.vectors.bfloat16())
    assert torch.equal(rows[: made.first], weights["model.embed_tokens.weight"][: made.first])


def test_rows_of_a_prompt_that_was_trained_in_float32_are_not_rounded(tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(tiny.checkpoint(), folder)
    weights = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(str(folder), dtype="float32")
    model = write_prompt(tmp_path / "a", backbone, SPARE + 2)  # the untied head grows too
    described = json.loads((tmp_path / "a" / "adapter.json").read_text())
    record = {"learning_rate": 1, "schedule": "cosine", "warmup": 0, "weight_decay": 0, "steps": 1, "batch_size": 1}
    described["training"] = {"prompt": record | {"class_weights": "none", "dtype": "float32"}}
    (tmp_path / "a" / "adapter.json").write_text(json.dumps(described))
    made = export_embedding_rows(tmp_path / "a", tmp_path / "out", str(folder))
    found = load_file(tmp_path / "out" / "model.safetensors")
    rows = found.pop("model.embed_tokens.weight")
    assert made.dtype == "F32"
    assert torch.equal(rows[made.first :], model.prompt.vectors)
    assert torch.equal(rows[: made.first], weights["model.embed_tokens.weight"][: made.first].float())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert "unrounded; load the model in float32" in (tmp_path / "out" / "README.md").read_text()
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(*PICTURES[0])]))
    ours = last_logits(model, visual, [task_of(model_info(tmp_path / "a")).question])[0]
    found = plain_logits(tmp_path / "out", backbone, PICTURES[0])
    assert (found[: made.first] - ours[: made.first]).abs().max() <= 1e-5 * ours.abs().max()


def test_the_note_says_what_to_send(tmp_path):
    write_prompt(tmp_path / "a", tiny.backbone(), 2)
    export_embedding_rows(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint()))
    note = json.loads((tmp_path / "out" / "masp_prompt.json").read_text())
    question = f"Which emotion does this image evoke? Choose one of: {', '.join(LABELS)}."
    assert note["after_image"] == f"<|masp_0|><|masp_1|>{question}"
    assert note["prompt"].endswith(f"<|vision_end|><|masp_0|><|masp_1|>{question}<|im_end|>\n<|im_start|>assistant\n")
    assert note["ids"] == note["suppress"] == [415, 416]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [415, 416]
    text = (tmp_path / "out" / "README.md").read_text()
    assert note["after_image"] in text
    assert "these were spare" in text


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_with_what_to_do(tmp_path):
    place = str(tiny.checkpoint())
    write_adapter(tmp_path / "aspects")
    with pytest.raises(AdapterError, match=r"was trained with aspects.*--aspects none"):
        export_embedding_rows(tmp_path / "aspects", tmp_path / "out", place)
    write_adapter(tmp_path / "no prompt", prompt=False)
    with pytest.raises(AdapterError, match="has no soft prompt"):
        export_embedding_rows(tmp_path / "no prompt", tmp_path / "out", place)
    write_prompt(tmp_path / "sequential", tiny.backbone(), 3, positions="sequential")
    with pytest.raises(AdapterError, match=r"sequential positions.*method\.positions=native"):
        export_embedding_rows(tmp_path / "sequential", tmp_path / "out", place)
    write_prompt(tmp_path / "a", tiny.backbone(), 3)
    with pytest.raises(AdapterError, match=r"was trained on .*--backbone"):
        export_embedding_rows(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint("qwen2_5_vl")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(AdapterError, match="is not an empty folder"):
        export_embedding_rows(tmp_path / "a", tmp_path / "full", place)
    assert not (tmp_path / "out").exists()


def test_an_exported_checkpoint_is_not_exported_again(tmp_path):
    write_prompt(tmp_path / "a", tiny.backbone(), 3)
    export_embedding_rows(tmp_path / "a", tmp_path / "once", str(tiny.checkpoint()))
    write_prompt(tmp_path / "b", load_backbone(str(tmp_path / "once"), dtype="float32"), 3)
    with pytest.raises(BackboneError, match=r"has a token <\|masp_0\|> already"):
        export_embedding_rows(tmp_path / "b", tmp_path / "twice", str(tmp_path / "once"))


def test_a_disk_that_is_full_leaves_nothing(tmp_path, monkeypatch):
    write_prompt(tmp_path / "a", tiny.backbone(), 3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("masp.backbones.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_embedding_rows(tmp_path / "a", tmp_path / "out", str(tiny.checkpoint()))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_families_whose_template_is_not_known_are_refused(tmp_path):
    from dataclasses import replace

    files = replace(find(str(tiny.checkpoint())), model_type="llava")
    with pytest.raises(BackboneError, match=r"family 'llava'.*one of qwen2_vl"):
        export_rows(files, torch.zeros(2, tiny.DIM), False, "?", tmp_path / "out", lambda _: {})


# --- files ----------------------------------------------------------------------------------------------------------


def test_rows_of_a_file_by_hand(tmp_path):
    matrix = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    save_file({"a": torch.ones(2), "m": matrix, "z": torch.zeros(5)}, tmp_path / "old.safetensors", {"k": "v"})
    rows = (3, torch.full((2, 3), 7.0), False)
    assert rewrite(tmp_path / "old.safetensors", tmp_path / "new.safetensors", {"m": rows}) == 12  # one more row
    found = load_file(tmp_path / "new.safetensors")
    assert torch.equal(found["m"], torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8], [7, 7, 7], [7, 7, 7]]))
    assert torch.equal(found["a"], torch.ones(2))
    assert torch.equal(found["z"], torch.zeros(5))
    with opened(tmp_path / "new.safetensors") as written:
        assert written.metadata() == {"k": "v"}
    assert torch.equal(mean_row(matrix), torch.tensor([4.5, 5.5, 6.5]))
    for name, change, message in (("a", rows, "is stored as float32"), ("m", (9, rows[1], False), "has 4 rows")):
        with pytest.raises(BackboneError, match=message):
            rewrite(tmp_path / "old.safetensors", tmp_path / "x", {name: change})


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x0b\0\0\0\0\0\0\0{"a": "b"}  ']
)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BackboneError, match=r"x\.safetensors is no safetensors file"):
        rewrite(tmp_path / "x.safetensors", tmp_path / "y.safetensors", {})


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, masp):
    write_prompt(tmp_path / "run" / "adapter", tiny.backbone(), SPARE + 1)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {"backbone": {"id": str(tiny.checkpoint())}}}))
    code, out, err = masp("export", "--as", "embedding-rows", "--adapter", tmp_path / "run", "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n"), err
    assert "1 rows were added (422 rows)" in err
    assert masp("export", "--as", "onnx", "--adapter", "a", "--out", "b")[0] == 2
