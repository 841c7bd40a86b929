"""Questions as a user brings them: other words than the package's own, for every aspect and for the emotion."""

import json
from pathlib import Path

from masp.core.aspects import ASPECTS
from masp.core.prompts import EMOTION, Questions

OWN = Questions(
    {name: (f"Say the {name.replace('_', ' ')}, please.",) for name in ASPECTS},
    ("Dear model, what mood is it? Take a word of {} for it!", "Say the mood, out of {}."),
)


def write_questions(file: Path, questions: Questions = OWN) -> Path:
    """The questions as a file of the user's."""
    content = {name: list(questions.aspects[name]) for name in ASPECTS} | {EMOTION: list(questions.emotion)}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file
