"""Loading a backbone by name: which family serves it, in which dtype, on which device."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError

from masp.backbones.base import Backbone
from masp.backbones.device_map import Placement, require_bitsandbytes
from masp.backbones.files import EMBEDDED, BackboneFiles, check_accepted, find, read_json
from masp.core import runtime
from masp.core.config import BackboneConfig
from masp.core.errors import BackboneError, did_you_mean


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint is served; this record is all that registers it.

    Attributes:
        module: its file, imported when it is needed. `load(files, placement)` there loads a checkpoint, and
            `visual_count(config, settings, width, height)` counts the visual tokens of an image, given the
            configuration as transformers reads it and the content of preprocessor_config.json; None: no rule.
        sized: that count depends on preprocessor_config.json.
        refuses: `refuse(name, content)` there refuses some checkpoints of the kind by their config.json.
        exports: its template puts text directly behind the image, where `masp export` puts a soft prompt.
    """

    module: str
    sized: bool = False
    refuses: bool = False
    exports: bool = False

    def get(self, name: str) -> Any:
        """A function of its file."""
        return getattr(import_module(self.module), name)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qwen2_vl": Family("masp.backbones.qwen2_vl", sized=True, exports=True),
        "qwen2_5_vl": Family("masp.backbones.qwen2_vl", sized=True, exports=True),
        "llava": Family("masp.backbones.llava", refuses=True),
        "llava_next": Family("masp.backbones.llava_next"),
        "gemma3": Family("masp.backbones.gemma3"),
        "qwen3_vl": Family("masp.backbones.qwen3_vl", sized=True),
        "internvl": Family("masp.backbones.internvl", sized=True),
        "smolvlm": Family("masp.backbones.idefics3", sized=True),
        "idefics3": Family("masp.backbones.idefics3", sized=True),
        "llava_onevision": Family("masp.backbones.llava_next"),
        "instructblip": Family("masp.backbones.instructblip", refuses=True),
        "photo": Family("masp.backbones.photo"),
    }
)
"""model_type of a checkpoint's config.json → the family that serves it."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
NF4 = "nf4"
"""The number format of linear layers in 4 bits; what is computed is in the dtype that "auto" chooses."""

SPREAD = "spread"
"""The device of a backbone that may be larger than one."""

UNITS = "MASP_BFLOAT16_UNITS"
"""Environment variable for tests of another processor: 1 or 0 makes "auto" believe that every device computes in
bfloat16 by itself, or none."""

log = logging.getLogger(__name__)


def load_backbone(
    config: BackboneConfig | str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    accept: Collection[str] = (),
) -> Backbone:
    """A frozen backbone.

    Args:
        config: what to load, or only its name: hub id, folder, "embedded" for the small one in this package, or
            "photo" for the one of the extra `masp[photo]`.
            Settings carry the other arguments themselves, which then do not count.
        revision: commit, tag or branch on the hub.
        dtype: "float32", "bfloat16", "float16", "nf4" for 4 bits through bitsandbytes, or "auto", see `choose_dtype`.
        device: a torch device, "auto" for the GPU if there is one, or "spread" for all GPUs, then main memory, then
            the disk.
        min_pixels: bounds of an image's area, for Qwen-VL; None: the checkpoint's own.
        max_pixels: the upper one.
        accept: which of `processor`, `template`, `tokenizer` may differ from those of adapters and runs that it meets.

    Raises:
        BackboneError: not found, not reachable, not a supported family, an unknown dtype or device, no bitsandbytes,
            not enough room, or pixel bounds that the family does not have.
        UsageError: a revision of a folder, or something else to be accepted.
    """
    if isinstance(config, BackboneConfig):
        name, revision, dtype, device = config.id, config.revision, config.dtype, config.device
        min_pixels, max_pixels = config.min_pixels, config.max_pixels
        accept = config.accept
    else:
        name = config
    files = replace(find_supported(name, revision), accepted=check_accepted(accept))
    placement = choose_placement(dtype, device, name)
    log.info("loading backbone %s (%s) in %s", name, files.model_type, placement)
    try:
        backbone: Backbone = FAMILIES[files.model_type].get("load")(files, placement)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"the backbone '{name}' cannot be loaded: {error}", "", "Check that its files are whole."
        ) from error
    if min_pixels is not None or max_pixels is not None:
        backbone.bound_pixels(min_pixels, max_pixels)
    return backbone


def find_supported(name: str, revision: str | None = None) -> BackboneFiles:
    """The files of a backbone, unread, once it is certain that a family here serves it.

    Raises:
        BackboneError: not found, not reachable, or not a supported family.
        UsageError: a revision of a folder.
    """
    files = find(name, revision)
    refuse_unserved(name, read_json(files.folder / "config.json"))
    return files


def refuse_unserved(name: str, content: Mapping[str, Any]) -> None:
    """Refuse a backbone by the content of its config.json.

    Raises:
        BackboneError: no family here serves it.
    """
    kind = str(content.get("model_type"))
    if kind not in FAMILIES:
        raise BackboneError(
            f"the backbone '{name}' is of the family '{kind}'",
            f"one of {', '.join(FAMILIES)}",
            did_you_mean(kind, FAMILIES),
        )
    if FAMILIES[kind].refuses:
        FAMILIES[kind].get("refuse")(name, content)


def choose_placement(dtype: str, device: str, name: str | None = None) -> Placement:
    """What names of a number format and of a device stand for.

    Args:
        dtype: name of the number format.
        device: name of the device.
        name: of the backbone, as the user asked for it; None: any but the embedded one.

    Raises:
        BackboneError: unknown names, or no bitsandbytes for "nf4".
    """
    four_bit, spread = dtype == NF4, device == SPREAD
    if four_bit:
        require_bitsandbytes()
    where = choose_device("auto" if spread else device)
    asked = "auto" if four_bit else dtype
    if asked == "auto" and name == EMBEDDED:
        asked = "float32"
    return Placement(choose_dtype(asked, where, (*DTYPES, NF4)), where, four_bit, spread)


def choose_device(device: str) -> torch.device:
    """The device of this name; "auto" is the GPU if there is one, and for several processes each has its own.

    Raises:
        BackboneError: no such device.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available() and (own := runtime.local_rank()) is not None:
        return torch.device("cuda", own % torch.cuda.device_count())
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"the device '{device}' cannot be used: {str(error).splitlines()[0]}", "cpu, cuda, auto or spread"
        ) from None


def choose_dtype(dtype: str, device: torch.device, known: Iterable[str] = DTYPES) -> torch.dtype:
    """The dtype of this name.

    "auto" is bfloat16 where the device has units for it, otherwise float32. `choose_placement` knows one more rule: the
    embedded backbone is float32 everywhere, because it is small, and its figures should be the same on every machine.

    Args:
        dtype: the name.
        device: where it is computed in.
        known: names to tell of where it is unknown.

    Raises:
        BackboneError: unknown name.
    """
    if dtype == "auto":
        return torch.bfloat16 if bfloat16_units(device) else torch.float32
    if dtype not in DTYPES:
        raise BackboneError(f"unknown dtype '{dtype}'", f"auto, {', '.join(known)}", did_you_mean(dtype, known))
    return DTYPES[dtype]


def bfloat16_units(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself, rather than in float32 with a conversion before and after.

    NVIDIA GPUs do from compute capability 8.0 on (not T4, not V100), ROCm's do, CPUs with AVX512-BF16 or AMX do. Of
    other devices nothing is known: on MPS it depends on the chip, and torch does not tell which one it is.
    """
    if UNITS in os.environ:
        return os.environ[UNITS] == "1"
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
