"""`masp import-released`, `combine`, `export`, `push` and `info`: adapters handed on, and the backbones they fit."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from masp.cli.console import printable, results, say
from masp.cli.options import Accept, AdapterRevision, BackboneOfAdapter, Task, accepted, refuse
from masp.core.errors import UsageError, counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from masp.backbones.model_stats import ModelStats
    from masp.model.cost_estimate import TrainedSize

IMPORT_EXAMPLES = """
Example:

`masp import-released --aspects aspect.pth --soft-prompt soft_prompt_emotion6.pt --questions prompts.json
--backbone Qwen/Qwen2-VL-7B-Instruct --out emotion6`
"""


def import_released(
    backbone: Annotated[str, typer.Option(metavar="ID", help="The backbone they were trained on: hub id or folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the adapter; new or empty.")],
    aspects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Aspect modules (`aspect.pth`). Without: a prompt alone (V+S).")
    ] = None,
    soft_prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A soft prompt (`soft_prompt_….pt`). Without: aspects alone.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="Labels of the soft prompt: a data set's name, or a list with commas. Default: `emotion6`.",
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The questions it was trained with, as JSON. Default: the package's own."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch of the backbone on a hub.")
    ] = None,
) -> None:
    """Convert checkpoints of the authors' released code to an adapter of the variant `released`.

    Nothing in the files is run: they are refused if they hold anything but the expected tensors.
    """
    from masp.adapters.import_released import import_released as convert
    from masp.adapters.import_released import labels_of

    if soft_prompt is None:
        if labels is not None:
            raise UsageError("--labels was given without a soft prompt", "it only with --soft-prompt", "Leave it out.")
        info = convert(out, backbone, aspects, None, questions=questions, revision=revision)
    else:
        info = convert(out, backbone, aspects, soft_prompt, labels_of(labels, soft_prompt), questions, revision)
        say(f"labels: {', '.join(info.labels)}" + ("" if labels else " (Emotion6; name others with --labels)"))
        if questions is None:
            say("questions: the package's own, not those it was trained with; name a file with --questions")
    holds = [f"{len(info.aspects)} aspects with {info.method.queries} queries each"] * bool(info.aspects)
    holds += [f"a soft prompt of {info.prompt_length} vectors"] * bool(info.prompt_length)
    say(f"imported {' and '.join(holds)} for {info.backbone.name} (width {info.backbone.dim})")
    typer.echo(str(out))


COMBINE_EXAMPLES = """
Example: `masp combine --out both emoset=runs/a emotion6=runs/b`, then
`masp predict photo.jpg --adapter both --task emotion6`
"""


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]ADAPTER...",
            help="Adapters of one backbone and the same aspects. Default name: that of the data set.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write: a new or empty folder, or an adapter to replace.")
    ],
) -> None:
    """Put adapters over the same aspects into one, each a task with a name of its own."""
    from masp.adapters import combine as put_together

    info = put_together(out, adapters)
    say(f"{len(info.tasks)} tasks: {', '.join(info.tasks)}")
    typer.echo(str(out))


EXPORT_EXAMPLES = """
Examples:

`masp export --as vllm --adapter runs/first --out for-vllm`

`masp export --as embedding-rows --adapter runs/plain --out qwen-with-emotions`
"""


class ExportFormat(StrEnum):
    """What a soft prompt can be exported as."""

    embedding_rows = "embedding-rows"
    vllm = "vllm"
    vllm_model = "vllm-model"


def export(
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--as",
            help="*embedding-rows*: more tokens in a copy of the backbone's embedding matrix, without aspects. *vllm*: "
            "adapter, chat template and note for an unmodified vLLM and masp's client. *vllm-model*: a copy of the "
            "backbone for vLLM with masp installed beside it, which computes the aspects in the engine.",
        ),
    ],
    adapter: Annotated[str, typer.Option(metavar="DIR|ID", help="What was trained; all tasks of it for vLLM.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    backbone: BackboneOfAdapter = None,
    adapter_revision: AdapterRevision = None,
    task: Task = None,
    accept: Accept = None,
) -> None:
    """Write what another engine needs to serve an adapter: with aspects in vLLM, without them (V+S) in any engine.

    The README in the new folder says what to start and what to send.
    """
    from masp.backbones.export import export_embedding_rows

    if form is not ExportFormat.embedding_rows:
        from masp.serving.vllm_export import export_vllm

        refuse({"--task": task}, f"with --as {form.value}", "no task, as all are exported")
        in_engine = form is ExportFormat.vllm_model
        typer.echo(str(export_vllm(adapter, out, backbone, adapter_revision, accepted(accept), in_engine)))
        return
    made = export_embedding_rows(adapter, out, backbone, adapter_revision, task, accepted(accept))
    grown = made.rows - made.rows_before
    where = f"{grown} rows were added" if grown else "spare rows were enough"
    say(f"{counted(len(made.tokens), 'token')}, {made.tokens[0]} to {made.tokens[-1]}; {where} ({made.rows:,} rows)")
    if made.tied:
        say("the output head is the embedding matrix and has these rows too: suppress the new tokens (see README.md)")
    typer.echo(str(out))


PUSH_EXAMPLES = """
Example: `masp push runs/first someone/emotion6-qwen2-vl-7b --license cc-by-4.0 --private`
"""


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter, or the folder of its run.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="A repository that is made now is private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to push to, made if there is none. Default: main.")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Licence of the adapter, such as apache-2.0. Default: what the adapter says."),
    ] = None,
) -> None:
    """Push an adapter's three files (weights, description, model card) to a hub, as one commit.

    The backbone is never pushed. Log in first with `hf auth login`.
    """
    from masp.adapters import publish

    address = publish(folder, repo_id, private=private, revision=revision, license=license)
    say("pushed; anyone who may read it can now use --adapter " + repo_id)
    typer.echo(address)


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
sizes as they reach the backbone: masp shrinks longer images first (data.longest_side)"""

INFO_EXAMPLES = """
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
        typer.Option(metavar="WxH", help=f"An image's size in pixels; may be repeated. Default: {', '.join(SIZES)}."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Commit, tag or branch on a hub. Default: the newest.")
    ] = None,
) -> None:
    """Say what a backbone consists of and needs, and what would be trained on it. No weights are read or fetched.

    Common backbones are known without a network; of another hub id only two small files are fetched.
    """
    from masp.backbones.known_models import describe
    from masp.core.settings import Variant

    sizes = tuple(_size(text) for text in (size or SIZES))
    description = describe(backbone, revision)
    from masp.backbones.loading import choose_placement
    from masp.backbones.model_stats import count, visual_tokens  # heavy, for nothing if there is no such backbone
    from masp.model.cost_estimate import trained_size

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
    size = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text.strip(), flags=re.ASCII)
    if size is None:
        raise UsageError(f"--size {text}", "width and height in pixels, such as 1024x768")
    return int(size[1]), int(size[2])


def _object(
    facts: "ModelStats", variants: "list[TrainedSize]", visual: dict[tuple[int, int], int | None]
) -> dict[str, Any]:
    """Everything as plain numbers; sizes in bytes."""
    from masp.backbones.model_stats import LORA_RANK
    from masp.model.cost_estimate import FP32

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
    facts: "ModelStats", variants: "list[TrainedSize]", visual: dict[tuple[int, int], int | None], here: str
) -> "RenderableType":
    """A title, then four small tables with what each of them means."""
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
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _parts(facts: "ModelStats") -> Any:
    table = _table("part", "parameters")
    for part, number in facts.parameters.items():
        tied = part == "output head" and facts.tied
        if number or tied:
            table.add_row(part, "the embeddings" if tied else f"{number:,}")
    table.add_row("total", f"{facts.total:,}", style="bold")
    return table


def _memory(facts: "ModelStats") -> Any:
    table = _table("weights alone", "memory")
    rows = [("float32", "fp32"), ("bfloat16", "bf16, fp16"), ("nf4", "NF4*")]
    if _differs_on_cpu(facts):
        rows.append(("nf4_cpu", "NF4 on a CPU**"))
    for name, label in rows:
        table.add_row(label, memory(facts.memory[name]))
    return table


def _differs_on_cpu(facts: "ModelStats") -> bool:
    return facts.memory["nf4_cpu"] != facts.memory["nf4"]


def _trained(facts: "ModelStats", variants: "list[TrainedSize]") -> Any:
    from masp.backbones.model_stats import LORA_RANK
    from masp.model.cost_estimate import FP32

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
    table = _table("image", "visual tokens", *(f"in all, {one.variant}" for one in variants))
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
