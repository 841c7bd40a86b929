"""The soft prompt: trained vectors that stand among the input embeddings (paper, section 3.3 and Eq. 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masp.core.errors import UsageError


class SoftPrompt(nn.Module):
    """P, always fp32. It is a leaf of its own: no row of the embedding matrix is trained.

    Args:
        length: number of vectors p.
        dim: width of the language model.
        vectors: the start, from one of the functions below; zeros if None, for weights to be loaded into.
    """

    def __init__(self, length: int, dim: int, vectors: Float[Tensor, "prompt dim"] | None = None) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(length, dim))
        if vectors is not None:
            self.vectors.data.copy_(vectors)

    @property
    def length(self) -> int:
        """Number of vectors p."""
        return self.vectors.shape[0]

    def forward(self) -> Float[Tensor, "prompt dim"]:
        """The vectors."""
        return self.vectors


def prompt_tokens(length: int) -> tuple[str, ...]:
    """Names of the tokens whose rows of the embedding matrix are the soft prompt in the authors' code."""
    return tuple(f"<|reserved_special_token_{number}|>" for number in range(length))


def random_init(
    length: int, dim: int, std: float, generator: torch.Generator | None = None
) -> Float[Tensor, "prompt dim"]:
    """Normal vectors with standard deviation `std` (that of the backbone's embedding rows; the paper names none)."""
    return torch.randn(length, dim, generator=generator) * std


def vocabulary_init(
    rows: Float[Tensor, "vocabulary dim"], length: int, generator: torch.Generator | None = None
) -> Float[Tensor, "prompt dim"]:
    """Embeddings of `length` words drawn from the vocabulary, each at most once while there are enough.

    Raises:
        UsageError: the vocabulary is empty.
    """
    if not len(rows):
        raise UsageError("the vocabulary has no rows to draw from", "at least one embedding row")
    rounds = -(-length // len(rows))
    drawn = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(max(rounds, 1))])[:length]
    return rows[drawn.to(rows.device)].float().cpu()


def text_init(rows: Float[Tensor, "words dim"], length: int) -> Float[Tensor, "prompt dim"]:
    """Embeddings of a text's tokens, repeated or cut to `length` vectors.

    Raises:
        UsageError: the text has no tokens.
    """
    if not len(rows):
        raise UsageError("the text to start the soft prompt from is empty", "at least one word")
    return rows[torch.arange(length, device=rows.device) % len(rows)].float().cpu()


def unused_start(rows: Float[Tensor, "unused dim"], length: int) -> Float[Tensor, "prompt dim"]:
    """The first `length` of the embedding rows that no token has.

    Raises:
        UsageError: there are fewer.
    """
    if len(rows) < length:
        raise UsageError(
            f"the embedding matrix has {len(rows)} rows that no token has", f"{length}", "Set prompt.init.kind=random."
        )
    return rows[:length].float().cpu()
