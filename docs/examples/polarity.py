"""A metric: how often the predicted emotion is at least positive or negative as the label is."""

from collections.abc import Sequence

from masp.core.labels import mapping
from masp.evaluation.metrics import Interval, share
from masp.evaluation.result import Evaluation


def polarity_accuracy(labels: Sequence[str], predicted: Sequence[str | None]) -> Interval:
    """Share of the images whose prediction has the polarity of their label, with Wilson's 95 % interval.

    Labels without a polarity (surprise) do not count; a prediction without one, or that names no label, is wrong.

    Raises:
        DataError: the labels belong to no taxonomy.
        ValueError: no label has a polarity.
    """
    polarity = mapping(set(labels), "polarity")
    pairs = [(polarity[label], guess) for label, guess in zip(labels, predicted, strict=True) if label in polarity]
    guessed = mapping({guess for _, guess in pairs if guess is not None}, "polarity")
    return share(sum(guess in guessed and guessed[guess] == right for right, guess in pairs), len(pairs))


def of(found: Evaluation) -> Interval:
    """The metric of a result that was read from its folder: it needs no model, and no change of masp."""
    return polarity_accuracy([one.truth for one in found.answers], [one.predicted for one in found.answers])
