"""Explanations against a known truth, by hand and on a tiny random model."""

from collections.abc import Mapping

import pytest

from fixtures.adapters import write_adapter
from fixtures.scenes import CELLS, write_scenes
from masp.core.errors import DataError, UsageError
from masp.core.prompts import load_questions
from masp.data.records import Record
from masp.evaluation import explanation_metrics as quality
from masp.evaluation.explanation_metrics import (
    ExplainedImage,
    Truth,
    agreement,
    aspect_under_peak,
    ceiling,
    measure_explanations,
    truth_of,
)
from masp.evaluation.predict_split import Batching
from masp.model.masp_model import ActiveParts
from masp.predictor import Masp

GRID = (("scene", None, None), (None, "object", "object"))


def explained(cause, label, predicted, strongest, **peaks):
    return ExplainedImage(Truth(cause, GRID, {}), label, predicted, strongest, peaks)


def test_truth_is_read_from_the_record(tmp_path):
    record = write_scenes(tmp_path).splits["test"][0]
    assert truth_of(record) == Truth("object", GRID, {"joy": 0.6, "fear": 0.2, "awe": 0.2})


@pytest.mark.parametrize(
    "extra",
    [{}, {"emoji": None}, {"emoji": {"cause": "scene", "cells": CELLS}}, {"emoji": {"cells": 3, "probabilities": {}}}],
)
def test_a_picture_without_truth_is_refused(tmp_path, extra):
    with pytest.raises(DataError, match="does not say what caused its label"):
        truth_of(Record(tmp_path / "a.png", "joy", extra=extra))


def test_ceiling_by_hand(tmp_path):
    # the most probable label is joy, fear, joy, fear …; drawn were joy, fear, awe, joy, fear, awe, joy
    found = ceiling(write_scenes(tmp_path).splits["test"])
    assert found.expected == pytest.approx(0.6)
    assert found.achieved.value == 3 / 7


def test_causes_are_counted_over_correct_predictions_only():
    found = agreement(
        [
            explained("scene", "joy", "joy", "scene"),
            explained("scene", "joy", "joy", "object"),
            explained("object", "joy", "joy", "object"),
            explained("scene", "joy", "fear", "scene"),
        ]
    )
    assert found.accuracy.value == 3 / 4
    assert found.cause.value == 2 / 3
    assert found.cause_by_guess == 2 / 3  # two of the three have the cause "scene"


def test_without_a_correct_prediction_there_is_no_share():
    found = agreement([explained("scene", "joy", "fear", "scene")])
    assert found.cause is None
    assert found.cause_by_guess is None


def test_heatmaps_are_counted_where_the_thing_is():
    found = agreement(
        [
            explained("scene", "joy", "joy", "scene", scene="scene", object="object", human_action=None),
            explained("scene", "joy", "joy", "scene", scene=None, object="object", human_action=None),
            explained("scene", "joy", "joy", "scene", scene="object", object="scene", human_action=None),
        ]
    )
    assert {name: share.value for name, share in found.pointing.items()} == {"scene": 1 / 3, "object": 2 / 3}
    assert found.pointing_by_guess == pytest.approx({"scene": 1 / 6, "object": 2 / 6})


def test_the_field_under_a_peak_is_found_across_grids():
    assert aspect_under_peak([[0.1, 0.2, 0.1], [0.1, 0.2, 0.3]], GRID) == "object"
    assert aspect_under_peak([[0.9, 0.1, 0.0], [0.0, 0.0, 0.0]], GRID) == "scene"
    wide = [[0.0] * 6 for _ in range(4)]
    wide[1][1] = 1.0  # the last sixth of the first field
    assert aspect_under_peak(wide, GRID) == "scene"
    wide[2][5] = 2.0
    assert aspect_under_peak(wide, GRID) == "object"
    assert aspect_under_peak([[1.0]], GRID) == "object"  # one token for all: the centre


@pytest.mark.parametrize("attribution", ["leave_one_out", "shapley"])
def test_a_model_is_measured_on_every_picture(tmp_path, attribution):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter"), dtype="float32")
    records = write_scenes(tmp_path / "scenes").splits["test"]
    found = measure_explanations(masp, records, Batching(3), attribution)
    predicted = masp.predict([record.path for record in records], explain=attribution)
    right = [one for one, record in zip(predicted, records, strict=True) if one.label == record.label]
    assert found.accuracy.value == len(right) / 7
    hits = 0
    for one, record in zip(predicted, records, strict=True):
        strongest = max(one.aspects, key=lambda name, one=one: one.aspects[name].effect)
        hits += one.label == record.label and strongest == truth_of(record).cause
    assert found.cause.value == hits / len(right)
    assert set(found.pointing) == {"scene", "object"}  # the others are nowhere in these images
    peaks = sum(aspect_under_peak(one.aspects["object"].attention or (), GRID) == "object" for one in predicted)
    assert found.pointing["object"].value == peaks / 7


def test_a_model_without_aspects_has_nothing_to_explain(tmp_path):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter", aspects=()), dtype="float32")
    with pytest.raises(UsageError, match="no aspects"):
        measure_explanations(masp, write_scenes(tmp_path / "scenes").splits["test"])


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
    asked: list[Mapping[str, str]] = []

    def say(model, visual, question, use=None, max_new_tokens=16):
        heard.append(use)
        return ["beach"] * len(visual)

    def describe(model, visual, questions, max_new_tokens, wanted):
        asked.extend(wanted)
        return [{"object": "cup, cat", "scene": f"beach{number}"} for number in range(len(visual))]

    monkeypatch.setattr(quality, "generate", say)
    monkeypatch.setattr(quality, "describe_aspects", describe)
    found = quality.aspect_quality(masp.model, records, load_questions(), Batching(4))
    assert [one.aspect for one in found] == ["object", "scene"]
    assert [one.images for one in found] == [
        sum(name in one.annotations for one in records) for name in ("object", "scene")
    ]
    assert asked == [record.annotations for record in records if record.annotations], "only what is annotated is asked"
    objects, scene = found
    assert objects.exact.value == 0.0  # another order is not the same text
    assert objects.things.f1 == 1.0  # but the same set
    assert objects.backbone_things.f1 == 0.0
    assert scene.exact.value == 0.0
    assert scene.backbone_exact.value == 1.0
    assert set(heard) == {ActiveParts((), prompt=False)}  # the backbone alone: neither aspects nor prompt


def test_pictures_without_annotations_are_refused(tmp_path):
    masp = Masp.from_pretrained(write_adapter(tmp_path / "adapter"), dtype="float32")
    with pytest.raises(DataError, match="no image has annotated aspects"):
        quality.aspect_quality(masp.model, [Record(tmp_path / "a.png", "joy")], load_questions())
