"""What one call of `masp reproduce` asks for: settings, data sets, seeds, and where everything lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.adapters import find_adapter
from masp.baselines.base import Reading
from masp.core.config import DataConfig, RunConfig, load_config
from masp.core.errors import DataError, UsageError, did_you_mean
from masp.data.images import Rounding
from masp.data.readers.open_dataset import read_layout
from masp.data.records import BadFiles
from masp.demo.pictures import Plan
from masp.reproduce import specs as others
from masp.reproduce.specs import EXPERIMENTS, Paper, load_paper

_PUBLISHED_LABELS = {"label_pattern": None, "label_thresholds": None}  # what the user's own data sets may need
DRAWN = "emoji-scenes"
"""Name of the data set that is drawn where none is given."""

EMOSET = "EmoSet"
"""The data set that teaches the aspects."""

ASPECTS = "aspects"
"""What may teach them where EmoSet is not there: a folder of this name below ROOT, annotated in any layout."""

SCENES = Plan(train=5000, val=200, test=1000, seed=0)
"""Images of the drawn data set: as many as three seeds of everything can learn from in two hours on two cores."""

QUICK = Plan(train=160, val=16, test=48, seed=0)
"""Images of the drawn data set with `--quick`: some minutes, and figures that mean nothing."""

QUICKLY = ("aspects.max_steps=4", "prompt.max_steps=4", "aspects.batch_size=32", "prompt.batch_size=16")


@dataclass(frozen=True)
class DatasetSource:
    """One data set to run on."""

    name: str  # as the paper calls it, or the name of its folder
    data: DataConfig  # how it is opened
    annotated: bool  # whether its images have aspects to learn from


@dataclass(frozen=True)
class SkippedDataset:
    """What is not run, and why. An empty `dataset` means all data sets, an empty `system` all systems."""

    dataset: str
    system: str
    reason: str


@dataclass(frozen=True)
class ReproduceConfig:
    """Everything that a cell needs to know; it can be sent to another process."""

    experiments: tuple[str, ...]  # some of `EXPERIMENTS`
    settings: RunConfig  # of the method, the backbone and both stages; each cell sets its own seed and data
    sources: tuple[DatasetSource, ...]  # data sets that are there
    missing: tuple[SkippedDataset, ...]  # data sets that are not
    seeds: tuple[int, ...]  # of training
    out: Path  # folder of tables, figures and results of cells
    # EmoSet, where it is there, teaches the aspects for all data sets, as in the paper; else `ASPECTS`
    teacher: DatasetSource | None = None
    adapter: Path | None = None  # aspects that were trained before; None: stage 1 is a cell of its own
    others: tuple[str, ...] = ()  # settings of the other systems of Table 1, as "system.key=value"; the last one wins
    drawn: Plan | None = None  # images of the drawn data set; None where data was given
    reading: Reading = "score"  # how answers are read, of every system that can be asked for a text

    @property
    def work(self) -> Path:
        """What need not be kept once the tables are written: data, visual tokens, runs, predictions."""
        return self.out / "scratch"

    def source(self, name: str) -> DatasetSource:
        """The data set of this name."""
        known = (*self.sources, *(() if self.teacher is None else (self.teacher,)))
        return next(source for source in known if source.name == name)

    def side_of(self, dataset: str, alone: bool) -> int | None:
        """The longest side that images of a data set enter with; `alone` as in `DataConfig.side_of`.

        The authors' code shrinks images for everything it measures, and so does the variant `released`.
        """
        return self.source(dataset).data.side_of(alone and self.settings.method.variant == "paper")

    @property
    def rounding(self) -> Rounding:
        """How the shorter side of an image that is shrunk becomes a whole number."""
        return self.settings.method.resolved().shrink_rounding or "nearest"

    def aspects_from(self, dataset: str) -> DatasetSource | None:
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


def drawn_source(work: Path, data: DataConfig) -> DatasetSource:
    """The drawn data set, whether it is drawn already or not; `data` has the settings of reading it."""
    changes = {"path": work / "data" / DRAWN, "layout": "emoset", **_PUBLISHED_LABELS}
    return DatasetSource(DRAWN, data.model_copy(update=changes), annotated=True)


def find_sources(
    root: Path, wanted: Sequence[str] | None, data: DataConfig, paper: Paper
) -> tuple[tuple[DatasetSource, ...], tuple[SkippedDataset, ...]]:
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
    paths = {name: _folder_of(root, name, paper) for name in names}
    missing = tuple(
        SkippedDataset(name, "", f"no data at {root.name}/{name}") for name, place in paths.items() if place is None
    )
    if len(missing) == len(names):
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())[:10]) or "no folder"
        todo = "Name the folders after the data sets, or others of your own with --datasets."
        raise UsageError(f"{root} holds {there}", f"some of {', '.join(names)}", todo)
    result = tuple(_source(name, place, data) for name, place in paths.items() if place is not None)
    return result, missing


def _canonical(name: str, paper: Paper) -> str:
    """The paper's spelling of a data set's name; one that the paper does not have stays."""
    return next((known for known in paper.datasets if _folded(known) == _folded(name)), name)


def _folded(name: str) -> str:
    return name.casefold().removesuffix("118k").rstrip("-_ ")


def _folder_of(root: Path, name: str, paper: Paper) -> Path | None:
    if (root / name).exists():
        return root / name
    if name not in paper.datasets:
        return None
    fits = sorted(path for path in root.iterdir() if path.is_dir() and _folded(path.name) == _folded(name))
    return fits[0] if fits else None


def find_teacher(root: Path, data: DataConfig, sources: Sequence[DatasetSource], paper: Paper) -> DatasetSource | None:
    """What teaches the aspects for all data sets: EmoSet, whether it is measured on or not, or else `ASPECTS`.

    None where neither is there, or it has no annotations.
    """
    paths = ((EMOSET, _folder_of(root, EMOSET, paper)), (ASPECTS, _folder_of(root, ASPECTS, paper)))
    name, path = next(((name, path) for name, path in paths if path is not None), (EMOSET, None))
    if path is None:
        return None
    source = next((source for source in sources if source.name == name), None)
    source = source or _source(name, path, data.model_copy(update=_PUBLISHED_LABELS))
    return source if source.annotated else None


def _source(name: str, path: Path, data: DataConfig) -> DatasetSource:
    """A data set with the published split, or where there is none with the one that the paper's figures imply.

    Raises:
        DataError: it cannot be read.
    """
    settings = data.model_copy(update={"path": path})
    reading = read_layout(path, settings, BadFiles())
    records = [record for chosen in reading.splits.values() for record in chosen]
    if not records:
        raise DataError(f"{path} holds no images", f"images in the layout {reading.layout}", "Check the folder.")
    if "all" in reading.splits and settings.splits.kind == "auto" and settings.splits.file is None:
        settings = settings.model_copy(update={"splits": settings.splits.model_copy(update={"kind": "paper-like"})})
    return DatasetSource(name, settings, any(record.annotations for record in records))


def with_seed(config: RunConfig, seed: int, changes: Mapping[str, object] | None = None) -> RunConfig:
    """The settings with the seed of both stages; `changes` replaces settings of the method."""
    method = config.method.model_copy(update=dict(changes or {}))
    stages = {stage: getattr(config, stage).model_copy(update={"seed": seed}) for stage in ("aspects", "prompt")}
    return config.model_copy(update={"method": method, **stages})


@dataclass(frozen=True)
class Request:
    """What `masp reproduce` was asked for."""

    what: str  # "table1" … "figure4", or "all"
    out: Path  # folder of tables, figures and results
    data: Path | None = None  # folder of the data sets; None: emoji scenes are drawn
    backbone: str | None = None  # id; None: the embedded one
    datasets: tuple[str, ...] | None = None  # names of data sets; None: those of the paper
    seeds: int = 3  # how many
    aspects: str | None = None  # aspects that were trained before; None: stage 1 is run
    config: Path | None = None  # settings as YAML; None: the defaults, or those of the embedded default
    quick: bool = False  # a smoke test
    # "key=value" each; what begins with the name of another system is a setting of that system
    changes: tuple[str, ...] = ()
    reading: Reading = "score"  # how answers are read

    def command(self, jobs: int) -> str:
        """How it was asked, without places on this machine."""
        words = ["masp reproduce", self.what]
        words += ["--data ROOT"] if self.data is not None else []
        if self.backbone is not None:
            words.append(f"--backbone {'FOLDER' if Path(self.backbone).exists() else self.backbone}")
        words += [f"--datasets {','.join(self.datasets)}"] if self.datasets is not None else []
        words += ["--aspects ADAPTER"] if self.aspects is not None else []
        words += ["--config FILE"] if self.config is not None else []
        words += ["--quick"] if self.quick else []
        words += [] if self.reading == "score" else [f"--reading {self.reading}"]
        return " ".join([*words, f"--seeds {self.seeds} --jobs {jobs}", *self.changes])


def config_of(request: Request) -> ReproduceConfig:
    """What is to be run, once it is certain that there is something to run.

    Raises:
        UsageError: arguments that do not go together, or no data set is there.
        ConfigError: a setting is wrong.
        DataError: a data set cannot be read.
        AdapterError: there are no such aspects.
    """
    _check(request)
    changes, own = others.divided(request.changes)
    config = _config(request, changes)
    experiments, seeds = experiments_of(request.what), tuple(range(request.seeds))
    adapter = None if request.aspects is None else find_adapter(request.aspects)
    read = others.read_by(request.reading)
    if request.data is None:
        small = others.QUICKLY if request.quick else ()
        plan, source = QUICK if request.quick else SCENES, drawn_source(request.out / "scratch", config.data)
        overrides = (*small, *read, *own)
        where = (request.out, None, adapter)
        return ReproduceConfig(experiments, config, (source,), (), seeds, *where, overrides, plan, request.reading)
    paper = load_paper()
    sources, missing = find_sources(request.data, request.datasets, config.data, paper)
    teacher = find_teacher(request.data, config.data, sources, paper)
    result = (sources, missing, seeds, request.out, teacher, adapter)
    return ReproduceConfig(experiments, config, *result, (*read, *own), reading=request.reading)


def _check(request: Request) -> None:
    if request.data is not None and request.backbone is None and request.config is None:
        todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, embedded, or photo."
        raise UsageError("--data was given without --backbone", "both, or neither", todo)
    if request.data is None and request.datasets is not None:
        raise UsageError("--datasets was given without --data", "the folder they are in", "Add --data ROOT.")
    if request.quick and (request.data is not None or request.config is not None):
        raise UsageError("--quick was given with data or settings", "it only on drawn images", "Leave one out.")
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"--out {request.out} is a file", "a folder", "Name another place.")


def _config(request: Request, changes: list[str]) -> RunConfig:
    """The settings of the file, or of the embedded default, with the backbone that was named."""
    if request.data is None and request.config is None:
        config = embedded_config(changes, request.quick)
    else:
        config = load_config(request.config, changes)
    if config.method.prompt_length == 0:
        raise UsageError("method.prompt_length is 0", "1 or more: the tables train soft prompts", "Use the paper's 32.")
    if request.backbone is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"id": request.backbone})})
