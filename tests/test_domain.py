"""A backbone that knows one small world says when an image is none of it; it predicts all the same."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import tiny
from masp.backbones.domain import FILE, DomainDetector, read_detector, write_detector
from masp.backbones.files import find
from masp.errors import BackboneError
from masp.predictor import Masp
from masp.types import VisualTokens

DIM = 5


@pytest.fixture
def detector():
    generator = torch.Generator().manual_seed(0)
    return DomainDetector(
        knows="coloured blocks",
        limit=1.5,
        centre=torch.randn(DIM, generator=generator),
        scale=torch.rand(DIM, generator=generator) + 0.5,
        mean=torch.randn(DIM, generator=generator) * 0.1,
        whitening=torch.randn(DIM, DIM, generator=generator),
    )


def visual(*counts, scale=1.0):
    """Tokens of images that have so many, padded with what must not count."""
    mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
    tokens = torch.randn(len(counts), max(counts), DIM, generator=torch.Generator().manual_seed(1)) * scale
    return VisualTokens(torch.where(mask[..., None], tokens, torch.tensor(77.0)), mask)


def test_the_distance_is_mahalanobis_of_the_mean_bent_token(detector):
    found = visual(3, 7)
    tokens = found.tokens[0, :3].double()
    bent = torch.tanh((tokens - detector.centre) / detector.scale).mean(0) - detector.mean
    precision = (detector.whitening.T @ detector.whitening).double()
    expected = (bent @ precision @ bent / DIM).sqrt()
    assert float(detector.distances(found)[0]) == pytest.approx(float(expected), rel=1e-5)
    for limit, inside in ((float(expected) + 1e-3, True), (float(expected) - 1e-3, False)):
        assert replace(detector, limit=limit).judge(found)[0].inside is inside


def test_an_image_is_judged_by_itself(detector):
    together = detector.distances(visual(3, 7))
    torch.testing.assert_close(detector.distances(visual(3, 7).select([0])), together[:1])
    torch.testing.assert_close(detector.distances(visual(3, 7).select([1, 0])), together.flip(0))


def test_what_is_written_is_read(detector, tmp_path):
    assert read_detector(tmp_path, DIM) is None
    write_detector(tmp_path, detector)
    found = read_detector(tmp_path, DIM)
    assert found is not None
    assert (found.knows, found.limit) == (detector.knows, detector.limit)
    torch.testing.assert_close(found.distances(visual(3, 7)), detector.distances(visual(3, 7)), rtol=1e-2, atol=1e-2)
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
    zeros = torch.zeros(tiny.DIM)
    detector = DomainDetector("coloured blocks", 1e-3, zeros, zeros + 1, zeros + 3, torch.eye(tiny.DIM))
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
