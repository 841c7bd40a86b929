"""Several questions about one scene in one sequence: a shared opening, then branches that do not see each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from texts import POSSIBLE, Turn, aspect_answers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from masp.core.aspects import ASPECTS, MEASURED
from masp.data.emoji.label_model import Cues

OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences, without the vectors of words told in the image's place and of visual tokens.

    Attributes:
        ids: token ids, 0 where padded, told or visual; (batch, length).
        told: the columns of the words in the image's place; rows with fewer are padded.
        visual: the columns of the visual tokens, the same in every row.
        positions: M-RoPE positions (3, batch, length).
        allowed: which column (last axis) each column may see; (batch, 1, length, length) bool.
        rows, columns: the places whose next token is supervised.
        targets: the probabilities of their next token (places, vocabulary).
    """

    ids: Tensor
    told: slice
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
    _means: dict[str, np.ndarray] = field(default_factory=dict)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens recognised."""
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text)["input_ids"]
        return self._ids[text]

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer as it stands after "assistant" and a newline."""
        return self.ids("\n" + text)[1:]

    def zeros(self) -> np.ndarray:
        """No token at all: (vocabulary,)."""
        return np.zeros(self.vocabulary, dtype=np.float32)

    def mean_of(self, text: str) -> np.ndarray:
        """Equal weights for the tokens of an answer: (vocabulary,)."""
        if text not in self._means:
            ids = self.answer(text)
            self._means[text] = np.bincount(ids, minlength=self.vocabulary).astype(np.float32) / len(ids)
        return self._means[text]

    def pack(self, scenes: list[list[Turn]], told: list[int], side: int) -> Packed:
        """Pack the turns of each scene after as many words as it is `told`, and side x side visual tokens."""
        start = len(self.ids(OPENING))
        words = slice(start, start + max(told))
        visual = slice(words.stop, words.stop + side * side)
        common = visual.stop + 1  # and the end-of-vision mark
        branches = [[self._branch(turn) for turn in turns] for turns in scenes]
        length = common + max(sum(len(ids) for ids, _ in row) for row in branches)
        ids = np.zeros((len(scenes), length), dtype=np.int64)
        branch = np.full((len(scenes), length), -1)
        positions = np.zeros((3, len(scenes), length), dtype=np.int64)
        ids[:, :start] = self.ids(OPENING)
        ids[:, visual.stop] = self.ids("<|vision_end|>")[0]
        branch[:, :start] = branch[:, visual.start : common] = 0
        positions[:, :, :start] = np.arange(start)
        places: list[tuple[int, int, np.ndarray]] = []
        for row, parts in enumerate(branches):
            column, first = common, start + told[row]
            branch[row, start:first] = 0
            positions[:, row, start:first] = np.arange(start, first)
            positions[0, row, visual] = first
            positions[1, row, visual] = first + np.repeat(np.arange(side), side)
            positions[2, row, visual] = first + np.tile(np.arange(side), side)
            after = positions[:, row, visual.stop] = first + side
            for number, (tokens, targets) in enumerate(parts, start=1):
                stop = column + len(tokens)
                ids[row, column:stop], branch[row, column:stop] = tokens, number
                positions[:, row, column:stop] = after + 1 + np.arange(len(tokens))
                places += [(row, column + at, target) for at, target in targets]
                column = stop
        rows, columns, targets = zip(*places, strict=True)
        return Packed(
            torch.from_numpy(ids),
            words,
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
        targets = [self.certain(token) for token in following]
        if turn.probabilities is not None:
            targets[0] = self.zeros()
            for label, probability in turn.probabilities.items():
                targets[0][self.answer(label)[0]] += probability
        return question + answer, [(len(question) - 1 + at, target) for at, target in enumerate(targets)]

    def certain(self, token: int) -> np.ndarray:
        """All weight on one token: (vocabulary,)."""
        target = self.zeros()
        target[token] = 1
        return target


def told_words(rng: np.random.Generator, packer: Packer, cues: Cues, words: Sequence[str], picture: bool) -> np.ndarray:
    """Vectors for the image's place that tell the cues `words`, as weights of embeddings: (columns, vocabulary).

    They are like aspect tokens: one to six columns for each cue, each a mixture of the embeddings of its words, in any
    size, with a little of something else. A cue that the scene lacks may have columns too, as an aspect module has no
    way to say "none": a mixture of several answers or, where the picture is there to show that it is wrong, one answer.
    """
    answers = aspect_answers(cues)
    lacking = [name for name in ASPECTS if name not in answers and rng.random() < 0.5]
    names = [name for name in ASPECTS if name in (*words, *lacking)]
    if rng.random() < 0.5:
        levels = [name for name in names if name in MEASURED]  # share their words: only their order tells them apart
        names = rng.permutation(names).tolist()
        names = [levels.pop(0) if name in MEASURED else name for name in names]
    spelled, fixed = rng.random() < 0.2, rng.random() < 0.5
    columns: list[np.ndarray] = []
    for name in names:
        count = 5 if fixed else int(rng.integers(1, 7))
        if name in lacking:
            mixed = _mixed(rng, packer, POSSIBLE[name], 1 if picture else 3)
            columns += [mixed] * count
        elif spelled:
            columns += [packer.certain(token) for token in packer.answer(answers[name])]
        else:
            columns += _repeated(rng, [packer.mean_of(text) for text in answers[name].split(", ")], count)
    found = np.stack(columns)
    for column in np.flatnonzero(rng.random(len(found)) < 0.2):
        other = POSSIBLE[str(rng.choice(ASPECTS))]
        found[column] += rng.uniform(0, 0.5) * _mixed(rng, packer, other, 1)
    return found


def _mixed(rng: np.random.Generator, packer: Packer, texts: Sequence[str], least: int) -> np.ndarray:
    """A random mixture of at least so many of the texts."""
    chosen = rng.choice(len(texts), size=int(rng.integers(least, 5)), replace=False)
    shares = rng.dirichlet(np.ones(len(chosen)))
    return sum((share * packer.mean_of(texts[at]) for share, at in zip(shares, chosen, strict=True)), packer.zeros())


def _repeated(rng: np.random.Generator, parts: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` columns that tell all of the parts: in turn, or each a mixture of its own."""
    if len(parts) == 1:
        return parts * count
    shares = rng.beta(0.5, 0.5, count) if rng.random() < 0.5 else np.arange(count) % 2
    if count == 1 or rng.random() < 0.2:
        shares = np.full(count, rng.uniform(0.3, 0.7))
    return [share * parts[0] + (1 - share) * parts[1] for share in shares]


def _allowed(branch: Tensor) -> Tensor:
    """Causal; the opening is seen by all, a branch by itself, padding by nobody but itself."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branch[:, :, None] == branch[:, None, :]
    opening = (branch == 0)[:, None, :]
    return (causal & (same | opening))[:, None]
