"""Several questions about one image in one sequence: a shared opening, then branches that do not see each other."""

from dataclasses import dataclass, field

import numpy as np
import torch
from texts import Turn
from torch import Tensor
from transformers import PreTrainedTokenizerFast

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences, without the visual tokens' vectors.

    Attributes:
        ids: token ids, 0 where padded or visual; (batch, length).
        visual: the columns of the visual tokens, the same in every row.
        positions: M-RoPE positions (3, batch, length).
        allowed: which column (last axis) each column may see; (batch, 1, length, length) bool.
        rows, columns: the places whose next token is supervised.
        targets: the probabilities of their next token (places, vocabulary).
    """

    ids: Tensor
    visual: slice
    positions: Tensor
    allowed: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor


@dataclass
class Packer:
    """Turns questions and answers into packed batches; remembers the token ids of texts."""

    tokenizer: PreTrainedTokenizerFast
    vocabulary: int
    _ids: dict[str, list[int]] = field(default_factory=dict)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text)["input_ids"]
        return self._ids[text]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer as it stands after "assistant" and a newline."""
        return self.ids("\n" + text)[1:]

    def pack(self, pictures: list[list[Turn]], grid: tuple[int, int]) -> Packed:
        """Pack the turns of each image after `grid` visual tokens (rows, columns)."""
        start = len(self.ids(OPENING))
        visual = slice(start, start + grid[0] * grid[1])
        common = visual.stop + 1  # and the end-of-vision mark
        branches = [[self._branch(turn) for turn in turns] for turns in pictures]
        length = common + max(sum(len(ids) for ids, _ in row) for row in branches)
        ids = np.zeros((len(pictures), length), dtype=np.int64)
        branch = np.full((len(pictures), length), -1)
        positions = np.zeros((3, len(pictures), length), dtype=np.int64)
        ids[:, :start] = self.ids(OPENING)
        ids[:, visual.stop] = self.ids("<|vision_end|>")[0]
        branch[:, :common] = 0
        after = start + max(grid)
        positions[:, :, :start] = np.arange(start)
        positions[0, :, visual] = start
        positions[1, :, visual] = start + np.repeat(np.arange(grid[0]), grid[1])
        positions[2, :, visual] = start + np.tile(np.arange(grid[1]), grid[0])
        positions[:, :, visual.stop] = after
        places: list[tuple[int, int, np.ndarray]] = []
        for row, parts in enumerate(branches):
            column = common
            for number, (tokens, targets) in enumerate(parts, start=1):
                stop = column + len(tokens)
                ids[row, column:stop], branch[row, column:stop] = tokens, number
                positions[:, row, column:stop] = after + 1 + np.arange(len(tokens))
                places += [(row, column + at, target) for at, target in targets]
                column = stop
        rows, columns, targets = zip(*places, strict=True)
        return Packed(
            torch.from_numpy(ids),
            visual,
            torch.from_numpy(positions),
            _allowed(torch.from_numpy(branch)),
            torch.tensor(rows),
            torch.tensor(columns),
            torch.from_numpy(np.stack(targets)),
        )

    def _branch(self, turn: Turn) -> tuple[list[int], list[tuple[int, np.ndarray]]]:
        """Token ids of a turn, and the supervised places in it with the probabilities of the next token."""
        question, answer = self.ids(turn.question) + self.ids(TURN_END), self.answer(turn.answer)
        following = [*answer, self.ids("<|im_end|>")[0]]
        targets = [self._certain(token) for token in following]
        if turn.probabilities is not None:
            targets[0] = np.zeros(self.vocabulary, dtype=np.float32)
            for label, probability in turn.probabilities.items():
                targets[0][self.answer(label)[0]] += probability
        return question + answer, [(len(question) - 1 + at, target) for at, target in enumerate(targets)]

    def _certain(self, token: int) -> np.ndarray:
        target = np.zeros(self.vocabulary, dtype=np.float32)
        target[token] = 1
        return target


def _allowed(branch: Tensor) -> Tensor:
    """Causal; the opening is seen by all, a branch by itself, padding by nobody but itself."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branch[:, :, None] == branch[:, None, :]
    opening = (branch == 0)[:, None, :]
    return (causal & (same | opening))[:, None]
