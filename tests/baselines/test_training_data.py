"""Lessons out of a data set, and `masp baseline` from the command to the files."""

import json
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.adapters import write_questions
from fixtures.training import LABELS, write_dataset
from masp.baselines.learning import make_training_data
from masp.baselines.registry import CATALOGUE
from masp.core.errors import DataError, UsageError
from masp.data.records import Dataset
from masp.evaluation.result import read_result


class Counted:
    """A backbone that counts how many images it has looked at."""

    def __init__(self) -> None:
        self.own, self.seen = tiny.backbone(), 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)

    def visual_tokens(self, pixels):
        self.seen += len(pixels)
        return self.own.visual_tokens(pixels)


def test_lessons_are_what_is_labelled_and_readable(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    damaged = dataset.splits["train"][3].path
    damaged.write_bytes(b"no image")
    lessons = make_training_data(tiny.backbone(), dataset, LABELS, tmp_path / "out", seed=4)
    assert (len(lessons.train), len(lessons.val)) == (12, 5)
    assert 3 not in {lesson.image for lesson in lessons.train}
    assert lessons.seed == 4
    assert lessons.fingerprint == dataset.fingerprint()
    for lesson, record in zip(lessons.val, dataset.splits["val"], strict=True):
        assert (lesson.label, lesson.aspects) == (record.label, record.annotations)
    images = [lessons.train[0].image, lessons.val[0].image]
    paths = [dataset.splits["train"][0].path, dataset.splits["val"][0].path]
    from PIL import Image

    pixels = tiny.backbone().preprocess([Image.open(path).convert("RGB") for path in paths])
    expected = tiny.backbone().visual_tokens(pixels)
    assert (lessons.images.visual(images).tokens - expected.tokens).abs().max() < 1e-5
    assert (
        "could not" in (tmp_path / "out" / "quarantine.jsonl").read_text()
        or damaged.name in (tmp_path / "out" / "quarantine.jsonl").read_text()
    )


def test_a_second_start_reads_nothing_until_it_has_to(tmp_path: Path) -> None:
    dataset, backbone = write_dataset(tmp_path / "data"), Counted()
    first = make_training_data(backbone, dataset, LABELS, tmp_path / "out")  # pyright: ignore[reportArgumentType]
    assert backbone.seen == 18
    again = Counted()
    second = make_training_data(again, dataset, LABELS, tmp_path / "out")  # pyright: ignore[reportArgumentType]
    assert again.seen == 0
    assert (second.train, second.val) == (first.train, first.val)
    second.images.visual([0])
    assert again.seen == 18


def test_an_image_that_cannot_be_read_any_more_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    make_training_data(tiny.backbone(), dataset, LABELS, tmp_path / "out")
    again = make_training_data(tiny.backbone(), dataset, LABELS, tmp_path / "out")
    dataset.splits["train"][3].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of the images that this run began with cannot be read now: .*003\.png"):
        again.images.visual([0])


def test_a_label_outside_the_set_and_a_missing_split(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", train=4, val=2)
    with pytest.raises(UsageError, match="'disgust'"):
        make_training_data(tiny.backbone(), dataset, LABELS[:2], tmp_path / "out")
    bare = Dataset("bare", dataset.root, LABELS, {"test": dataset.splits["val"]}, "folder")
    with pytest.raises(DataError, match="no split 'train'"):
        make_training_data(tiny.backbone(), bare, LABELS, tmp_path / "out")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images in split/label folders."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 9), ("val", 3), ("test", 6)):
        for number in range(count):
            home = root / split / LABELS[number % 3]
            home.mkdir(parents=True, exist_ok=True)
            tiny.picture(84, 112 if number % 2 else 84, seed=number + 100 * len(split)).save(home / f"{number}.png")
    return root


def test_baseline_trains_measures_and_writes_what_evaluate_writes(masp, photos: Path, tmp_path: Path) -> None:
    words = ["baseline", "probe", "strengths=[0.1]", "--data", photos, "--backbone", tiny.checkpoint()]
    code, out, err = masp(*words, "--out", tmp_path / "out", "--seed", 3)
    assert code == 0, err
    assert "accuracy" in out
    found = read_result(tmp_path / "out")
    assert (found.system, found.split, found.used) == ("probe", "test", 6)
    assert found.labels == tuple(sorted(LABELS))
    assert found.provenance["system"]["fitted"]["C"] == 0.1
    assert found.chances.calibrated is not None
    assert (tmp_path / "out" / "training" / "learned").is_dir()
    assert tiny.checkpoint().as_posix() not in (tmp_path / "out" / "summary.json").read_text()
    predictions = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    code, _, err = masp(*words, "--out", tmp_path / "out", "--seed", 3)
    assert code == 0, err
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == predictions
    code, _, err = masp(*words, "--out", tmp_path / "out", "--seed", 4)
    assert code == 2
    assert "seed: 3 there, 4 now" in err


def test_baseline_needs_no_training_where_nothing_is_learned(masp, photos: Path, tmp_path: Path) -> None:
    words = [
        "--data",
        photos,
        "--backbone",
        tiny.checkpoint(),
        "--out",
        tmp_path / "out",
        "--labels",
        "joy,fear,disgust",
    ]
    code, _, err = masp("baseline", "zero-shot-letters", "reading=generate", *words)
    assert code == 0, err
    found = read_result(tmp_path / "out")
    assert (found.system, found.mode, found.labels) == ("zero-shot-letters", "generate", ("joy", "fear", "disgust"))
    assert not (tmp_path / "out" / "training").exists()
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all(line["answer"] is not None and line["log_probabilities"] is None for line in lines)


def test_baseline_asks_the_questions_of_a_file(masp, photos: Path, tmp_path: Path) -> None:
    words = ["--data", photos, "--backbone", tiny.checkpoint(), "--out", tmp_path / "out"]
    file = write_questions(tmp_path / "questions.json")
    code, _, err = masp("baseline", "zero-shot", f"questions={file}", *words)
    assert code == 0, err
    labels = ", ".join(sorted(LABELS))
    known = read_result(tmp_path / "out").provenance
    assert known["question"] == f"Dear model, what mood is it? Take a word of {labels} for it!"
    assert str(tmp_path) not in json.dumps(known)
    file.write_text("{}")
    code, _, err = masp("baseline", "zero-shot", f"questions={file}", *words)
    assert code != 0
    assert "has no questions for" in err


def test_baseline_lists_every_system(masp) -> None:
    code, out, _ = masp("baseline", "--list")
    assert code == 0
    assert all(name in out for name in CATALOGUE)
    assert "temperature=2.0" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "PHOTOS", "--out", "OUT"], 2, "NAME is missing"),
        (["probe", "--out", "OUT"], 2, "--data is missing"),
        (["probe", "--data", "PHOTOS"], 2, "--out is missing"),
        (["prob", "--data", "PHOTOS", "--out", "OUT"], 2, "Did you mean 'probe'"),
        (["probe", "--data", "PHOTOS", "--out", "OUT", "--split", "tset"], 2, "Did you mean 'test'"),
        (["probe", "--data", "PHOTOS", "--out", "OUT", "data.longest=3"], 2, "data.longest_side"),
        (["zero-shot", "--data", "PHOTOS", "--out", "OUT", "mood=3"], 2, "no setting 'mood'"),
        (["zero-shot", "--data", "PHOTOS", "--out", "OUT", "--labels", "joy"], 1, "too few labels"),
        (["probe", "--data", "PHOTOS", "--out", "OUT", "--labels", "joy,fear"], 2, "'disgust'"),
    ],
)
def test_mistakes(masp, photos: Path, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    places = {"PHOTOS": str(photos), "OUT": str(tmp_path / "out")}
    given = [places.get(word, word) for word in words]
    found, _, err = masp("baseline", *given, "--backbone", tiny.checkpoint())
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
