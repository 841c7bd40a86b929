"""Safetensors files rewritten with a few rows changed, a block at a time, so that no file has to fit into memory."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from masp.core.errors import BackboneError

BLOCK = 2**24
LARGEST_HEADER = 2**27
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)


@dataclass(frozen=True)
class NewRows:
    """Rows that take the place of those from `start` on; rows beyond the end of the matrix make it longer."""

    start: int
    values: Float[Tensor, "rows dim"]


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its number format and shape, and where its bytes lie behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str], int]:
    """The tensors of a file in the order of their bytes, its metadata, and where the bytes begin.

    Raises:
        BackboneError: it is no safetensors file.
    """
    try:
        with file.open("rb") as source:
            (length,) = struct.unpack("<Q", source.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"its header claims {length:,} bytes")
            table: dict[str, Any] = json.loads(source.read(length))
        metadata = table.pop("__metadata__", {})
        found = {name: Entry(one["dtype"], tuple(one["shape"]), *one["data_offsets"]) for name, one in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BackboneError(f"{file.name} is no safetensors file: {error}", "", "Fetch the backbone again.") from None
    return dict(sorted(found.items(), key=lambda item: item[1].begin)), metadata, 8 + length


def tensors_below(folder: Path, mark: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint with `mark` in their names, named by what follows it; nothing else is read."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as source:
            found |= {name.partition(mark)[2]: source.get_tensor(name) for name in source.keys() if mark in name}  # noqa: SIM118
    return found


def rewrite(source: Path, target: Path, changes: Mapping[str, NewRows]) -> int:
    """Copy a file with changed rows in the matrices that `changes` names.

    Returns:
        By how many bytes its tensors have grown.

    Raises:
        BackboneError: a matrix of a number format that cannot be written, or of another width than its rows.
        OSError: the target cannot be written.
    """
    entries, metadata, begin = read_header(source)
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, entry in entries.items():
        size = entry.end - entry.begin
        shape = entry.shape
        if name in changes:
            shape, size = _grown(name, entry, changes[name])
        table[name] = {"dtype": entry.dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(struct.pack("<Q", len(header)) + header)
        for name, entry in entries.items():
            old.seek(begin + entry.begin)
            place = new.tell()
            _copy(old, new, entry.end - entry.begin)
            if name in changes:
                _write_rows(new, place, entry, changes[name])
    return at - sum(entry.end - entry.begin for entry in entries.values())


def mean_row(file: Path, name: str) -> Float[Tensor, " dim"]:
    """The mean of a matrix's rows, in double precision and in parts, as fp32."""
    with safe_open(file, "pt") as opened:
        matrix = opened.get_slice(name)
        count, dim = matrix.get_shape()
        step = max(1, BLOCK // dim)
        total = torch.zeros(dim, dtype=torch.float64)
        for start in range(0, count, step):
            total += matrix[start : min(start + step, count)].cpu().double().sum(0)
    return (total / count).float()


def _grown(name: str, entry: Entry, rows: NewRows) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of a matrix with its new rows."""
    if entry.dtype not in DTYPES or len(entry.shape) != 2:
        known = f"a matrix in {', '.join(DTYPES)}"
        raise BackboneError(f"{name} is stored as {entry.dtype} {list(entry.shape)}", known, "Use unquantised weights.")
    count, dim = entry.shape
    if rows.values.shape[1] != dim or rows.start > count:
        got = f"{name} has {count} rows of width {dim}"
        raise BackboneError(got, f"width {rows.values.shape[1]}, and rows up to {rows.start}")
    shape = (max(count, rows.start + len(rows.values)), dim)
    return shape, math.prod(shape) * DTYPES[entry.dtype].itemsize


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    while size:
        block = old.read(min(size, BLOCK))
        if not block:
            raise BackboneError("a weights file ends too early", "a whole file", "Fetch the backbone again.")
        new.write(block)
        size -= len(block)


def _write_rows(new: BinaryIO, place: int, entry: Entry, rows: NewRows) -> None:
    """The new rows over the copy of a matrix at `place`, which is where the file ends; then on to its new end."""
    dtype = DTYPES[entry.dtype]
    new.seek(place + rows.start * entry.shape[1] * dtype.itemsize)
    new.write(rows.values.detach().cpu().to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    new.seek(0, 2)
