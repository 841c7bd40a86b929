"""Options that several commands share: adapter, backbone and how it is loaded, labels, sizes of images and batches."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from masp.core.errors import UsageError


class Dtype(StrEnum):
    """Number formats of the frozen weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    nf4 = "nf4"


class Attribution(StrEnum):
    """How the effects of aspects are found; see `masp.model.explain`."""

    leave_one_out = "leave_one_out"
    shapley = "shapley"


class ReadingMode(StrEnum):
    """How answers are read."""

    score = "score"
    generate = "generate"


_DTYPE = (
    "Number format of the frozen weights; *auto*: bfloat16 where the device has units for it, otherwise "
    "(and for `embedded`) float32; *nf4*: 4 bits (the extra *4bit*)."
)
_DEVICE = (
    "*auto* (a GPU if there is one), *cpu*, *cuda*, *cuda:1*, *mps* …; *spread*: all GPUs, then memory, then disk."
)

Revision = Annotated[
    str | None,
    typer.Option(
        metavar="REVISION",
        help="Commit, tag or branch of the backbone on a hub. Default: the one the adapter names, else the newest.",
    ),
]
AdapterRevision = Annotated[
    str | None,
    typer.Option(metavar="REVISION", help="Commit, tag or branch of an adapter on a hub. Default: the newest."),
]
Task = Annotated[str | None, typer.Option(metavar="NAME", help="For an adapter with several tasks: which.")]
AspectsOfPrompt = Annotated[
    str | None, typer.Option(metavar="DIR|ID", help="For a prompt that only names its aspects: where they are.")
]
BackboneOfAdapter = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Hub id, folder, `embedded` or `photo`. Default: the one that the adapter names."),
]
Accept = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What of the backbone's files may differ from those the adapter was trained with: *processor*, "
        "*template*, *tokenizer*, with commas between.",
    ),
]
BackboneOrNoAdapter = Annotated[
    str | None,
    typer.Option(
        metavar="ID|DIR",
        help="Hub id, folder, `embedded` or `photo`. Default: the one that the adapter names. Without *--adapter*, a "
        "backbone for which masp ships no adapter answers zero-shot.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C|NAME",
        help="What to choose from: labels, or *mikels8* (EmoSet, FI), *ekman6* (Emotion6), *polarity*. Default: those "
        "of the adapter; zero-shot: *mikels8*.",
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Probabilities without the temperature that the adapter was fitted with.")
]
NoConcepts = Annotated[
    bool,
    typer.Option(
        "--no-concepts",
        help="Leave an adapter's concept bottleneck out: the soft prompt alone answers, as in the paper.",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help=_DTYPE)]
Device = Annotated[str, typer.Option(metavar="NAME", help=_DEVICE)]
MinPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Qwen-VL: smaller images are enlarged to this area. Default: as the checkpoint says."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Qwen-VL: larger images are shrunk to this area. Default: as the checkpoint says."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images measured at a time. Default: 8; 64 on a backbone as small as `embedded`."),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        help="Where there are probabilities: fit a temperature on the split val, and give the calibration error after "
        "scaling by it as well."
    ),
]

# Where a command may load no model at all: None, unless asked for.
DtypeIfAny = Annotated[Dtype | None, typer.Option(help=f"{_DTYPE} Default: *auto*.")]
DeviceIfAny = Annotated[str | None, typer.Option(metavar="NAME", help=f"{_DEVICE} Default: *auto*.")]


def accepted(names: str | None) -> tuple[str, ...]:
    """What `--accept` names."""
    return tuple(name.strip() for name in names.split(",")) if names else ()


def refuse(options: Mapping[str, object], where: str, expected: str) -> None:
    """Make sure that none of these options was given, which would be passed over otherwise.

    Args:
        options: name → value; None and False: it was not given.
        where: what they do not go with, such as "without --adapter".
        expected: what would have been right.

    Raises:
        UsageError: some were given.
    """
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        verb, them = ("was", "it") if len(given) == 1 else ("were", "them")
        raise UsageError(f"{', '.join(given)} {verb} given {where}", expected, f"Leave {them} out.")
