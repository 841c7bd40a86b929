"""Where researchers measure: VECBench's file, and lmms-eval's tasks and models, by the interface of lmms-eval 0.7.3.

`Harness` and `evaluated` do what lmms-eval does with a simple model and a task of the kind generate_until.
"""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from masp.core.errors import DataError, UsageError
from masp.data.readers.open_dataset import open_dataset
from masp.data.readers.vecbench import write_tables
from masp.evaluation.runner import evaluate
from masp.predictor import Masp
from masp.serving import lmms_eval


class Harness:
    """The part of `lmms_eval.api.model.lmms` that a model builds on."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["path,label,split"]
    for number in range(7):
        tiny.picture(60 + 13 * number, 90, seed=number).save(tmp_path / f"{number}.jpg")
        rows.append(f"{number}.jpg,{LABELS[number % 3]},test")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


def evaluated(pack: Path, name: str, model: Any) -> float:
    """The accuracy that lmms-eval reports: rows of the file, one request for each, the mean of the metric."""
    config = (pack / f"{name}.yaml").read_text()
    files = json.loads(re.search(r"^dataset_kwargs: (.+)$", config, re.MULTILINE)[1])
    rows = datasets.load_dataset("json", **files)["test"]
    home = importlib.util.spec_from_file_location("utils", pack / "utils.py")
    utils = importlib.util.module_from_spec(home)
    home.loader.exec_module(utils)
    model.task_dict = {name: {"test": rows}}
    requests = [
        SimpleNamespace(args=(utils.doc_to_text(row), {}, utils.doc_to_visual, number, name, "test"))
        for number, row in enumerate(rows)
    ]
    answers = model.generate_until(requests)
    right = [utils.process_results(row, [answer])["accuracy"] for row, answer in zip(rows, answers, strict=True)]
    return sum(right) / len(right)


@pytest.mark.filterwarnings("ignore")  # of the library datasets
def test_the_accuracy_in_lmms_eval_is_that_of_masp_evaluate(tmp_path, table, masp, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_adapter(tmp_path / "a", aspects=("scene",))
    place = str(tiny.checkpoint())
    code, out, err = masp("data", "lmms-eval", table, "--out", tmp_path / "pack", "--name", "small")
    assert code == 0, err
    assert "--include_path" in out
    loaded = Masp.from_pretrained(tmp_path / "a", place, dtype="float32")
    ours = evaluate(loaded, open_dataset(table), "test")
    dataset = open_dataset(table)
    assert set(dataset.labels) == set(LABELS)
    kind = lmms_eval.with_masp(Harness)
    model = kind(adapter=str(tmp_path / "a"), backbone=place, dtype="float32", device="cpu", batch_size="4")
    rows = (tmp_path / "pack" / "small.jsonl").read_text()
    asked = loaded.task.question
    (tmp_path / "pack" / "small.jsonl").write_text(rows.replace(json.loads(rows.splitlines()[0])["question"], asked))
    config = tmp_path / "pack" / "small.yaml"
    assert str(tmp_path / "pack" / "small.jsonl") in config.read_text()
    assert evaluated(tmp_path / "pack", "small", model) == pytest.approx(ours.accuracy.value)
    with pytest.raises(UsageError, match="the task other asks"):
        model.generate_until([SimpleNamespace(args=("What is it?", {}, None, 0, "other", "test"))])
    with pytest.raises(UsageError, match="loglikelihood"):
        model.loglikelihood([])


def test_what_cannot_become_a_task_is_refused(tmp_path, table):
    dataset = open_dataset(table)
    with pytest.raises(UsageError, match="has no labels"):
        lmms_eval.write_task_pack(dataset, "none", tmp_path / "pack", "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UsageError, match="is not an empty folder"):
        lmms_eval.write_task_pack(dataset, "test", tmp_path / "full", "x")


def row(task: str, image: str, truth: str, candidates: list[str]) -> str:
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Which emotion?"}]
    turns = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": content}]
    return json.dumps({"task": task, "ground_truth": truth, "candidates": candidates, "conversations": turns})


def test_vecbench_becomes_a_table_for_each_task(tmp_path, masp):
    for number in range(4):
        tiny.picture(60, 60, seed=number).save(tmp_path / f"{number}.jpg")
    lines = [row("FI-2", f"{n}.jpg", ("Positive", "negative")[n % 2], ["positive", "negative"]) for n in range(3)]
    lines.append(row("EmoSet-8", "file://" + str(tmp_path / "3.jpg"), "awe", ["awe", "fear"]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    code, _, err = masp("data", "vecbench", tmp_path / "test.jsonl")
    assert (code, "FI-2 3, EmoSet-8 1" in err) == (0, True)
    dataset = open_dataset(tmp_path / "FI-2.csv")
    assert [(one.path.name, one.label) for one in dataset.splits["test"]] == [
        ("0.jpg", "positive"),
        ("1.jpg", "negative"),
        ("2.jpg", "positive"),
    ]
    assert (tmp_path / "EmoSet-8.csv").read_text().splitlines()[1] == "3.jpg,awe,test"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"task": "FI-2"}',
        row("FI-2", "a.jpg", "joy", ["fear"]),
        row("../x", "a.jpg", "joy", ["joy"]),
        row("x", "/etc/a.jpg", "joy", ["joy"]),
    ],
)
def test_rows_that_are_not_vecbenchs_are_refused(tmp_path, line):
    (tmp_path / "test.jsonl").write_text(row("FI-2", "a.jpg", "joy", ["joy"]) + "\n" + line)
    with pytest.raises(DataError, match="line 2"):
        write_tables(tmp_path / "test.jsonl")
