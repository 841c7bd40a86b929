"""The one small tree of errors for mistakes a user can correct.

Each says on one line what was found, what was expected and what to do next. Mistakes of our own are assertions instead.
"""

import difflib
import os
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """An error that all processes of one run raise together.

    Attributes:
        tells: whether this process is the one that says it.
        leave: waits until it was said.
    """

    tells: bool
    leave: Callable[[], None]


class MaspError(Exception):
    """A mistake a user can correct.

    The message reads "<got>; expected <expected>. <todo>"; empty parts are left out, and line breaks become blanks.

    Args:
        got: what was found, with its subject: "the adapter has hidden size 64".
        expected: what would have been right: "3584, the hidden size of the backbone".
        todo: the next step, as a sentence.

    Attributes:
        agreed: set where several processes raise this error together.
    """

    def __init__(self, got: str, expected: str = "", todo: str = "") -> None:
        super().__init__(got, expected, todo)
        self.agreed: Agreement | None = None
        self.got = got
        self.expected = expected
        self.todo = todo

    def __str__(self) -> str:
        text = " ".join(self.got.split())
        if self.expected:
            text += "; expected " + " ".join(self.expected.split())
        if self.todo:
            text = text.rstrip(".") + ". " + " ".join(self.todo.split())
        return text


class ConfigError(MaspError):
    """A configuration file or an override is wrong."""


class DataError(MaspError):
    """A data set, an annotation or an input is wrong."""


class ImageError(DataError):
    """One image cannot be used.

    Args:
        path: the image, as the user named it.
        reason: why it cannot be used.
        todo: the next step, as a sentence.
        passing: whether the file itself may be good: the system refused to read it, or memory was short.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, todo: str = "", passing: bool = False) -> None:
        super().__init__(f"image {os.fspath(path)!s}: {reason}", "", todo)
        self.args = (path, reason, todo, passing)
        self.path = path
        self.reason = reason
        self.passing = passing


class OutageError(DataError):
    """A store does not answer, or a disk does not take more; the same command may succeed later."""


class BackboneError(MaspError):
    """A backbone cannot be loaded or does not fit."""


class AdapterError(MaspError):
    """An adapter cannot be saved or loaded, or belongs to something else."""


class CheckpointError(MaspError):
    """A training run cannot be resumed or its state cannot be written."""


class UsageError(MaspError):
    """A command or a function was called in a way that makes no sense."""


def shown(value: object) -> str:
    """A value as it stands in a message: printed, and cut where it is long or deep."""
    printer = reprlib.Repr()
    printer.maxstring = printer.maxother = 60
    return printer.repr(value)


def reason_of(error: BaseException, most: int = 200) -> str:
    """What an error of a library says, on one line and cut; its type where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 image", "0 images", "1,200 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option that is spelt most like the word, or None when none is near."""
    folded = {option.casefold(): option for option in options}
    near = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint that ends an error message: "Did you mean 'x'?", or the list of what is known when nothing is near."""
    known = list(options)
    near = nearest(word, known)
    if near is not None:
        return f"Did you mean '{near}'?"
    if not known:
        return ""
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"Known: {shown}."
