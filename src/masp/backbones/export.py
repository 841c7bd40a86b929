"""`masp export`: a soft prompt in a form that other engines serve."""

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from masp.adapters import AdapterInfo, backbone_commit, backbone_place, check_reading, find_adapter, read_prompt
from masp.backbones.files import BackboneFiles, find, read_json
from masp.core.errors import AdapterError
from masp.core.labels import render_labels

if TYPE_CHECKING:
    from masp.backbones.export_embeddings import ExportedRows

NOTE, CARD = "masp_prompt.json", "README.md"


def export_embedding_rows(
    adapter: str | Path,
    out: str | Path,
    backbone: str | None = None,
    revision: str | None = None,
    task: str | None = None,
    accept: Collection[str] = (),
) -> "ExportedRows":
    """Write a copy of the backbone whose embedding matrix holds the soft prompt, for the variant V+S.

    `README.md` and `masp_prompt.json` in it hold the exact text to send. The original is only read, and large weights
    are copied a block at a time.

    Args:
        adapter: its folder, that of its run, or its id on a hub.
        out: a folder that does not exist yet or is empty.
        backbone: hub id or folder; None: the one that the adapter names.
        revision: of an adapter on a hub.
        task: which of several tasks.
        accept: which of the backbone's `processor`, `template` and `tokenizer` may be others than it was trained with.

    Returns:
        What the copy holds.

    Raises:
        AdapterError: no soft prompt, one that was trained with aspects or with positions that other engines do not use,
            or another backbone.
        BackboneError: a backbone that cannot be found, or is of a family that the export does not know.
    """
    from masp.backbones.export_embeddings import export_rows

    target = new_folder(out)
    folder = find_adapter(adapter, revision)
    info, vectors = read_prompt(folder, task)
    if info.aspects:
        raise AdapterError(
            f"{adapter} was trained with aspects, which are read from each image anew: no embedding row can hold them",
            "a soft prompt that was trained without (V+S)",
            "Export this one with --as vllm, or train one with 'masp train prompt --aspects none'.",
        )
    name = backbone or backbone_place(folder, info)
    files = find(name, backbone_commit(name, info))
    check_exportable(info, files, accept)
    method = info.method.resolved()
    question = info.asked().ask_emotion(render_labels(info.labels, method.label_list or "comma"))
    finish = partial(_write_notes, info, question)
    return export_rows(files, vectors, method.prompt_places == "both", question, target, finish)


def new_folder(out: str | Path) -> Path:
    """The folder, once it is certain that it is new or empty.

    Raises:
        AdapterError: it is not.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AdapterError(f"--out {target} is not an empty folder", "a new place", "Name another --out.")
    return target


def check_exportable(info: AdapterInfo, files: BackboneFiles, accept: Collection[str] = ()) -> None:
    """Whether the soft prompt means the same in this checkpoint and in other engines.

    Raises:
        AdapterError: another backbone, one that is read otherwise, or positions that other engines do not use.
    """
    if files.fingerprint != info.backbone.fingerprint:
        raise AdapterError(
            f"the adapter was trained on {info.backbone.name} ({info.backbone.fingerprint[:12]}…)",
            f"{files.name} ({files.fingerprint[:12]}…)",
            "Name that backbone (--backbone), or train an adapter for this one.",
        )
    check_reading(info, files.hashes, "the adapter", files.name, accept)
    config = read_json(files.folder / "config.json")
    if info.method.resolved().positions == "sequential" and "mrope_section" in json.dumps(config):
        raise AdapterError(
            "the soft prompt was trained with sequential positions, and other engines give this backbone its own",
            "method.positions: native",
            "Train it with method.positions=native.",
        )


def _write_notes(info: AdapterInfo, question: str, folder: Path, made: "ExportedRows") -> None:
    """Write what whoever serves the weights needs: the same for machines and for people."""
    note = {"tokens": made.tokens, "ids": made.ids, "before_image": made.before_image, "after_image": made.after_image}
    note |= {"prompt": made.prompt, "question": question, "labels": info.labels, "suppress": made.ids}
    (folder / NOTE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_readme(info, made), encoding="utf-8")


def _readme(info: AdapterInfo, made: "ExportedRows") -> str:
    data = info.data["prompt"].name if "prompt" in info.data else "unknown data"
    first, last = made.ids[0], made.ids[-1]
    lines = [
        f"# {info.backbone.name} with a soft prompt in its embedding matrix",
        "",
        f"A copy of the backbone, exported by masp. {len(made.tokens)} more tokens, `{made.tokens[0]}` to",
        f"`{made.tokens[-1]}` (ids {first} to {last}), stand for the vectors of a soft prompt, which was trained on",
        f"{data}. Nothing else of it has changed, and its licence applies.",
        "",
        *(["Directly before the image:", "", "```", made.before_image, "```", ""] if made.before_image else []),
        "Directly after the image, without a blank between, in the same message:",
        "",
        *("```", made.after_image, "```", ""),
        "The whole prompt, for engines that take text, with one placeholder for the image:",
        "",
        *("```", made.prompt.rstrip("\n"), "```", ""),
        f"The same as data, to the last line break, with labels and ids: `{NOTE}`. Ask exactly this question: the soft",
        f"prompt was trained with it. The answer is one of: {', '.join(info.labels)}. Decode greedily.",
        "",
        *(f"- {line}" for line in _remarks(made)),
    ]
    return "\n".join(lines) + "\n"


def _remarks(made: "ExportedRows") -> list[str]:
    grown = made.rows - made.rows_before
    rows = f"It has {made.rows:,} rows as before; these were spare."
    head = "The output head has not changed."
    if grown:
        rows = f"It has {made.rows:,} rows, {grown:,} more than before, as there were too few to spare."
        head = "The output head grew with it; its new rows are the mean of the others, so that none of them ever wins."
    if made.tied:
        head = (
            "The output head of this backbone is the same matrix and has the rows of the soft prompt too, so the model "
            "could answer with one of these tokens. Suppress them: transformers finds that in generation_config.json; "
            f"tell other engines (`suppress` in `{NOTE}`, for example as a logit bias of -100)."
        )
    return [
        f"The embedding matrix ({made.dtype}) holds the vectors rounded to its format, as masp rounds them. {rows}",
        head,
        "Text of users must not be read as these tokens; an engine that does so needs a filter.",
        "This is the variant without aspects (V+S): it gives no reasons. Do not use it to judge people.",
    ]
