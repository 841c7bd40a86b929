"""`masp info`: what a backbone is and needs, and what would be trained on it, before anything is downloaded."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from masp.backbones.model_stats import BackboneFacts
    from masp.model.param_count import TrainedSize

SIZES = ("224x224", "512x512", "1024x768", "1920x1080")
SOURCES = {
    "folder": "its folder",
    "embedded": "this package",
    "cache": "the local cache of the hub",
    "table": "the table of published backbones in this package",
    "hub": "the hub",
}
NF4 = "* every linear layer but the output head in 4 bits, a scale for every 64 weights; the rest in bf16"
NF4_CPU = "** fewer layers, because bitsandbytes would unpack some wrongly there"
SEQUENCE = """in all: with aspect tokens and soft prompt, without question and answer
sizes as they reach the backbone: masp shrinks longer pictures first (data.longest_side)"""

EXAMPLES = """
Examples:

`masp info Qwen/Qwen2-VL-7B-Instruct`

`masp info models/mine --size 800x600 --size 640x480 --json`
"""


def info(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="Hub id, folder, `embedded` or `photo`.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; sizes in bytes.")] = False,
    queries: Annotated[
        int | None, typer.Option(min=1, help="Aspect tokens per aspect. Default: 1 in *paper*, 5 in *released*.")
    ] = None,
    prompt_length: Annotated[int, typer.Option(min=0, help="Vectors in the soft prompt.")] = 32,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help=f"A picture's size in pixels; may be repeated. Default: {', '.join(SIZES)}."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch on a hub. Default: the newest.")
    ] = None,
) -> None:
    """Say what a backbone consists of and needs, and what would be trained on it. No weights are read or fetched.

    Common backbones are known without a network; of another hub id only two small files are fetched.
    """
    from typing import get_args

    from masp.backbones.known_models import describe
    from masp.cli.console import results
    from masp.core.settings import Variant

    sizes = tuple(_size(text) for text in (size or SIZES))
    description = describe(backbone, revision)
    from masp.backbones.loading import choose_placement
    from masp.backbones.model_stats import count  # heavy, and for nothing if there is no such backbone
    from masp.backbones.token_counts import visual_tokens
    from masp.model.param_count import trained_size

    facts = count(description)
    visual = dict(zip(sizes, visual_tokens(description, sizes), strict=True))
    variants = [trained_size(variant, facts.dim, queries, prompt_length) for variant in get_args(Variant)]
    here = choose_placement("auto", "auto", backbone)
    if as_json:
        auto = {"dtype": str(here.dtype).removeprefix("torch."), "device": str(here.device)}
        typer.echo(json.dumps({**_object(facts, variants, visual), "auto": auto}))
    else:
        results().print(_for_people(facts, variants, visual, f"on this machine, dtype and device auto: {here}"))


def _size(text: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        UsageError: Not two numbers.
    """
    from masp.core.errors import UsageError

    found = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text.strip(), flags=re.ASCII)
    if found is None:
        raise UsageError(f"--size {text}", "width and height in pixels, such as 1024x768")
    return int(found[1]), int(found[2])


def _object(
    facts: "BackboneFacts", variants: "list[TrainedSize]", visual: dict[tuple[int, int], int | None]
) -> dict[str, Any]:
    """Everything as plain numbers; sizes in bytes."""
    from masp.backbones.model_stats import LORA_RANK
    from masp.model.param_count import FP32

    return {
        "backbone": facts.name,
        "source": facts.source,
        "model_type": facts.model_type,
        "served": facts.served,
        "dim": facts.dim,
        "layers": facts.layers,
        "tied_output_head": facts.tied,
        "parameters": {**{part.replace(" ", "_"): n for part, n in facts.parameters.items()}, "total": facts.total},
        "weights_bytes": dict(facts.memory),
        "visual_tokens": {f"{width}x{height}": tokens for (width, height), tokens in visual.items()},
        "trained": {
            one.variant: {
                "queries": one.queries,
                "aspects": one.aspects,
                "aspects_bytes": FP32 * one.aspects,
                "prompt": one.prompt,
                "prompt_bytes": FP32 * one.prompt,
                "added_tokens": one.added,
            }
            for one in variants
        },
        "qlora": None
        if facts.lora is None
        else {"rank": LORA_RANK, "parameters": facts.lora, "bytes": FP32 * facts.lora},
    }


def _for_people(
    facts: "BackboneFacts", variants: "list[TrainedSize]", visual: dict[tuple[int, int], int | None], here: str
) -> "RenderableType":
    """A title, then four small tables with what each of them means."""
    from rich.console import Group
    from rich.text import Text

    from masp.cli.console import printable

    serves = "served by masp" if facts.served else "not served by masp yet"
    title = Text.assemble((printable(facts.name), "bold"), f"  {facts.model_type}, {serves}")
    about = f"{facts.layers} layers of width {facts.dim:,}; configuration from {SOURCES[facts.source]}"
    parts: list[RenderableType] = [title, Text(about, style="dim")]
    parts += [Text(), _parts(facts), Text(), _memory(facts), Text(NF4, style="dim")]
    parts += [Text(NF4_CPU, style="dim")] * _differs_on_cpu(facts)
    parts += [Text(here, style="dim")]
    parts += [Text(), _trained(facts, variants), Text(), _sequence(variants, visual), Text(SEQUENCE, style="dim")]
    return Group(*parts)


def _table(*headings: str) -> Any:
    """A table whose columns but the first are numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    return table


def _parts(facts: "BackboneFacts") -> Any:
    table = _table("part", "parameters")
    for part, number in facts.parameters.items():
        tied = part == "output head" and facts.tied
        if number or tied:
            table.add_row(part, "the embeddings" if tied else f"{number:,}")
    table.add_row("total", f"{facts.total:,}", style="bold")
    return table


def _memory(facts: "BackboneFacts") -> Any:
    table = _table("weights alone", "memory")
    rows = [("float32", "fp32"), ("bfloat16", "bf16, fp16"), ("nf4", "NF4*")]
    if _differs_on_cpu(facts):
        rows.append(("nf4_cpu", "NF4 on a CPU**"))
    for name, label in rows:
        table.add_row(label, memory(facts.memory[name]))
    return table


def _differs_on_cpu(facts: "BackboneFacts") -> bool:
    return facts.memory["nf4_cpu"] != facts.memory["nf4"]


def _trained(facts: "BackboneFacts", variants: "list[TrainedSize]") -> Any:
    from masp.backbones.model_stats import LORA_RANK
    from masp.model.param_count import FP32

    table = _table("trained, in fp32", "parameters", "size")
    for one in variants:
        label = f"aspect modules, {one.variant} ({one.queries} {'query' if one.queries == 1 else 'queries'} each)"
        table.add_row(label, f"{one.aspects:,}", memory(FP32 * one.aspects))
    prompt = variants[0].prompt  # the same vectors in every variant, in one place or two
    table.add_row(f"soft prompt ({prompt // facts.dim} vectors)", f"{prompt:,}", memory(FP32 * prompt))
    lora = ("-", "-") if facts.lora is None else (f"{facts.lora:,}", memory(FP32 * facts.lora))
    table.add_row(f"for comparison: QLoRA, rank {LORA_RANK}, query and value", *lora)
    return table


def _sequence(variants: "list[TrainedSize]", visual: dict[tuple[int, int], int | None]) -> Any:
    table = _table("picture", "visual tokens", *(f"in all, {one.variant}" for one in variants))
    for (width, height), tokens in visual.items():
        counts = ["-"] * (1 + len(variants))
        if tokens is not None:
            counts = [f"{tokens:,}", *(f"{tokens + one.added:,}" for one in variants)]
        table.add_row(f"{width}×{height}", *counts)
    return table


def memory(size: int) -> str:
    """Bytes in the unit that leaves up to three digits before the point: "588.1 MiB"."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
