"""What stage 1 reads, beside the frozen backbone."""

import pytest

from fixtures.adapters import write_adapter
from fixtures.scenes import write_scenes
from masp.core.errors import DataError
from masp.core.prompts import load_questions
from masp.data.records import Record
from masp.evaluation import explanation_metrics as quality
from masp.evaluation.predict_split import Batching
from masp.model.masp_model import ActiveParts
from masp.predictor import Masp


def test_lists_count_as_sets():
    # images: {cat, cup} said {cup, dog}: 1 hit; {tree} said {tree}: 1 hit; {sun, sea} said nothing: 0 hits
    found = quality.set_score(["cat, cup", "tree", "sun, sea"], ["Cup, dog", "tree", ""])
    assert found.precision == 2 / 3
    assert found.recall == 2 / 5
    assert found.f1 == 2 * 2 / (3 + 5)


def test_a_thing_said_twice_counts_once_and_order_does_not_matter():
    assert quality.set_score(["cup, cat"], ["cat, cup, cat"]).f1 == 1.0
    assert quality.set_score(["cat"], [""]).f1 == 0.0
    assert quality.set_score([], []).f1 == 0.0


def test_each_aspect_is_measured_where_it_is_annotated(tmp_path, monkeypatch):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter"), dtype="float32")
    records = write_scenes(tmp_path / "scenes").splits["test"]
    heard: list[ActiveParts | None] = []

    def say(model, visual, question, use=None, max_new_tokens=16):
        heard.append(use)
        return ["beach"] * len(visual)

    def describe(model, visual, questions, max_new_tokens=16):
        return [{"object": "cup, cat", "scene": f"beach{number}"} for number in range(len(visual))]

    monkeypatch.setattr(quality, "generate", say)
    monkeypatch.setattr(quality, "describe_aspects", describe)
    found = quality.aspect_quality(masp.model, records, load_questions(), Batching(4))
    assert [one.aspect for one in found] == ["object", "scene"]
    objects, scene = found
    assert objects.exact.value == 0.0  # another order is not the same text
    assert objects.things.f1 == 1.0  # but the same set
    assert objects.backbone_things.f1 == 0.0
    assert scene.exact.value == 0.0
    assert scene.backbone_exact.value == 1.0
    assert set(heard) == {ActiveParts((), prompt=False)}  # the backbone alone: neither aspects nor prompt


def test_a_random_model_is_measured_without_a_mock(tmp_path):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter"), dtype="float32")
    records = write_scenes(tmp_path / "scenes", count=3).splits["test"]
    found = quality.aspect_quality(masp.model, records, load_questions(), Batching(2))
    assert [one.exact.value for one in found] == [0.0, 0.0]


def test_pictures_without_annotations_are_refused(tmp_path):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter"), dtype="float32")
    with pytest.raises(DataError, match="no image has annotated aspects"):
        quality.aspect_quality(masp.model, [Record(tmp_path / "a.png", "joy")], load_questions())
