"""Instruction tuning: which questions an image gives, and that they are what is learned."""

import logging
import os
import signal
from dataclasses import replace

import pytest
import torch

from fixtures import tiny
from fixtures.colour_lessons import LABELS, lessons, tokens
from masp.baselines.base import Example, System
from masp.baselines.lora_finetune import PLAIN, SETTINGS, instruction_system, instructions, lora_system
from masp.baselines.lora_layers import LoraSettings, natural_rate
from masp.core.errors import DataError
from masp.core.prompts import load_questions
from masp.training.signals import Interrupted

pytest.importorskip("peft")

FEW = LoraSettings(learning_rate=0.01, epochs=2, batch_size=6, checkpoint_every=1, dropout=0.1)


def test_one_image_gives_these_questions():
    known = {"colorfulness": "very high", "scene": "beach", "object": "dog, ball", "human_action": " "}
    turns = instructions(load_questions(), LABELS, [Example(5, "joy", known)])
    assert {turn.image for turn in turns} == {5}
    assert [(turn.kind, turn.questions[0], turn.answer) for turn in turns] == [
        ("classification", "Which emotion does this image evoke? Choose one of: joy, fear.", "joy"),
        ("conversation", "Which objects are in this image?", "dog, ball"),
        ("conversation", "What is the scene of this image?", "beach"),
        (
            "conversation",
            "How colorful is this image: very low, low, moderate, high or very high?",
            "very high",
        ),
        (
            "caption",
            "Describe this image.",
            "One sees dog, ball, the place is beach, the colorfulness is very high.",
        ),
        (
            "reasoning",
            "Which cues in this image lead to which of these emotions: joy, fear?",
            "One sees dog, ball, the place is beach, the colorfulness is very high. This evokes joy.",
        ),
    ]
    assert all("{}" not in text for turn in turns for text in (*turn.questions, turn.answer))


def test_steps_may_be_counted_by_their_emotion_questions(tmp_path):
    """8 emotion questions of 28: three steps' worth of them are 10.5 steps of all."""
    backbone = tiny.backbone()
    for counted, steps in (("questions", 3), ("emotion", 11)):
        system = instruction_system(backbone, LABELS, replace(FEW, epochs=9, max_steps=3, counted=counted))
        system.fit(lessons(backbone, tmp_path / counted, aspects=True))
        assert system.config()["learned"]["steps"] == steps


def test_the_rate_follows_the_width_where_none_is_set():
    backbone = tiny.backbone()
    assert instruction_system(backbone, LABELS).settings.learning_rate == natural_rate(backbone.dim)
    assert instruction_system(backbone, LABELS, FEW).settings.learning_rate == 0.01
    assert natural_rate(256) == 0.00195
    assert natural_rate(3584) == pytest.approx(1.4e-4, rel=0.01)


def test_a_label_with_braces_is_only_text():
    turns = instructions(load_questions(), ("joy", "a{}b"), [Example(0, "a{}b", {"scene": "{} shop"})])
    assert turns[-1].questions[0].endswith("emotions: joy, a{}b?")
    assert turns[-1].answer == "The place is {} shop. This evokes a{}b."


def test_an_unknown_aspect_is_named():
    with pytest.raises(DataError, match=r"unknown aspect 'scenes'.*Did you mean 'scene'"):
        instructions(load_questions(), LABELS, [Example(0, "joy", {"scenes": "beach"})])


def test_the_questions_are_counted_and_bare_images_named(tmp_path, caplog):
    backbone = tiny.backbone()
    system: System = instruction_system(backbone, LABELS, FEW)
    with caplog.at_level(logging.WARNING):
        system.fit(lessons(backbone, tmp_path, aspects=True))
    assert "3 of 8 images have no annotated aspect" in caplog.text  # numbers 0, 3 and 6
    told = system.config()
    assert told["learned"]["questions"] == {"classification": 8, "conversation": 10, "caption": 5, "reasoning": 5}
    assert told["learned"]["images"] == 8
    assert told["system"] == "instruction"


def test_without_annotations_it_learns_what_lora_learns(tmp_path, caplog):
    backbone = tiny.backbone()
    ours, plain = instruction_system(backbone, LABELS, FEW), lora_system(backbone, LABELS, FEW)
    ours.fit(lessons(backbone, tmp_path / "ours"))
    plain.fit(lessons(backbone, tmp_path / "plain"))
    assert "8 of 8 images" in caplog.text
    visual = tokens(backbone, 4)
    assert ours.predict(visual) == plain.predict(visual)


def test_aspects_are_learned_too(tmp_path):
    """Every question about aspects costs less than before, and less than where the emotion alone was learned."""
    backbone = tiny.backbone()
    settings = replace(FEW, epochs=6, evaluate_every=0)
    system, alone = instruction_system(backbone, LABELS, settings), lora_system(backbone, LABELS, settings)
    given = lessons(backbone, tmp_path / "system", aspects=True)
    turns = instructions(load_questions(), LABELS, [given.train[1]])
    assert [turn.kind for turn in turns] == ["classification", "conversation", "conversation", "caption", "reasoning"]
    before = losses(system, backbone, turns)
    system.fit(given)
    alone.fit(replace(given, out=tmp_path / "alone"))
    after, other = losses(system, backbone, turns), losses(alone, backbone, turns)
    assert bool((after < 0.9 * before).all())
    assert bool((after[1:] < 0.95 * other[1:]).all())


def losses(system, backbone, turns):
    """What each question costs a system now, without dropout."""
    visual = tokens(backbone, 2).select([turn.image for turn in turns])
    texts = [turn.questions[0] for turn in turns], [turn.answer for turn in turns]
    with torch.no_grad(), system.layers.inside():
        assembled = system.model.build_inputs(visual, *texts, PLAIN)
        return system.model.loss(assembled)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    backbone = tiny.backbone()
    whole = instruction_system(backbone, LABELS, FEW)
    whole.fit(lessons(backbone, tmp_path / "whole", aspects=True))

    def stop(call: int) -> None:
        if call == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        instruction_system(backbone, LABELS, FEW).fit(lessons(backbone, tmp_path / "cut", aspects=True, at_call=stop))
    again = instruction_system(backbone, LABELS, FEW)
    again.fit(lessons(backbone, tmp_path / "cut", aspects=True))
    visual = tokens(backbone, 4)
    assert again.predict(visual) == whole.predict(visual)


def test_the_defaults_are_those_of_lora_with_emovit_s_epochs():
    assert replace(LoraSettings(), epochs=4) == SETTINGS
