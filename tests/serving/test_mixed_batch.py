"""One batch of several tasks: one pass of the vision tower, one prefix where tasks share it, the same answers."""

from dataclasses import replace
from itertools import chain

import pytest

from fixtures import service as small_service
from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.noise_lessons import Watched, lessons
from fixtures.service import TASKS, image, png, same
from masp.adapters import combine
from masp.baselines.registry import make_system
from masp.model.masp_model import MaspModel
from masp.predictor import Masp
from masp.serving.mixed_batch import Query, predict_mixed


@pytest.mark.parametrize(("family", "prefixes"), [("qwen2_vl", 1), ("gemma3", 1), ("instructblip", 0)])
def test_tasks_share_the_image_and_answer_as_alone(family, prefixes, tmp_path, monkeypatch):
    """Visual tokens of InstructBLIP depend on the question, so nothing of the language model is shared there."""
    for task, labels in TASKS.items():
        write_adapter(tmp_path / task, labels=labels, family=family)
    combine(tmp_path / "several", [f"{task}={tmp_path / task}" for task in TASKS])
    masp = Masp.from_pretrained(tmp_path / "several", tiny.backbone(family))
    seen, made = [], []
    towers, prefix = Masp.visual_tokens, MaspModel.prefix
    monkeypatch.setattr(Masp, "visual_tokens", lambda self, pixels: seen.append(len(pixels)) or towers(self, pixels))
    monkeypatch.setattr(MaspModel, "prefix", lambda self, *given: made.append(len(given[0])) or prefix(self, *given))
    asked = [(task, None, explain) for task in TASKS for explain in (False, True)] + [("first", ("good", "bad"), False)]
    images = [image(png(number)) for number in range(len(asked))]
    views = {name: masp.for_task(name) for name in TASKS}
    queries = [
        Query(views[task] if labels is None else views[task].for_task(None, labels), f"{number}.png", explain)
        for number, (task, labels, explain) in enumerate(asked)
    ]
    groups = list(predict_mixed(masp.backbone.preprocess(images), queries))
    assert seen == [len(asked)]
    assert made == [len(asked)] * prefixes
    assert [queries[rows[0]].explain for rows, _ in groups] == [False] * 4 + [True] * 3
    found = dict(chain.from_iterable(zip(rows, told, strict=True) for rows, told in groups))
    assert sorted(found) == list(range(len(asked)))
    for number, (task, labels, explain) in enumerate(asked):
        alone = masp.for_task(task, labels).predict(images[number], explain=explain)
        assert same(found[number].to_json(), alone.to_json(), aside=("image",))
        assert found[number].image == f"{number}.png"


def test_no_prefix_is_computed_for_concept_bottlenecks(tmp_path, monkeypatch):
    """Which read aspect tokens, and the language model only by a pass of their own; the others still share theirs."""
    labels, backbone = ("amusement", "anger", "fear"), tiny.backbone()
    aspects = write_adapter(tmp_path / "whole", labels)
    system = make_system("concepts", backbone, labels, [f"aspects={aspects}", "fewest=2", "strengths=[1.0]"])
    system.fit(replace(lessons(tmp_path / "concepts" / "training", Watched(backbone)), val=()))
    cues, whole = (Masp.from_pretrained(tmp_path / name, backbone) for name in ("concepts", "whole"))
    made, prefix = [], MaspModel.prefix
    monkeypatch.setattr(MaspModel, "prefix", lambda self, *given: made.append(len(given[0])) or prefix(self, *given))
    for masps, rows in (([cues, cues], []), ([cues, whole, cues, whole], [2])):
        queries = [Query(masp, f"{number}.png", number >= len(masps) / 2) for number, masp in enumerate(masps)]
        images = [image(png(number)) for number in range(len(masps))]
        made.clear()
        groups = list(predict_mixed(backbone.preprocess(images), queries))
        assert made == rows
        for (number,), (told,) in groups:
            alone = masps[number].predict(images[number], explain=queries[number].explain)
            assert same(told.to_json(), alone.to_json(), aside=("image",))


def test_labels_of_a_call_stay_with_that_call(tmp_path):
    """`for_task` with labels gives another object; the one that it came from keeps its own."""
    masp = Masp.from_pretrained(small_service.write_tasks(tmp_path), tiny.backbone())
    other = masp.for_task("second", "polarity")
    assert other.labels == ("positive", "negative")
    assert other.model is masp.for_task("second").model
    assert masp.for_task("second").labels == TASKS["second"]
    assert masp.task_name is None
