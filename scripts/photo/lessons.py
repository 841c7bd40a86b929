"""Questions of general seeing about photographs, packed: one picture, then branches that do not see each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bridge import VISUAL
from photographs import KINDS, Shown
from torch import Tensor
from transformers import PreTrainedTokenizerBase

OPENING = "<|im_start|>user\n"
TURN = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
NAME = ("Name the object.", "What is in this image?", "Which objects are in this image?", "What thing can be seen?")
GUESS = ("What may this be?", "What does this image look like?", "Name one thing that may be in this image.")
CHOOSE = ("Which thing does this image show? Choose one of: {}.", "Answer with one of: {}.", "What is it, one of: {}?")
DESCRIBE = ("Describe this image.", "What happens in this image?", "Write a caption.")
WHETHER = ("Is there {} in this image?", "Does this image show {}?")
SORT = ("What kind of thing is it? Choose one of: {}.", "Answer with one of: {}.", "Name its kind, one of: {}.")

Turn = tuple[str, str]


@dataclass(frozen=True)
class Packed:
    """A batch: token ids with 0 at the visual places, positions, what sees what, and the supervised places."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    asked: Tensor
    """The column of the last token of each first question."""


def turns(shown: Shown, rng: np.random.Generator, others: Sequence[str], second: float) -> list[Turn]:
    """One or two questions with answers about a photograph."""
    found = [_first(shown, rng)]
    if rng.random() < second:
        kind = rng.random()
        found.append((_choice if kind < 0.5 else _whether if kind < 0.75 else _sort)(shown, rng, others))
    return found


def _one(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _guess(shown: Shown, rng: np.random.Generator) -> str:
    """A class as the tower's head sees it, drawn by its chance."""
    chances = np.array(shown.chances) / sum(shown.chances)
    return shown.guesses[int(rng.choice(len(chances), p=chances))]


def _first(shown: Shown, rng: np.random.Generator) -> Turn:
    if shown.captions and rng.random() < 0.8:
        return _one(DESCRIBE, rng), _one(shown.captions, rng)
    if shown.name and rng.random() < 0.85:
        return _one(NAME, rng), shown.name
    if rng.random() < 0.3:
        return "List what this may be.", ", ".join(shown.guesses[:3])
    return _one(GUESS, rng), _guess(shown, rng)


def _choice(shown: Shown, rng: np.random.Generator, others: Sequence[str]) -> Turn:
    answer = shown.name or _guess(shown, rng)
    options = {answer} | {_one(others, rng) for _ in range(int(rng.integers(1, 5)))}
    listed = sorted(options)
    rng.shuffle(listed)
    return _one(CHOOSE, rng).format(", ".join(listed)), answer


def _whether(shown: Shown, rng: np.random.Generator, others: Sequence[str]) -> Turn:
    truth = rng.random() < 0.5
    thing = (shown.name or _guess(shown, rng)) if truth else _one(others, rng)
    return _one(WHETHER, rng).format(thing), "yes" if truth or thing == shown.name or thing in shown.guesses else "no"


def _sort(shown: Shown, rng: np.random.Generator, _: Sequence[str]) -> Turn:
    """A question for the kind, by the tower's own chances."""
    chances = np.array(shown.kinds)
    options = list(KINDS)
    rng.shuffle(options)
    answer = list(KINDS)[int(rng.choice(len(chances), p=chances / chances.sum()))]
    some = sorted({answer, *options[: int(rng.integers(2, 6))]})
    rng.shuffle(some)
    return _one(SORT, rng).format(", ".join(some)), answer


class Packer:
    """Turns questions and answers into packed batches; remembers the ids of texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.start = len(self.ids(OPENING))
        self.common = self.start + VISUAL

    def ids(self, text: str) -> list[int]:
        """Token ids of a text with marks."""
        if text not in self._known:
            self._known[text] = list(self._tokenizer(text, add_special_tokens=False).input_ids)
        return self._known[text]

    def length(self, turns: Sequence[Turn]) -> int:
        """Columns of a picture with its turns."""
        return self.common + sum(len(self.ids(q + TURN)) + len(self.ids(a + END)) - 1 for q, a in turns)

    def pack(self, pictures: Sequence[Sequence[Turn]]) -> Packed:
        """Pack the turns of each picture."""
        parts = [[(self.ids(q + TURN), self.ids(a + END)) for q, a in one] for one in pictures]
        length = self.common + max(sum(len(q) + len(a) - 1 for q, a in one) for one in parts)
        ids = np.zeros((len(parts), length), dtype=np.int64)
        branch = np.full((len(parts), length), -1)
        positions = np.zeros((len(parts), length), dtype=np.int64)
        ids[:, : self.start] = self.ids(OPENING)
        branch[:, : self.common], positions[:, : self.common] = 0, np.arange(self.common)
        places: list[tuple[int, int, int]] = []
        for row, one in enumerate(parts):
            at = self.common
            for number, (question, answer) in enumerate(one, start=1):
                tokens = question + answer[:-1]
                stop = at + len(tokens)
                ids[row, at:stop], branch[row, at:stop] = tokens, number
                positions[row, at:stop] = self.common + np.arange(len(tokens))
                places += [(row, at + len(question) - 1 + n, target) for n, target in enumerate(answer)]
                at = stop
        rows, columns, targets = (torch.tensor(each) for each in zip(*places, strict=True))
        asked = torch.tensor([self.common + len(one[0][0]) - 1 for one in parts])
        seen = allowed(torch.from_numpy(branch))
        return Packed(torch.from_numpy(ids), torch.from_numpy(positions), seen, rows, columns, targets, asked)


def allowed(branch: Tensor) -> Tensor:
    """Causal; the common part (0) is seen by all, a branch by itself, padding (-1) by padding."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branch[:, :, None] == branch[:, None, :]
    return (causal & (same | (branch == 0)[:, None, :]))[:, None]
