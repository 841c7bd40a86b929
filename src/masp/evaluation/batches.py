"""Labelled images on their way to a measurement: read ahead, counted once, the unreadable ones set aside."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from masp.backbones.base import Backbone
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.core.flops import images_at_once
from masp.core.types import VisualTokens
from masp.data.images import Rounding
from masp.data.prefetch import prefetch
from masp.data.records import BadFiles, Record


@dataclass(frozen=True)
class Batching:
    """How images are read for a measurement.

    Attributes:
        batch_size: images that go through the model together; None: as `images_at_once` says of the backbone, on the
            command line and in Python alike. The last bits of an answer depend on it, and so the name of a run.
        workers: threads that read ahead.
        longest_side: images with a longer side are shrunk to it first; None: never.
        rounding: of the shorter side then.
        progress: is told how many images each batch had.
    """

    batch_size: int | None = None
    workers: int = 2
    longest_side: int | None = None
    rounding: Rounding = "nearest"
    progress: Callable[[int], object] | None = None

    def size_on(self, backbone: Backbone) -> int:
        """Images that go through this backbone together.

        Raises:
            UsageError: fewer than one.
        """
        size = images_at_once(backbone.dim) if self.batch_size is None else self.batch_size
        if size < 1:
            raise UsageError(f"batch_size is {size}", "1 or more", "Correct batch_size.")
        return size


def visual_batches(
    backbone: Backbone, records: Sequence[Record], batching: Batching, account: BadFiles
) -> Iterator[tuple[list[Record], VisualTokens]]:
    """The readable records with their visual tokens, batch by batch in order; the others go to the account.

    Raises:
        DataError: too many images cannot be read, or none can.
    """
    paths, size = [record.path for record in records], batching.size_on(backbone)
    how = (size, batching.workers, batching.longest_side)
    loaded = prefetch(paths, backbone.preprocess, *how, quarantine=account, rounding=batching.rounding)
    for batch in loaded:
        if batch.indices:
            yield [records[index] for index in batch.indices], backbone.visual_tokens(batch.pixels.to(backbone.device))
        if batching.progress is not None:
            batching.progress(len(batch.indices) + len(batch.failures))
    account.finish()


def labelled(records: Sequence[Record], labels: Sequence[str]) -> list[Record]:
    """The records that have a label.

    Raises:
        DataError: none has one.
        UsageError: one has a label that the model does not choose from.
    """
    known = [record for record in records if record.label is not None]
    if not known:
        raise DataError("no image has a label", "labelled images", "Check the layout of the data set.")
    for record in known:
        if record.label not in labels:
            expected = f"the labels of the adapter: {', '.join(labels)}"
            todo = did_you_mean(record.label or "", labels)
            raise UsageError(f"the data set has the label '{record.label}'", expected, todo if "Did" in todo else "")
    return known
