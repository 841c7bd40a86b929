"""Visual tokens: stacking, selecting, moving."""

from dataclasses import replace

import torch

from masp.core.types import Extras, ImageLayout, KVCache, VisualTokens


def made_up(counts: list[int], start: float, extras: bool = True) -> VisualTokens:
    width = max(counts)
    mask = torch.arange(width) < torch.tensor(counts)[:, None]
    tokens = (torch.arange(len(counts) * width * 3).view(len(counts), width, 3) + start) * mask[..., None]
    if not extras:
        return VisualTokens(tokens.float(), mask)
    grid = torch.tensor([[1, count] for count in counts])
    return VisualTokens(tokens.float(), mask, torch.rand(len(counts), width, 4) * mask[..., None], grid)


def test_stack_pads_to_the_longest() -> None:
    first, second = made_up([2, 3], 1), made_up([5], 100)
    found = VisualTokens.stack([first, second])
    assert len(found) == 3
    assert found.counts == [2, 3, 5]
    assert torch.equal(found.tokens[1, :3], first.tokens[1])
    assert not found.tokens[1, 3:].any()
    assert torch.equal(found.tokens[2], second.tokens[0])
    assert found.boxes.shape == (3, 5, 4)
    assert found.grid.tolist() == [[1, 2], [1, 3], [1, 5]]


def test_stack_drops_what_not_all_have() -> None:
    found = VisualTokens.stack([made_up([2], 1), made_up([3], 1, extras=False)])
    assert found.boxes is None
    assert found.grid is None


def test_select_cuts_surplus_padding_and_repeats() -> None:
    whole = made_up([2, 5, 3], 1)
    found = whole.select([2, 0, 2])
    assert found.tokens.shape == (3, 3, 3)
    assert found.counts == [3, 2, 3]
    assert torch.equal(found.tokens[0], whole.tokens[2, :3])
    assert torch.equal(found.tokens[0], found.tokens[2])
    assert len(whole.select([])) == 0


def test_to_changes_the_dtype_of_tokens_only() -> None:
    found = made_up([2, 5], 1).to(dtype=torch.bfloat16)
    assert found.tokens.dtype == torch.bfloat16
    assert found.mask.dtype == torch.bool
    assert found.boxes.dtype == torch.float32


def test_one_row_stands_for_many_without_a_copy() -> None:
    key = torch.randn(1, 2, 3, 5)
    found = KVCache(((key, key),)).expand(7)
    assert found.layers[0][0].shape == (7, 2, 3, 5)
    assert found.layers[0][0].data_ptr() == key.data_ptr()


def test_layouts_come_from_shapes_or_from_the_grid() -> None:
    plain = made_up([2, 3], 1)
    assert plain.layouts == [ImageLayout(2, (1, 2)), ImageLayout(3, (1, 3))]
    tiled = replace(plain, shapes=((1, 1), (2, 3)))
    assert tiled.layouts == [ImageLayout(2, (1, 1)), ImageLayout(3, (2, 3))]
    assert made_up([2], 1, extras=False).layouts == [ImageLayout(2)]
    assert tiled.select([1, 0, 1]).shapes == ((2, 3), (1, 1), (2, 3))
    assert VisualTokens.stack([tiled, tiled.select([1])]).shapes == ((1, 1), (2, 3), (2, 3))
    assert VisualTokens.stack([tiled, plain]).shapes is None


def test_deep_features_go_where_their_tokens_go() -> None:
    plain = made_up([2, 5], 1)
    whole = replace(plain, deep=torch.stack([plain.tokens + 1000, plain.tokens + 2000], dim=2))
    found = VisualTokens.stack([whole.select([0]), whole.select([1, 0])]).select([2, 1])
    assert torch.equal(found.deep[0, :2, 0], plain.tokens[0, :2] + 1000)
    assert torch.equal(found.deep[1, :, 1], plain.tokens[1] + 2000)
    assert whole.to(dtype=torch.bfloat16).deep.dtype == torch.bfloat16
    assert VisualTokens.stack([whole, plain]).deep is None


def test_pooled_features_go_where_their_images_go() -> None:
    plain = made_up([2, 5], 1)
    whole = replace(plain, pooled=torch.arange(6.0).view(2, 3))
    found = VisualTokens.stack([whole.select([0]), whole.select([1, 0])]).select([1, 0, 1])
    assert torch.equal(found.pooled, torch.tensor([[3.0, 4, 5], [0, 1, 2], [3, 4, 5]]))
    assert whole.to(dtype=torch.bfloat16).pooled.dtype == torch.float32
    assert VisualTokens.stack([whole, plain]).pooled is None


def test_extras_are_followed_by_plain_text() -> None:
    deep = torch.ones(1, 2, 3, 5)
    found = Extras(torch.tensor([[False, True]]), deep).followed_by(2)
    assert found.visual.tolist() == [[False, True, False, False]]
    assert found.deep[:, :2].equal(deep)
    assert not found.deep[:, 2:].any()
