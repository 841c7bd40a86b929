"""Figures of log-probabilities against numbers worked out by hand, and against the libraries that also have them."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, f1_score, log_loss, top_k_accuracy_score

from masp.evaluation import compute_metrics as of
from masp.evaluation import metrics
from masp.evaluation.compute_metrics import label_intervals
from masp.evaluation.metrics import BootstrapSamples, bootstrap, calibration_error, means_of
from masp.evaluation.result import LabelledPrediction

LABELS = ("joy", "fear", "awe")
FEW = BootstrapSamples(50)


def logs_of(*rows):
    return np.log(np.array(rows))


def random_case(images=211, labels=5, seed=0):
    generator = np.random.default_rng(seed)
    return log_softmax(2 * generator.normal(size=(images, labels)), axis=1), generator.integers(labels, size=images)


HAND = logs_of([0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.5, 0.25])
TRUTH = np.array([0, 1, 0])


def test_proper_scores_by_hand():
    nll, brier, error = of.proper_scores(HAND, TRUTH, FEW)
    assert nll.value == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3)
    # (1/4 + 1/16 + 1/16), (1/64 + 1/16 + 1/64), (9/16 + 1/4 + 1/16)
    assert brier.value == pytest.approx((0.375 + 0.09375 + 0.875) / 3)
    # 15 bins: 0.5 twice in one bin (one right), 0.75 alone (right)
    assert error.value == pytest.approx((abs(1.0 - 1) + 0.25) / 3)
    for figure in (nll, brier, error):
        assert figure.low <= figure.value <= figure.high


def test_top2_by_hand_takes_the_first_of_equal_labels():
    assert of.top2(HAND, np.array([1, 2, 2]), FEW).value == 0.0 + 1 / 3  # 0.25 twice: the first of them counts
    assert of.top2(HAND, TRUTH, FEW).value == 1.0


def test_scores_agree_with_the_libraries():
    logs, truth = random_case()
    shares, labels = np.exp(logs), range(5)
    found = of.probabilistic_metrics(logs, truth, FEW)
    assert found.negative_log_likelihood.value == pytest.approx(log_loss(truth, shares, labels=labels))
    assert found.brier.value == pytest.approx(brier_score_loss(truth, shares, labels=labels, scale_by_half=False))
    assert found.top2.value == pytest.approx(top_k_accuracy_score(truth, shares, k=2, labels=labels))
    right = logs.argmax(axis=1) == truth
    assert found.calibration_error.value == pytest.approx(
        calibration_error(shares.max(axis=1).tolist(), right.tolist())
    )


def test_the_calibration_error_is_that_of_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logs, truth = random_case(seed=3)
    sure, right = np.exp(logs).max(axis=1), logs.argmax(axis=1) == truth
    theirs = torchmetrics.binary_calibration_error(torch.tensor(sure), torch.tensor(right).int(), n_bins=15, norm="l1")
    assert calibration_error(sure.tolist(), right.tolist()) == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("confidences", "mean", "deviation"),
    [
        ([0.5], 0.5, 0.0),  # right or wrong, it lies 1/2 beside
        ([1.0, 1.0], 0.0, 0.0),  # always right, as it says
        ([0.5, 1.0, 1.0, 1.0], 0.125, 0.0),  # 1/2 over four images, and nothing from the sure ones
        ([0.5, 0.5], 0.25, 0.25),  # half the time one of two is right, and no gap; else a gap of 1/2
        ([0.5] * 4, 3 / 16, math.sqrt(1 / 16 - 9 / 256)),  # |k - 2| / 4 for k of 4: (2 · 2/4 + 8 · 1/4) / 16
        # two bins: 1/4, and half of |3/4 - y|, which is 1/4 in three of four draws and else 3/4
        ([0.5, 0.75], 7 / 16, 0.25 * math.sqrt(3 / 16)),
    ],
)
def test_the_calibration_floor_by_hand(confidences, mean, deviation):
    logs = np.log([[sure, max(1 - sure, 1e-300)] for sure in confidences])
    found = of.calibration_floor(logs, samples=20_000)
    assert found.value == pytest.approx(mean, abs=0.006)
    assert found.deviation == pytest.approx(deviation, abs=0.006)
    if deviation == 0:
        assert (found.value, found.deviation) == pytest.approx((mean, 0), abs=1e-12)


def test_a_perfectly_calibrated_system_stands_on_the_floor():
    logs, _ = random_case(images=997)
    dice = np.random.default_rng(1)
    truth = np.array([dice.choice(5, p=shares / shares.sum()) for shares in np.exp(logs)])
    found = of.probabilistic_metrics(logs, truth, BootstrapSamples(50, 7))
    floor = found.calibration_floor
    assert abs(found.calibration_error.value - floor.value) < 3 * floor.deviation
    assert floor == of.calibration_floor(logs, 200, seed=7) != of.calibration_floor(logs, 200, seed=8)
    assert floor.percent() == f"{100 * floor.value:.1f} ± {100 * floor.deviation:.1f} %"
    too_sure = log_softmax(3 * logs, axis=1)
    floor = of.calibration_floor(too_sure)
    assert of.proper_scores(too_sure, truth, FEW)[2].value > floor.value + 10 * floor.deviation


def test_the_floor_after_scaling_is_that_of_the_scaled_confidences():
    logs, truth = random_case()
    found = of.calibrated((logs, truth), "val", logs, truth, BootstrapSamples(20, 3))
    assert found.calibration_floor == of.calibration_floor(of.scaled(logs, found.temperature), seed=3)
    assert found.calibration_floor != of.calibration_floor(logs, seed=3)


def test_the_reliability_diagram_holds_every_answer_once():
    bins = of.reliability(HAND, TRUTH)
    assert len(bins) == 15
    assert [(index, one.images) for index, one in enumerate(bins) if one.images] == [(7, 2), (11, 1)]
    assert (bins[7].low, bins[7].confidence, bins[7].accuracy) == (7 / 15, 0.5, 0.5)
    assert of.reliability(np.array([[0.0, -708.0]]), np.array([0]))[-1].images == 1  # a confidence of 1


def test_risk_and_coverage_by_hand():
    logs = logs_of([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4])
    found = of.risk_coverage(logs, np.array([0, 1, 0, 1]), FEW)
    assert found.coverage == (0.25, 0.5, 0.75, 1.0)
    assert found.risk == pytest.approx((0, 1 / 2, 1 / 3, 1 / 2))
    assert found.area.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_risk_does_not_depend_on_the_order_of_equally_sure_answers():
    logs, truth = logs_of(*[[0.75, 0.25]] * 4), np.array([0, 0, 1, 1])
    found = of.risk_coverage(logs, truth, FEW)
    assert found.risk == pytest.approx((0.5, 0.5, 0.5, 0.5))
    assert found.area.value == of.risk_coverage(logs, truth[::-1].copy(), FEW).area.value


def test_the_temperature_undoes_a_known_one():
    # 4 of 5 right at p = 0.8 is honest; the same logits three times as large are not
    truth = np.array([0, 0, 0, 0, 1] * 10)
    logs = log_softmax(np.array([[3 * math.log(4), 0.0]] * 50), axis=1)
    assert metrics.fit_temperature(logs, truth) == pytest.approx(3, abs=1e-3)
    honest = of.scaled(logs, 3.0)
    assert np.exp(honest[0]) == pytest.approx([0.8, 0.2])
    found = of.calibrated((logs, truth), "val", logs, truth, FEW)
    assert found.calibration_error.value == pytest.approx(0, abs=1e-3)
    assert of.proper_scores(logs, truth, FEW)[2].value == pytest.approx(64 / 65 - 0.8)
    assert (found.split, found.images, found.at_limit) == ("val", 50, False)


def test_the_interval_of_the_temperature_by_hand():
    """Confidence 0.8 and 4 of 5 right: with L = log 4, g is 0.2 L or -0.8 L, and h = 0.8 · 0.2 · L² = mean g²."""
    truth = np.array([0, 0, 0, 0, 1] * 10)
    logs = log_softmax(np.array([[3 * math.log(4), 0.0]] * 50), axis=1)
    found = of.temperature_interval(logs, truth, 3.0)
    around = math.exp(1.96 / math.sqrt(0.16 * math.log(4) ** 2 * 50))
    assert (found.value, found.low, found.high) == pytest.approx((3, 3 / around, 3 * around))
    calibrated = of.calibrated((logs, truth), "val", logs, truth, FEW).temperature_interval
    assert calibrated.high == pytest.approx(found.high, rel=1e-3)
    assert of.temperature_interval(np.log(np.full((4, 2), 0.5)), np.array([0, 1, 0, 1]), 1.0) is None  # any T fits


def test_temperatures_of_other_samples_lie_in_the_interval():
    logs, _ = random_case(images=4000, labels=4)
    dice = np.random.default_rng(2)
    truth = (np.exp(logs).cumsum(axis=1) < dice.random((4000, 1))).sum(axis=1).clip(0, 3)  # honest: T = 1
    samples = [slice(200 * place, 200 * (place + 1)) for place in range(20)]
    ends = [of.temperature_interval(logs[s], truth[s], metrics.fit_temperature(logs[s], truth[s])) for s in samples]
    inside = sum(one is not None and one.low <= 1 <= one.high for one in ends)
    assert 16 <= inside <= 20


def test_a_fit_that_ends_at_the_edge_says_so():
    bare = logs_of([0.75, 0.25], [0.75, 0.25])
    assert of.calibrated((bare, np.array([0, 0])), "val", bare, np.array([0, 0]), FEW).temperature_interval is None
    logs = logs_of([0.75, 0.25], [0.75, 0.25])
    assert of.calibrated((logs, np.array([0, 0])), "val", logs, np.array([0, 0]), FEW).at_limit  # never wrong: colder
    assert of.calibrated((logs, np.array([1, 1])), "val", logs, np.array([0, 0]), FEW).at_limit  # always wrong: hotter


def test_distances_from_votes_by_hand():
    votes = np.array([[0.5, 0.5], [1.0, 0.0]])
    found = of.distribution(logs_of([0.25, 0.75], [0.5, 0.5]), votes, FEW)
    kl = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), math.log(2)]
    assert found.kl.value == pytest.approx(sum(kl) / 2)

    def js(p, q):
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return (entropy(p, middle) + entropy(q, middle)) / 2

    assert found.js.value == pytest.approx((js([0.5, 0.5], [0.25, 0.75]) + js([1, 0], [0.5, 0.5])) / 2)
    assert found.agreement.value == 1.0  # both labels have most votes in the first, the first label wins the second
    same = of.distribution(np.log(votes + 1e-300), votes, FEW)
    assert (same.kl.value, same.js.value) == pytest.approx((0, 0), abs=1e-9)


def test_log_tables_follow_the_order_of_the_labels():
    answers = [
        LabelledPrediction("a", "awe", "joy", {"awe": -3.0, "joy": -1.0, "fear": -2.0}),
        LabelledPrediction("b", "joy", None),
        LabelledPrediction("c", "fear", "joy", {"awe": -6.0, "joy": -4.0, "fear": -5.0}),
    ]
    logs, truth = of.log_table(answers, LABELS)
    assert logs.tolist() == [[-1, -2, -3], [-4, -5, -6]]
    assert truth.tolist() == [2, 1]
    assert of.log_table([answers[1]], LABELS)[0].shape == (0, 3)


def test_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(1).random((400, 1)) < 0.3
    (found,) = bootstrap(400, lambda rows: means_of(values.astype(float), rows).T, BootstrapSamples(2000, 5))
    half = 1.96 * math.sqrt(found.value * (1 - found.value) / 400)
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.006)
    assert bootstrap(400, lambda rows: means_of(values.astype(float), rows).T, BootstrapSamples(2000, 5)) == (found,)


def test_the_interval_of_a_small_calibration_error_holds_it():
    truth = np.array([0, 0, 0, 1] * 225)
    logs = logs_of(*[[0.75, 0.25]] * 900)  # right as often as it is sure, to the image
    _, _, error = of.proper_scores(logs, truth, BootstrapSamples(500))
    assert error.low == 0 == pytest.approx(error.value)  # every draw is above 0, and so are plain percentiles
    assert 0 < error.high < 0.03
    sure = np.random.default_rng(0).random(900)
    (plain,) = bootstrap(900, lambda rows: 7 + means_of(sure[:, None], rows).T, BootstrapSamples(500))
    (moved,) = bootstrap(900, lambda rows: 7 + means_of(sure[:, None], rows).T, BootstrapSamples(500), biased=[0])
    assert moved.high - moved.low == pytest.approx(plain.high - plain.low)


def test_macro_f1_of_a_draw_is_scikit_learns():
    truth = ["joy", "joy", "joy", "fear", "fear", "awe"]
    said = ["joy", "fear", None, "fear", "joy", "joy"]
    accuracy, macro = label_intervals(truth, said, LABELS, BootstrapSamples(300))
    assert accuracy.value == 2 / 6
    theirs = f1_score(truth, [one or "none" for one in said], labels=list(LABELS), average="macro", zero_division=0)
    assert macro.value == pytest.approx(theirs) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert 0 <= macro.low < macro.value < macro.high <= 1
