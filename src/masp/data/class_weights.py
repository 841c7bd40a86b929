"""How evenly the labels of a data set occur."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masp.core.errors import DataError, did_you_mean
from masp.data.records import Record


@dataclass(frozen=True)
class ClassBalance:
    """How evenly the labels occur.

    Attributes:
        counts: label → images, in the order of the labels.
        imbalance: largest count divided by the smallest one that is not 0.
        weights: label → weight of an example, such that every label weighs the same in sum and the mean over the
            examples is 1; 0 for a label without images.
    """

    counts: Mapping[str, int]
    imbalance: float
    weights: Mapping[str, float]

    def text(self) -> str:
        """A small table, one line per label."""
        width = max(len(name) for name in ("total", *self.counts))
        total = sum(self.counts.values())
        lines = [
            f"{label:<{width}}  {count:>7,}  {count / total:>6.1%}  weight {self.weights[label]:.2f}"
            for label, count in self.counts.items()
        ]
        return "\n".join([*lines, f"{'total':<{width}}  {total:>7,}  largest : smallest = {self.imbalance:.2f}"])


def class_balance(records: Sequence[Record], labels: Sequence[str] | None = None) -> ClassBalance:
    """Counts, imbalance and balanced weights of labelled records.

    Args:
        records: those without a label are not counted.
        labels: order of the result and labels that may not occur; without it, those that occur, sorted.

    Raises:
        DataError: no record has a label, or one has a label that is not in `labels`.
    """
    found = Counter(record.label for record in records if record.label is not None)
    names = tuple(labels) if labels is not None else tuple(sorted(found))
    strange = sorted(set(found) - set(names))
    if strange:
        raise DataError(f"unknown label '{strange[0]}'", "", did_you_mean(strange[0], names))
    if not found:
        raise DataError("no image has a label", "labelled images", "Check the layout of the data set.")
    counts = {name: found[name] for name in names}
    total, present = found.total(), len(found)
    weights = {name: total / (present * count) if count else 0.0 for name, count in counts.items()}
    return ClassBalance(counts, max(found.values()) / min(found.values()), weights)
