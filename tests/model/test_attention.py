"""Attention from the soft prompt to the aspects, against the weights that transformers' eager attention returns."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fixtures import tiny
from fixtures.models import QUESTIONS, full_model, visual_tokens
from masp.core.errors import UsageError
from masp.model.attention import prompt_attention
from masp.model.masp_model import ActiveParts
from masp.model.scoring import score


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("family", tiny.QWEN)
def test_weights_equal_the_eager_ones(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = visual_tokens(model)
    found = prompt_attention(model, visual, QUESTIONS[0])
    eager = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), attn_implementation="eager").eval()
    assembled = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    with torch.no_grad():
        weights = eager.model.language_model(
            inputs_embeds=assembled.inputs_embeds,
            position_ids=assembled.position_ids,
            attention_mask=assembled.attention_mask.long(),
            output_attentions=True,
        ).attentions[-1]
    for row in range(3):
        asking = assembled.prompt_columns[row].nonzero().flatten()[-7:]  # of two places the second
        mean = weights[row, :, asking].mean((0, 1))
        expected = torch.stack([mean[assembled.aspect_of[row] == aspect].sum() for aspect in range(6)])
        assert (found[row] - expected).abs().max() <= 1e-5
    assert (found > 0).all()
    assert (found.sum(1) < 1).all()


def test_only_aspects_that_take_part_are_counted() -> None:
    model = full_model()
    found = prompt_attention(model, visual_tokens(model), QUESTIONS[0], ActiveParts(("scene", "brightness")))
    assert found.shape == (3, 2)


def test_the_pass_that_predicts_is_untouched() -> None:
    model = full_model()
    visual = visual_tokens(model)
    before = score(model, visual, QUESTIONS[0], ["joy", "fear"])
    prompt_attention(model, visual, QUESTIONS[0])
    assert torch.equal(score(model, visual, QUESTIONS[0], ["joy", "fear"]), before)


@pytest.mark.parametrize("use", [ActiveParts(()), ActiveParts(prompt=False)])
def test_both_must_take_part(use: ActiveParts) -> None:
    model = full_model()
    with pytest.raises(UsageError, match="takes no part"):
        prompt_attention(model, visual_tokens(model), QUESTIONS[0], use)
