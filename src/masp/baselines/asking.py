"""What systems ask about the emotion: a question with the list of labels, or with one lettered option a line."""

from collections.abc import Sequence

from masp.core.labels import render_labels
from masp.core.prompts import PLACE, Questions, load_questions

BY_LETTER = "Answer with the option's letter."


def emotion_question(labels: Sequence[str], questions: Questions | None = None) -> str:
    """The emotion question of every evaluation, with the labels in place; None: of the package's own texts."""
    return (questions or load_questions()).ask_emotion(render_labels(labels))


def question_by_letter(questions: Questions | None = None) -> str:
    """The same question for one of some lettered options, which go where its `{}` is.

    What stands before the labels is kept up to its last question mark, since what follows speaks of a list. A text
    that asks without one keeps all its words.
    """
    before, _, after = (questions or load_questions()).emotion[0].partition(PLACE)
    asks, mark, _ = before.rpartition("?")
    lines = [asks + mark, PLACE] if mark else [before.strip(), PLACE, after.lstrip(" .,;:?!").rstrip()]
    return "\n".join([*(line for line in lines if line), BY_LETTER])
