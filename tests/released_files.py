"""Checkpoints as the authors' code writes them, with random numbers; and archives made by hand, for bad ones."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

import tiny
from masp.core.aspects import ASPECTS

QUERIES, PROMPT = 3, 7
NAME = "<|reserved_special_token_{}|>"


def aspect_tables(dim: int = tiny.DIM, queries: int = QUERIES) -> dict[str, Any]:
    """The content of an `aspect.pth`: the queries in alphabetical order, the attention in the order of Z."""
    generator = torch.Generator().manual_seed(7)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    attention = {
        aspect: OrderedDict(
            {
                "in_proj_weight": numbers(3 * dim, dim),
                "in_proj_bias": numbers(3 * dim),
                "out_proj.weight": numbers(dim, dim),
                "out_proj.bias": numbers(dim),
            }
        )
        for aspect in ASPECTS
    }
    return {
        "q_view": {aspect: numbers(queries, dim) for aspect in sorted(ASPECTS)},
        "cross_attn": attention,
        "fuser": None,
    }


def prompt_table(dim: int = tiny.DIM, length: int = PROMPT) -> dict[str, torch.Tensor]:
    """The content of a soft prompt's file."""
    rows = torch.randn(length, dim, generator=torch.Generator().manual_seed(11))
    return {NAME.format(number): row.clone() for number, row in enumerate(rows)}


def saved(path: Path, content: object, **how: Any) -> Path:
    """A file of `torch.save`."""
    torch.save(content, path, **how)
    return path


def archive(path: Path, content: bytes, name: str = "x", **how: Any) -> Path:
    """An archive in the form of `torch.save`'s around a pickle made by hand."""
    with zipfile.ZipFile(path, "w", **how) as file:
        for entry, data in (("data.pkl", content), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(f"{name}/{entry}", data)
    return path


def rewritten(path: Path, old: bytes, new: bytes) -> Path:
    """A file of `torch.save` whose pickle has other bytes in a place, as an honest archive otherwise."""
    with zipfile.ZipFile(path) as file:
        entries = [(entry.filename, file.read(entry)) for entry in file.infolist()]
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries:
            if name.endswith("/data.pkl"):
                assert old in data
                data = data.replace(old, new)
            file.writestr(name, data)
    return path


def instructions(content: object, protocol: int = 2) -> bytes:
    """A pickle of plain values."""
    buffer = io.BytesIO()
    pickle.dump(content, buffer, protocol=protocol)
    return buffer.getvalue()
