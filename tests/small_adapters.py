"""Small random adapters for the tiny checkpoints, written as the folders that training leaves."""

import json
from pathlib import Path

import torch

import tiny
from masp.adapters import AdapterInfo, BackboneRecord, DataRecord, save_adapter
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.prompts import load_questions
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import init_soft_prompt

LABELS = ("joy", "fear", "awe")


def write_adapter(
    folder: Path,
    labels: tuple[str, ...] = LABELS,
    aspects: tuple[str, ...] = ASPECTS,
    prompt: bool = True,
    family: str = "qwen2_vl",
    include_aspects: bool = True,
    seed: int = 0,
) -> Path:
    """A random adapter: aspects with weights large enough to matter, and a soft prompt."""
    backbone = tiny.backbone(family)
    generator = torch.Generator().manual_seed(seed)
    method = MethodConfig(prompt_length=7, queries=2).resolved()
    questions = load_questions()
    asked = {name: questions.aspect(name)[0] for name in ASPECTS} | {"emotion": questions.emotion[0]}
    known = BackboneRecord(
        name=str(tiny.checkpoint(family)),
        revision=None,
        family=backbone.family,
        fingerprint=backbone.fingerprint(),
        dim=backbone.dim,
        hashes=dict(backbone.hashes()),
    )
    info = AdapterInfo(
        backbone=known,
        method=method,
        aspects=aspects,
        labels=labels if prompt else (),
        questions=asked,
        data={"prompt": DataRecord(name="made up", fingerprint="0" * 64, images={"train": 11})},
        seeds={"prompt": seed},
    )
    modules = AspectModules(backbone.dim, aspects, 2, "single", generator) if aspects else None
    if modules is not None:
        with torch.no_grad():
            for name in aspects:
                modules.module(name).queries.mul_(23)
    vectors = init_soft_prompt(PromptInit(), 7, backbone, generator) if prompt else None
    save_adapter(folder, info, modules, vectors, include_aspects=include_aspects)
    name_a_place(folder, str(tiny.checkpoint(family)))
    return folder


def name_a_place(folder: Path, place: str) -> None:
    """Let the description name its backbone by a path, as adapters did once, so that a test need not name it again."""
    file = folder / "adapter.json"
    content = json.loads(file.read_text())
    content["backbone"]["name"] = place
    file.write_text(json.dumps(content))
