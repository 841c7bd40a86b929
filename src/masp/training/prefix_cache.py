"""Prefixes of stage 2: what stands before the soft prompt is computed once for each image and kept between epochs."""

import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from masp.adapters import tensors_sha256
from masp.core.errors import MaspError
from masp.core.runtime import Bar
from masp.core.types import CachedPrefix, ImageLayout
from masp.model.masp_model import ActiveParts, MaspModel
from masp.training.disk_cache import GIGA, CacheGroup, key_of
from masp.training.feature_cache import FeatureCache
from masp.training.signals import StopRequest

log = logging.getLogger(__name__)

GROUP = 16  # images whose prefixes are computed together


class PrefixCache:
    """Prefixes by the number of their image, computed when first asked for.

    They are computed in fixed groups of neighbouring images, not in the batches of training: so the numbers of a prefix
    do not depend on the order in which images are met, and a run that goes on after an interruption finds the same
    ones.

    Args:
        model: computes them; its soft prompt has no part in them.
        features: visual tokens of the images.
        use: which aspects stand in them.
        questions: texts that may be asked; where a prefix depends on them, each has its own.
        endless: whether others may be asked too, such as lists of labels in new orders.
    """

    def __init__(
        self,
        model: MaspModel,
        features: FeatureCache,
        use: ActiveParts,
        questions: Sequence[str],
        endless: bool = False,
    ) -> None:
        self.model, self.features, self.use, self.endless = model, features, use, endless
        self._questions = tuple(dict.fromkeys(questions))
        self._rows: dict[tuple[int, str], CachedPrefix] = {}
        self._apart = True  # whether each question has a prefix of its own

    def size(self) -> int:
        """Bytes that all prefixes take, by the first image's prefix and the other images' visual tokens.

        The first image's prefix is computed for it.
        """
        indices = [index for index, usable in enumerate(self.features.usable) if usable]
        visual = self.features.visual(indices[:1])
        self._apart = not self.model.shares_prefix(visual, self._questions, self.use)
        first = self.model.prefix(visual, self._questions[:1], self.use)
        column = first.states[..., 0, :].numel() * first.states.element_size()
        around = first.mask.shape[1] - first.images[0].count
        inside = (
            first.images[0].count * len(indices)
            if self.model.backbone.question_conditioned
            else sum(self.features.counts())
        )
        return (inside + around * len(indices)) * column * (len(self._questions) if self._apart else 1)

    def build(self, stop: StopRequest) -> None:
        """Where several processes train, and what is kept can be shared between them, compute it together beforehand.

        Without a disk cache each process keeps, and first computes, what it meets: there is no place for it all twice.

        Args:
            stop: asked between groups.

        Raises:
            Interrupted: a signal arrived.
            MaspError: there is no room for them.
        """
        processes = self.features.processes
        if processes.count == 1 or self.features.disk_cache is None:
            return
        parts = [(group[0], question) for group, question in self._parts()]

        def work(part: tuple[int, str]) -> None:
            self._row(*part)

        with Bar("reading prefixes", len(parts)) as bar:
            for done, _ in enumerate(processes.share(parts, work, stop), 1):
                bar.show(done)

    def keys(self) -> set[str]:
        """The names of all of them in the disk cache, once their size is known."""
        return {self._key(group, question) for group, question in self._parts()}

    def _parts(self) -> list[tuple[list[int], str]]:
        """What is computed together: usable images and the question that they are asked."""
        questions = self._questions if self._apart else self._questions[:1]
        groups = [group for start in range(0, len(self.features.usable), GROUP) if (group := self._usable(start))]
        return [(group, question) for question in questions for group in groups]

    def _usable(self, start: int) -> list[int]:
        """The usable images of the group that begins there."""
        return [index for index, good in enumerate(self.features.usable[start : start + GROUP], start) if good]

    def seen(self, images: Sequence[int], questions: Sequence[str]) -> CachedPrefix:
        """The prefixes of a batch, on the backbone's device."""
        rows = [self._row(image, question) for image, question in zip(images, questions, strict=True)]
        return CachedPrefix.stack(rows).to(self.model.backbone.device)

    def _row(self, image: int, question: str) -> CachedPrefix:
        asked = question if self._apart else ""
        if (image, asked) not in self._rows:
            group = self._usable(image - image % GROUP)
            rows = (
                self._computed(group, question)
                if self.features.disk_cache is None
                else self._from_disk(group, question)
            )
            self._rows.update(((index, asked), row) for index, row in zip(group, rows, strict=True))
        return self._rows[image, asked]

    def _computed(self, group: Sequence[int], question: str) -> list[CachedPrefix]:
        visual = self.features.visual(group)
        return self.model.prefix(visual, [question] * len(group), self.use).to("cpu").rows()

    def _from_disk(self, group: Sequence[int], question: str) -> list[CachedPrefix]:
        """The prefixes of a group as an earlier run left them, or else computed and left for later ones."""
        disk_cache, key = self.features.disk_cache, self._key(group, question)
        assert disk_cache is not None
        result = disk_cache.load(key)
        if result is None:
            rows = self._computed(group, question)
            tensors = {f"states.{row_index}": row.states for row_index, row in enumerate(rows)}
            notes = {
                f"row.{row_index}": json.dumps([row.images[0].count, row.images[0].shape, row.prefix_hashes[0].hex()])
                for row_index, row in enumerate(rows)
            }
            result = disk_cache.save(key, CacheGroup(tensors, notes))
        return [_row(result, row_index, self.model.active_aspects(self.use)) for row_index in range(len(group))]

    def _key(self, group: Sequence[int], question: str) -> str:
        """Name of a group of prefixes: all that decides them, to the last bit."""
        method = self.model.method.model_dump(mode="json", exclude={"prompt_length"})
        backbone = self.model.backbone
        turn = backbone.template(
            question, ImageLayout(1) if backbone.question_conditioned else self.features.layout(group[0])
        )
        begins = turn.ids if self._apart else turn.ids[: turn.vision_close]
        asked = question if self._apart else ""
        tokenizer = backbone.hashes()["tokenizer"]
        depends = {"tokenizer": tokenizer, "aspects": self._aspects, "method": method, "asked": asked, "begins": begins}
        return key_of({"kind": "prefix", **self.features.depends(group), **depends})

    @cached_property
    def _aspects(self) -> list[list[str]]:
        """What the tokens of each aspect depend on beside the visual tokens, in the order of the columns."""
        return [self._aspect(name) for name in self.model.active_aspects(self.use)]

    def _aspect(self, name: str) -> list[str]:
        sha256 = tensors_sha256(self.model.aspect_module().module(name).state_dict())
        if not self.model.backbone.question_conditioned:
            return [name, sha256]
        assert self.model.questions is not None
        return [name, sha256, self.model.questions.aspect(name)[0]]


def _row(group: CacheGroup, row: int, aspects: tuple[str, ...]) -> CachedPrefix:
    """One prefix out of a group."""
    states = group.tensors[f"states.{row}"]
    count, shape, sign = json.loads(group.notes[f"row.{row}"])
    mask = torch.ones(1, states.shape[4], dtype=torch.bool)
    return CachedPrefix(states, mask, (ImageLayout(count, tuple(shape)),), (bytes.fromhex(sign),), aspects)


def choose(prefixes: PrefixCache, wanted: str, room: Callable[[], int], again: bool) -> bool:
    """Whether prefixes are kept beside the visual tokens.

    Args:
        prefixes: not asked for anything yet.
        wanted: `none`, `features`, `prefix` or `auto`.
        room: bytes of memory or disk for both; asked once the prefixes know their size.
        again: whether images are seen more than once.

    Raises:
        MaspError: they are wanted and do not fit, or there is nothing to keep.
    """
    model = prefixes.model
    if wanted in ("none", "features") or (wanted == "auto" and not (again and prefixes.features.kept)):
        return False
    if model.sequence_builder.layout.routed and model.active_aspects(prefixes.use):
        if wanted == "auto":
            return False
        got = "prompt.store is prefix, but the gates of method.routing stand before the image: nothing can be kept"
        raise MaspError(got, "no routing, or another store", "Set prompt.store=features.")
    if model.sequence_builder.layout.prompt_places == "both":
        if wanted == "auto":
            return False
        got = "prompt.store is prefix, but the soft prompt stands before the image too, so nothing of it can be kept"
        raise MaspError(got, "the layout of the paper, or another store", "Set prompt.store=features.")
    if prefixes.endless and model.backbone.question_conditioned:
        if wanted == "auto":
            return False
        got = "prompt.store is prefix, but with shuffled labels nearly every example asks another question"
        expected = f"the labels in one order, as {model.backbone.name} sees an image by its question"
        raise MaspError(got, expected, "Set prompt.store=features, or method.label_order=fixed.")
    if not prefixes.features.kept:
        needed, allowed = prefixes.features.needed / GIGA, max(0, prefixes.features.allowed) / GIGA
        raise MaspError(
            "prompt.store is prefix, but even the visual tokens of these images do not fit: "
            f"they need about {needed:.3g} GB of {allowed:.3g}",
            "room for both, by prompt.feature_memory_gb, prompt.store_disk_gb and on the disk",
            "Raise it, or set prompt.store=auto, which keeps the largest that fits.",
        )
    size = prefixes.size() + prefixes.features.bytes()
    budget = room()
    fits = size <= budget
    log.info("prefixes and visual tokens take %.3g GB of %.3g allowed", size / GIGA, budget / GIGA)
    if not fits and wanted == "prefix":
        raise MaspError(
            f"prompt.store is prefix, but prefixes and visual tokens of these images need {size / GIGA:.3g} GB",
            f"at most {budget / GIGA:.3g}, by prompt.feature_memory_gb, prompt.store_disk_gb or the room on the disk",
            "Raise it, or set prompt.store=auto, which keeps the largest that fits.",
        )
    return fits
