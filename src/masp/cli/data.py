"""`masp data`: data sets made on the spot, checked, divided, annotated and fetched."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from masp.cli import harness
from masp.cli.console import FAILED, counts_table, plain_table, printable, results, say, waiting
from masp.cli.options import Accept, Device, Dtype, DtypeOption, Revision, accepted
from masp.core.aspects import ASPECTS
from masp.core.errors import DataError, UsageError, counted, did_you_mean
from masp.core.labels import LABEL_SETS, TAXONOMIES, validate_labels
from masp.core.runtime import Bar

if TYPE_CHECKING:
    from rich.console import RenderableType

    from masp.adapters import Adapter
    from masp.annotate.ask import AnnotationSettings, Options
    from masp.annotate.dataset import AnnotationResult as Outcome
    from masp.backbones.base import Backbone
    from masp.core.config import DataConfig
    from masp.core.prompts import Questions
    from masp.data.validation.check import DatasetCheck, Report
    from masp.data.validation.duplicates import Issue

CHECK_EXAMPLES = """
Examples:

`masp data check photos`

`masp data check EmoSet-118K FI data.splits.kind=auto --out check.json`

`masp data check photos data.layout=table --labels calm,stormy --no-images`

`masp data check photos 'data.label_pattern=(?P<label>[a-z]+)\\d+'`
"""

SHOWN = 3
"""Cases of a finding that are printed; the JSON file has more."""


def check_data(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR… [KEY=VALUE…]",
            help="Folders or tables; two or more are compared with each other. Settings such as `data.layout=votes`.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "--json", metavar="FILE", help="Also write all findings, as JSON.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="SET", help="Labels that may occur: a known set, such as *emoset*, or `a,b,c`."),
    ] = None,
    images: Annotated[
        bool, typer.Option(help="Open every image; without it only lists and annotations are read.")
    ] = True,
    near: Annotated[
        int,
        typer.Option(
            min=-1,
            max=10,
            help="Bits of 64 in which the perceptual hashes of near-duplicates may differ; -1: do not look for them. "
            "Needs the images, and the extra *near*.",
        ),
    ] = 4,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Threads that read images.")] = 2,
) -> None:
    """Check data sets: layout, labels, damaged files, copies, near-duplicates, and images in both train and test.

    A data set without published splits is checked undivided, unless a setting says how training divides it:
    `data.splits.kind=auto` is what it does by itself. Nothing is changed. Ends with 1 where there are errors, with 0
    where there are only warnings.
    """
    from masp.data.validation.check import Depth, check, open_together, write_report
    from masp.data.validation.duplicates import hasher

    settings = settings_of(data)
    for one in settings:
        refuse_inside(out, one)
    likeness = hasher() if images and near >= 0 else None
    depth = Depth(images, likeness, max(near, 0), workers, None if labels is None else _label_set(labels))
    with waiting("reading lists and annotations"):
        opened = open_together(settings)
    with Bar("images", sum(len(one.records) for one in opened) if images else 0) as bar:
        report = check(opened, depth, bar.advance)
    console = results()
    for part in _renderables(report):  # sentences break where the window ends, tables do not
        console.print(part, soft_wrap=isinstance(part, Text))
    if images and near >= 0 and likeness is None:
        say("near-duplicates were not looked for: install ImageHash with pip install 'masp[near]'")
    if out is not None:
        write_report(report, out)
        say(f"all of it is in {out}")
    if report.errors:
        raise typer.Exit(FAILED)


def settings_of(data: Sequence[str]) -> "list[DataConfig]":
    """The settings of every data set that is named; words like `data.layout=fi` count for all of them.

    Raises:
        UsageError: a setting of something else, or no data set.
    """
    from masp.core.config import load_config

    changes = [word for word in data if "=" in word and not Path(word).exists()]
    strange = next((word for word in changes if not word.startswith("data.")), None)
    if strange is not None:
        raise UsageError(f"{strange} is neither a path nor a setting of the data", "data.KEY=VALUE", "Correct it.")
    settings = load_config(None, changes).data
    paths = [Path(word) for word in data if word not in changes]
    if not paths:
        raise UsageError("no data set is named", "a folder or a table", "Name at least one.")
    return [settings.model_copy(update={"path": path}) for path in paths]


def _one_data_set(data: Sequence[str], todo: str) -> "DataConfig":
    """The settings of the one data set that is named.

    Raises:
        UsageError: as for `settings_of`, or there are several.
    """
    settings = settings_of(data)
    if len(settings) != 1:
        raise UsageError(f"{len(settings)} data sets are named", "one", todo)
    return settings[0]


def refuse_inside(out: Path | None, settings: "DataConfig") -> None:
    """Make sure that nothing is written into a data set.

    Raises:
        UsageError: the output would lie inside the data set's folder.
    """
    root = settings.path
    if out is None or root is None or not root.exists():  # a wrong path is told by whoever opens it
        return
    folder = root if root.is_dir() else root.parent
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{out} lies inside the data set {folder}", "a place outside it", "Choose another --out.")


def _label_set(given: str) -> tuple[str, ...]:
    if "," in given:
        return validate_labels(word.strip() for word in given.split(","))
    known = {**LABEL_SETS, **TAXONOMIES}
    if given not in known:
        wanted = "the name of a set, or labels with commas"
        raise UsageError(f"--labels {given} is no known set", wanted, did_you_mean(given, known))
    return known[given]


def _renderables(report: "Report") -> "Iterator[RenderableType]":
    for checked in report.data_sets:
        yield from _data_set(checked)
    for pair in report.between:
        yield Text(printable(f"{pair.first} and {pair.second}"), style="bold")
        yield _findings(pair.findings) if pair.findings else Text("share no image", style="green")
        yield Text()
    style = "bold red" if report.errors else "bold yellow" if report.warnings else "bold green"
    yield Text(f"{counted(report.errors, 'error')}, {counted(report.warnings, 'warning')}", style=style)


def _data_set(checked: "DatasetCheck") -> "Iterator[RenderableType]":
    title = Text(printable(str(checked.path)), style="bold")
    divided = f", divided: {checked.split_by}" if checked.split_by not in (None, "published") else ""
    title.append(f"  layout {checked.layout or 'unknown'}, {counted(checked.images, 'image')}{divided}", style="dim")
    yield title
    if checked.counts:
        yield counts_table(checked.labels, checked.counts)
    facts = [f"{aspect.replace('_', ' ')} {count:,}" for aspect, count in checked.aspects.items()]
    if facts:
        yield Text(f"annotated: {', '.join(facts)}", style="dim")
    if checked.formats:
        yield Text(f"formats: {', '.join(f'{kind} {n:,}' for kind, n in checked.formats.items())}", style="dim")
    for reason, count in checked.skipped.items():
        yield Text(printable(f"passed over: {count:,} {reason}"), style="dim")
    yield _findings(checked.findings) if checked.findings else Text("nothing to complain about", style="green")
    yield Text()


def _findings(findings: "Sequence[Issue]") -> "RenderableType":
    from masp.data.validation.duplicates import KINDS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        style = "red" if one.severity == "error" else "yellow"
        table.add_row(Text(one.severity, style=style), f"{one.count:,}", Text(KINDS[one.kind].says, style=style))
        for case in one.cases[:SHOWN]:
            table.add_row("", "", Text(printable(case.says), style="dim"))
        if one.count > SHOWN:
            table.add_row("", "", Text(f"… and {one.count - SHOWN:,} more", style="dim"))
    return table


SPLIT_EXAMPLES = """
Examples:

`masp data split photos --out photos-split.json`

`masp data split Emotion6 --kind paper-like --out divided`

`masp data split photos --out s.json data.splits.train=0.7 data.splits.val=0.1 data.splits.test=0.2`
"""


class SplitKind(StrEnum):
    """How images are divided."""

    content = "content"
    paper_like = "paper-like"


def split_data(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DIR [KEY=VALUE…]", help="The data set, and settings such as `data.splits.test=0.3`."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="A split file (.json), a table (.csv), or a folder that gets a split file and a table of each split.",
        ),
    ],
    kind: Annotated[
        SplitKind,
        typer.Option(
            help="*content*: 80 % train, 5 % val and 15 % test, or the shares you set; *paper-like*: the test share "
            "that the paper's figures imply, 30 % for Emotion6 and 20 % for others, and 5 % val."
        ),
    ] = SplitKind.content,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another division.")] = 0,
) -> None:
    """Divide a data set into train, val and test, every label alike, by a hash of the files' content.

    The same files are divided in the same way on every machine, whatever their names and order, and copies land on the
    same side. The data set itself is not changed; train with the division through `data.splits.file=FILE`.
    """
    from masp.data.readers.open_dataset import open_dataset
    from masp.data.splits import write_division
    from masp.data.validation.check import NO_LABEL

    words = [f"data.splits.kind={kind.value}", f"data.splits.seed={seed}", *data]
    settings = _one_data_set(words, "Divide them one by one.")
    refuse_inside(out, settings)
    with waiting("reading and hashing every image"):
        dataset = open_dataset(settings)
    if all(record.label is None for record in dataset.records):
        raise DataError(
            f"none of {counted(len(dataset.records), 'image')} in {dataset.root} has a label",
            "labels, each of which is divided alike",
            "Name a labelled data set; masp train aspects divides images without labels itself.",
        )
    write_division(out, dataset)
    counts = {name: Counter(record.label or NO_LABEL for record in some) for name, some in dataset.splits.items()}
    bare = any(NO_LABEL in of_split for of_split in counts.values())  # they are divided too, in a row of their own
    results().print(counts_table((*dataset.labels, NO_LABEL) if bare else dataset.labels, counts))
    for bad in dataset.rejected:
        say(f"left out {bad.path}: {bad.reason}")
    say(f"divided by {dataset.split_by}, seed {settings.splits.seed}; it is in {out}")


ANNOTATE_EXAMPLES = """
Examples:

`masp data annotate photos --backbone Qwen/Qwen2-VL-7B-Instruct --measured-light`

`masp data annotate photos --backbone Qwen/Qwen2-VL-7B-Instruct --vocabulary EmoSet-118K/info.json --out annotated`

`masp train aspects --data annotated --backbone Qwen/Qwen2-VL-7B-Instruct --out runs/aspects`

The same command goes on with what was interrupted.
"""

DataWords = Annotated[
    list[str],
    typer.Argument(
        metavar="DIR [KEY=VALUE…]",
        help="A data set in any known layout, or a folder of images without labels. "
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
Keep = Annotated[bool, typer.Option("--keep", help="Answers that the data set has win; the machine gives the others.")]


def annotate_data(
    data: DataWords,
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
    keep: Keep = False,
    questions: OwnQuestions = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="This many images, spread over the data set. Default: all.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images too; without it links lead to them.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    revision: Revision = None,
    dtype: DtypeOption = Dtype.auto,
    device: Device = "auto",
    accept: Accept = None,
) -> None:
    """Let a frozen backbone answer the aspect questions about images, and write the answers in EmoSet's format.

    What is written is marked as machine-made and can be trained on with `masp train aspects`. The data set itself is
    not changed.
    """
    from masp.annotate.ask import Annotator, read_vocabulary
    from masp.annotate.dataset import AnnotationJob, annotate
    from masp.annotate.images import find_images
    from masp.core.config import MethodConfig
    from masp.model.masp_model import MaspModel

    settings = _one_data_set(data, "Annotate them one by one.")
    target = out if out is not None else Path(f"{Path(settings.path or '.').resolve().stem or 'images'}-annotated")
    refuse_inside(target, settings)
    names = None if aspects is None else [word.strip() for word in aspects.split(",")]
    options = {} if vocabulary is None else read_vocabulary(vocabulary)
    with waiting("looking for images"):
        images = find_images(settings, limit)
    without = "" if images.labelled else "; without labels, or with one only: good for stage 1 (masp train aspects)"
    say(f"{counted(len(images.items), 'image')}{without}")
    loaded, trained = _loaded(backbone, adapter, revision, dtype.value, device, accepted(accept))
    known = (MethodConfig(), None) if trained is None else (trained.info.method, trained.aspects)
    model = MaspModel(loaded, *known)  # never with a soft prompt
    asking = _asking(names, questions, trained, options, measured_light)
    with Bar("images", len(images.items)) as bar:
        work = AnnotationJob(batch_size, settings.workers, settings.longest_side, copy, bar.show)
        result = annotate(images, Annotator(model, replace(asking, keep=keep)), target, work, adapter)
    results().print(_annotation_table(result))
    if result.unreadable:
        say(f"{counted(result.unreadable, 'image')} could not be read; {result.out / 'quarantine.jsonl'} says why")
    done = "had been annotated before" if result.again else "annotated by machine"
    say(f"{counted(result.images, 'image')} {done}; EmoSet's layout in {result.out}")


def _loaded(
    backbone: str | None, adapter: str | None, revision: str | None, dtype: str, device: str, accept: tuple[str, ...]
) -> "tuple[Backbone, Adapter | None]":
    """The backbone, and the adapter on it where one is named.

    Raises:
        UsageError: neither is named, or the adapter has no aspects.
    """
    from masp.adapters import backbone_place, find_adapter, load_adapter, read_info
    from masp.backbones.loading import load_backbone

    if adapter is None:
        if backbone is None:
            todo = "Add --backbone ID: a hub id such as Qwen/Qwen2-VL-7B-Instruct, a folder, embedded, or photo."
            raise UsageError("no backbone is named", "the frozen model that answers", todo)
        return load_backbone(backbone, revision, dtype, device), None
    folder = find_adapter(adapter)
    info = read_info(folder)
    if "aspects" not in info.parts:
        got = f"the adapter {adapter} holds no aspects"
        raise UsageError(got, "one that masp train aspects wrote", "Name another.")
    name = backbone or backbone_place(folder, info)
    if revision is None and name == info.backbone.name:
        revision = info.backbone.revision
    loaded = load_backbone(name, revision, dtype, device, accept=accept)
    return loaded, load_adapter(folder, loaded)


def _asking(
    names: list[str] | None, file: Path | None, trained: "Adapter | None", options: "Options", measured_light: bool
) -> "AnnotationSettings":
    """The questions about the chosen aspects, in the order of the aspects.

    Raises:
        UsageError: an aspect that does not exist, or that the adapter does not have.
    """
    from masp.annotate.ask import AnnotationSettings
    from masp.core.prompts import load_questions

    known = ASPECTS if trained is None else trained.info.aspects
    for name in names or ():
        if name not in known:
            raise UsageError(f"--aspects: there is no aspect '{name}'", "", did_you_mean(name, known))
    texts: Questions = load_questions(file) if file is not None or trained is None else trained.info.asked()
    chosen = [name for name in ASPECTS if name in (known if names is None else names)]
    return AnnotationSettings({name: texts.aspect(name)[0] for name in chosen}, options, measured_light)


def _annotation_table(outcome: "Outcome") -> "object":
    """Aspects with how many answers there are, why others are missing, and what was said most often."""
    table = plain_table("aspect", ">answered", "without answer", ">different", "most often")
    for name, one in outcome.aspects.items():
        absent = ", ".join(f"{count:,} {why}" for why, count in one.absent.items())
        often = ", ".join(f"{text} ({count:,})" for text, count in one.commonest)
        cells = (name.replace("_", " "), f"{one.answered:,}", absent, f"{one.different:,}", often[:60])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@data_app.callback()
def data() -> None:
    """Make, check, divide, annotate and import data sets."""


data_app.command("check", no_args_is_help=True, epilog=CHECK_EXAMPLES)(check_data)
data_app.command("annotate", no_args_is_help=True, epilog=ANNOTATE_EXAMPLES)(annotate_data)
data_app.command("split", no_args_is_help=True, epilog=SPLIT_EXAMPLES)(split_data)
data_app.command(
    "import", no_args_is_help=True, epilog="Example: `masp data import owner/name --out photos --limit 1000`"
)(harness.import_data)
data_app.command(
    "vecbench", no_args_is_help=True, epilog="Example: `masp data vecbench test_8k.jsonl --images images`"
)(harness.vecbench)
data_app.command("lmms-eval", no_args_is_help=True, epilog="Example: `masp data lmms-eval EmoSet --out task`")(
    harness.lmms_eval
)


@data_app.command(no_args_is_help=True, epilog="Example: `masp data make scenes --images 500 --seed 7`")
def make(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it; a folder that is new or empty.")],
    images: Annotated[int, typer.Option(min=1, help="How many images, all splits together.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same images, byte for byte.")] = 0,
) -> None:
    """Write emoji scenes in EmoSet's published layout: images, labels, annotations, and what caused each label."""
    from masp.data.emoji.dataset import write_dataset

    with Bar("images", images) as bar:
        write_dataset(folder, images=images, seed=seed, progress=bar.advance)
    say(f"{counted(images, 'image')} in {folder}")
