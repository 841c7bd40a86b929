"""A soft prompt as rows of the embedding matrix: a copy of a checkpoint that any engine can serve (V+S).

The copy has as many more tokens as the soft prompt has vectors. Where one of them stands in the text, the language
model sees the trained vector, as it does where masp splices it in.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer

from masp.backbones.files import WANTED, BackboneFiles, chat_template, read_json
from masp.backbones.qwen2_vl import SYSTEM_TURN
from masp.backbones.shards import NewRows, mean_row, read_header, rewrite
from masp.core.atomic_io import write_folder
from masp.core.errors import BackboneError

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
"""Families whose chat template puts text directly behind the image, where the soft prompt stands."""

COPIED = (*WANTED, "LICENSE*", "NOTICE*")
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


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


def export_rows(
    files: BackboneFiles,
    vectors: Float[Tensor, "prompt dim"],
    both_places: bool,
    question: str,
    out: Path,
    finish: Callable[[Path, ExportedRows], None],
) -> ExportedRows:
    """Write a copy of a checkpoint whose embedding matrix holds the soft prompt; whole or not at all.

    Args:
        files: the original, which is only read.
        vectors: the soft prompt.
        both_places: whether it also stands before the image.
        question: the question, for the exact text.
        out: a folder that does not exist or is empty.
        finish: lays more beside the weights, before the folder gets its name.

    Raises:
        BackboneError: the family's template is not known here, or files that are not as expected.
        OSError: the folder cannot be written.
    """
    if files.model_type not in FAMILIES:
        raise BackboneError(
            f"where the soft prompt stands in the text of the family '{files.model_type}' is not known to the export",
            f"one of {', '.join(FAMILIES)}",
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
        dtype=matrices.dtype,
        before_image=before,
        after_image=after,
        prompt=rendered_prompt(tokenizer, chat_template(files, tokenizer.chat_template), before, after),
    )

    def fill(partial: Path) -> None:
        _fill(partial, files.folder, matrices, made, vectors)
        finish(partial, made)

    write_folder(out, fill)
    return made


def _fill(folder: Path, source: Path, matrices: _Matrices, made: ExportedRows, vectors: Tensor) -> None:
    changes = _changes(source, matrices, made, vectors)
    grown = 0
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}):
        if path.name in changes:
            grown += rewrite(path, folder / path.name, changes[path.name])
        else:
            shutil.copyfile(path, folder / path.name)
    edit_json(folder / INDEX, lambda index: _with_size(index, grown))
    edit_json(folder / "config.json", lambda config: _with_rows(config, made))
    edit_json(folder / "generation_config.json", lambda config: _with_suppressed(config, made.ids))
    _add_tokens(folder, made)
    _check_tokens(folder, made)


def _changes(source: Path, matrices: _Matrices, made: ExportedRows, vectors: Tensor) -> dict[str, dict[str, NewRows]]:
    """New rows by file and tensor.

    A head of its own has to grow with the embedding matrix. Its new rows are the mean of its rows: the logit of a new
    token is then the mean logit, which is never the largest.
    """
    file, name = matrices.embedding
    changes: dict[str, dict[str, NewRows]] = {file: {name: NewRows(made.first, vectors)}}
    if matrices.head is None:
        return changes
    file, name = matrices.head
    if matrices.tied:  # stored although it is the same matrix
        changes.setdefault(file, {})[name] = NewRows(made.first, vectors)
    elif made.rows > made.rows_before:
        mean = mean_row(source / file, name).expand(made.rows - made.rows_before, -1)
        changes.setdefault(file, {})[name] = NewRows(made.rows_before, mean)
    return changes


def _matrices(files: BackboneFiles) -> _Matrices:
    """Embedding matrix and output head of a checkpoint.

    Raises:
        BackboneError: there is not exactly one embedding matrix.
    """
    found = [
        (path.name, name, entry)
        for path in sorted(files.folder.glob("*.safetensors"))
        for name, entry in read_header(path)[0].items()
        if name.endswith((EMBEDDING, HEAD))
    ]
    inputs = [one for one in found if one[1].endswith(EMBEDDING)]
    heads = [one for one in found if one[1].endswith(HEAD)]
    if len(inputs) != 1 or len(heads) > 1:
        names = ", ".join(name for _, name, _ in found) or "none"
        raise BackboneError(f"'{files.name}' has the embedding matrices {names}", f"one {EMBEDDING}, one head at most")
    (file, name, entry), config = inputs[0], read_json(files.folder / "config.json")
    head = (heads[0][0], heads[0][1]) if heads else None
    return _Matrices((file, name), head, entry.shape[0], head is None or _is_tied(config), entry.dtype)


def _is_tied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    inner = bool(text.get("tie_word_embeddings", False)) if isinstance(text, dict) else False
    return bool(config.get("tie_word_embeddings", inner))


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
    return {**index, "metadata": metadata}


def _with_rows(config: dict[str, Any], made: ExportedRows) -> dict[str, Any]:
    """The number of rows, wherever the configuration names it."""
    changed = {**config, "vocab_size": made.rows} if "vocab_size" in config else dict(config)
    text = config.get("text_config")
    if isinstance(text, dict) and "vocab_size" in text:
        changed["text_config"] = {**text, "vocab_size": made.rows}
    return changed


def _with_suppressed(config: dict[str, Any], ids: Iterable[int]) -> dict[str, Any]:
    return {**config, "suppress_tokens": [*(config.get("suppress_tokens") or []), *ids]}


def _add_tokens(folder: Path, made: ExportedRows) -> None:
    """The new tokens in every file that lists added tokens; everything else in them stays as it was.

    Raises:
        BackboneError: there is no tokenizer.json.
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


def _check_tokens(folder: Path, made: ExportedRows) -> None:
    """Whether the text is read back as the new tokens.

    Raises:
        BackboneError: it is not.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = tokenizer("".join(made.tokens), add_special_tokens=False).input_ids
    if found != made.ids:
        raise BackboneError(
            f"the tokenizer reads the new tokens as {found[:3]}…",
            f"{made.ids[:3]}…",
            "Report this with the name of the backbone.",
        )
