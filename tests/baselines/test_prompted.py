"""Untrained parts of MASP: the same numbers as the model put together by hand."""

from pathlib import Path

import pytest
import torch

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.noise_lessons import LABELS, Watched, aspects_of
from masp.adapters import load_adapter
from masp.baselines.registry import make_system
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import AdapterError, UsageError
from masp.core.labels import render_labels
from masp.core.prompts import load_questions
from masp.model.masp_model import MaspModel, init_soft_prompt
from masp.model.scoring import score

QUESTION = load_questions().ask_emotion(render_labels(LABELS))


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("aspects", [False, True])
def test_the_numbers_are_those_of_the_model(aspects: bool, prompt: bool) -> None:
    if not (aspects or prompt):
        return
    backbone, seed = tiny.backbone(), 5
    adapter = load_adapter(aspects_of("qwen2_vl"), backbone)
    vectors = init_soft_prompt(PromptInit(), 9, backbone, torch.Generator().manual_seed(seed)) if prompt else None
    method = adapter.info.method if aspects else MethodConfig()
    model = MaspModel(backbone, method, adapter.aspects if aspects else None, vectors)
    visual = Watched(backbone).visual([0, 1])
    changes = [f"aspects={aspects_of('qwen2_vl')}"] if aspects else []
    changes += ["prompt_length=9"] if prompt else []
    system = make_system("random-prompt" if prompt else "aspects", backbone, LABELS, changes, seed)
    expected = score(model, visual, QUESTION, LABELS)
    for row, one in enumerate(system.predict(visual)):
        assert one.log_probabilities is not None
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
    name = "aspects" if not prompt else "aspects-random-prompt" if aspects else "random-prompt"
    assert system.config()["system"] == name


def test_another_seed_is_another_prompt() -> None:
    made = [make_system("random-prompt", tiny.backbone(), LABELS, [], seed).config() for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0]["tensors_sha256"] != made[2]["tensors_sha256"]
    again = make_system("random-prompt", tiny.backbone(), LABELS, ["seed=1"], 0).config()
    assert again["tensors_sha256"] == made[2]["tensors_sha256"]


def test_an_adapter_without_aspects_or_for_another_backbone_is_refused(tmp_path: Path) -> None:
    bare = write_adapter(tmp_path / "bare", aspects=())
    with pytest.raises(UsageError, match="holds no aspect modules"):
        make_system("aspects", tiny.backbone(), LABELS, [f"aspects={bare}"])
    with pytest.raises(AdapterError):
        make_system("aspects", tiny.backbone("gemma3"), LABELS, [f"aspects={aspects_of('qwen2_vl')}"])
