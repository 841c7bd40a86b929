"""From what a person asks for to a job: what is contradictory, or names nothing, is refused before anything is run."""

from dataclasses import dataclass
from pathlib import Path

from masp.adapters import find_adapter
from masp.baselines.base import Reading
from masp.core.config import RunConfig, load_config
from masp.core.errors import UsageError
from masp.reproduce import others
from masp.reproduce.config import (
    QUICK,
    SCENES,
    Job,
    drawn_source,
    embedded_config,
    experiments_of,
    find_sources,
    find_teacher,
)
from masp.reproduce.paper import load_paper


@dataclass(frozen=True)
class Request:
    """What `masp reproduce` was asked for.

    Attributes:
        what: "table1" … "figure4", or "all".
        out: folder of tables, figures and results.
        data: folder of the data sets; None: emoji scenes are drawn.
        backbone: id; None: the embedded one.
        datasets: names of data sets; None: those of the paper.
        seeds: how many.
        aspects: aspects that were trained before; None: stage 1 is run.
        config: settings as YAML; None: the defaults, or those of the embedded default.
        quick: a smoke test.
        changes: "key=value" each; what begins with the name of another system is a setting of that system.
        reading: how answers are read.
    """

    what: str
    out: Path
    data: Path | None = None
    backbone: str | None = None
    datasets: tuple[str, ...] | None = None
    seeds: int = 3
    aspects: str | None = None
    config: Path | None = None
    quick: bool = False
    changes: tuple[str, ...] = ()
    reading: Reading = "score"

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


def job_of(request: Request) -> Job:
    """The job, once it is certain that there is something to run.

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
        settings = (*small, *read, *own)
        where = (request.out, None, adapter)
        return Job(experiments, config, (source,), (), seeds, *where, settings, plan, request.reading)
    paper = load_paper()
    sources, missing = find_sources(request.data, request.datasets, config.data, paper)
    teacher = find_teacher(request.data, config.data, sources, paper)
    found = (sources, missing, seeds, request.out, teacher, adapter)
    return Job(experiments, config, *found, (*read, *own), reading=request.reading)


def _check(request: Request) -> None:
    if request.data is not None and request.backbone is None and request.config is None:
        todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, embedded, or photo."
        raise UsageError("--data was given without --backbone", "both, or neither", todo)
    if request.data is None and request.datasets is not None:
        raise UsageError("--datasets was given without --data", "the folder they are in", "Add --data ROOT.")
    if request.quick and (request.data is not None or request.config is not None):
        raise UsageError("--quick was given with data or settings", "it only on drawn pictures", "Leave one out.")
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
