"""`masp export`: a soft prompt as rows of the embedding matrix, in a copy of a checkpoint that any engine serves (V+S).

The copy has as many more tokens as the soft prompt has vectors. Where one of them stands in the text, the language
model sees the trained vector, as it does where masp splices it in.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from masp.adapters import AdapterInfo, backbone_commit, backbone_place, check_reading, find_adapter, read_prompt
from masp.backbones.files import WANTED, BackboneFiles, chat_template, find, read_json, section
from masp.backbones.loading import FAMILIES
from masp.backbones.qwen2_vl import SYSTEM_TURN
from masp.core.atomic_io import write_folder
from masp.core.errors import AdapterError, BackboneError
from masp.core.labels import render_labels

NOTE, CARD = "masp_prompt.json", "README.md"
COPIED = (*WANTED, "LICENSE*", "NOTICE*")
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
FORMATS = (torch.float32, torch.float16, torch.bfloat16)

NewRows = tuple[int, Tensor, bool]
"""Where new rows of a matrix begin, the rows, and whether the matrix becomes float32 for them."""
Changes = dict[str, dict[str, NewRows]]
"""File → matrix → its new rows; those beyond its end make it longer."""


@dataclass(frozen=True)
class ExportedRows:
    """What an exported checkpoint holds.

    Attributes:
        tokens: the new tokens, in the order of the soft prompt.
        first: id of the first of them; the others follow.
        rows_before: rows of the embedding matrix in the original.
        rows: rows now; more than before where the spare ones were too few.
        tied: whether the output head is the embedding matrix, and so has the new rows too.
        dtype: number format of the rows, as the file names it.
        before_image: what to write directly before the image.
        after_image: what to write directly after the image: the new tokens, then the question.
        prompt: the whole prompt as one text, with one placeholder for the image.
    """

    tokens: tuple[str, ...]
    first: int
    rows_before: int
    rows: int
    tied: bool
    dtype: str
    before_image: str
    after_image: str
    prompt: str

    @property
    def ids(self) -> list[int]:
        """Ids of the new tokens."""
        return list(range(self.first, self.first + len(self.tokens)))


@dataclass(frozen=True)
class _Matrices:
    """Where embedding matrix and output head are stored; a head of its own is missing where the two are tied."""

    embedding: tuple[str, str]  # file and name
    head: tuple[str, str] | None
    rows: int
    tied: bool
    dtype: str


def export_embedding_rows(
    adapter: str | Path,
    out: str | Path,
    backbone: str | None = None,
    revision: str | None = None,
    task: str | None = None,
    accept: Collection[str] = (),
) -> ExportedRows:
    """Write a copy of the backbone whose embedding matrix holds the soft prompt, for the variant V+S.

    `README.md` and `masp_prompt.json` in it hold the exact text to send. The original is only read; of its weights only
    the files that hold a changed matrix are loaded, one at a time.

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
    both = method.prompt_places == "both"
    return export_rows(files, vectors, both, question, target, finish, trained_in_float32(info))


def trained_in_float32(info: AdapterInfo) -> bool:
    """Whether the backbone ran in float32 when the soft prompt was trained, so that its vectors were never rounded."""
    return "prompt" in info.training and info.training["prompt"].dtype == "float32"


def exportable() -> list[str]:
    """Families whose chat template puts text directly behind the image, where the soft prompt stands."""
    return [name for name, family in FAMILIES.items() if family.exports]


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


def export_rows(
    files: BackboneFiles,
    vectors: Float[Tensor, "prompt dim"],
    both_places: bool,
    question: str,
    out: Path,
    finish: Callable[[Path, ExportedRows], None],
    float32: bool = False,
) -> ExportedRows:
    """Write a copy of a checkpoint whose embedding matrix holds the soft prompt; whole or not at all.

    Args:
        files: the original, which is only read.
        vectors: the soft prompt.
        both_places: whether it also stands before the image.
        question: the question, for the exact text.
        out: a folder that does not exist or is empty.
        finish: lays more beside the weights, before the folder gets its name.
        float32: write the matrices that hold the soft prompt in float32; otherwise in the checkpoint's format.

    Raises:
        BackboneError: the family's template is not known here, or files that are not as expected.
        OSError: the folder cannot be written.
    """
    if files.model_type not in exportable():
        raise BackboneError(
            f"where the soft prompt stands in the text of the family '{files.model_type}' is not known to the export",
            f"one of {', '.join(exportable())}",
            "Serve it with masp instead.",
        )
    matrices = _matrices(files)
    tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    known: dict[str, int] = tokenizer.get_vocab()
    tokens = tuple(f"<|masp_{number}|>" for number in range(len(vectors)))
    if tokens[0] in known:
        raise BackboneError(f"'{files.name}' has a token {tokens[0]} already", "a checkpoint that masp did not export")
    first = max(known.values()) + 1
    mark = "".join(tokens)
    before, after = mark if both_places else "", mark + question
    made = ExportedRows(
        tokens=tokens,
        first=first,
        rows_before=matrices.rows,
        rows=max(matrices.rows, first + len(tokens)),
        tied=matrices.tied,
        dtype="F32" if float32 else matrices.dtype,
        before_image=before,
        after_image=after,
        prompt=rendered_prompt(tokenizer, chat_template(files, tokenizer.chat_template), before, after),
    )

    def fill(partial: Path) -> None:
        _fill(partial, files.folder, matrices, made, vectors, float32)
        finish(partial, made)

    write_folder(out, fill)
    return made


def _fill(folder: Path, source: Path, matrices: _Matrices, made: ExportedRows, vectors: Tensor, float32: bool) -> None:
    changes = _changes(source, matrices, made, vectors, float32)
    grown = 0
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}):
        if path.name in changes:
            grown += rewrite(path, folder / path.name, changes[path.name])
        else:
            shutil.copyfile(path, folder / path.name)
    edit_json(folder / INDEX, lambda index: _with_size(index, grown))
    edit_json(folder / "config.json", lambda config: _with_rows(config, made.rows))
    suppressed = "suppress_tokens"
    edit_json(
        folder / "generation_config.json", lambda old: {**old, suppressed: [*(old.get(suppressed) or []), *made.ids]}
    )
    _add_tokens(folder, made)


def _changes(source: Path, matrices: _Matrices, made: ExportedRows, vectors: Tensor, float32: bool) -> Changes:
    """New rows of the embedding matrix, and of the head.

    A head of its own has to grow with the embedding matrix. Its new rows are the mean of its rows: the logit of a new
    token is then the mean logit, which is never the largest.
    """
    file, name = matrices.embedding
    changes: Changes = {file: {name: (made.first, vectors, float32)}}
    if matrices.head is None:
        return changes
    file, name = matrices.head
    if matrices.tied:  # stored although it is the same matrix
        changes.setdefault(file, {})[name] = (made.first, vectors, float32)
    elif made.rows > made.rows_before:
        with opened(source / file) as weights:
            mean = mean_row(weights.get_tensor(name))
        changes.setdefault(file, {})[name] = (made.rows_before, mean.expand(made.rows - made.rows_before, -1), False)
    return changes


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file whose tensors are read as they are asked for.

    Raises:
        BackboneError: it is no such file, or is cut short.
    """
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except SafetensorError as error:
        raise BackboneError(f"{file.name} is no safetensors file: {error}", "", "Fetch the backbone again.") from None


def rewrite(source: Path, target: Path, changes: Mapping[str, NewRows]) -> int:
    """Copy a safetensors file with new rows in the matrices that `changes` names.

    Returns:
        By how many bytes its tensors have grown.

    Raises:
        BackboneError: a matrix of a number format that cannot be written, or of another width than its rows.
        OSError: the target cannot be written.
    """
    with opened(source) as weights:
        metadata, tensors = weights.metadata(), {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    new = {name: _with_new_rows(name, tensors[name], *rows) for name, rows in changes.items()}
    save_file(tensors | new, target, metadata)
    return sum(matrix.nbytes - tensors[name].nbytes for name, matrix in new.items())


def _with_new_rows(name: str, matrix: Tensor, start: int, rows: Tensor, float32: bool) -> Tensor:
    stored = str(matrix.dtype).removeprefix("torch.")
    if matrix.dtype not in FORMATS or matrix.ndim != 2:
        known = "a matrix in float32, float16 or bfloat16"
        raise BackboneError(f"{name} is stored as {stored} {list(matrix.shape)}", known, "Use unquantised weights.")
    if rows.shape[1] != matrix.shape[1] or start > len(matrix):
        got = f"{name} has {len(matrix)} rows of width {matrix.shape[1]}"
        raise BackboneError(got, f"width {rows.shape[1]}, and rows up to {start}")
    stop, wide = start + len(rows), matrix.float() if float32 else matrix
    return torch.cat([wide[:start], rows.detach().cpu().to(wide.dtype), wide[stop:]])


def mean_row(matrix: Float[Tensor, "rows dim"]) -> Float[Tensor, " dim"]:
    """The mean of a matrix's rows, in double precision and in parts, as fp32."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for part in matrix.split(4096):
        total += part.cpu().double().sum(0)
    return (total / len(matrix)).float()


def _matrices(files: BackboneFiles) -> _Matrices:
    """Embedding matrix and output head of a checkpoint.

    Raises:
        BackboneError: there is not exactly one embedding matrix.
    """
    matrices: list[tuple[str, str, Any]] = []
    for path in sorted(files.folder.glob("*.safetensors")):
        with opened(path) as weights:
            named = [name for name in weights.keys() if name.endswith((EMBEDDING, HEAD))]  # noqa: SIM118
            matrices += [(path.name, name, weights.get_slice(name)) for name in named]
    inputs = [one for one in matrices if one[1].endswith(EMBEDDING)]
    heads = [one for one in matrices if one[1].endswith(HEAD)]
    if len(inputs) != 1 or len(heads) > 1:
        names = ", ".join(name for _, name, _ in matrices) or "none"
        raise BackboneError(f"'{files.name}' has the embedding matrices {names}", f"one {EMBEDDING}, one head at most")
    (file, name, matrix), config = inputs[0], read_json(files.folder / "config.json")
    head = (heads[0][0], heads[0][1]) if heads else None
    tied = config.get("tie_word_embeddings", section(config, "text_config").get("tie_word_embeddings", False))
    return _Matrices((file, name), head, matrix.get_shape()[0], head is None or bool(tied), matrix.get_dtype())


def rendered_prompt(tokenizer: Any, template: str, before: str, after: str) -> str:
    """The whole prompt, by the checkpoint's own template; with Qwen's system turn where it adds none."""
    parts = [{"type": "text", "text": before}] * bool(before) + [{"type": "image"}, {"type": "text", "text": after}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]

    def render(turns: Sequence[dict[str, Any]]) -> str:
        return tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)

    text = render(messages)
    return text if "<|im_start|>system" in text else render([{"role": "system", "content": SYSTEM_TURN}, *messages])


def edit_json(file: Path, change: Any) -> None:
    """Change the object in a file, where there is such a file."""
    if file.is_file():
        file.write_text(json.dumps(change(read_json(file)), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _with_size(index: dict[str, Any], grown: int) -> dict[str, Any]:
    metadata = dict(index.get("metadata") or {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += grown
    if grown:
        metadata.pop("total_parameters", None)  # it counts the rows before the export
    return {**index, "metadata": metadata}


def _with_rows(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """The number of rows, wherever the configuration names it."""
    text = section(config, "text_config")
    changed = {"vocab_size": rows} if "vocab_size" in config else {}
    nested = {"text_config": {**text, "vocab_size": rows}} if "vocab_size" in text else {}
    return config | changed | nested


def _add_tokens(folder: Path, made: ExportedRows) -> None:
    """The new tokens in every file that lists added tokens; everything else in them stays as it was.

    Raises:
        BackboneError: there is no tokenizer.json, or the text is not read back as the new tokens.
    """
    if not (folder / "tokenizer.json").is_file():
        raise BackboneError("the backbone has no tokenizer.json", "the fast tokenizer's file", "Save its tokenizer.")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = {str(token_id): {"content": token, **flags} for token_id, token in zip(made.ids, made.tokens, strict=True)}
    listed = [{"id": int(token_id), **token} for token_id, token in new.items()]
    edit_json(folder / "tokenizer.json", lambda old: {**old, "added_tokens": [*old.get("added_tokens", []), *listed]})

    def extended(config: dict[str, Any]) -> dict[str, Any]:
        decoder = config.get("added_tokens_decoder")
        return config if decoder is None else {**config, "added_tokens_decoder": {**decoder, **new}}

    edit_json(folder / "tokenizer_config.json", extended)
    by_name = dict(zip(made.tokens, made.ids, strict=True))
    edit_json(folder / "added_tokens.json", lambda old: {**old, **by_name})
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("".join(made.tokens), add_special_tokens=False).input_ids
    if ids != made.ids:
        raise BackboneError(
            f"the tokenizer reads the new tokens as {ids[:3]}…",
            f"{made.ids[:3]}…",
            "Report this with the name of the backbone.",
        )


def _write_notes(info: AdapterInfo, question: str, folder: Path, made: ExportedRows) -> None:
    """Write what whoever serves the weights needs: the same for machines and for people."""
    note = {"tokens": made.tokens, "ids": made.ids, "before_image": made.before_image, "after_image": made.after_image}
    note |= {"prompt": made.prompt, "question": question, "labels": info.labels, "suppress": made.ids}
    (folder / NOTE).write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_readme(info, made), encoding="utf-8")


def _readme(info: AdapterInfo, made: ExportedRows) -> str:
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


def _remarks(made: ExportedRows) -> list[str]:
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
    unrounded = ", with the vectors unrounded; load the model in float32 to keep them so" if made.dtype == "F32" else ""
    return [
        f"The embedding matrix is stored as {made.dtype}{unrounded}. {rows}",
        head,
        "Text of users must not be read as these tokens; an engine that does so needs a filter.",
        "This is the variant without aspects (V+S): it gives no reasons. Do not use it to judge people.",
    ]
