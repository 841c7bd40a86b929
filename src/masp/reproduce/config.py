"""What is asked of one call of `masp reproduce`: settings, data sets, seeds, and where everything lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.baselines.base import Reading
from masp.core.config import DataConfig, RunConfig, load_config
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.data.bad_files import Quarantine
from masp.data.images import Rounding
from masp.data.readers.detect import read_layout
from masp.demo.plan import Plan
from masp.reproduce.paper import Paper
from masp.reproduce.specs import EXPERIMENTS

_PUBLISHED_LABELS = {"label_pattern": None, "label_thresholds": None}  # what the user's own data sets may need
DRAWN = "emoji-scenes"
"""Name of the data set that is drawn where none is given."""

EMOSET = "EmoSet"
"""The data set that teaches the aspects."""

ASPECTS = "aspects"
"""What may teach them where EmoSet is not there: a folder of this name below ROOT, annotated in any layout."""

SCENES = Plan(train=5000, val=200, test=1000, seed=0)
"""Pictures of the drawn data set: as many as three seeds of everything can learn from in two hours on two cores."""

QUICK = Plan(train=160, val=16, test=48, seed=0)
"""Pictures of the drawn data set with `--quick`: some minutes, and figures that mean nothing."""

QUICKLY = ("aspects.max_steps=4", "prompt.max_steps=4", "aspects.batch_size=32", "prompt.batch_size=16")


@dataclass(frozen=True)
class Source:
    """One data set to run on.

    Attributes:
        name: as the paper calls it, or the name of its folder.
        data: how it is opened.
        annotated: whether its pictures have aspects to learn from.
    """

    name: str
    data: DataConfig
    annotated: bool


@dataclass(frozen=True)
class Skipped:
    """What is not run, and why. An empty `dataset` means all data sets, an empty `system` all systems."""

    dataset: str
    system: str
    reason: str


@dataclass(frozen=True)
class Job:
    """Everything that a cell needs to know; it can be sent to another process.

    Attributes:
        experiments: some of `EXPERIMENTS`.
        config: settings of the method, the backbone and both stages; each cell sets its own seed and data.
        sources: data sets that are there.
        missing: data sets that are not.
        seeds: of training.
        out: folder of tables, figures and results of cells.
        teacher: EmoSet, where it is there, teaches the aspects for all data sets, as in the paper; else `ASPECTS`.
        adapter: aspects that were trained before; None: stage 1 is a cell of its own.
        others: settings of the other systems of Table 1, as "system.key=value"; the last one wins.
        drawn: pictures of the drawn data set; None where data was given.
        reading: how answers are read, of every system that can be asked for a text.
    """

    experiments: tuple[str, ...]
    config: RunConfig
    sources: tuple[Source, ...]
    missing: tuple[Skipped, ...]
    seeds: tuple[int, ...]
    out: Path
    teacher: Source | None = None
    adapter: Path | None = None
    others: tuple[str, ...] = ()
    drawn: Plan | None = None
    reading: Reading = "score"

    @property
    def work(self) -> Path:
        """What need not be kept once the tables are written: data, visual tokens, runs, predictions."""
        return self.out / "scratch"

    def source(self, name: str) -> Source:
        """The data set of this name."""
        known = (*self.sources, *(() if self.teacher is None else (self.teacher,)))
        return next(source for source in known if source.name == name)

    def side_of(self, dataset: str, alone: bool) -> int | None:
        """The longest side that pictures of a data set enter with; `alone` as in `DataConfig.side_of`.

        The authors' code shrinks pictures for everything it measures, and so does the variant `released`.
        """
        return self.source(dataset).data.side_of(alone and self.config.method.variant == "paper")

    @property
    def rounding(self) -> Rounding:
        """How the shorter side of a picture that is shrunk becomes a whole number."""
        return self.config.method.resolved().shrink_rounding or "nearest"

    def aspects_from(self, dataset: str) -> Source | None:
        """What stage 1 is trained on for a data set: EmoSet, else its own annotations; None where there are none."""
        own = self.source(dataset)
        return self.teacher or (own if own.annotated else None)


def experiments_of(what: str) -> tuple[str, ...]:
    """The experiments that "table1" … "figure4" or "all" means.

    Raises:
        UsageError: it is none of them.
    """
    if what == "all":
        return EXPERIMENTS
    if what not in EXPERIMENTS:
        raise UsageError(f"unknown table or figure '{what}'", "", did_you_mean(what, (*EXPERIMENTS, "all")))
    return (what,)


def embedded_config(changes: Sequence[str], quick: bool) -> RunConfig:
    """The settings of the embedded default, which come with the package.

    Raises:
        ConfigError: a change is wrong.
    """
    file = Path(str(resources.files("masp").joinpath("configs", "reproduce.yaml")))
    return load_config(file, [*(QUICKLY if quick else ()), *changes])


def drawn_source(work: Path, data: DataConfig) -> Source:
    """The drawn data set, whether it is drawn already or not; `data` has the settings of reading it."""
    place = {"path": work / "data" / DRAWN, "layout": "emoset", **_PUBLISHED_LABELS}
    return Source(DRAWN, data.model_copy(update=place), annotated=True)


def find_sources(
    root: Path, wanted: Sequence[str] | None, data: DataConfig, paper: Paper
) -> tuple[tuple[Source, ...], tuple[Skipped, ...]]:
    """The data sets below a folder, each in a folder named after it; case and EmoSet's "-118K" do not count.

    Args:
        root: the folder of the data sets.
        wanted: names; None: the seven of the paper.
        data: settings for all of them.
        paper: names the seven.

    Raises:
        UsageError: none is there, or one is named twice.
        DataError: one is there and cannot be read.
    """
    if not root.is_dir():
        raise UsageError(f"--data {root} is no folder", "a folder with one folder for each data set", "Check the path.")
    names = [_canonical(name, paper) for name in wanted] if wanted is not None else list(paper.datasets)
    if len(set(names)) != len(names):
        raise UsageError("--datasets names one of them twice", "each once", "Leave one out.")
    places = {name: _place(root, name, paper) for name in names}
    missing = tuple(
        Skipped(name, "", f"no data at {root.name}/{name}") for name, place in places.items() if place is None
    )
    if len(missing) == len(names):
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())[:10]) or "no folder"
        todo = "Name the folders after the data sets, or others of your own with --datasets."
        raise UsageError(f"{root} holds {there}", f"some of {', '.join(names)}", todo)
    found = tuple(_source(name, place, data) for name, place in places.items() if place is not None)
    return found, missing


def _canonical(name: str, paper: Paper) -> str:
    """The paper's spelling of a data set's name; one that the paper does not have stays."""
    return next((known for known in paper.datasets if _folded(known) == _folded(name)), name)


def _folded(name: str) -> str:
    return name.casefold().removesuffix("118k").rstrip("-_ ")


def _place(root: Path, name: str, paper: Paper) -> Path | None:
    if (root / name).exists():
        return root / name
    if name not in paper.datasets:
        return None
    fits = sorted(path for path in root.iterdir() if path.is_dir() and _folded(path.name) == _folded(name))
    return fits[0] if fits else None


def find_teacher(root: Path, data: DataConfig, found: Sequence[Source], paper: Paper) -> Source | None:
    """What teaches the aspects for all data sets: EmoSet, whether it is measured on or not, or else `ASPECTS`.

    None where neither is there, or it has no annotations.
    """
    places = ((EMOSET, _place(root, EMOSET, paper)), (ASPECTS, _place(root, ASPECTS, paper)))
    name, place = next(((name, place) for name, place in places if place is not None), (EMOSET, None))
    if place is None:
        return None
    source = next((source for source in found if source.name == name), None)
    source = source or _source(name, place, data.model_copy(update=_PUBLISHED_LABELS))
    return source if source.annotated else None


def _source(name: str, place: Path, data: DataConfig) -> Source:
    """A data set with the published split, or where there is none with the one that the paper's figures imply.

    Raises:
        DataError: it cannot be read.
    """
    settings = data.model_copy(update={"path": place})
    reading = read_layout(place, settings, Quarantine())
    records = [record for chosen in reading.splits.values() for record in chosen]
    if not records:
        raise DataError(f"{place} holds no pictures", f"pictures in the layout {reading.layout}", "Check the folder.")
    if "all" in reading.splits and settings.splits.kind == "auto" and settings.splits.file is None:
        settings = settings.model_copy(update={"splits": settings.splits.model_copy(update={"kind": "paper-like"})})
    return Source(name, settings, any(record.annotations for record in records))


def with_seed(config: RunConfig, seed: int, changes: Mapping[str, object] | None = None) -> RunConfig:
    """The settings with the seed of both stages; `changes` replaces settings of the method."""
    method = config.method.model_copy(update=dict(changes or {}))
    stages = {stage: getattr(config, stage).model_copy(update={"seed": seed}) for stage in ("aspects", "prompt")}
    return config.model_copy(update={"method": method, **stages})
