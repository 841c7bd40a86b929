"""A backbone that knows one small world says when an image is none of it; it predicts all the same."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fixtures import tiny
from masp.backbones.domain import FILE, DomainDetector, read_detector, write_detector
from masp.backbones.files import find
from masp.backbones.loading import load_backbone
from masp.core.errors import BackboneError
from masp.core.types import VisualTokens
from masp.data.emoji.dataset import scenes
from masp.data.images import open_image
from masp.demo.pictures import demo_pictures
from masp.predictor import Masp

DIM = 5


@pytest.fixture
def detector():
    generator = torch.Generator().manual_seed(0)
    return DomainDetector(
        knows="coloured blocks",
        limit=1.5,
        centre=torch.randn(DIM, generator=generator),
        sphering=torch.randn(DIM, DIM, generator=generator),
        mean=torch.randn(DIM, generator=generator) * 0.1,
        minor=torch.randn(3, DIM, generator=generator),
        usual=torch.tensor([[1.1, -0.7], [0.3, 0.2]]),
    )


def visual(*counts, scale=1.0):
    """Tokens of images that have so many, padded with what must not count."""
    mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
    tokens = torch.randn(len(counts), max(counts), DIM, generator=torch.Generator().manual_seed(1)) * scale
    return VisualTokens(torch.where(mask[..., None], tokens, torch.tensor(77.0)), mask)


def test_the_distance_adds_two_numbers_in_standard_deviations(detector):
    found = visual(3, 7)
    sphered = torch.stack([detector.sphering @ (token - detector.centre) for token in found.tokens[0, :3]])
    components = detector.minor @ (sphered.tanh().mean(0) - detector.mean)
    strange, spread = components.square().mean().sqrt(), sphered.square().mean(1).log().std(correction=0)
    expected = float((strange - 1.1) / 0.3 + (-spread + 0.7) / 0.2)
    assert float(detector.distances(found)[0]) == pytest.approx(expected, rel=1e-4)
    for limit, inside in ((expected + 1e-2, True), (expected - 1e-2, False)):
        assert replace(detector, limit=limit).judge(found)[0].inside is inside


def test_an_image_is_judged_by_itself(detector):
    together = detector.distances(visual(3, 7))
    torch.testing.assert_close(detector.distances(visual(3, 7).select([0])), together[:1])
    torch.testing.assert_close(detector.distances(visual(3, 7).select([1, 0])), together.flip(0))


def test_what_is_written_is_read(detector, tmp_path):
    assert read_detector(tmp_path, DIM) is None
    write_detector(tmp_path, detector)
    found = read_detector(tmp_path, DIM)
    assert (found.knows, found.limit) == (detector.knows, detector.limit)
    torch.testing.assert_close(found.distances(visual(3, 7)), detector.distances(visual(3, 7)), rtol=1e-2, atol=3e-2)
    with pytest.raises(BackboneError, match="width 5"):
        read_detector(tmp_path, DIM + 1)
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no tensors"):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(BackboneError, match="cannot be read"):
            read_detector(tmp_path, DIM)


# --- in a backbone's folder


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A tiny backbone with a detector for which no image is one that it knows."""
    folder = shutil.copytree(tiny.checkpoint(), tmp_path_factory.mktemp("narrow") / "backbone")
    zeros, eye = torch.zeros(tiny.DIM), torch.eye(tiny.DIM)
    usual = torch.tensor([[0.0, 0.0], [1.0, 1e6]])
    detector = DomainDetector("coloured blocks", 1e-3, zeros, eye, zeros + 3, eye, usual)
    write_detector(folder, detector)
    return folder


def test_a_detector_is_no_part_of_the_backbones_identity(narrow):
    """Adapters trained before it came still fit."""
    assert find(str(narrow)).fingerprint == find(str(tiny.checkpoint())).fingerprint


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_backbone_without_a_detector_says_nothing(family):
    found = Masp.from_pretrained(backbone=tiny.backbone(family)).predict(tiny.picture(84, 84), explain=False)
    assert (found.domain, found.warning, found.to_json()["domain"]) == (None, None, None)


def test_a_foreign_image_is_marked_everywhere_and_predicted_all_the_same(masp, narrow, tmp_path):
    picture, page = tmp_path / "a.png", tmp_path / "page.html"
    tiny.picture(84, 84).save(picture)
    code, out, err = masp("predict", picture, "--backbone", narrow, "--labels", "polarity", "--report", page)
    assert code == 0
    assert "this backbone knows coloured blocks only" in " ".join(out.replace("│", " ").split())
    assert "--backbone ID" in err
    assert "masp train prompt" in err
    assert 'class="warning"' in page.read_text()
    assert "knows coloured blocks only" in page.read_text()
    code, out, _ = masp("predict", picture, "--backbone", narrow, "--labels", "polarity", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found["domain"]) == {"knows", "inside", "distance", "limit"}
    assert (found["domain"]["knows"], found["domain"]["inside"]) == ("coloured blocks", False)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    stream = Masp.from_pretrained(backbone=str(narrow), dtype="float32").predict_stream([picture], explain=False)
    assert [one.to_json()["domain"]["inside"] for one in stream] == [False]


# --- the embedded backbone


def odd_pictures():
    """What no emoji scene looks like: noise, a photograph's grain, a page of text lines, a plain white image."""
    dice = np.random.default_rng(0)
    grain = np.clip(dice.normal(120, 40, (150, 200, 1)) + np.linspace(0, 80, 200)[None, :, None], 0, 255)
    page = np.full((200, 160, 3), 255, np.uint8)
    page[20:180:9, 15:145:2] = 30
    return [
        Image.fromarray(dice.integers(0, 256, (168, 168, 3), np.uint8)),
        Image.fromarray(np.repeat(grain, 3, axis=2).astype(np.uint8)),
        Image.fromarray(page),
        Image.new("RGB", (168, 168), "white"),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_backbone_knows_its_scenes_and_nothing_else(dtype, tmp_path):
    backbone = load_backbone("embedded", dtype=dtype, device="cpu")

    def judged(images):
        found = backbone.domain(backbone.visual_tokens(backbone.preprocess(images)))
        assert found is not None
        return [one.inside for one in found]

    assert sum(judged([made.drawing.image for made in scenes("val", 3, 40)])) >= 39
    assert all(judged([open_image(picture.path) for picture in demo_pictures(tmp_path)]))
    assert not any(judged(odd_pictures()))
