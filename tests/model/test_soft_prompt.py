"""The soft prompt and its starts."""

import pytest
import torch

from fixtures import tiny
from masp.core.config import PromptInit
from masp.core.errors import UsageError
from masp.model.masp_model import init_soft_prompt
from masp.model.soft_prompt import SoftPrompt, random_init, text_init, unused_start, vocabulary_init

LENGTH, DIM = 5, 7
ROWS = torch.arange(11 * DIM).view(11, DIM).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_is_one_fp32_leaf() -> None:
    prompt = SoftPrompt(LENGTH, DIM, ROWS[:LENGTH].bfloat16())
    assert [name for name, _ in prompt.named_parameters()] == ["vectors"]
    assert prompt.vectors.dtype == torch.float32
    assert prompt.vectors.is_leaf
    assert prompt.length == LENGTH
    assert torch.equal(prompt(), ROWS[:LENGTH])


def test_random_has_the_spread_that_was_asked_for() -> None:
    found = random_init(101, 103, 0.3, generator())
    assert abs(float(found.std()) - 0.3) < 0.01
    assert torch.equal(found, random_init(101, 103, 0.3, generator()))
    assert not torch.equal(found, random_init(101, 103, 0.3, generator(1)))


def test_vocabulary_draws_each_word_once_while_there_are_enough() -> None:
    rows = vocabulary_init(ROWS, LENGTH, generator())
    numbers = (rows[:, 0] / DIM).long().tolist()
    assert len(set(numbers)) == LENGTH
    assert torch.equal(rows, ROWS[numbers])
    assert len(vocabulary_init(ROWS, 13, generator())) == 13


def test_text_repeats_or_is_cut() -> None:
    assert torch.equal(text_init(ROWS[:2], LENGTH), ROWS[[0, 1, 0, 1, 0]])
    assert torch.equal(text_init(ROWS, LENGTH), ROWS[:LENGTH])
    with pytest.raises(UsageError, match="at least one word"):
        text_init(ROWS[:0], LENGTH)


def test_unused_rows_are_the_first_that_are_left_and_there_have_to_be_enough() -> None:
    assert torch.equal(unused_start(ROWS[4:], LENGTH), ROWS[4 : 4 + LENGTH])
    with pytest.raises(UsageError, match="4 rows that no token has"):
        unused_start(ROWS[7:], LENGTH)


def test_starts_over_a_backbone() -> None:
    backbone = tiny.backbone()
    rows = backbone.embedding_rows().detach()
    assert backbone.embedding_std() == pytest.approx(float(rows.std(correction=0)), rel=1e-5)
    noise = init_soft_prompt(PromptInit(), 211, backbone, generator()).vectors.detach()
    assert float(noise.std()) == pytest.approx(backbone.embedding_std(), rel=0.05)
    words = init_soft_prompt(PromptInit(kind="vocabulary"), LENGTH, backbone, generator()).vectors
    assert all((rows == word).all(1).any() for word in words)
    text = init_soft_prompt(PromptInit(kind="text", text="What do people do"), 3, backbone).vectors
    assert torch.equal(text, rows[backbone.tokenize("What do people do")][:3])
    free = backbone.known_tokens
    assert 0 < free < len(rows)
    unused = init_soft_prompt(PromptInit(kind="unused_rows"), 1, backbone).vectors
    assert torch.equal(unused, rows[free : free + 1])
