"""Where the weights of a backbone go, and in which number format: on one device, or layer by layer over several.

Only layers of the language model are spread. All that is called or read by hand stays together on the first device:
the vision side, the embeddings, the last layer, the norm and the output head. Hooks of accelerate bring the inputs of a
layer to its device, and weights that wait in main memory or on the disk to the first device while their layer runs.

Linear layers in 4 bits (NF4, QLoRA, Dettmers et al. 2023) go through bitsandbytes: which ones, and what they weigh.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import get_max_memory
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from masp.backbones.files import BackboneFiles
from masp.core.errors import BackboneError

BLOCK = 64  # weights that share a scale
STEP = 16  # weights that the AVX-512 kernel of bitsandbytes unpacks at a time


def packed_layers(model: PreTrainedModel, device: torch.device) -> dict[str, nn.Linear]:
    """Layers that are packed on a device of this kind, by name.

    Every linear one but the output head and, on a CPU, but those that bitsandbytes may unpack wrongly there.
    """
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear  # transformers packs no subclass
        and layer is not head
        and not (device.type == "cpu" and unpacked_wrongly(layer.in_features))
    }


def unpacked_wrongly(width: int) -> bool:
    """Whether a CPU may take wrong scales for rows of this many weights.

    Scales belong to blocks of 64 that run on from row to row. The AVX-512 kernel of bitsandbytes (0.50.2) takes rows
    that are whole steps of 16, and looks up their scales as if every row began a block (measured by
    `tests/backbones/test_packing.py`). Such a row: 4304 in the vision tower of Gemma 3. CPUs without AVX-512 were not
    measured and are treated alike, so that a backbone is the same on every CPU.
    """
    return width % STEP == 0 and width % BLOCK != 0


def packed_bytes(weights: int) -> int:
    """Bytes of that many weights of one layer: two in a byte, and a scale of four bytes for every block begun."""
    return -(-weights // 2) + 4 * -(-weights // BLOCK)


def packing(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers has to know to pack a model while it reads it, without double quantisation.

    Args:
        model: may be without weights, on the meta device.
        device: where it goes.
        dtype: in which packed layers compute.
    """
    packed = packed_layers(model, device)
    rest = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in packed]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=rest,
    )


def require_bitsandbytes() -> Any:
    """The package that packs weights into 4 bits.

    Raises:
        BackboneError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError:
        raise BackboneError(
            "the number format nf4 needs bitsandbytes, which is not installed",
            "",
            'pip install "masp[4bit]", or take another dtype.',
        ) from None
    return bitsandbytes


def keep_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew in the first pass without gradients.

    On a CPU with bfloat16 units it would, and gradients no longer pass through a layer in that form.
    """
    kind = require_bitsandbytes().nn.Linear4bit
    packed: list[Any] = [module for module in model.modules() if isinstance(module, kind)]
    for layer in packed:
        layer.support_avx512bf16_for_cpu = False


LAYER = re.compile(r"(.*\.)?(language_model|text_model)(\.model)?\.layers\.\d+")
"""Name of a layer of the language model, in every family."""

USABLE = 0.9  # of a device's free memory; the rest is for activations
Where = int | str
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """How a backbone is loaded.

    Attributes:
        dtype: of the weights, and of everything that is computed; where four_bit, of the weights that are not packed.
        device: where it goes; where spread, the first device.
        four_bit: linear layers are packed as NF4, all but the output head and, on a CPU, a few more.
        spread: layers that do not fit on the device go to other ones, to main memory, and last to the disk.
    """

    dtype: torch.dtype
    device: torch.device
    four_bit: bool = False
    spread: bool = False

    def __str__(self) -> str:
        format = "nf4/" * self.four_bit + str(self.dtype).removeprefix("torch.")
        return f"{format} on {self.device}" + " and beyond" * self.spread


def options(files: BackboneFiles, kind: Any, placement: Placement) -> dict[str, Any]:
    """Arguments of `from_pretrained` that put a model there.

    Args:
        files: where it lies.
        kind: transformers' class.
        placement: where and how it is wanted.

    Raises:
        BackboneError: bitsandbytes is missing, or there is not enough room.
    """
    chosen: dict[str, Any] = {"dtype": placement.dtype}
    if not (placement.spread or placement.four_bit):
        return chosen
    model = skeleton(files, kind)
    if placement.spread:
        chosen["device_map"] = device_map(files.name, model, placement)
    if placement.four_bit:
        require_bitsandbytes()
        chosen.setdefault("device_map", {"": placement.device})  # packed while it is read, so never whole in memory
        chosen["quantization_config"] = packing(model, placement.device, placement.dtype)
    return chosen


def skeleton(files: BackboneFiles, kind: Any) -> PreTrainedModel:
    """The model on the meta device, without weights."""
    config = kind.config_class.from_pretrained(files.folder, local_files_only=True)
    with torch.device("meta"):
        return kind(config)


def device_map(name: str, model: PreTrainedModel, placement: Placement) -> dict[str, Where]:
    """Device of every part of a model, by the room there is now.

    Args:
        name: of the backbone, for messages.
        model: without weights.
        placement: as wanted.

    Raises:
        BackboneError: not enough room.
    """
    parts = {part: module for part, module in model.named_modules() if LAYER.fullmatch(part)}
    packed = packed_layers(model, placement.device).values() if placement.four_bit else ()
    sizes = [_bytes(layer, placement.dtype, packed) for layer in parts.values()]
    rest = _bytes(model, placement.dtype, packed) - sum(sizes)
    room = {device: int(free * USABLE) for device, free in get_max_memory().items()}
    layers = dict(zip(parts, spread_layers(name, sizes, rest, room), strict=True))
    if (
        placement.four_bit
        and (set(layers.values()) | {first(room)}) & {"cpu", "disk"}
        and len(set(layers.values())) > 1
    ):
        raise BackboneError(
            f"{name} does not fit on the GPUs in NF4, and packed layers cannot wait elsewhere",
            "room for all layers on GPUs",
            "Take dtype bfloat16, whose layers can wait in main memory.",
        )
    for where, count in Counter(layers.values()).items():
        log.log(logging.WARNING if where == "disk" else logging.INFO, "layers of %s on %s: %d", name, where, count)
    return dict.fromkeys(_others(model, set(layers)), first(room)) | layers


def spread_layers(name: str, sizes: Sequence[int], rest: int, room: Mapping[Where, int]) -> list[Where]:
    """Device of each layer of the language model.

    The last layer goes to the first device, the others fill one device after the other. As soon as one layer does not
    fit on the first device, room for one is kept there, because layers from main memory pass through it.

    Args:
        name: of the backbone, for the message.
        sizes: bytes of each layer.
        rest: bytes of all that is no layer.
        room: usable bytes by device, the fastest first; the disk comes after them by itself.

    Raises:
        BackboneError: what has to be on the first device does not fit there.
    """
    home = first(room)
    if rest + sum(sizes) <= room[home]:
        return [home] * len(sizes)
    needed = rest + sizes[-1] + max(sizes)
    if needed > room[home]:
        raise BackboneError(
            f"{name} needs {needed / 2**30:.2f} GiB on the first device, even with its layers spread",
            f"at most {room[home] / 2**30:.2f} GiB, which are free on {home}",
            "Take a smaller dtype or backbone.",
        )
    left = dict(room) | {home: room[home] - needed}
    result: list[Where] = []
    devices = iter(left)
    device: Where = next(devices)
    for size in sizes[:-1]:
        while device != "disk" and left[device] < size:
            device = next(devices, "disk")
        if device != "disk":
            left[device] -= size
        result.append(device)
    return [*result, home]


def first(room: Mapping[Where, int]) -> Where:
    """The device where everything meets: the first GPU, or the CPU."""
    return next(iter(room))


def _bytes(module: nn.Module, dtype: torch.dtype, packed: Iterable[nn.Linear]) -> int:
    """Bytes of the weights in a part, where these linear layers of the model are packed."""
    inside = set(module.modules())
    saved = [layer.weight.numel() for layer in packed if layer in inside]
    total = sum(parameter.numel() for parameter in module.parameters())
    return (total - sum(saved)) * dtype.itemsize + sum(map(packed_bytes, saved))


def _others(module: nn.Module, layers: set[str], name: str = "") -> Iterator[str]:
    """The largest parts of a model, and single parameters, that hold no layer."""
    inside = f"{name}." if name else ""
    if name and not any(layer.startswith(inside) for layer in layers):
        yield name
        return
    yield from (inside + own for own, _ in module.named_parameters(recurse=False))
    for own, child in module.named_children():
        if inside + own not in layers:
            yield from _others(child, layers, inside + own)
