"""The same images under the labels of another taxonomy."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from masp.core.errors import DataError
from masp.core.label_mapping import TAXONOMIES, Taxonomy, counterpart, mapping, taxonomy_of
from masp.data.records import Dataset, Record

log = logging.getLogger(__name__)


def relabelled(dataset: Dataset, taxonomy: Taxonomy) -> Dataset:
    """The data set with labels of a taxonomy; images whose label has no counterpart there are left out and counted.

    Votes move with their labels; those without a counterpart are dropped, and the rest are shares of what is left.

    Raises:
        DataError: the labels belong to no taxonomy, or fewer than two of the target's labels are left.
    """
    table = mapping(dataset.labels, taxonomy)
    labels = tuple(label for label in TAXONOMIES[taxonomy] if label in table.values())
    if len(labels) < 2:
        raise DataError(
            f"the labels {', '.join(dataset.labels)} have {len(labels)} counterparts in {taxonomy}",
            "at least two",
            "Choose another data.taxonomy, or null.",
        )
    lost = Counter(record.label for record in dataset.records if record.label not in table)
    if lost:
        words = ", ".join(f"{count:,} × {label}" for label, count in lost.most_common())
        log.info("%s as %s: left out %s, which have no counterpart", dataset.name, taxonomy, words)
    source = taxonomy_of(dataset.labels)

    def vote(label: str) -> str | None:  # people may vote for labels that no image of the data set has
        return counterpart(label, source, taxonomy)

    splits = {
        name: tuple(_moved(record, table, vote) for record in records if record.label in table)
        for name, records in dataset.splits.items()
    }
    return replace(dataset, labels=labels, splits=splits)


def _moved(record: Record, table: Mapping[str, str], vote: Callable[[str], str | None]) -> Record:
    assert record.label is not None
    return replace(record, label=table[record.label], distribution=_votes(record.distribution, vote))


def _votes(votes: Mapping[str, float] | None, vote: Callable[[str], str | None]) -> dict[str, float] | None:
    moved: dict[str, float] = {}
    for label, share in (votes or {}).items():
        home = vote(label)
        if home is not None:
            moved[home] = moved.get(home, 0.0) + share
    total = sum(moved.values())
    return {label: share / total for label, share in moved.items()} if total > 0 else None
