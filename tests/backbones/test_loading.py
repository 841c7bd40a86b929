"""Finding and loading backbones, what they refuse and why; the vision tower's replaced parts; masks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fixtures import tiny
from masp.backbones.base import Backbone
from masp.backbones.decoder import attention_masks
from masp.backbones.files import EMBEDDED, find
from masp.backbones.loading import FAMILIES, UNITS, choose_device, choose_dtype, choose_placement, load_backbone
from masp.backbones.qwen2_vl import MatrixPatchEmbed
from masp.core.config import BackboneConfig
from masp.core.errors import BackboneError
from masp.core.types import ImageLayout

THREE = ImageLayout(3, (1, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.checkpoint(), tmp_path / "checkpoint"))


def edit(folder: Path, name: str, **changes: object) -> None:
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("family", tiny.QWEN)
def test_a_folder_loads_frozen(family: str) -> None:
    backbone = tiny.backbone(family)
    assert isinstance(backbone, Backbone)
    assert (backbone.family, backbone.dim, backbone.dtype) == (family, tiny.DIM, torch.float32)
    network = backbone._model  # pyright: ignore[reportAttributeAccessIssue]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_an_unknown_family_lists_what_is_supported(folder: Path) -> None:
    edit(folder, "config.json", model_type="llama")
    with pytest.raises(BackboneError, match=r"family 'llama'; expected one of qwen2_vl, qwen2_5_vl"):
        load_backbone(str(folder))
    assert set(FAMILIES) == set(tiny.FAMILIES)


def test_without_a_network_the_message_says_how_to_fetch() -> None:
    with pytest.raises(BackboneError, match="hf download somebody/something"):
        load_backbone("somebody/something")


def test_a_name_that_is_no_name_is_refused() -> None:
    with pytest.raises(BackboneError, match="neither a folder nor the id"):
        load_backbone("not/a/model/../id")


def test_only_safetensors_are_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="safetensors"):
        load_backbone(str(folder))


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(folder))
    (folder / "config.json").write_text("[1]")
    with pytest.raises(BackboneError, match=r"config.json of the backbone holds list"):
        load_backbone(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config.json of the backbone cannot be read"):
        load_backbone(str(folder))


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight" if "model.layers.1.mlp.up_proj.weight" in weights else max(weights)]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match="lack 1 tensors"):
        load_backbone(str(folder), dtype="float32", device="cpu")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit(
        folder,
        "config.json",
        text_config=json.loads((folder / "config.json").read_text())["text_config"] | {"intermediate_size": 47},
    )
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(str(folder), dtype="float32", device="cpu")


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit(folder, "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    assert load_backbone(str(folder), device="cpu", dtype="float32").dim == tiny.DIM


def test_the_older_place_of_the_chat_template_counts(folder: Path) -> None:
    modern = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": modern.read_text()}))
    modern.unlink()
    found = load_backbone(str(folder), dtype="float32", device="cpu")
    assert found.template("Why?", THREE) == tiny.backbone().template("Why?", THREE)
    (folder / "chat_template.json").unlink()
    with pytest.raises(BackboneError, match="no chat template"):
        load_backbone(str(folder))


def test_a_template_without_a_system_turn_gets_qwens(folder: Path) -> None:
    plain = tiny.TEMPLATE[tiny.TEMPLATE.index("{% for message") :]
    (folder / "chat_template.jinja").write_text(plain)
    found = load_backbone(str(folder), dtype="float32", device="cpu")
    assert found.template("Why?", THREE) == tiny.backbone().template("Why?", THREE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("<|vision_end|>", "", "does not mark the image"), ("{{ part['text'] }}", "", "drops the question")],
)
def test_a_template_that_cannot_be_used_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(tiny.TEMPLATE.replace(old, new))
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(folder), dtype="float32", device="cpu").template("Why?", THREE)


def test_the_fingerprint_follows_weights_and_configuration_only(folder: Path) -> None:
    original = find(str(folder)).fingerprint
    assert original == find(str(tiny.checkpoint())).fingerprint
    assert tiny.backbone(dtype="bfloat16").fingerprint() == original
    edit(folder, "config.json", transformers_version="0.0.0")
    assert find(str(folder)).fingerprint == original
    edit(folder, "config.json", image_token_id=7)
    assert find(str(folder)).fingerprint != original
    shutil.copy(tiny.checkpoint() / "config.json", folder)
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(sorted(weights)))].flatten()[0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert find(str(folder)).fingerprint != original


def test_large_weights_are_hashed_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masp.backbones.files.HASHED_WHOLE", 1000)
    monkeypatch.setattr("masp.backbones.files.BLOCKS", 5)
    first = find(str(folder)).fingerprint
    assert first == find(str(folder)).fingerprint
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert find(str(folder)).fingerprint != first


def test_dtypes_and_devices() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float16", cpu) == torch.float16
    with pytest.raises(BackboneError, match="Did you mean 'float16'"):
        choose_dtype("floot16", cpu)
    with pytest.raises(BackboneError, match=r"unknown dtype 'nf4'; expected auto, float32, bfloat16, float16\."):
        choose_dtype("nf4", cpu)  # a number format, in which nothing is computed
    with pytest.raises(BackboneError, match=r"float16, nf4.*Did you mean 'nf4'"):
        choose_placement("nf5", "cpu")
    assert choose_device("cpu") == cpu
    with pytest.raises(BackboneError, match="device 'tpu'"):
        choose_device("tpu")


@pytest.mark.parametrize(("capability", "chosen"), [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_is_bfloat16_on_gpus_that_compute_in_it(
    capability: tuple[int, int], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V100 and T4 have no units for it; torch would emulate it there."""
    monkeypatch.delenv(UNITS, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert str(choose_dtype("auto", torch.device("cuda", 1))) == f"torch.{chosen}"


@pytest.mark.parametrize("units", [(False, False), (True, False), (False, True)])
def test_auto_is_bfloat16_on_cpus_that_compute_in_it(units: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UNITS, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units[1])
    chosen = torch.bfloat16 if any(units) else torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == chosen
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("units", ["0", "1"])
def test_the_embedded_default_is_float32_on_every_processor(units: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNITS, units)
    other = torch.bfloat16 if units == "1" else torch.float32
    assert choose_placement("auto", "cpu").dtype == choose_placement("auto", "cpu", "a/b").dtype == other
    assert choose_placement("auto", "cpu", EMBEDDED).dtype == load_backbone(EMBEDDED, device="cpu").dtype
    assert load_backbone(EMBEDDED, device="cpu").dtype == torch.float32
    assert load_backbone(BackboneConfig(dtype="bfloat16", device="cpu")).dtype == torch.bfloat16


def test_pixel_bounds_are_the_checkpoints(folder: Path) -> None:
    edit(folder, "preprocessor_config.json", min_pixels=28**2, max_pixels=4 * 28**2)
    found = load_backbone(str(folder), dtype="float32", device="cpu")
    grid = found.preprocess([tiny.picture(400, 400)]).grid
    assert grid.tolist() == [[1, 4, 4]]
    assert found.image_transform["max_pixels"] == 4 * 28**2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pixel_bounds_that_were_asked_for_are_those_of_a_checkpoint_that_says_so(family: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.checkpoint(family), tmp_path / "checkpoint"))
    area = json.loads((folder / "preprocessor_config.json").read_text())["min_pixels"] // 4  # of one visual token
    config = BackboneConfig(id=str(folder), dtype="float32", device="cpu", min_pixels=area, max_pixels=6 * area)
    asked = load_backbone(config)
    edit(folder, "preprocessor_config.json", min_pixels=area, max_pixels=6 * area)
    said = load_backbone(str(folder), dtype="float32", device="cpu")
    pictures = [tiny.picture(400, 400), tiny.picture(20, 20)]
    ours, theirs = (one.visual_tokens(one.preprocess(pictures)) for one in (asked, said))
    assert torch.equal(ours.tokens, theirs.tokens)
    assert (
        max(ours.counts)
        <= 6
        < tiny.backbone(family).visual_tokens(tiny.backbone(family).preprocess(pictures)).counts[0]
    )
    assert asked.image_transform == said.image_transform != tiny.backbone(family).image_transform
    assert (asked.image_transform["min_pixels"], asked.image_transform["max_pixels"]) == (area, 6 * area)


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}))
def test_pixel_bounds_are_refused_where_a_family_has_none(family: str) -> None:
    with pytest.raises(BackboneError, match=rf"max_pixels for .* family {family} .*Qwen-VL alone.*longest_side"):
        load_backbone(str(tiny.checkpoint(family)), dtype="float32", device="cpu", max_pixels=10_000)


@pytest.mark.parametrize("bounds", [{"max_pixels": 100}, {"min_pixels": 10_000_000}])
def test_pixel_bounds_that_cannot_be_are_refused(bounds: dict[str, int]) -> None:
    """Below the checkpoint's lower bound, or above its upper one."""
    with pytest.raises(BackboneError, match=r"max_pixels of at least min_pixels"):
        load_backbone(str(tiny.checkpoint()), dtype="float32", device="cpu", **bounds)


def test_boxes_cover_the_image_row_by_row() -> None:
    backbone = tiny.backbone()
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 62), tiny.picture(58, 140)]))
    assert visual.grid.tolist() == [[2, 3], [5, 2]]
    expected = torch.tensor([[0, 0, 1 / 3, 1 / 2], [1 / 3, 0, 2 / 3, 1 / 2]])
    assert torch.allclose(visual.boxes[0, :2], expected)
    assert torch.allclose(visual.boxes[0, 5], torch.tensor([2 / 3, 1 / 2, 1.0, 1.0]))
    assert torch.allclose(visual.boxes[1, 9], torch.tensor([1 / 2, 4 / 5, 1.0, 1.0]))
    assert not visual.boxes[0, 6:].any()


def test_the_matrix_product_is_the_convolution() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv3d(3, 11, (2, 5, 5), (2, 5, 5), bias=False)

    original = Patches()
    values = torch.randn(7, 3 * 2 * 5 * 5)
    expected = original.proj(values.view(-1, 3, 2, 5, 5)).view(-1, 11)
    assert torch.allclose(MatrixPatchEmbed(original)(values), expected, atol=1e-6)


def test_masks_by_hand() -> None:
    mask = torch.tensor([[False, True, True, True]])
    plain = torch.ones(1, 4).bool()
    assert attention_masks(plain, 4, None, None, ["full_attention"]) == {"full_attention": None}
    assert attention_masks(plain, 1, None, None, ["full_attention"]) == {"full_attention": None}
    seen = attention_masks(mask, 2, None, None, ["full_attention"])["full_attention"]
    assert seen.int().tolist() == [[[[0, 1, 1, 0], [0, 1, 1, 1]]]]
    branches = torch.tensor([0, 0, 1, 2])
    seen = attention_masks(mask, 4, branches, None, ["full_attention"])["full_attention"]
    assert seen.int().tolist() == [[[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]]]
    both = attention_masks(plain, 4, None, 2, ["full_attention", "sliding_attention"])
    assert both["sliding_attention"] is not None
    assert both["sliding_attention"].int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]]


def test_an_image_is_seen_as_a_whole() -> None:
    mask = torch.ones(1, 5).bool()
    visual = torch.tensor([[False, True, True, False, True]])
    types = ["full_attention", "sliding_attention"]
    masks = attention_masks(mask, 5, None, 2, types, visual)
    full, sliding = (masks[name].int().tolist()[0][0] for name in types)
    assert full == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert sliding == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert attention_masks(mask, 5, None, None, types[:1], visual & False) == {"full_attention": None}


def test_a_window_counts_neither_padding_nor_other_branches() -> None:
    mask = torch.tensor([[False, True, True, False, True, True, True]])
    branches = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    seen = attention_masks(mask, 3, branches, 2, ["sliding_attention"])["sliding_attention"]
    assert seen.int().tolist()[0][0] == [[0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 1]]
