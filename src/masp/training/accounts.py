"""Images that a run leaves out: the same ones to its end, whatever can be read when it goes on.

The examples in a checkpoint are numbers of the images that could be read when the run began. With one image more or
fewer, every number behind it would name another.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from masp.core.errors import DataError
from masp.data.records import BadFiles, Dataset
from masp.training.feature_cache import FeatureCache

log = logging.getLogger(__name__)

NAMED = 5  # images that a message names


def left_out(known: Mapping[str, str], paths: Sequence[Path], dataset: Dataset) -> set[Path]:
    """The images that an account names, also where the data set has moved since it was written.

    Args:
        known: images and reasons, as quarantine.jsonl has them.
        paths: where the images of the run are now.
        dataset: what they belong to.
    """
    here = {str(path): path for path in paths}
    if known.keys() <= here.keys():
        return {here[name] for name in known}
    places = {dataset.place(path): path for path in paths}
    return {places[place] for name in known if (place := _place(name, places)) is not None}


def _place(name: str, places: Collection[str]) -> str | None:
    """The longest end of a file's name that is the place of an image in the data set."""
    parts = PurePath(name).parts
    ends = (PurePath(*parts[start:]).as_posix() for start in range(len(parts)))
    return next((end for end in ends if end in places), None)


def hold_to(store: FeatureCache, account: BadFiles, before: Collection[Path]) -> bool:
    """Leave out the images that were left out before, and no others.

    Args:
        store: filled; images that were left out before become unusable in it.
        account: of what was read now.
        before: what was left out when the run began.

    Returns:
        Whether an image is left out that can be read now.

    Raises:
        DataError: an image that was used before cannot be read now.
    """
    reasons = {bad.path: f"{bad.path} ({bad.reason})" for bad in account.rejected}
    bad = {path for path, usable in zip(store.paths, store.usable, strict=True) if not usable}
    lost = sorted(bad - set(before))
    if lost:
        then = f"only these were left out then: {_named(sorted(map(str, before)))}" if before else "none was left out"
        raise DataError(
            f"{len(lost)} of the images that this run began with cannot be read now: "
            f"{_named([reasons.get(path, str(path)) for path in lost])}",
            f"the images of its checkpoint ({then})",
            "Make them readable and give the same command again: it goes on. To do without them, name another --out.",
        )
    back = [number for number, path in enumerate(store.paths) if store.usable[number] and path in before]
    for number in back:
        store.usable[number] = False
    if back:
        log.warning(
            "left out to the end of this run, which began without, though readable now: %s. Its last bits may differ",
            _named([str(store.paths[number]) for number in back]),
        )
    return bool(back)


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
