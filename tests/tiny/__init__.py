"""Tiny random checkpoints of every family, written as the folders a user would have; nothing is downloaded.

Widths are odd or prime where the architecture allows it, so that a swapped axis does not pass unnoticed. A folder is
made once per test run and removed at its end.
"""

import atexit
import functools
import json
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers.utils import logging

from masp.backbones.base import Backbone
from masp.backbones.device_map import Placement
from masp.backbones.loading import FAMILIES as LOADERS
from masp.backbones.loading import NF4, find_supported, load_backbone
from tiny import gemma, idefics, instructblip, internvl, llava, photo, qwen
from tiny.kind import DIM, Kind
from tiny.qwen import QWEN2
from tiny.tokens import VOCABULARY

KINDS: dict[str, Kind] = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": qwen.QWEN2_5,
    "llava": llava.LLAVA,
    "llava_next": llava.NEXT,
    "gemma3": gemma.GEMMA3,
    "qwen3_vl": qwen.QWEN3,
    "internvl": internvl.INTERNVL,
    "smolvlm": idefics.SMOLVLM,
    "idefics3": idefics.IDEFICS3,
    "llava_onevision": llava.ONEVISION,
    "instructblip": instructblip.INSTRUCTBLIP,
    "photo": photo.PHOTO,
}
FAMILIES = tuple(KINDS)
QWEN = ("qwen2_vl", "qwen2_5_vl")  # for tests of what all families share
TEMPLATE, MARKS = qwen.TEMPLATE, qwen.MARKS
tiny_tokenizer = QWEN2.tokenizer

__all__ = [
    "DIM",
    "FAMILIES",
    "KINDS",
    "MARKS",
    "QWEN",
    "TEMPLATE",
    "VOCABULARY",
    "backbone",
    "checkpoint",
    "picture",
    "tiny_tokenizer",
    "write_checkpoint",
]


def checkpoint(family: str = "qwen2_vl", seed: int = 0) -> Path:
    """The folder of a tiny random checkpoint, the same one for the same arguments."""
    return _checkpoint(family, seed)


def backbone(family: str = "qwen2_vl", dtype: str = "float32", seed: int = 0) -> Backbone:
    """A tiny frozen backbone on the CPU, shared between tests."""
    return _backbone(family, dtype, seed)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of coloured noise in blocks, so that neighbouring visual tokens differ."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (7, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@functools.cache
def _checkpoint(family: str, seed: int) -> Path:
    keeper = tempfile.TemporaryDirectory(prefix="masp-tiny-")
    atexit.register(keeper.cleanup)
    folder = Path(keeper.name)
    write_checkpoint(folder, family, seed)
    return folder


@functools.cache
def _backbone(family: str, dtype: str, seed: int) -> Backbone:
    folder = str(checkpoint(family, seed))
    if dtype != NF4:
        return load_backbone(folder, dtype=dtype, device="cpu")
    files = find_supported(folder)  # computes in fp32, whatever this CPU does well
    place = Placement(torch.float32, torch.device("cpu"), four_bit=True)
    return LOADERS[files.model_type].get("load")(files, place)


def write_checkpoint(folder: Path, family: str, seed: int = 0) -> None:
    """Write a tiny random checkpoint into `folder`."""
    kind = KINDS[family]
    tokenizer = kind.tokenizer()
    tokenizer.save_pretrained(folder)
    kind.extra(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(kind.processor))
    generator = torch.Generator().manual_seed(seed)
    model = kind.model(tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_q" not in name:
                parameter.normal_(0, 0.23, generator=generator)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
