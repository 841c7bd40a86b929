"""One batch of images that different tasks, label sets and levels of explanation are asked about.

The vision tower reads all images in one pass. Where several tasks stand behind the same prefix (aspect tokens and
visual tokens before the soft prompt, paper Eq. 4), the language model reads that prefix in one pass too; each task then
costs only what follows it.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from masp.core.types import CachedPrefix, Pixels, VisualTokens
from masp.model.prediction import Explain, Prediction
from masp.predictor import Masp


@dataclass(frozen=True)
class Query:
    """What is asked about one image.

    Attributes:
        masp: a `Masp` with one task (`Masp.for_task`); all of a batch share one backbone.
        name: of the image.
        explain: whether to say why, or by which attribution.
    """

    masp: Masp
    name: str
    explain: Explain = False


@dataclass(frozen=True)
class _Group:
    """The rows of a batch that go through the model as one: the same task and labels, explained in the same way."""

    masp: Masp
    explain: Explain
    rows: tuple[int, ...]


def predict_mixed(pixels: Pixels, queries: Sequence[Query]) -> Iterator[tuple[tuple[int, ...], list[Prediction]]]:
    """Predicts a batch, a group of rows at a time, those without explanations first because they are ready sooner.

    Args:
        pixels: the preprocessed images.
        queries: what is asked about each of them.

    Yields:
        Row numbers and their predictions, each what `Masp.predict` says of the image to rounding.
    """
    visual = queries[0].masp.visual_tokens(pixels)
    groups = _groups(queries)
    prefixes = _shared_prefixes(visual, groups)
    for group, prefix in zip(groups, prefixes, strict=True):
        own = visual if len(groups) == 1 else visual.select(group.rows)
        names = [queries[row].name for row in group.rows]
        yield group.rows, group.masp.predict_tokens(own, names, group.explain, prefix)


def _groups(queries: Sequence[Query]) -> list[_Group]:
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, query in enumerate(queries):
        rows[id(query.masp.model), query.masp.task.question, query.masp.labels, query.explain].append(row)
    groups = [_Group(queries[own[0]].masp, queries[own[0]].explain, tuple(own)) for own in rows.values()]
    return sorted(groups, key=lambda group: group.explain is not False)


def _shared_prefixes(visual: VisualTokens, groups: Sequence[_Group]) -> list[CachedPrefix | None]:
    """For each group its rows of a prefix that it shares with others; None where it shares none.

    A concept bottleneck asks for none: it reads aspect tokens, and where a soft prompt's scores are added, has them
    from a pass of its own.
    """
    found: list[CachedPrefix | None] = [None] * len(groups)
    if len(groups) == 1:
        return found
    sharing: dict[Hashable, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        task = group.masp.task
        key = group.masp.model.prefix_key(visual, task.question, task.use)
        if key is not None and group.masp.handle().concepts is None:
            sharing[key].append(number)
    for numbers in sharing.values():
        if len(numbers) < 2:
            continue
        rows = [row for number in numbers for row in groups[number].rows]
        masp = groups[numbers[0]].masp
        prefix = masp.model.prefix(visual.select(rows), [masp.task.question] * len(rows), masp.task.use)
        begin = 0
        for number in numbers:
            end = begin + len(groups[number].rows)
            found[number] = prefix.select(range(begin, end))
            begin = end
    return found
