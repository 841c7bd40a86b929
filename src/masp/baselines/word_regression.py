"""The words of a concept bottleneck: which there are, and a regression that reads each of them from tokens."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from masp.baselines.base import Example
from masp.baselines.learning import SMALLEST
from masp.core.errors import DataError


def vocabulary(examples: Sequence[Example], aspects: Sequence[str], fewest: int) -> dict[str, tuple[str, ...]]:
    """The words of each aspect that enough examples are annotated with, in alphabetical order.

    Raises:
        DataError: there is none.
    """
    counts = {aspect: Counter(word for example in examples for word in words_of(example, aspect)) for aspect in aspects}
    known = {aspect: tuple(sorted(w for w, n in count.items() if n >= fewest)) for aspect, count in counts.items()}
    if not any(known.values()):
        raise DataError(
            "no aspect of the images to learn from is annotated often enough",
            f"a word that {fewest} or more of them have",
            "Annotate them (masp data annotate), or lower fewest, in a new --out.",
        )
    return known


def present(examples: Sequence[Example], aspect: str, words: Sequence[str]) -> Float[Tensor, "images words"]:
    """1 where an example is annotated with a word, 0 where it is not, whatever the reason."""
    rows = [[float(word in words_of(example, aspect)) for word in words] for example in examples]
    return torch.tensor(rows).reshape(len(examples), len(words))


def read_words(
    tokens: Float[Tensor, "images dim"], wanted: Float[Tensor, "images words"], penalties: Sequence[float]
) -> tuple[dict[str, Tensor], Float[Tensor, "images words"], dict[str, float]]:
    """A layer that reads every word from the tokens, and what it would say about each image without having seen it.

    A ridge regression on standardised columns for each word, in closed form, and behind it Platt's scaling to
    probabilities (Platt, 1999), fitted on the leave-one-out predictions. Those are exact: a residual divided by one
    minus the image's leverage. The penalty with the least squared leave-one-out error is taken, one for all words. Fits
    that go step by step need hundreds of steps here: tokens differ much in few directions, in most very little.

    Returns:
        The layer as `probe.logits` takes it; the leave-one-out probabilities; the penalty and its error.
    """
    wide = tokens.cpu().double()
    mean, scale = wide.mean(0), wide.std(0, correction=0).clamp_min(SMALLEST)
    inputs, targets = (wide - mean) / scale, wanted.cpu().double()
    candidates = [_ridge(inputs, targets, penalty) for penalty in penalties]
    errors = [float((held - targets).square().mean()) for _, held in candidates]
    best = min(range(len(candidates)), key=errors.__getitem__)
    weight, held = candidates[best]
    slope, offset = _scaled(held, targets)
    layer = {
        "weight": slope[:, None] * weight.T,
        "bias": slope * targets.mean(0) + offset,
        "mean": mean,
        "scale": scale,
        "n": torch.tensor(float(len(inputs))),
    }
    known = torch.ones(targets.shape[1], dtype=torch.bool)
    chances = (held * slope + offset).sigmoid().float()
    facts = {"penalty": float(penalties[best]), "squared_error": errors[best]}
    return {name: part.float() for name, part in layer.items()} | {"known": known}, chances, facts


def _ridge(
    inputs: Float[Tensor, "images dim"], targets: Float[Tensor, "images words"], penalty: float
) -> tuple[Float[Tensor, "dim words"], Float[Tensor, "images words"]]:
    """Weights of a ridge regression with a free intercept, and its leave-one-out predictions; columns have mean 0."""
    gram = inputs.T @ inputs
    gram.diagonal().add_(penalty)
    root = torch.linalg.cholesky(gram)
    mean = targets.mean(0)
    weight = torch.cholesky_solve(inputs.T @ (targets - mean), root)
    leverage = torch.linalg.solve_triangular(root, inputs.T, upper=False).square().sum(0) + 1 / len(inputs)
    left = targets - (inputs @ weight + mean)
    return weight, targets - left / (1 - leverage).clamp_min(SMALLEST)[:, None]


def _scaled(
    predicted: Float[Tensor, "images words"], targets: Float[Tensor, "images words"]
) -> tuple[Float[Tensor, " words"], Float[Tensor, " words"]]:
    """Slope and offset of each word's log-odds, finite by Platt's targets (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2)."""
    present = targets.sum(0)
    absent = len(targets) - present
    soft = torch.where(targets > 0, (present + 1) / (present + 2), 1 / (absent + 2))
    slope = torch.ones_like(present, requires_grad=True)
    offset = torch.zeros_like(present, requires_grad=True)
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(predicted * slope + offset, soft)
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)
    return slope.detach(), offset.detach()


def words_of(example: Example, aspect: str) -> tuple[str, ...]:
    """The annotated words of one aspect."""
    return tuple(word for word in example.aspects.get(aspect, "").split(", ") if word)
