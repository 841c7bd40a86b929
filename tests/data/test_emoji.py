"""The made world: its rule, its images, and the folder it writes."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from masp.core.aspects import ASPECTS, level
from masp.core.errors import DataError
from masp.data.emoji.dataset import SPLIT_NUMBERS, scene, scenes, write_dataset
from masp.data.emoji.label_model import (
    EMOTIONS,
    INVERSE_TEMPERATURE,
    Cues,
    cause,
    cue_scores,
    effects,
    label_probabilities,
    softmax,
    without,
)
from masp.data.emoji.render import CELLS, GLYPHS, SIDE, brightness, colorfulness
from masp.data.readers.open_dataset import open_dataset

NOTHING = Cues(None, (), None, None, None, None)


def cues(**given: object) -> Cues:
    return Cues(**({name: getattr(NOTHING, name) for name in NOTHING.__dataclass_fields__} | given))


def test_probabilities_are_the_softmax_of_the_sum_where_no_interaction_holds():
    chances = label_probabilities(cues(expression="angry", scene="thunderstorm"))
    # anger 2.0 + 0.6, fear 1.0, six others 0
    top = np.exp(INVERSE_TEMPERATURE * 2.6)
    total = top + np.exp(INVERSE_TEMPERATURE * 1.0) + 6
    assert chances[EMOTIONS.index("anger")] == pytest.approx(top / total)
    assert chances.sum() == pytest.approx(1)


def test_a_happy_face_at_a_grave_is_not_joy():
    happy = cues(expression="happy")
    grave = cues(expression="happy", scene="graveyard")
    assert EMOTIONS[label_probabilities(happy).argmax()] == "amusement"
    assert EMOTIONS[label_probabilities(grave).argmax()] in {"disgust", "anger", "sadness"}
    additive = softmax(INVERSE_TEMPERATURE * sum(cue_scores(grave).values()))
    assert EMOTIONS[additive.argmax()] == "amusement", "an additive reading must get this wrong"


def test_the_cause_is_the_cue_that_costs_most_when_taken_away():
    picture = cues(expression="sad", scene="garden", brightness=0.5, colorfulness=0.5)
    assert cause(picture, "sadness") == "facial_expression"
    assert cause(picture, "contentment") == "scene"
    expected = np.log(label_probabilities(picture)[7] / label_probabilities(without(picture, "scene"))[7])
    assert effects(picture, "sadness")["scene"] == pytest.approx(expected)
    assert effects(picture, "sadness")["object"] == 0


def test_the_same_arguments_draw_the_same_picture_and_no_split_shares_one():
    first = [
        hashlib.sha256(scene(split, 0, i).drawing.image.tobytes()).hexdigest()
        for split in SPLIT_NUMBERS
        for i in range(9)
    ]
    again = [
        hashlib.sha256(scene(split, 0, i).drawing.image.tobytes()).hexdigest()
        for split in SPLIT_NUMBERS
        for i in range(9)
    ]
    assert first == again
    assert len(set(first)) == len(first)


def test_annotated_tone_is_what_the_pixels_measure():
    for made in scenes("test", 3, 7):
        pixels = np.asarray(made.drawing.image)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert made.drawing.cues.brightness == round(brightness(pixels), 1)
        assert made.drawing.cues.colorfulness == round(colorfulness(pixels), 1)


def test_tone_measures_by_hand():
    black, white = np.zeros((5, 7, 3), np.uint8), np.full((5, 7, 3), 255, np.uint8)
    red = np.zeros((5, 7, 3), np.uint8)
    red[..., 0] = 255
    assert (brightness(black), brightness(white)) == (0, 1)
    assert brightness(red) == pytest.approx((0.299 - 0.16) / 0.64, abs=1e-5)
    assert (colorfulness(white), colorfulness(black)) == (0, 0)
    assert colorfulness(red // 4) == pytest.approx((0.3 * np.hypot(63 / 255, 31.5 / 255) - 0.03) / 0.39, abs=1e-5)


def test_the_cell_map_names_the_glyphs_that_are_there():
    made = scene("train", 0, 5)
    shown = {GLYPHS[i].value for i in made.drawing.cells.flatten().tolist() if i >= 0}
    present = {
        made.drawing.cues.scene,
        *made.drawing.cues.objects,
        made.drawing.cues.expression,
        made.drawing.cues.action,
    }
    assert made.drawing.cells.shape == (CELLS, CELLS)
    assert made.drawing.cues.scene in shown
    assert shown <= present


def test_all_levels_and_causes_occur():
    made = [one.drawing.cues for one in scenes("val", 1, 150)]
    assert {level(one.brightness) for one in made} == {level(one.colorfulness) for one in made}
    assert len({level(one.brightness) for one in made}) == 5
    causes = Counter(cause(one, EMOTIONS[label_probabilities(one).argmax()]) for one in made)
    assert len(causes) >= 5


def test_a_written_folder_reads_back_as_emoset(tmp_path: Path):
    write_dataset(tmp_path / "scenes", images={"train": 20, "val": 4, "test": 6, "shifted": 3}, seed=7)
    dataset = open_dataset(tmp_path / "scenes")
    assert dataset.layout == "emoset"
    assert {name: len(records) for name, records in dataset.splits.items()} == {
        "train": 20,
        "val": 4,
        "test": 6,
        "shifted": 3,
    }
    record, made = dataset.split("test")[2], scene("test", 7, 2)
    assert record.label == made.label
    assert record.annotations["scene"] == made.drawing.cues.scene.replace("_", " ")
    assert set(record.annotations) <= set(ASPECTS)
    truth = record.extra["emoji"]
    assert sum(truth["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert truth["cause"] == cause(made.drawing.cues, made.label)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        write_dataset(tmp_path / name, images=11, seed=5)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 2 * 11 + 5
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_dataset(tmp_path, images=3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
