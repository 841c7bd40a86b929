"""Predictions of other systems: everything that can be meant is understood, everything else is named with its line."""

import json
import math

import pytest

from masp.core.errors import DataError, UsageError
from masp.data.records import Dataset, Record
from masp.evaluation.compute_metrics import ResultContext, measured
from masp.evaluation.external_predictions import evaluate_predictions, read_foreign
from masp.evaluation.metrics import BootstrapSamples
from masp.evaluation.result import LOWEST, LabelledPrediction, read_predictions, read_result, write_predictions

LABELS = ("joy", "sadness", "awe")


def write(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def dataset(root, votes=None):
    """Six images to test on, two of each label, and three in val."""
    records = []
    for number in range(9):
        path = root / LABELS[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))
        records.append(Record(path, LABELS[number % 3], distribution=votes))
    return Dataset("things", root, LABELS, {"test": tuple(records[:6]), "val": tuple(records[6:])}, "folder")


def shares(best, much=0.7):
    rest = (1 - much) / 2
    return {label: much if label == best else rest for label in LABELS}


def rows_for(data, split="test"):
    return [{"image": data.relative_path(one.path), "probabilities": shares("joy")} for one in data.splits[split]]


def test_what_was_written_is_read_back_value_for_value(tmp_path):
    answers = (
        LabelledPrediction("a/1.png", "joy", "joy", {"joy": -0.1, "sadness": -2.302585092994046, "awe": LOWEST}),
        LabelledPrediction("b/ü.png", "awe", None, None, 'so "sad"\n'),
    )
    write_predictions(tmp_path / "p.jsonl", answers)
    assert read_predictions(tmp_path / "p.jsonl") == answers
    assert list(json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])) == [
        "image",
        "truth",
        "predicted",
        "log_probabilities",
        "answer",
    ]
    texts = (
        LabelledPrediction("a.png", "joy", "joy", None, "Joy", False),
        LabelledPrediction("b.png", "joy", "joy", None, "joy", True),
    )
    write_predictions(tmp_path / "t.jsonl", texts)
    assert read_predictions(tmp_path / "t.jsonl") == texts
    assert [one.counted for one in texts] == [None, "joy"]
    write(tmp_path / "q.jsonl", {"image": "a"})
    with pytest.raises(DataError, match="line 1 holds image; expected image and truth"):
        read_predictions(tmp_path / "q.jsonl")


def test_every_way_to_say_it_is_understood(tmp_path):
    file = write(
        tmp_path / "p.jsonl",
        {"image": "1", "predicted": "Sad"},  # another word, another case
        {"image": "2", "probabilities": {"joy": 0.25, "sad": 0.5, "Awe.": 0.25}},
        "",
        {"image": "3", "log_probabilities": {"awe": -0.1, "joy": -2.4, "sadness": -5.3}, "truth": "happiness"},
        {"image": "4", "answer": "Joy!\nbecause of the cake"},
        {"image": "5", "answer": "no idea"},
        {"image": "6", "predicted": None, "answer": "joy"},  # it said itself that it names none
        {"image": "7", "probabilities": {"joy": 0.335, "sadness": 0.335, "awe": 0.335}},  # rounded
        {"image": "8", "probabilities": {"joy": 1, "sadness": 0, "awe": 0}},
    )
    found = read_foreign(file, LABELS)
    assert [row.predicted for row in found] == ["sadness", "sadness", "awe", "joy", None, None, "joy", "joy"]
    assert [row.line for row in found] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert found[1].log_probabilities == pytest.approx(
        {"joy": -math.log(4), "sadness": -math.log(2), "awe": -math.log(4)}
    )
    assert tuple(found[2].log_probabilities) == LABELS
    assert found[2].truth == "joy"
    assert sum(map(math.exp, found[6].log_probabilities.values())) == pytest.approx(1)
    assert found[7].log_probabilities["awe"] == LOWEST


def test_synonyms_that_are_two_labels_of_one_set_stay_apart(tmp_path):
    shares = {"joy": 0.2, "happiness": 0.7, "fear": 0.1}
    rows = ({"image": "1", "probabilities": shares}, {"image": "2", "predicted": "happiness", "truth": "joy"})
    found = read_foreign(write(tmp_path / "p.jsonl", *rows), ("joy", "happiness", "fear"))
    assert found[0].log_probabilities == pytest.approx({name: math.log(share) for name, share in shares.items()})
    assert [(row.predicted, row.truth) for row in found] == [("happiness", None), ("happiness", "joy")]


def test_votes_for_synonyms_that_are_two_labels_of_one_set_stay_apart():
    labels = ("joy", "happiness")
    answer = LabelledPrediction("1", "joy", "joy", {label: math.log(0.5) for label in labels})
    about = ResultContext("theirs", "things", "test", "score", labels, {})
    found = measured(about, [answer], {"1": {"happiness": 0.75, "joy": 0.25}}, samples=BootstrapSamples(20, 0))
    # the votes are 1/4 and 3/4, the answer 1/2 and 1/2: 1/4 log 1/2 + 3/4 log 3/2
    assert found.distribution.kl.value == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


GOOD = {"image": "1", "predicted": "joy"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", r"line 2 is \[1\]; expected a JSON object"),
        ({"image": "2"}, "line 2 says nothing about 2; expected one of predicted"),
        ({"predicted": "joy"}, "line 2: the image is None"),
        ({"image": "1", "predicted": "awe"}, "line 2: 1 was in line 1 already"),
        ({"image": "2", "predicted": "jooy"}, "predicted is 'jooy'; expected one of joy, sadness, awe.*mean 'joy'"),
        ({"image": "2", "predicted": 3}, "predicted is 3"),
        ({"image": "2", "predicted": "joy", "truth": "rage"}, "truth is 'rage'"),
        ({"image": "2", "probabilities": {"joy": 0.5, "sadness": 0.5}}, "probabilities lacks awe"),
        ({"image": "2", "probabilities": {"joy": 1, "sad": 0, "sadness": 0, "awe": 0}}, "names 'sadness' twice"),
        ({"image": "2", "probabilities": {"joy": 0.6, "sadness": 0.6, "awe": 0.1}}, "sum to 1.3; expected 1"),
        ({"image": "2", "probabilities": {"joy": -0.5, "sadness": 1, "awe": 0.5}}, "of joy is -0.5; expected a prob"),
        ({"image": "2", "probabilities": {"joy": "1", "sadness": 0, "awe": 0}}, "of joy is '1'"),
        ({"image": "2", "probabilities": {"joy": True, "sadness": 0, "awe": 0}}, "of joy is True"),
        ({"image": "2", "probabilities": {"joy": 10**400, "sadness": 0, "awe": 0}}, "line 2: prob.* of joy is 10000"),
        ({"image": "2", "log_probabilities": {"joy": 10**400, "sadness": 0, "awe": 0}}, "line 2: log.* of joy is 1000"),
        ('{"image": "2", "probabilities": {"joy": NaN, "sadness": 0, "awe": 1}}', "of joy is nan"),
        (
            {"image": "2", "log_probabilities": {"joy": 0.5, "sadness": -1, "awe": -1}},
            "joy is 0.5; expected a logarithm",
        ),
        ({"image": "2", "log_probabilities": [1, 2]}, r"log_probabilities is \[1, 2\]"),
        ({"image": "2", "log_probabilities": {}, "probabilities": {}}, "both log_probabilities and probabilities"),
        ({"image": "2", "answer": 5}, "the answer is 5"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_foreign(write(tmp_path / "p.jsonl", GOOD, row), LABELS)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_foreign(tmp_path / "none.jsonl", LABELS)
    with pytest.raises(DataError, match="holds no predictions"):
        read_foreign(write(tmp_path / "p.jsonl", ""), LABELS)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="not text in UTF-8"):
        read_foreign(tmp_path / "b.jsonl", LABELS)


def test_another_system_is_measured_like_ours(tmp_path):
    data = dataset(tmp_path / "things", {"joy": 0.5, "sad": 0.25, "neutral": 0.25})
    rows = rows_for(data)
    rows[1]["probabilities"] = shares("sadness")
    names = [
        rows[0]["image"],
        f"./{rows[1]['image']}",
        rows[2]["image"].replace("/", "\\"),
        str(data.splits["test"][3].path),
    ]
    for row, name in zip(rows, names, strict=False):
        row["image"] = name
    found = evaluate_predictions(
        write(tmp_path / "theirs.jsonl", *reversed(rows), *rows_for(data, "val")),
        data,
        calibrate=True,
        out=tmp_path / "o",
    )
    assert [one.image for one in found.answers] == [data.relative_path(one.path) for one in data.splits["test"]]
    assert found.accuracy.value == 3 / 6  # two of joy, one of sadness
    assert found.majority.value == 2 / 6
    assert (found.system, found.mode, found.used, found.unparsed, found.unanswered) == ("theirs", "score", 6, 0, 0)
    assert found.chances.negative_log_likelihood.value == pytest.approx(-(math.log(0.7) + math.log(0.15)) / 2)
    assert (found.chances.calibrated.split, found.chances.calibrated.images) == ("val", 3)
    # on val "joy" is right once in three, so that scaling ends where all three are equally likely
    assert found.chances.calibrated.at_limit
    assert found.distribution.images == 6
    kl = {"joy": 2 / 3 * math.log(2 / 3 / 0.7) + 1 / 3 * math.log(1 / 3 / 0.15)}
    kl["sadness"] = 2 / 3 * math.log(2 / 3 / 0.15) + 1 / 3 * math.log(1 / 3 / 0.7)
    assert found.distribution.kl.value == pytest.approx((5 * kl["joy"] + kl["sadness"]) / 6)
    assert read_result(tmp_path / "o") == found
    known = found.provenance
    assert known["data"]["fingerprint"] == data.fingerprint()
    assert len(known["predictions"]["sha256"]) == 64
    assert str(tmp_path) not in (tmp_path / "o" / "summary.json").read_text()


JOY = shares("joy")


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ({"answer": "Joy!"}, "generate"),
        ({"answer": "no idea"}, "generate"),
        ({"predicted": "joy", "answer": "joy"}, "generate"),  # what our own results hold
        ({"predicted": None, "answer": "no idea"}, "generate"),
        ({"predicted": "joy"}, "score"),
        ({"probabilities": JOY}, "score"),
        ({"probabilities": JOY, "answer": "joy"}, "score"),  # the probabilities decided, the text stands beside
        ({"probabilities": JOY, "answer": "a cake on a table"}, "score"),
        ({"predicted": "joy", "answer": "a cake on a table"}, "score"),
        ({"predicted": None, "answer": "joy"}, "score"),
    ],
)
def test_the_mode_says_where_the_labels_were_read(tmp_path, said, mode):
    data = dataset(tmp_path / "things")
    places = [data.relative_path(one.path) for one in data.splits["test"]]
    found = evaluate_predictions(write(tmp_path / "p.jsonl", *({"image": place, **said} for place in places)), data)
    assert found.mode == mode
    assert found.answers[0].answer == said.get("answer")


def test_texts_of_another_system_are_counted_exactly_too(tmp_path):
    """Six images, joy, sadness and awe twice: two labels are right, one of them by the same characters."""
    data = dataset(tmp_path / "things")
    places = [data.relative_path(one.path) for one in data.splits["test"]]
    texts = ["joy", "Sadness.", "joy", "no idea", "no idea", "joy"]
    rows = [{"image": place, "answer": text} for place, text in zip(places, texts, strict=True)]
    found = evaluate_predictions(write(tmp_path / "p.jsonl", *rows), data)
    assert (found.accuracy.value, found.unparsed) == (2 / 6, 2)
    assert (found.exact.accuracy.value, found.exact.unparsed) == (1 / 6, 3)
    some = evaluate_predictions(write(tmp_path / "q.jsonl", *rows[1:]), data, allow_missing=True)
    assert (some.exact.accuracy.value, some.exact.unparsed) == (0, 4)
    assert evaluate_predictions(write(tmp_path / "r.jsonl", *rows_for(data)), data).exact is None


def test_one_label_from_elsewhere_is_enough_and_other_splits_do_not_count(tmp_path):
    data = dataset(tmp_path / "things")
    texts = [{"image": data.relative_path(one.path), "answer": "joy"} for one in data.splits["test"]]
    mixed = [*texts[1:], {**texts[0], "probabilities": JOY}]
    assert evaluate_predictions(write(tmp_path / "p.jsonl", *mixed), data).mode == "score"
    beside = [*texts, *rows_for(data, "val")]
    assert evaluate_predictions(write(tmp_path / "q.jsonl", *beside), data).mode == "generate"
    assert evaluate_predictions(write(tmp_path / "r.jsonl", *beside[6:]), data, allow_missing=True).mode == "score"


def test_a_missing_image_is_named_or_counted_as_wrong(tmp_path):
    data = dataset(tmp_path / "things")
    file = write(tmp_path / "p.jsonl", *rows_for(data)[2:])
    with pytest.raises(DataError, match=r"does not name 2 of 6 images \(joy/0.png, sadness/1.png\).*--allow-missing"):
        evaluate_predictions(file, data)
    found = evaluate_predictions(file, data, allow_missing=True)
    assert (found.unanswered, found.unparsed, found.used) == (2, 2, 6)
    assert found.accuracy.value == 1 / 6
    assert found.chances.images == 4
    assert found.confusion[0][-1] == 1


def test_images_and_labels_of_another_data_set_are_refused(tmp_path):
    data = dataset(tmp_path / "things")
    rows = rows_for(data)
    file = write(tmp_path / "p.jsonl", *rows, {"image": "other/1.png", "predicted": "joy"})
    with pytest.raises(DataError, match=r"line 7: the data set has no image other/1.png.*'sadness/1.png'\?"):
        evaluate_predictions(file, data)
    file = write(tmp_path / "p.jsonl", *rows, {"image": "./joy/0.png", "predicted": "joy"})
    with pytest.raises(DataError, match=r"line 7: ./joy/0.png is the image of line 1"):
        evaluate_predictions(file, data)
    file = write(tmp_path / "p.jsonl", {**rows[0], "truth": "awe"}, *rows[1:])
    with pytest.raises(DataError, match=r"line 1: the truth of joy/0\.png is awe; expected joy"):
        evaluate_predictions(file, data)


def test_without_val_in_the_file_no_temperature_is_fitted(tmp_path):
    data = dataset(tmp_path / "things")
    found = evaluate_predictions(write(tmp_path / "p.jsonl", *rows_for(data)), data, calibrate=True)
    assert found.chances is not None
    assert found.chances.calibrated is None


def test_predictions_are_never_overwritten_by_their_own_result(tmp_path):
    data = dataset(tmp_path / "things")
    file = write(tmp_path / "predictions.jsonl", *rows_for(data))
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"is the folder of predictions\.jsonl"):
        evaluate_predictions(file, data, out=tmp_path)
    assert file.read_bytes() == before
