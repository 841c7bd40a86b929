"""`masp data annotate`: the six aspects of one's own pictures, answered by a frozen backbone."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masp.cli.options import Accept, Device, Dtype, DtypeOption, Revision, accepted

if TYPE_CHECKING:
    from masp.adapters import Adapter
    from masp.annotate.ask import Asking
    from masp.annotate.run import Annotated as Outcome
    from masp.annotate.vocabulary import Options
    from masp.backbones.base import Backbone
    from masp.core.config import DataConfig
    from masp.core.prompts import Questions
    from masp.model.masp_model import MaspModel

EXAMPLES = """
Examples:

`masp data annotate photos --backbone Qwen/Qwen2-VL-7B-Instruct --measured-light`

`masp data annotate photos --backbone Qwen/Qwen2-VL-7B-Instruct --vocabulary EmoSet-118K/info.json --out annotated`

`masp train aspects --data annotated --backbone Qwen/Qwen2-VL-7B-Instruct --out runs/aspects`

The same command goes on with what was interrupted.
"""

WIDEST = 60
"""Characters of the commonest answers in the summary."""


Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DIR [KEY=VALUE…]",
        help="A data set in any known layout, or a folder of pictures without labels. "
        "Settings such as `data.layout=votes`.",
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DIR|published",
        help="Choose from lists: {aspect: [word, …]}, EmoSet's info.json, or the words of an annotated data set; "
        "*published*: EmoSet's six expressions. Brightness and colorfulness then have their five levels.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where to write: a new folder, or that of an interrupted run. Default: the data set's name and "
        "*-annotated*, in the current folder.",
    ),
]
Aspects = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Which of facial_expression, object, scene, human_action, brightness, colorfulness. Default: all, or "
        "those of the adapter.",
    ),
]
OwnQuestions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Questions of your own as JSON, {aspect or *emotion*: [text, …]}; the first of each aspect is asked.",
    ),
]


def annotate_data(
    data: Data,
    backbone: Annotated[
        str | None, typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`. Default: the adapter's.")
    ] = None,
    out: Out = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="DIR|ID", help="Its trained aspects answer, each from its own tokens.")
    ] = None,
    aspects: Aspects = None,
    vocabulary: Vocabulary = None,
    measured_light: Annotated[
        bool, typer.Option("--measured-light", help="Measure brightness and colorfulness on the pixels, do not ask.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Answers that the data set has win; the machine gives the others.")
    ] = False,
    questions: OwnQuestions = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="This many pictures, spread over the data set. Default: all.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pictures too; without it links lead to them.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    accept: Accept = None,
) -> None:
    """Let a frozen backbone answer the aspect questions about pictures, and write the answers in EmoSet's format.

    What is written is marked as machine-made and can be trained on with `masp train aspects`. The data set itself is
    not changed.
    """
    from masp.annotate.ask import Annotator
    from masp.annotate.pictures import pictures_of
    from masp.annotate.run import Work, annotate
    from masp.annotate.vocabulary import read_vocabulary
    from masp.cli.check_data import refuse_inside
    from masp.cli.console import results, waiting
    from masp.core.progress import Bar

    settings = _settings(data)
    target = out if out is not None else _usual_place(settings)
    refuse_inside(target, settings)
    names = None if aspects is None else [word.strip() for word in aspects.split(",")]
    options = {} if vocabulary is None else read_vocabulary(vocabulary)
    with waiting("looking for pictures"):
        pictures = pictures_of(settings, limit)
    _say_what(pictures.labelled, len(pictures.items))
    loaded, trained = _loaded(backbone, adapter, revision, dtype.value, device, accepted(accept))
    model = _model(loaded, trained)
    asking = replace(_asking(names, questions, trained, options, measured_light), keep=keep)
    with Bar("pictures", len(pictures.items)) as bar:
        work = Work(batch_size, settings.workers, settings.longest_side, copy, bar.show)
        found = annotate(pictures, Annotator(model, asking), target, work, adapter)
    results().print(_table(found))
    _tell(found)


def _settings(data: list[str]) -> "DataConfig":
    from masp.cli.check_data import settings_of
    from masp.core.errors import UsageError

    settings = settings_of(data)
    if len(settings) != 1:
        raise UsageError(f"{len(settings)} data sets are named", "one", "Annotate them one by one.")
    return settings[0]


def _usual_place(settings: "DataConfig") -> Path:
    assert settings.path is not None
    return Path(f"{settings.path.resolve().stem or 'pictures'}-annotated")


def _say_what(labelled: bool, count: int) -> None:
    from masp.cli.console import say
    from masp.core.errors import counted

    without = "" if labelled else "; without labels, or with one only: good for stage 1 (masp train aspects)"
    say(f"{counted(count, 'picture')}{without}")


def _loaded(
    backbone: str | None, adapter: str | None, revision: str | None, dtype: str, device: str, accept: tuple[str, ...]
) -> "tuple[Backbone, Adapter | None]":
    """The backbone, and the adapter on it where one is named.

    Raises:
        UsageError: neither is named, or the adapter has no aspects.
    """
    from masp.adapters import backbone_place, find_adapter, load_adapter, read_info
    from masp.backbones.loading import load_backbone
    from masp.core.errors import UsageError

    if adapter is None:
        if backbone is None:
            todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, embedded, or photo."
            raise UsageError("no backbone is named", "the frozen model that answers", todo)
        return load_backbone(backbone, revision, dtype, device), None
    folder = find_adapter(adapter)
    info = read_info(folder)
    if "aspects" not in info.parts:
        raise UsageError(
            f"the adapter {adapter} holds no aspects", "one that masp train aspects wrote", "Name another."
        )
    place = backbone or backbone_place(folder, info)
    if revision is None and place == info.backbone.name:
        revision = info.backbone.revision
    loaded = load_backbone(place, revision, dtype, device, accept=accept)
    return loaded, load_adapter(folder, loaded)


def _model(backbone: "Backbone", trained: "Adapter | None") -> "MaspModel":
    """The backbone alone, or with the adapter's aspects; never with a soft prompt."""
    from masp.core.config import MethodConfig
    from masp.model.masp_model import MaspModel

    if trained is None:
        return MaspModel(backbone, MethodConfig())
    return MaspModel(backbone, trained.info.method, trained.aspects)


def _asking(
    names: list[str] | None, file: Path | None, trained: "Adapter | None", options: "Options", measured_light: bool
) -> "Asking":
    """The questions about the chosen aspects, in the order of the aspects.

    Raises:
        UsageError: an aspect that does not exist, or that the adapter does not have.
    """
    from masp.annotate.ask import Asking
    from masp.core.aspects import ASPECTS
    from masp.core.errors import UsageError, did_you_mean
    from masp.core.prompts import load_questions

    known = ASPECTS if trained is None else trained.info.aspects
    for name in names or ():
        if name not in known:
            raise UsageError(f"--aspects: there is no aspect '{name}'", "", did_you_mean(name, known))
    texts: Questions = load_questions(file) if file is not None or trained is None else trained.info.asked()
    chosen = [name for name in ASPECTS if name in (known if names is None else names)]
    return Asking({name: texts.aspect(name)[0] for name in chosen}, options, measured_light)


def _table(found: "Outcome") -> "object":
    """Aspects with how many answers there are, why others are missing, and what was said most often."""
    from rich.table import Table
    from rich.text import Text

    from masp.cli.console import printable

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("aspect", "answered", "without answer", "different", "most often"):
        table.add_column(heading, justify="right" if heading in ("answered", "different") else "left", overflow="fold")
    for name, one in found.aspects.items():
        absent = ", ".join(f"{count:,} {why}" for why, count in one.absent.items())
        often = ", ".join(f"{text} ({count:,})" for text, count in one.commonest)
        cells = (name.replace("_", " "), f"{one.answered:,}", absent, f"{one.different:,}", often[:WIDEST])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _tell(found: "Outcome") -> None:
    from masp.cli.console import say
    from masp.core.errors import counted

    if found.unreadable:
        say(f"{counted(found.unreadable, 'picture')} could not be read; {found.out / 'quarantine.jsonl'} says why")
    done = "had been annotated before" if found.again else "annotated by machine"
    say(f"{counted(found.pictures, 'picture')} {done}; EmoSet's layout in {found.out}")
