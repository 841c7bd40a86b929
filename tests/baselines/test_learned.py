"""What is learned, by hand: the probe's optimum, the distillation loss, the gate, pooling; and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures import tiny
from fixtures.noise_lessons import LABELS, Watched, lessons
from masp.baselines.base import Example
from masp.baselines.distilled import (
    AttentionHead,
    Distilled,
    DistilledSettings,
    MeanHead,
    distillation_loss,
    gate_inputs,
    mean_token,
)
from masp.baselines.probe import Probe, fitted, logits
from masp.baselines.prompted import zero_shot_system
from masp.baselines.registry import make_system
from masp.core.errors import ConfigError, DataError, UsageError
from masp.core.types import VisualTokens


def test_the_probe_is_at_its_optimum() -> None:
    """Two points at -1 and 1: w² / 2 + C · Σ log(1 + e^-w) is least where w = 2 C / (1 + e^w)."""
    found = fitted(torch.tensor([[-1.0], [1.0]]), [0, 1], 2, strength=1.0, iterations=100)
    values = logits(found, torch.tensor([[1.0]]))[0]
    weight = float(values[1] - values[0])
    assert weight == pytest.approx(2 / (1 + math.exp(weight)), abs=1e-3)
    assert weight == pytest.approx(0.6748, abs=1e-3)


def test_the_probe_standardises_by_the_training_images() -> None:
    means = torch.tensor([[1000.0, 3.0], [1002.0, 3.0], [1004.0, 3.0]])
    found = fitted(means, [0, 1, 2], 3, 1.0, 200)
    assert found["mean"].tolist() == [1002.0, 3.0]
    assert found["scale"].tolist() == pytest.approx([math.sqrt(8 / 3), 1e-6])
    assert logits(found, means).argmax(1).tolist() == [0, 1, 2]


def test_a_label_without_images_is_never_the_answer_and_never_impossible() -> None:
    found = fitted(torch.tensor([[-1.0], [1.0]]), [0, 2], 3, 1.0, 100)
    values = logits(found, torch.tensor([[0.3]]))[0]
    assert float(values[1]) == pytest.approx(min(float(values[0]), float(values[2])) - math.log(2), abs=1e-6)


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="same label"):
        fitted(torch.tensor([[-1.0], [1.0]]), [1, 1], 3, 1.0, 100)


def test_the_probe_takes_the_c_that_is_best_on_val(tmp_path: Path) -> None:
    probe = make_system("probe", tiny.backbone(), LABELS, ["strengths=[1e-9, 1.0]"])
    probe.fit(lessons(tmp_path / "out", Watched(tiny.backbone())))
    alone = {}
    for strength in ("1e-9", "1.0"):
        other = make_system("probe", tiny.backbone(), LABELS, [f"strengths=[{strength}]"])
        other.fit(lessons(tmp_path / strength, Watched(tiny.backbone())))
        fit = other.config()["fitted"]
        alone[fit["accuracy"], fit["log_likelihood"]] = fit["C"]
    assert probe.config()["fitted"]["C"] == alone[max(alone)]


def test_the_distillation_loss() -> None:
    """Logits 2·log 3 and 0 at temperature 2 are odds of 3 to 1; the teacher's 0 and 0 are even."""
    student, teacher = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    right = -math.log(9 / 10)  # at temperature 1 the odds are 9 to 1
    expected = 0.5 * divergence * 4 + 0.5 * right
    found = distillation_loss(student, teacher, torch.tensor([0]))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(student, teacher, torch.tensor([0]), weight=0.0)) == pytest.approx(right, rel=1e-5)


def test_the_inputs_of_the_gate() -> None:
    found = gate_inputs(torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]]), torch.tensor([1, 3]))
    assert found.tolist() == [[0.5, -1.0, 2.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def test_the_gate_is_a_linear_layer_over_both(tmp_path: Path) -> None:
    system = Distilled(zero_shot_system(tiny.backbone(), LABELS), DistilledSettings(teacher_width=4, hidden=4))
    images = Watched(tiny.backbone())
    system.fit(lessons(tmp_path / "out", images))
    assert system.modules is not None
    head, gate = system.modules
    visual = images.visual([0])
    (own,) = head(mean_token(visual)).tolist()
    (named,) = system.tuned.predict(visual)
    both = [*own, *(float(label == named.predicted) for label in LABELS)]
    rows = [sum(w * x for w, x in zip(row, both, strict=True)) for row in gate.weight.tolist()]
    odds = torch.tensor([value + bias for value, bias in zip(rows, gate.bias.tolist(), strict=True)]).log_softmax(0)
    (one,) = system.predict(visual)
    assert list(one.log_probabilities.values()) == pytest.approx(odds.tolist(), abs=1e-5)


def test_the_head_standardises_what_it_is_given() -> None:
    head = MeanHead(2, 3, 2, 0.0).eval()
    head.standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))  # means 2 and 5, spreads 1 and none
    assert torch.equal(head(torch.tensor([[4.0, 5.0]])), head.layers(torch.tensor([[2.0, 0.0]])))
    assert set(dict(head.named_parameters())) == {f"layers.{n}.{part}" for n in (0, 3) for part in ("weight", "bias")}


def test_the_mean_token_leaves_padding_out() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]])
    assert mean_token(VisualTokens(tokens, torch.tensor([[True, True, False]]))).tolist() == [[2.0, 4.0]]


def test_the_teacher_sees_every_token_and_no_padding() -> None:
    torch.manual_seed(0)
    head = AttentionHead(3, 5, 2, 0.0).eval()
    with torch.no_grad():
        head.query.normal_()
    tokens, mask = torch.randn(1, 4, 3), torch.tensor([[True, True, True, False]])
    found = head(tokens, mask)
    assert torch.allclose(head(tokens[:, :3], mask[:, :3]), found, atol=1e-6)
    for place in range(3):
        changed = tokens.clone()
        changed[0, place] = torch.randn(3)
        assert (head(changed, mask) - found).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["probe", "distilled"])
def test_nothing_is_answered_before_it_is_learned(name: str) -> None:
    with pytest.raises(UsageError, match="before it learned"):
        make_system(name, tiny.backbone(), LABELS).predict(Watched(tiny.backbone()).visual([0]))


def test_lessons_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    given = lessons(tmp_path / "out", Watched(tiny.backbone()))
    probe = Probe(tiny.backbone(), LABELS)
    with pytest.raises(DataError, match="no labelled image"):
        probe.fit(replace(given, train=()))
    with pytest.raises(DataError, match="'joy'"):
        probe.fit(replace(given, train=(*given.train, Example(0, "joy", {}))))


@pytest.mark.parametrize("change", ["fingerprint", "seed", "labels"])
def test_a_folder_of_other_lessons_is_refused(change: str, tmp_path: Path) -> None:
    given = lessons(tmp_path / "out", Watched(tiny.backbone()))
    Probe(tiny.backbone(), LABELS).fit(given)
    labels = LABELS[::-1] if change == "labels" else LABELS
    other = {"fingerprint": {"fingerprint": "other"}, "seed": {"seed": 1}}.get(change, {})
    with pytest.raises(UsageError, match=change if change != "fingerprint" else "data: noise there, other now"):
        Probe(tiny.backbone(), labels).fit(replace(given, **other))


def test_without_val_the_last_state_is_kept(tmp_path: Path) -> None:
    images = Watched(tiny.backbone())
    system = make_system("distilled", tiny.backbone(), LABELS, ["over=probe", "teacher_width=4", "hidden=4"])
    system.fit(replace(lessons(tmp_path / "out", images), val=()))
    assert system.config()["fitted"] == {"teacher": {}, "head": {}, "gate": {}}
    assert system.config()["tuned"]["fitted"] == {"C": 1.0}
    assert len(system.predict(images.visual([0, 1]))) == 2


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("prob", [], UsageError, "Did you mean 'probe'"),
        ("probe", ["strenghts=[1.0]"], ConfigError, "Did you mean 'strengths'"),
        ("probe", ["iterations=0"], ConfigError, "iterations is 0"),
        ("probe", ["strengths"], ConfigError, "not an override"),
        ("zero-shot-letters", ["options=list"], ConfigError, "no setting 'options'"),
        ("zero-shot", ["reading=guess"], ConfigError, "reading is 'guess'"),
        ("distilled", ["over=nothing"], UsageError, "no system 'nothing'"),
        ("distilled", ["over=distilled"], UsageError, "cannot stand on itself"),
        ("distilled", ["over=3"], ConfigError, "over is 3"),
        ("distilled", ["over.temperature=3"], ConfigError, "zero-shot has no setting 'temperature'"),
        ("distilled", ["temperature=0"], ConfigError, "temperature is 0"),
        ("aspects", [], UsageError, "neither aspects nor a soft prompt"),
    ],
)
def test_wrong_names_and_settings(name: str, changes: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_system(name, tiny.backbone(), LABELS, changes)
