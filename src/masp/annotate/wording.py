"""What a generated answer says: the words of an annotation, or why there is none."""

import re
from dataclasses import dataclass

from masp.core.aspects import LEVELS, MEASURED
from masp.core.labels import normalise_answer

EMPTY, NOTHING, CUT, NO_LEVEL = "empty", "says that there is nothing", "cut off", "names no level"
"""Why an answer is no annotation."""

MOST_THINGS = 12
"""Objects that are kept of a list."""

_NOTHING = re.compile(
    r"(none|no|nothing|nobody|nowhere|unknown|unclear|uncertain|null|n/?a|not|neutral or none)"
    r"( (applicable|available|visible|shown|seen|present|clear|specified|sure|known|found)\b.*)?"
    r"|(there (is|are|'s)|there isn't|there aren't|i (can )?see) (no|not|any|none|nobody|nothing)\b.*"
    r"|(there isn't|there aren't)\b.*"
    r"|no (one|body|person|people|persons|human|humans|man|woman|face|faces|facial expression|expression|action"
    r"|human action|object|objects|scene|image|image|answer)\b.*"
    r"|(i'm|i am|we are|sorry|i apologi[sz]e|unfortunately|as an (ai|artificial|assistant))\b.*"
    r"|(unable|cannot|can't|can not)\b.*"
    r"|i (do not|don't|cannot|can't|can not|could not|couldn't|will not|won't|would need)\b.*"
    r"|it('s| is)( not|n't)? (not |im)?(possible|clear|visible|specified|unclear|impossible|unknown)\b.*"
    r"|((the|this) )?(image|image|photo)( provided)? (does not|doesn't|do not|is not|isn't|is blank|is empty|has no|"
    r"shows no|contains no)\b.*"
)
_ARTICLE = re.compile(r"(a|an|the|some|several|many)\s+")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):])\s*")
_LEVEL = re.compile("|".join(rf"\b{re.escape(level)}\b" for level in sorted(LEVELS, key=len, reverse=True)))

Value = str | float | tuple[str, ...]


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as an annotation: text, the names of things, or a number; None, and why, where it is none."""

    value: Value | None
    why: str = ""


def understood(aspect: str, answer: str, whole: bool) -> ParsedAnswer:
    """An answer in the words of an annotation.

    Args:
        aspect: what was asked about.
        answer: what was generated.
        whole: whether the answer came to its end; otherwise its last words may be missing.
    """
    if not normalise_answer(answer):
        return ParsedAnswer(None, EMPTY)
    if aspect in MEASURED:
        return _level(answer)
    if aspect == "object":
        return _things(answer, whole)
    text = _worded(answer)
    if not text:
        return ParsedAnswer(None, EMPTY)
    if says_nothing(text):
        return ParsedAnswer(None, NOTHING)
    return ParsedAnswer(text) if whole else ParsedAnswer(None, CUT)


def says_nothing(text: str) -> bool:
    """Whether a text in lower case means that there is nothing to say: "none", "unknown", "i cannot see …"."""
    return _NOTHING.fullmatch(text) is not None


def middle(level: str) -> float:
    """The value in the middle of a level's fifth of [0, 1]: 0.1 for "very low", 0.9 for "very high"."""
    return (2 * LEVELS.index(level) + 1) / 10


def _level(answer: str) -> ParsedAnswer:
    """The one level that an answer names; "very high" is not "high" as well."""
    named = set(_LEVEL.findall(" ".join(answer.lower().replace("_", " ").split())))
    return ParsedAnswer(middle(named.pop())) if len(named) == 1 else ParsedAnswer(None, NO_LEVEL)


def _things(answer: str, whole: bool) -> ParsedAnswer:
    """The things of a list in commas, semicolons, "and" or lines; the last one is left out where it may be cut."""
    if says_nothing(_worded(answer)):
        return ParsedAnswer(None, NOTHING)
    lines = [_BULLET.sub("", line) for line in answer.strip().splitlines()]
    parts = [part for line in lines for part in re.split(r"[,;]|\band\b", line.lower())]
    if not whole:
        parts = parts[:-1]
    names = dict.fromkeys(_worded(part) for part in parts)
    kept = tuple(name for name in names if name and not says_nothing(name))[:MOST_THINGS]
    if kept:
        return ParsedAnswer(kept)
    return ParsedAnswer(None, NOTHING if whole else CUT)


def _worded(text: str) -> str:
    """The first line in lower case, without list signs, punctuation at the ends and an article before it."""
    plain = normalise_answer(_BULLET.sub("", text.strip()).replace("_", " ").replace("’", "'"))
    return _ARTICLE.sub("", plain, count=1) if _ARTICLE.match(plain) else plain
