"""Linear layers in 4 bits (NF4, QLoRA, Dettmers et al. 2023) through bitsandbytes: which ones, and what they weigh."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

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
    that are whole steps of 16, and looks up their scales as if every row began a block; `tests/backbones/test_packing.py`
    measures it. Such a row: 4304 in the vision tower of Gemma 3. CPUs without AVX-512 were not measured and are treated
    alike, so that a backbone is the same on every CPU.
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
