"""A backbone with random weights of any size, made in memory: for measuring what a size costs before fetching it.

What it answers means nothing. Its text side is the embedded backbone's; the embedding matrix may have more rows.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from masp.backbones.base import Backbone
from masp.backbones.checkpoint import load_image_processor, load_tokenizer
from masp.backbones.files import BackboneFiles, find, read_json
from masp.backbones.hf_backbone import HFBackbone, usual_parts
from masp.backbones.qwen2_vl import SYSTEM_TURN, QwenVision, grid_positions, turn

SMALLEST, LARGEST = 4 * 28**2, 16384 * 28**2  # Qwen2-VL's own bounds, in pixels


@dataclass(frozen=True)
class Shape:
    """The sizes of a model of Qwen2-VL's architecture; heads of the language model have dim / heads numbers."""

    dim: int = 896
    layers: int = 24
    heads: int = 14
    groups: int = 2
    intermediate: int = 4864
    vocabulary: int = 151_936
    tied: bool = True
    vision_width: int = 640
    vision_depth: int = 12
    vision_heads: int = 10


@dataclass(frozen=True)
class RandomBackbone:
    """One set of random weights, seen in two ways.

    Attributes:
        backbone: as this package runs it.
        plain: transformers' own model, with its own vision tower; it shares every weight.
    """

    backbone: Backbone
    plain: Any


def make(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> RandomBackbone:
    """A model with random weights; the same seed gives the same."""
    files = find("embedded")
    torch.manual_seed(seed)
    with device:
        model: Any = Qwen2VLForConditionalGeneration(_config(shape, files))
    model = model.to(dtype)
    model.set_attn_implementation("sdpa")
    model.eval().requires_grad_(False)
    tower = copy.deepcopy(model.model.visual, {id(one): one for one in model.model.visual.parameters()})
    processor = load_image_processor(files, Qwen2VLImageProcessorPil)
    processor.size = {"shortest_edge": SMALLEST, "longest_edge": LARGEST}
    tokenizer = load_tokenizer(files)
    vision = QwenVision(tower, processor)
    parts = usual_parts(model, tokenizer, turn(tokenizer, SYSTEM_TURN), vision, native=grid_positions, stored=False)
    named = BackboneFiles("random weights", files.folder, None, "qwen2_vl")
    return RandomBackbone(HFBackbone(named, parts), model)


def _config(shape: Shape, files: BackboneFiles) -> Qwen2VLConfig:
    content = read_json(files.folder / "config.json")
    half = shape.dim // shape.heads // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    content["tie_word_embeddings"] = shape.tied
    content["text_config"] |= {
        "hidden_size": shape.dim,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "layer_types": ["full_attention"] * shape.layers,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    content["vision_config"] |= {
        "depth": shape.vision_depth,
        "embed_dim": shape.vision_width,
        "num_heads": shape.vision_heads,
        "hidden_size": shape.dim,
    }
    return Qwen2VLConfig(**content)
