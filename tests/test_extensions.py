"""The examples of docs/contributing.md work: a family, a layout, a baseline and a metric, each one file and a line."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig, VipLlavaForConditionalGeneration

import metadata_layout
import polarity
import prototypes
import update_readme
import vip_llava
from fixtures import tiny
from fixtures.models import OFF, QUESTIONS, distance, full_model, last_logits, own_logits, tokens_of
from fixtures.noise_lessons import Watched, lessons
from fixtures.pictures import put
from fixtures.tiny.kind import text_config
from fixtures.tiny.llava import LLAVA, VISION
from masp.backbones import loading
from masp.baselines import registry
from masp.core.errors import DataError
from masp.data.readers import open_dataset as layouts
from masp.data.readers.open_dataset import open_dataset
from masp.evaluation.result import LabelledPrediction
from masp.model.masp_model import ActiveParts

LONGEST_EXAMPLE = 60


def _vip_llava(tokenizer) -> VipLlavaForConditionalGeneration:
    config = VipLlavaConfig(
        text_config=LlamaConfig(**text_config()),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-2, -3, 1],
    )
    return VipLlavaForConditionalGeneration(config)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the example's family, with its one line in the table and its tiny checkpoint in the tests'."""
    monkeypatch.setattr(loading, "FAMILIES", {**loading.FAMILIES, **vip_llava.ENTRY})
    monkeypatch.setitem(tiny.KINDS, "vipllava", replace(LLAVA, model=_vip_llava))
    return "vipllava"


def test_the_family_keeps_the_first_three_points_of_the_contract(family: str) -> None:
    model = full_model(family)
    for row in range(3):
        visual = tokens_of(family, "float32", [row])
        off = last_logits(model, visual, [QUESTIONS[row]], OFF)
        assert distance(off, own_logits(family, "float32", [row])) <= 1e-5
        assert distance(last_logits(model, visual, [QUESTIONS[row]], ActiveParts()), off) > 1e-3
    batch = last_logits(model, tokens_of(family, "float32", [0, 1, 2]), QUESTIONS)
    for row in range(3):
        single = last_logits(model, tokens_of(family, "float32", [row]), [QUESTIONS[row]])
        assert distance(batch[row], single[0]) <= 1e-5


def test_without_its_line_the_family_is_refused(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    folder = str(tiny.checkpoint(family))
    assert loading.load_backbone(folder).family == family
    monkeypatch.undo()
    with pytest.raises(loading.BackboneError, match="vipllava"):
        loading.load_backbone(folder)


def test_the_layout_is_recognised_and_every_line_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [{"file_name": f"{number}.png", "emotion": ("calm", "stormy")[number % 2]} for number in range(150)]
    lines[4]["scene"] = "lake"
    for number in range(150):
        put(tmp_path / f"{number}.png", number)
    (tmp_path / "149.png").unlink()
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / metadata_layout.METADATA).write_text(text)
    with pytest.raises(DataError):  # a folder of images without labels, as long as nobody knows the layout
        open_dataset(tmp_path)
    monkeypatch.setattr(layouts, "LAYOUTS", (metadata_layout.ENTRY, *layouts.LAYOUTS))
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.labels, len(dataset.records)) == ("metadata", ("calm", "stormy"), 149)
    assert [one.annotations for one in dataset.records if one.path.stem == "4"] == [{"scene": "lake"}]
    assert [one.reason for one in dataset.rejected] == [
        "line 150: 149.png is not there; expected an image. Copy it, or remove the line."
    ]


def test_the_baseline_names_the_label_of_the_nearest_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "CATALOGUE", {**registry.CATALOGUE, **prototypes.ENTRY})
    backbone, labels = tiny.backbone(), ("amusement", "anger", "fear", "awe")
    images = Watched(backbone)
    taught = lessons(tmp_path / "out", images)
    system = registry.make_system("prototypes", backbone, labels, ["temperature=0.01"])
    with pytest.raises(registry.UsageError):
        system.predict(images.visual([0]))
    system.fit(taught)
    # the first image of each label alone is that label's mean, so nothing can be nearer
    alone = registry.make_system("prototypes", backbone, labels)
    alone.fit(replace(taught, train=taught.train[:3], out=tmp_path / "alone"))
    assert [one.predicted for one in alone.predict(images.visual([0, 1, 2]))] == ["amusement", "anger", "fear"]
    calls, again = images.calls, registry.make_system("prototypes", backbone, labels, ["temperature=0.01"])
    again.fit(taught)
    assert images.calls == calls
    assert again.predict(images.visual([3, 4])) == system.predict(images.visual([3, 4]))
    assert system.predict(images.visual([3]))[0].log_probabilities["awe"] < 0  # never seen, never impossible


def test_the_metric_forgives_the_emotion_and_not_its_polarity() -> None:
    pairs = [
        ("fear", "anger"),
        ("joy", "fear"),
        ("anger", None),
        ("joy", "joy"),
        ("surprise", "joy"),
        ("fear", "surprise"),
    ]
    answers = [LabelledPrediction(f"{number}.png", *pair) for number, pair in enumerate(pairs)]
    found = polarity.of(SimpleNamespace(answers=answers))
    assert found.value == 2 / 5
    assert found.low < 2 / 5 < found.high


def test_examples_are_short() -> None:
    for name, content in update_readme.examples().items():
        assert len(content.splitlines()) <= LONGEST_EXAMPLE + 2, f"{name} is too long to be an example"
