"""A split is measured once per image, and what was measured can be found again in files."""

import json
from pathlib import Path

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from fixtures.scenes import ByBrightness, write_scenes
from masp.baselines import prompted
from masp.core.errors import DataError, UsageError
from masp.core.flops import images_at_once
from masp.data.records import Dataset, Record
from masp.evaluation import runner
from masp.evaluation.predict_split import Batching
from masp.evaluation.result import read_result
from masp.evaluation.runner import evaluate
from masp.predictor import Masp


@pytest.fixture(scope="module")
def masp(tmp_path_factory):
    return Masp.from_pretrained(write_adapter(tmp_path_factory.mktemp("a") / "adapter"), dtype="float32")


def with_records(dataset, *more):
    return Dataset(dataset.name, dataset.root, dataset.labels, {"test": (*dataset.splits["test"], *more)}, "folder")


def test_a_small_backbone_gets_more_images_at_a_time():
    assert [images_at_once(width) for width in (256, 512, 513, 3584)] == [64, 64, 8, 8]
    assert [images_at_once(3584, 2), images_at_once(256, 2), images_at_once(256, 100)] == [2, 64, 100]


def test_where_nobody_says_how_many_at_a_time_the_backbone_decides(masp, tmp_path):
    dataset = write_scenes(tmp_path)
    unsaid, said, other = (evaluate(masp, dataset, batching=how) for how in (None, Batching(64), Batching(3)))
    assert unsaid.provenance["batch_size"] == 64  # the tiny backbone is narrow
    assert unsaid.provenance["run"] == said.provenance["run"] != other.provenance["run"]
    assert unsaid.answers == said.answers


def test_a_batch_of_none_is_refused(masp, tmp_path):
    with pytest.raises(UsageError, match="batch_size is 0; expected 1 or more"):
        evaluate(masp, write_scenes(tmp_path), batching=Batching(0))


def test_scores_agree_with_predict(masp, tmp_path):
    dataset = write_scenes(tmp_path)
    found = evaluate(masp, dataset, batching=Batching(3))
    single = [masp.predict(record.path, explain=False) for record in dataset.splits["test"]]
    assert [a.predicted for a in found.answers] == [one.label for one in single]
    for answer, one in zip(found.answers, single, strict=True):
        assert answer.probabilities == pytest.approx(one.probabilities, abs=1e-5)
        assert sum(one.probabilities.values()) == pytest.approx(1)
    right = sum(a.truth == a.predicted for a in found.answers)
    assert found.accuracy.value == right / 7
    assert found.majority.value == 3 / 7
    assert sum(map(sum, found.confusion)) == found.used == 7
    assert found.unparsed == 0
    assert found.chances.negative_log_likelihood.value > 0
    assert found.mode == "score"
    assert found.exact is None


def test_generated_answers_are_read_as_labels_or_counted_as_wrong(masp, tmp_path, monkeypatch):
    texts = iter(["Joy.", "fear\nand more", "nothing", "awe", "fear", "joy or fear", "joy"])
    monkeypatch.setattr(prompted, "generate", lambda model, visual, *rest: [next(texts) for _ in range(len(visual))])
    found = evaluate(masp, write_scenes(tmp_path), mode="generate", batching=Batching(3))
    assert [a.predicted for a in found.answers] == ["joy", "fear", None, "awe", "fear", None, "joy"]
    assert found.unparsed == 2
    assert found.accuracy.value == 4 / 7
    assert found.chances is None
    assert found.mode == "generate"
    assert found.answers[2].answer == "nothing"
    assert [row[-1] for row in found.confusion] == [0, 0, 2]  # both unreadable answers were to "awe"
    assert [a.exact for a in found.answers] == [False, False, False, True, True, False, True]
    assert (found.exact.accuracy.value, found.exact.unparsed) == (2 / 7, 4)


def test_unreadable_and_unlabelled_images_are_listed_not_counted(masp, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    dataset = write_scenes(tmp_path)
    found = evaluate(masp, with_records(dataset, Record(broken, "joy"), Record(dataset.root / "0.png")))
    assert (found.used, found.unlabelled) == (7, 1)
    assert [Path(bad.image).name for bad in found.quarantined] == ["broken.png"]
    assert len(found.answers) == 7


def test_an_unknown_label_is_named_with_its_neighbour(masp, tmp_path):
    dataset = with_records(write_scenes(tmp_path), Record(tmp_path / "0.png", "jooy"))
    with pytest.raises(UsageError, match=r"label 'jooy'; expected the labels of the adapter: joy, fear, awe.*'joy'\?"):
        evaluate(masp, dataset)


def test_a_split_without_labels_or_pictures_is_refused(masp, tmp_path):
    dataset = Dataset("d", tmp_path, LABELS, {"test": (Record(tmp_path / "a.png"),)}, "folder")
    with pytest.raises(DataError, match="no image has a label"):
        evaluate(masp, dataset)
    with pytest.raises(DataError, match=r"no split 'tset'.*'test'"):
        evaluate(masp, dataset, "tset")


def test_files_hold_predictions_figures_and_provenance(masp, tmp_path):
    seen = []
    dataset = write_scenes(tmp_path / "data")
    found = evaluate(masp, dataset, batching=Batching(3, progress=seen.append), out=tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [record.path.name for record in dataset.splits["test"]]
    assert lines[4]["log_probabilities"] == found.answers[4].log_probabilities
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"]["value"] == found.accuracy.value
    known = summary["provenance"]
    assert known["data"]["fingerprint"] == dataset.fingerprint()
    assert known["backbone"]["fingerprint"] == masp.backbone.fingerprint()
    assert known["versions"].keys() >= {"masp", "torch", "transformers"}
    assert known["adapter"]["seeds"] == {"prompt": 0}
    assert known["batch_size"] == 3
    assert known["question"] == masp.task.question
    assert known["labels"] == list(LABELS)
    assert known["machine"]["cores"] >= 1
    assert known["machine"].keys() == {"processor", "cores", "accelerator", "platform"}
    assert known["seconds"] > 0
    assert known["finished"].endswith("+00:00")
    assert read_result(tmp_path / "out") == found
    assert seen == [3, 3, 1]
    written = (tmp_path / "out" / "summary.json").read_text() + (tmp_path / "out" / "predictions.jsonl").read_text()
    assert str(tmp_path) not in written  # what is handed on names no place on this machine
    assert str(tiny.checkpoint()) not in written
    assert (known["backbone"]["name"], known["adapter"]["name"]) == (tiny.checkpoint().name, "adapter")


@pytest.mark.parametrize(("seeds", "seed"), [({"prompt": 3, "aspects": 5}, 3), ({"aspects": 5}, 5), ({}, None)])
def test_a_result_names_the_seed_of_the_training(masp, tmp_path, seeds, seed):
    write_adapter(tmp_path / "seeded")
    file = tmp_path / "seeded" / "adapter.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"seeds": seeds}))
    found = evaluate(Masp.from_pretrained(tmp_path / "seeded", masp.backbone), write_scenes(tmp_path / "data", count=2))
    assert found.provenance["seed"] == seed
    assert found.provenance["adapter"]["seeds"] == seeds


def test_a_system_that_names_its_seed_is_believed(tmp_path):
    system = ByBrightness()
    told = system.config()
    system.config = lambda: {**told, "seed": 11}
    dataset = write_scenes(tmp_path, count=2)
    assert evaluate(system, dataset).provenance["seed"] == 11
    assert evaluate(ByBrightness(), dataset).provenance["seed"] is None


def test_another_adapter_has_another_fingerprint(masp, tmp_path):
    other = Masp.from_pretrained(write_adapter(tmp_path / "b", seed=1), masp.backbone)
    same = Masp.from_pretrained(write_adapter(tmp_path / "c"), masp.backbone)
    prints = [runner.provenance(one)["adapter"]["tensors_sha256"] for one in (masp, other, same)]
    assert prints[0] == prints[2] != prints[1]
