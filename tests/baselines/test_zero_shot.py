"""Systems that learn nothing: zero-shot by labels and by letters, and untrained parts of MASP put together by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fixtures import tiny
from fixtures.adapters import OWN, write_adapter
from fixtures.noise_lessons import LABELS, Watched, aspects_of
from masp.adapters import load_adapter
from masp.baselines.base import SystemPrediction, named, predictions_of, question_by_letter
from masp.baselines.prompted import (
    ZeroShotSettings,
    lettered,
    letters_of,
    named_by_letter,
    read_letter,
    zero_shot_system,
)
from masp.baselines.registry import make_system
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import AdapterError, UsageError
from masp.core.labels import parse, render_labels
from masp.core.prompts import load_questions
from masp.model.masp_model import MaspModel, init_soft_prompt
from masp.model.scoring import generate, score


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])
def test_the_list_is_the_question_of_masp(family: str) -> None:
    backbone = tiny.backbone(family)
    visual = Watched(backbone).visual([0, 1])
    question = "Which emotion does this image evoke? Choose one of: " + ", ".join(LABELS) + "."
    plain = MaspModel(backbone, MethodConfig())
    expected = score(plain, visual, question, LABELS)
    for row, one in enumerate(zero_shot_system(backbone, LABELS).predict(visual)):
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert one.answer is None
    greedy = zero_shot_system(backbone, LABELS, ZeroShotSettings(reading="generate")).predict(visual)
    texts = generate(plain, visual, question, max_new_tokens=16)
    assert [one.answer[: len(text)] for one, text in zip(greedy, texts, strict=True) if one.answer] == texts
    assert [one.predicted for one in greedy] == [parse(one.answer or "", LABELS) for one in greedy]


def test_letters_are_scored_in_place_of_labels() -> None:
    backbone = tiny.backbone()
    visual = Watched(backbone).visual([0, 1])
    question = f"Which emotion does this image evoke?\n{lettered(LABELS)}\nAnswer with the option's letter."
    expected = score(MaspModel(backbone, MethodConfig()), visual, question, tuple("ABCDEFGH"))
    for row, one in enumerate(zero_shot_system(backbone, LABELS, ZeroShotSettings(options="letters")).predict(visual)):
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
        assert one.predicted == LABELS[int(expected[row].argmax())]


def test_questions_of_ones_own_keep_their_words() -> None:
    backbone = tiny.backbone()
    labels, by_letter = ("joy", "fear"), ZeroShotSettings(options="letters")
    listed = zero_shot_system(backbone, labels, questions=OWN)
    assert listed.question == "Dear model, what mood is it? Take a word of joy, fear for it!"
    visual = Watched(backbone).visual([0])
    (expected,) = score(MaspModel(backbone, MethodConfig()), visual, listed.question, labels).log_softmax(1).tolist()
    (one,) = listed.predict(visual)
    assert list(one.log_probabilities.values()) == pytest.approx(expected, abs=1e-6)
    lines = ["Dear model, what mood is it?", "A. joy", "B. fear", "Answer with the option's letter."]
    assert zero_shot_system(backbone, labels, by_letter, questions=OWN).question.split("\n") == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Why? And which mood? One of {}.", ["Why? And which mood?", "{}"]),
        ("Name the mood, one of: {}.", ["Name the mood, one of:", "{}"]),
        ("Of {}, which one is it?", ["Of", "{}", "which one is it?"]),
        ("{}?", ["{}"]),
    ],
)
def test_any_emotion_question_can_be_asked_by_letter(text: str, lines: list[str]) -> None:
    found = question_by_letter(replace(OWN, emotion=(text,)))
    assert found.split("\n") == [*lines, "Answer with the option's letter."]


def test_what_is_said_is_normalised() -> None:
    (one,) = predictions_of(("joy", "fear"), torch.tensor([[1.0, 1.0 + math.log(3)]]))  # odds of 1 to 3
    assert one.predicted == "fear"
    assert one.log_probabilities == pytest.approx({"joy": math.log(0.25), "fear": math.log(0.75)})


def test_more_labels_than_letters_are_refused() -> None:
    with pytest.raises(UsageError, match="27 options"):
        zero_shot_system(tiny.backbone(), tuple(f"label {n}" for n in range(27)), ZeroShotSettings(options="letters"))


OPTIONS = ("joy", "fear", "awe")


def test_options_have_one_line_each() -> None:
    assert lettered(OPTIONS) == "A. joy\nB. fear\nC. awe"


@pytest.mark.parametrize("text", ["B", "b", " B\n", "(B)", "B.", "B) fear", "B. Fear.", "[b]: fear", "B\nbecause"])
def test_a_letter_names_its_option(text: str) -> None:
    assert read_letter(text, OPTIONS) == "fear"


@pytest.mark.parametrize("text", ["", "D", "A happy dog", "Because", "fear", "B. joy", "1", "?"])
def test_anything_else_names_none(text: str) -> None:
    assert read_letter(text, OPTIONS) is None


@pytest.mark.parametrize(
    ("text", "predicted", "exact"),
    [("B", "fear", True), (" B\n", "fear", True), ("b", "fear", False), ("B. fear", "fear", False), ("Q", None, False)],
)
def test_an_exact_answer_is_the_letter_alone(text: str, predicted: str | None, exact: bool) -> None:
    assert named_by_letter(text, OPTIONS) == SystemPrediction(predicted, answer=text, exact=exact)


@pytest.mark.parametrize(
    ("text", "predicted", "exact"),
    [("fear", "fear", True), (" fear ", "fear", True), ("Fear", "fear", False), ("fear.", "fear", False)],
)
def test_an_exact_answer_is_the_label_character_for_character(text: str, predicted: str, exact: bool) -> None:
    assert named(text, OPTIONS) == SystemPrediction(predicted, answer=text, exact=exact)
    assert named(f"{text} or awe", OPTIONS) == SystemPrediction(None, answer=f"{text} or awe", exact=False)


def test_there_are_no_more_options_than_letters() -> None:
    assert letters_of([str(number) for number in range(26)])[-1] == "Z"
    with pytest.raises(UsageError, match="27 options"):
        letters_of([str(number) for number in range(27)])


QUESTION = load_questions().ask_emotion(render_labels(LABELS))


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("aspects", [False, True])
def test_the_numbers_are_those_of_the_model(aspects: bool, prompt: bool) -> None:
    if not (aspects or prompt):
        return
    backbone, seed = tiny.backbone(), 5
    adapter = load_adapter(aspects_of("qwen2_vl"), backbone)
    vectors = init_soft_prompt(PromptInit(), 9, backbone, torch.Generator().manual_seed(seed)) if prompt else None
    method = adapter.info.method if aspects else MethodConfig()
    model = MaspModel(backbone, method, adapter.aspects if aspects else None, vectors)
    visual = Watched(backbone).visual([0, 1])
    changes = [f"aspects={aspects_of('qwen2_vl')}"] if aspects else []
    changes += ["prompt_length=9"] if prompt else []
    system = make_system("random-prompt" if prompt else "aspects", backbone, LABELS, changes, seed)
    expected = score(model, visual, QUESTION, LABELS)
    for row, one in enumerate(system.predict(visual)):
        assert list(one.log_probabilities.values()) == pytest.approx(expected[row].tolist(), abs=1e-6)
    name = "aspects" if not prompt else "aspects-random-prompt" if aspects else "random-prompt"
    assert system.config()["system"] == name


def test_another_seed_is_another_prompt() -> None:
    made = [make_system("random-prompt", tiny.backbone(), LABELS, [], seed).config() for seed in (0, 0, 1)]
    assert made[0] == made[1]
    assert made[0]["tensors_sha256"] != made[2]["tensors_sha256"]
    again = make_system("random-prompt", tiny.backbone(), LABELS, ["seed=1"], 0).config()
    assert again["tensors_sha256"] == made[2]["tensors_sha256"]


def test_an_adapter_without_aspects_or_for_another_backbone_is_refused(tmp_path: Path) -> None:
    bare = write_adapter(tmp_path / "bare", aspects=())
    with pytest.raises(UsageError, match="holds no aspect modules"):
        make_system("aspects", tiny.backbone(), LABELS, [f"aspects={bare}"])
    with pytest.raises(AdapterError):
        make_system("aspects", tiny.backbone("gemma3"), LABELS, [f"aspects={aspects_of('qwen2_vl')}"])
