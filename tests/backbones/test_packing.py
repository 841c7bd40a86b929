"""NF4 on a CPU: what bitsandbytes unpacks rightly there, what stays unpacked, and what the weights then take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures import tiny
from fixtures.nf4 import BLOCK, LEVELS, packs, rounded, unpacked
from masp.backbones.device_map import Placement, packed_bytes, packed_layers, skeleton, unpacked_wrongly
from masp.backbones.known_models import describe
from masp.backbones.loading import FAMILIES, find_supported
from masp.backbones.model_stats import count

bitsandbytes: Any = pytest.importorskip("bitsandbytes", reason='needs pip install "masp[4bit]"')
CPU = torch.device("cpu")
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Dtype → what weights of at most 4.5 may be off by in it."""


def test_rounding_by_hand() -> None:
    """Of the largest weight 2: 0.3 is 0.15 of it, nearest to 0.1609; -1.2 is -0.6, nearest to -0.5251."""
    weight = torch.zeros(BLOCK + 1)
    weight[:3], weight[BLOCK] = torch.tensor([2.0, 0.3, -1.2]), 5.0
    found = rounded(weight)
    assert found[:3].tolist() == pytest.approx([2.0, 2 * 0.16093020, 2 * -0.52507305])
    assert found[BLOCK] == 5.0  # a block of its own
    assert not found[3:BLOCK].any()


def test_unpacking_by_hand() -> None:
    """The byte 0x2F holds levels 2 and 15; the third number stands in the upper half of the second byte."""
    found = unpacked(torch.tensor([[0x2F], [0x70]], dtype=torch.uint8), torch.tensor([3.0]), (1, 3))
    assert found.tolist() == [[3 * float(LEVELS[2]), 3.0, 0.0]]


def wrong(rows: int, width: int) -> bool:
    """Whether bitsandbytes unpacks a random matrix to something else than its own bytes and scales say."""
    functional = bitsandbytes.functional
    matrix = torch.randn(rows, width, generator=torch.Generator().manual_seed(width)).clamp(-4.5, 4.5)
    packed, state = functional.quantize_4bit(matrix, blocksize=BLOCK, quant_type="nf4")
    expected = unpacked(packed, state.absmax, (rows, width))
    assert (expected - rounded(matrix)).abs().max() < 1e-5
    found = []
    for state.dtype, allowed in DTYPES.items():
        found.append(bool((functional.dequantize_4bit(packed, state).float() - expected).abs().max() > allowed))
    pictures, state.dtype = torch.randn(3, width, generator=torch.Generator().manual_seed(1)), torch.float32
    product = bitsandbytes.matmul_4bit(pictures, packed.t(), quant_state=state)
    found.append(bool((product - pictures @ expected.T).abs().max() > 1e-3))
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize("width", [*range(4, 324, 2), 3420, 4304])
def test_rows_that_stay_unpacked_are_those_that_a_cpu_unpacks_wrongly(width: int) -> None:
    """3420 is in the vision tower of Qwen2.5-VL, 4304 in those of Gemma 3 and Qwen3-VL-8B."""
    found = wrong(7, width)
    assert unpacked_wrongly(width) == (not packs(width))
    if packs(width):
        assert not found
    elif torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert found, "bitsandbytes has been mended: pack these rows too"


def loaded(folder: Path) -> Any:
    """The network of a folder in NF4, the rest of it in bfloat16."""
    files = find_supported(str(folder))
    place = Placement(torch.bfloat16, CPU, four_bit=True)
    return FAMILIES[files.model_type].get("load")(files, place)._model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_memory_is_that_of_a_loaded_model(family: str) -> None:
    network = loaded(tiny.checkpoint(family))
    packed = [value for value in network.parameters() if value.dtype == torch.uint8]
    assert not any(value.quant_state.nested for value in packed)
    scales = sum(value.quant_state.absmax.nbytes for value in packed)
    facts = count(describe(str(tiny.checkpoint(family))))
    assert facts.memory["nf4_cpu"] == sum(value.nbytes for value in network.parameters()) + scales
    left = [
        layer.weight.numel()
        for name, layer in network.named_modules()
        if type(layer) is torch.nn.Linear and not name.endswith("lm_head")
    ]
    assert facts.memory["nf4_cpu"] - facts.memory["nf4"] == 2 * sum(left) - sum(map(packed_bytes, left))


def test_only_a_cpu_leaves_layers_unpacked() -> None:
    """The projector of the tiny Qwen2-VL has rows of 96."""
    files = find_supported(str(tiny.checkpoint("qwen2_vl")))
    kind = type(loaded(tiny.checkpoint("qwen2_vl")))
    on_gpu, on_cpu = (set(packed_layers(skeleton(files, kind), torch.device(name))) for name in ("cuda", "cpu"))
    assert on_gpu - on_cpu == {"model.visual.merger.mlp.0", "model.visual.merger.mlp.2"}
    assert on_cpu < on_gpu
    assert not any(name.endswith("lm_head") for name in on_gpu)


def test_a_cpu_with_bfloat16_units_does_not_pack_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert bitsandbytes.nn.Linear4bit(64, 3).support_avx512bf16_for_cpu
    network = loaded(tiny.checkpoint())
    packed = [layer for layer in network.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert packed
    assert not any(layer.support_avx512bf16_for_cpu for layer in packed)
