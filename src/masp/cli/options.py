"""Options that several commands share: how the backbone is loaded, and how many images it is given."""

from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Number formats of the frozen weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    nf4 = "nf4"


Revision = Annotated[
    str | None,
    typer.Option(metavar="COMMIT", help="Commit, tag or branch of the backbone on the hub. Default: the adapter's."),
]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number format of the frozen weights; *auto*: what the device does well; *nf4*: 4 bits.")
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="*auto*, *cpu*, *cuda*, *cuda:1*, *mps* …; *spread*: over several.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images measured at a time. Default: 16; 64 on a backbone as small as `embedded`."),
]
