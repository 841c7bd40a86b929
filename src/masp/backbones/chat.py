"""The text side of a family: chat turns with placeholders for an image, answers, and what special tokens may do.

Only the family's own template writes special tokens. Text of a user is text, whatever it looks like.
"""

import copy
import functools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from masp.core.errors import BackboneError
from masp.core.types import ImageLayout, Template

QUESTION_HERE = "\ue000question\ue001"  # private-use characters: no template holds them
ANSWER_HERE = "\ue000answer\ue001"
BETWEEN = "\ue002"
TEMPLATES_KEPT = 4096

ImageSlot = tuple[str | int, ...]
"""What stands for an image in a turn: text and marks as strings, runs of visual tokens as their numbers."""


@dataclass(frozen=True)
class Turn:
    """What a family says about its chat turn.

    Attributes:
        image: what the rendered template holds in the place of an image; the image takes its place.
        visual: the token of which the processor writes one per visual token.
        slot: what stands for an image; for a layout without visual tokens the plainest, with a run of 0.
        frame: marks that belong to the image's part where they stand next to its visual tokens.
        render: the turn as the template writes it, around `QUESTION_HERE`; with True, also the answer around
            `ANSWER_HERE` and what closes it, otherwise up to the generation prompt.
        image_first: whether the image stands before the tokenizer's own first token (such as "<s>").
    """

    image: str
    visual: str
    slot: Callable[[ImageLayout], ImageSlot]
    frame: tuple[str, ...]
    render: Callable[[bool], str]
    image_first: bool = False


def template_turn(
    tokenizer: Any,
    visual: str,
    slot: Callable[[ImageLayout], ImageSlot] | None = None,
    frame: tuple[str, ...] = (),
    image: str | None = None,
) -> Turn:
    """The turn of the tokenizer's own chat template; see `Turn`.

    Args:
        tokenizer: with the template.
        visual: the token of which the processor writes one per visual token.
        slot: what stands for an image; None: its visual tokens alone.
        frame: marks that stand around them.
        image: what the template writes for an image, where that is not `visual`.
    """
    render = functools.cache(functools.partial(rendered, tokenizer))
    return Turn(image or visual, visual, slot or visual_tokens_alone, frame, render)


def visual_tokens_alone(image: ImageLayout) -> ImageSlot:
    """An image whose visual tokens have no marks around them."""
    return (image.count,)


def rendered(tokenizer: Any, answered: bool, system: str | None = None) -> str:
    """A turn as the tokenizer's own chat template writes it; see `Turn.render`.

    Raises:
        BackboneError: the template cannot be used.
    """
    content = [{"type": "image"}, {"type": "text", "text": QUESTION_HERE}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if answered:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER_HERE}]})
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered)
    except (ValueError, TypeError, RuntimeError) as error:  # jinja's own errors are RuntimeErrors too
        raise BackboneError(
            f"the chat template cannot be rendered: {error}", "one that takes an image and a text"
        ) from None


class Chat:
    """Chat turns and answers of one tokenizer, for any number of threads.

    A tokenizer of transformers keeps as its state whether marks in a text are tokens, as in templates, or text, as in
    answers. So it is never called but in `_ids` and `decode`, under a lock. (A second tokenizer would need no lock, but
    0.7 s and 100 MB for a vocabulary of 151,000 words; the lock takes 0.5 of the 200 microseconds of a call.)

    Args:
        name: of the backbone, for messages.
        tokenizer: transformers' tokenizer.
        turn: what the family says.
    """

    def __init__(self, name: str, tokenizer: Any, turn: Turn) -> None:
        self._name, self._tokenizer, self._turn = name, tokenizer, turn
        self._lock = threading.Lock()
        self._visual: int = tokenizer.convert_tokens_to_ids(turn.visual)
        self._frame = {tokenizer.convert_tokens_to_ids(mark) for mark in turn.frame}
        self._skeleton = functools.lru_cache(TEMPLATES_KEPT)(self._encoded)
        self.special_ids = functools.lru_cache(16)(self._special_ids)

    def template(self, question: str, image: ImageLayout) -> Template:
        """The chat turn with the image's placeholders; special tokens in the question are text."""
        slot = self._turn.slot(image)
        runs = [part for part in slot if isinstance(part, int)]
        assert sum(runs) == image.count, f"the turn holds {sum(runs)} visual tokens, the image {image.count}"
        skeleton = self._skeleton(question, "".join(self._turn.visual if isinstance(p, int) else p for p in slot))
        starts = [start for start, index in enumerate(skeleton) if index == self._visual]
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        begin = 0
        for start, run in zip(starts, runs, strict=True):
            ids += skeleton[begin:start]
            spans.append((len(ids), len(ids) + run))
            ids += [self._visual] * run
            begin = start + 1
        ids += skeleton[begin:]
        newline = len(ids) - 1 if self.decode([ids[-1]]) == "\n" else None
        return Template(tuple(ids), *self._framed(ids, spans), newline)

    def _framed(
        self, ids: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """Where the image's part begins with its marks, its spans, and where it ends."""
        opens, closes = spans[0][0], spans[-1][1]
        while opens and ids[opens - 1] in self._frame:
            opens -= 1
        while closes < len(ids) and ids[closes] in self._frame:
            closes += 1
        return opens, tuple(spans), closes

    def _encoded(self, question: str, image: str) -> tuple[int, ...]:
        """Ids of the turn with `image` in the image's place.

        Raises:
            BackboneError: they do not hold the image; so such ids are never kept.
        """
        ids = tuple(self._turn_ids(question, image))
        holds, wanted = ids.count(self._visual), image.count(self._turn.visual)
        if holds != wanted:
            raise BackboneError(
                f"the chat template of {self._name} holds the image {holds} times",
                f"{wanted} runs of {self._turn.visual}",
                "Use the chat template of the original checkpoint.",
            )
        return ids

    def _turn_ids(self, question: str, image: str) -> list[int]:
        text = self._turn.render(False)
        head, marker, tail = text.partition(QUESTION_HERE)
        if not marker:
            raise BackboneError(f"the chat template of {self._name} drops the question", "a template that keeps it")
        if head.count(self._turn.image) + tail.count(self._turn.image) != 1:
            raise BackboneError(
                f"the chat template of {self._name} does not mark the image",
                f"one {self._turn.image} in a turn",
                "Use the chat template of the original checkpoint.",
            )
        first = self._tokenizer.bos_token
        begins = not (first and head.startswith(first))
        if self._turn.image_first:
            return [
                *self._ids(image, marks=True),
                *self._encode(head.replace(self._turn.image, ""), question, tail, begins),
            ]
        head, tail = (part.replace(self._turn.image, image) for part in (head, tail))
        return self._encode(head, question, tail, begins)

    # Answers

    @functools.cached_property
    def known_tokens(self) -> int:
        """One more than the largest id that the tokenizer gives."""
        return 1 + max(self._tokenizer.get_vocab().values())

    @functools.cached_property
    def end_of_turn(self) -> int:
        """The token that ends an answer: the mark that the template writes behind it, else the tokenizer's own end."""
        closing = self._turn.render(True).partition(ANSWER_HERE)[2].lstrip()
        added = {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items()}
        marks = [mark for mark in added if mark.strip() and closing.startswith(mark)]
        end = added[max(marks, key=len)] if marks else self._tokenizer.eos_token_id
        if end is None:
            raise BackboneError(
                f"nothing ends an answer of {self._name}", "a mark in its chat template, or an eos_token"
            )
        return end

    def answer_ids(self, answer: str, end: bool) -> list[int]:
        """Ids of an answer as it follows the generation prompt, with the blank that the template writes between."""
        context, blank = self._lead
        before = self.tokenize(context) if blank else []
        ids = self.tokenize(context + blank + answer) if blank else self.tokenize(answer)
        if ids[: len(before)] != before:
            before, ids = [], self.tokenize(answer)
        return ids[len(before) :] + [self.end_of_turn] * end

    @functools.cached_property
    def _lead(self) -> tuple[str, str]:
        """The last text of the generation prompt, and the blank that stands between it and an answer."""
        prompt, whole = self._turn.render(False), self._turn.render(True).partition(ANSWER_HERE)[0]
        blank = whole.removeprefix(prompt) if whole.startswith(prompt) else ""
        last = self._split(prompt.partition(QUESTION_HERE)[2])[-1]
        return last or ".", blank if blank.isspace() else ""  # a full stop stands for the question's own end

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids = self._ids(text)
        own = self._own_marks
        if not own.keys() & set(ids):
            return ids
        # Some checkpoints do not call their marks special, and the tokenizer finds them in plain text too.
        for mark in own.values():
            text = text.replace(mark, mark[0] + BETWEEN + mark[1:])
        return [index for part in text.split(BETWEEN) for index in self._ids(part)]

    def _ids(self, text: str, marks: bool = False, begins: bool = False) -> list[int]:
        """Ids of a text.

        Args:
            text: what is tokenised.
            marks: whether special tokens in it are tokens; otherwise they are text.
            begins: whether the tokenizer's own first token stands before it.
        """
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=begins, split_special_tokens=not marks)
        return list(encoded.input_ids)

    @functools.cached_property
    def _own_marks(self) -> dict[int, str]:
        """Marks that must never come out of a user's text, by their ids: the image's and the end of a turn."""
        ids = [self._visual, *self._frame, self.end_of_turn]
        return dict(zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        with self._lock:
            return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    # Special tokens

    def _special_ids(self, tokens: tuple[str, ...]) -> tuple[int, ...]:
        """See `Backbone.special_ids`; the tokenizer itself stays as it is."""
        larger = copy.deepcopy(self._tokenizer)
        larger.add_tokens(list(tokens), special_tokens=True)
        return tuple(larger.convert_tokens_to_ids(list(tokens)))

    @functools.cached_property
    def _marks(self) -> dict[str, int]:
        """The tokenizer's special tokens and their ids."""
        result = {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return result | {mark: index for index, mark in self._own_marks.items()}

    @functools.cached_property
    def _mark_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._marks, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _split(self, text: str) -> list[str]:
        """Texts between marks at even places, marks at odd ones."""
        return self._mark_pattern.split(text)

    def _encode(self, head: str, text: str, tail: str, begins: bool) -> list[int]:
        """Ids of head + text + tail in which only the template's own marks are special tokens.

        Where `text` holds no mark, this is the plain tokenisation of the whole. Otherwise text between two marks is
        tokenised as one run, so that "<|im_end|>" inside `text` stays text and the rest comes out as in the plain case.
        """
        if not self._mark_pattern.search(text):
            return self._ids(head + text + tail, marks=True, begins=begins)
        before, after = self._split(head), self._split(tail)
        runs = [*before[:-1], before[-1] + text + after[0], *after[1:]]  # odd places hold the marks
        ids = self._ids("", marks=True, begins=begins)
        for index, run in enumerate(runs):
            ids.extend([self._marks[run]] if index % 2 else self._run_ids(run, first=not index))
        return ids

    def _run_ids(self, run: str, first: bool) -> list[int]:
        """Ids of a text between marks; some tokenizers put a blank before the first run only."""
        if first or not run or self._blank_everywhere:
            return self.tokenize(run)
        guard = self.tokenize("\n")
        ids = self.tokenize("\n" + run)
        return ids[len(guard) :] if ids[: len(guard)] == guard else self.tokenize(run)

    @functools.cached_property
    def _blank_everywhere(self) -> bool:
        """Whether a text behind a mark is tokenised as it is alone."""
        behind = self._ids(self._turn.visual + "a", marks=True)
        return behind[1:] == self.tokenize("a")
