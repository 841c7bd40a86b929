"""Figures of log-probabilities: how good, how honest, how useful for abstaining, how near to the votes of people."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from masp.evaluation.bootstrap import Draws, Figures, Rows, bootstrap, means_of
from masp.evaluation.metrics import TEMPERATURES, Interval, bin_of, fit_temperature, scaled
from masp.evaluation.predictions import Answered
from masp.evaluation.result import Bin, Calibrated, Chances, Distribution, Floor, RiskCoverage

BINS = 15
POINTS = 100
"""Places of the risk–coverage curve that are kept at most."""

SIMULATED = 200
"""Draws of a perfectly calibrated system, for the floor of the calibration error."""

Logs = Float[np.ndarray, "images labels"]
Truth = Int[np.ndarray, " images"]


def log_table(answers: Sequence[Answered], labels: Sequence[str]) -> tuple[Logs, Truth]:
    """Log-probabilities and number of the true label, of the answers that have log-probabilities."""
    rows = [(a.log_probabilities, labels.index(a.truth)) for a in answers if a.log_probabilities is not None]
    logs = np.array([[table[label] for label in labels] for table, _ in rows], dtype=float)
    return logs.reshape(len(rows), len(labels)), np.array([true for _, true in rows], dtype=int)


def chances(logs: Logs, truth: Truth, draws: Draws | None = None) -> Chances:
    """All figures of log-probabilities; there is at least one image."""
    nll, brier, error = proper_scores(logs, truth, draws)
    return Chances(
        images=len(logs),
        top2=top2(logs, truth, draws) if logs.shape[1] > 2 else None,
        negative_log_likelihood=nll,
        brier=brier,
        calibration_error=error,
        calibration_floor=calibration_floor(logs, seed=(draws or Draws()).seed),
        reliability=reliability(logs, truth),
        risk_coverage=risk_coverage(logs, truth, draws),
    )


def proper_scores(logs: Logs, truth: Truth, draws: Draws | None = None) -> tuple[Interval, Interval, Interval]:
    """Negative log-likelihood in nats, Brier score (0 to 2) and expected calibration error, with their intervals."""
    shares, right = np.exp(logs), _right(logs, truth)
    wanted = np.eye(logs.shape[1])[truth]
    sure = shares.max(axis=1)
    place = np.eye(BINS)[bin_of(sure, BINS)] * (sure - right)[:, None]
    scores = (-logs[np.arange(len(logs)), truth], np.square(shares - wanted).sum(axis=1))
    columns = np.column_stack([*scores, place])

    def figures(rows: Rows) -> Figures:
        means = means_of(columns, rows)
        return np.stack([means[:, 0], means[:, 1], np.abs(means[:, 2:]).sum(axis=1)])

    nll, brier, error = bootstrap(len(logs), figures, draws, biased=[2])
    return nll, brier, error


def calibration_floor(logs: Logs, draws: int = SIMULATED, seed: int = 0) -> Floor:
    """The expected calibration error that a perfectly calibrated system with these confidences would show.

    It is right about image i with the probability c_i that it names, its confidence. So y_i, 1 where it is right and
    else 0, is drawn with that chance, again and again for the same n images, and each draw has the error

        E(y) = 1/n · Σ_bins | Σ_{i in bin} (c_i - y_i) |

    over the bins of the calibration error. (Consistency resampling: Bröcker and Smith 2007.)

    Args:
        logs: log-probabilities of the labels.
        draws: how many; two at least.
        seed: of the draws.
    """
    sure, dice = np.exp(logs).max(axis=1), np.random.default_rng(seed)
    place = bin_of(sure, BINS)
    gaps = [np.bincount(place, sure - (dice.random(len(sure)) < sure), BINS) for _ in range(draws)]
    errors = np.abs(gaps).sum(axis=1) / len(sure)
    return Floor(float(errors.mean()), float(errors.std(ddof=1)))


def top2(logs: Logs, truth: Truth, draws: Draws | None = None) -> Interval:
    """Share whose true label is among the two most probable; of equal ones the first labels count."""
    best = np.argsort(-logs, axis=1, kind="stable")[:, :2]
    return _mean((best == truth[:, None]).any(axis=1)[:, None], draws)[0]


def reliability(logs: Logs, truth: Truth) -> tuple[Bin, ...]:
    """Answers by their confidence, in equal bins."""
    sure, right = np.exp(logs).max(axis=1), _right(logs, truth)
    place = bin_of(sure, BINS)
    counts = np.bincount(place, minlength=BINS)
    means = [np.bincount(place, weights=values, minlength=BINS) / np.maximum(counts, 1) for values in (sure, right)]
    rows = zip(counts.tolist(), means[0].tolist(), means[1].tolist(), strict=True)
    return tuple(Bin(index / BINS, *row) for index, row in enumerate(rows))


def risk_coverage(logs: Logs, truth: Truth, draws: Draws | None = None) -> RiskCoverage:
    """Risk at every coverage, the most confident images first, and its mean over all coverages.

    Images of equal confidence have no order: each counts with the share of them that is wrong, so that the curve does
    not depend on the order of the data.
    """
    sure, wrong = logs.max(axis=1), ~_right(logs, truth)
    _, group = np.unique(-sure, return_inverse=True)
    expected = np.bincount(group, weights=wrong) / np.bincount(group)
    order = np.argsort(group, kind="stable")
    sorted_risk = expected[group[order]]
    answered = np.arange(1, len(sure) + 1)

    def figures(rows: Rows) -> Figures:  # places in the order of confidence, so that sorting them is enough
        picked = sorted_risk[np.sort(rows, axis=1)]
        return (np.cumsum(picked, axis=1) / answered).mean(axis=1)[None]

    risk = np.cumsum(sorted_risk) / answered
    kept = np.unique(np.linspace(1, len(sure), min(len(sure), POINTS)).round().astype(int))
    area = bootstrap(len(sure), figures, draws)[0]
    return RiskCoverage(area, tuple((kept / len(sure)).tolist()), tuple(risk[kept - 1].tolist()))


def temperature_interval(logs: Logs, truth: Truth, temperature: float) -> Interval | None:
    """The 95 % interval of a fitted temperature T, from the images it was fitted on; None where they say nothing.

    With u = log T, each image's log-probabilities z and p = softmax(z / T), the mean negative log-likelihood has the
    slope g = (z_true - Σ p z) / T per image and the curvature h = mean of Σ p (z / T)² - (Σ p z / T)². So u has the
    standard error √(mean g² / n) / h, and the interval is T · exp(± 1.96 of them). (White 1982; it holds whether or
    not the scaled system is calibrated.)
    """
    z, shares = logs / temperature, np.exp(scaled(logs, temperature))
    mean = (shares * z).sum(axis=1)
    curvature = float(((shares * z * z).sum(axis=1) - mean * mean).mean())
    if not curvature > 0:
        return None
    slope = z[np.arange(len(z)), truth] - mean
    around = 1.96 * np.sqrt(np.square(slope).mean() / len(z)) / curvature
    return Interval(temperature, float(temperature * np.exp(-around)), float(temperature * np.exp(around)))


def calibrated(
    fitted_on: tuple[Float[np.ndarray, "fitted labels"], Int[np.ndarray, " fitted"]],
    split: str,
    logs: Logs,
    truth: Truth,
    draws: Draws | None = None,
) -> Calibrated:
    """The figures of one split after a temperature was fitted on another."""
    chosen = fit_temperature(*fitted_on)
    after = scaled(logs, chosen)
    nll, brier, error = proper_scores(after, truth, draws)
    at_limit = min(chosen / TEMPERATURES[0], TEMPERATURES[1] / chosen) < 1.001
    return Calibrated(
        temperature=chosen,
        temperature_interval=None if at_limit else temperature_interval(*fitted_on, chosen),
        split=split,
        images=len(fitted_on[0]),
        at_limit=at_limit,
        negative_log_likelihood=nll,
        brier=brier,
        calibration_error=error,
        calibration_floor=calibration_floor(after, seed=(draws or Draws()).seed),
        reliability=reliability(after, truth),
    )


def distribution(logs: Logs, votes: Float[np.ndarray, "images labels"], draws: Draws | None = None) -> Distribution:
    """Distance of the probabilities from the votes; both sum to 1 in every row, and there is at least one row."""
    from scipy.special import rel_entr

    shares = np.exp(logs)
    middle = (votes + shares) / 2
    apart = rel_entr(votes, shares).sum(axis=1)
    between = (rel_entr(votes, middle) + rel_entr(shares, middle)).sum(axis=1) / 2
    agree = votes[np.arange(len(votes)), logs.argmax(axis=1)] == votes.max(axis=1)
    return Distribution(len(logs), *_mean(np.column_stack([apart, between, agree]), draws))


def _right(logs: Logs, truth: Truth) -> Bool[np.ndarray, " images"]:
    return logs.argmax(axis=1) == truth


def _mean(columns: np.ndarray, draws: Draws | None) -> tuple[Interval, ...]:
    columns = columns.astype(float)
    return bootstrap(len(columns), lambda rows: means_of(columns, rows).T, draws)
