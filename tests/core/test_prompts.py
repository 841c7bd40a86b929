"""Questions: the package's own, the user's, and what is wrong with a file of them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masp.core.aspects import ASPECTS
from masp.core.errors import DataError
from masp.core.prompts import Questions, load_questions

GOOD: dict[str, object] = {
    **{name: [f"What {name}?", f"Which {name}?"] for name in ASPECTS},
    "emotion": ["Of {}: which?"],
}


def written(folder: Path, content: object) -> Path:
    file = folder / "questions.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_the_packaged_questions_are_complete() -> None:
    questions = load_questions()
    assert all(len(questions.aspect(name)) >= 1 for name in ASPECTS)
    assert "joy, anger" in questions.ask_emotion("joy, anger")


def test_a_users_file_is_read_in_its_order(tmp_path: Path) -> None:
    questions = load_questions(written(tmp_path, {**GOOD, "scene": "Where?"}))
    assert questions.aspect("object") == ("What object?", "Which object?")
    assert questions.aspect("scene") == ("Where?",)
    assert questions.emotion == ("Of {}: which?",)


@given(st.text())
def test_labels_are_put_in_as_they_are(labels: str) -> None:
    questions = Questions({}, ("Of {}: which?", "{}?"))
    assert questions.ask_emotion(labels) == f"Of {labels}: which?"
    assert questions.ask_emotion(labels, 1) == f"{labels}?"


def test_other_texts_have_another_fingerprint(tmp_path: Path) -> None:
    first = load_questions(written(tmp_path, GOOD)).fingerprint()
    shuffled = load_questions(written(tmp_path, dict(reversed(GOOD.items())))).fingerprint()
    other = load_questions(written(tmp_path, {**GOOD, "scene": ["Where?"]})).fingerprint()
    assert first == shuffled != other


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds list; expected a JSON object"),
        ({**GOOD, "scen": ["?"]}, r"unknown key 'scen'\. Did you mean 'scene'\?"),
        (
            {key: value for key, value in GOOD.items() if key not in ("scene", "emotion")},
            "no questions for scene, emotion",
        ),
        ({**GOOD, "scene": []}, r"key 'scene' holds \[\]; expected a list of texts"),
        ({**GOOD, "scene": [" "]}, "expected a list of texts that are not blank"),
        ({**GOOD, "scene": [3]}, "expected a list of texts"),
        ({**GOOD, "scene": None}, "key 'scene' holds None"),
        ({**GOOD, "emotion": ["Which?"]}, "'Which.' has 0 places; expected one {} for the labels"),
        ({**GOOD, "emotion": ["Of {} and {}?"]}, "has 2 places; expected one {} for the labels"),
        ({**GOOD, "scene": ["Of {}?"]}, "has 1 places; expected no {}"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_questions(written(tmp_path, content))
    assert "questions.json" in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        load_questions(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    for text in (b"{", b"\xff\xfe\x00", b"[" * 100_000):
        broken.write_bytes(text)
        with pytest.raises(DataError, match=r"broken\.json is not JSON"):
            load_questions(broken)


def test_an_unknown_aspect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no questions for the aspect 'colourfulness'\. Did you mean 'colorfulness'\?"):
        load_questions(written(tmp_path, GOOD)).aspect("colourfulness")
