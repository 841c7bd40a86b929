"""What a person sees: bars, places in words, and nothing that steers the terminal."""

import io

import pytest
from rich.console import Console

from masp.cli.console import (
    aspect_table,
    bar,
    position_in_words,
    prediction_panel,
    printable,
    probability_bars,
)
from masp.model.explain import AspectReading, PromptAttention
from masp.predictor import Prediction


def drawn(thing, width=100, colours=False):
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, color_system="standard" if colours else None).print(thing)
    return stream.getvalue()


def reading(effect, answer="a cat", attention=((0.0, 1.0),)):
    return AspectReading(answer, attention, effect)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.625, "██▌"), (1 / 32, "▏"), (2.0, "████"), (-1.0, "")],
)
def test_bars_are_drawn_in_eighths(share, expected):
    assert bar(share, width=4) == expected


@pytest.mark.parametrize(
    ("shape", "peak", "words"),
    [
        ((3, 3), (0, 0), "upper left"),
        ((3, 3), (1, 1), "centre"),
        ((3, 3), (1, 2), "right"),
        ((3, 3), (2, 1), "lower middle"),
        ((6, 6), (5, 0), "lower left"),
        ((6, 6), (2, 3), "centre"),
        ((2, 7), (0, 3), "upper middle"),
        ((1, 1), (0, 0), "centre"),
        ((1, 5), (0, 4), "right"),
    ],
)
def test_the_peak_of_a_heatmap_in_words(shape, peak, words):
    rows, columns = shape
    assert position_in_words([[float((r, c) == peak) for c in range(columns)] for r in range(rows)]) == words


def test_the_most_probable_label_comes_first():
    lines = drawn(probability_bars({"fear": 0.25, "joy": 0.75}, "joy")).splitlines()
    assert [line.split()[0] for line in lines] == ["joy", "fear"]
    assert [line.split()[-2:] for line in lines] == [["75.0", "%"], ["25.0", "%"]]
    assert lines[0].count("█") == 3 * lines[1].count("█")


def test_the_aspect_that_decided_stands_out():
    told = {"scene": reading(-2.0), "object": reading(0.4), "brightness": reading(0.01)}
    table = aspect_table(prediction(aspects=told), {"scene": 0.31})
    lines = {line.split()[0].strip("\x1b[0123456789m"): line for line in drawn(table, colours=True).splitlines()}
    assert "\x1b[1m" in lines["object"]
    assert "\x1b[1m" not in lines["scene"]
    assert "-2.00" in lines["scene"]
    assert "31 %" in lines["scene"]


def test_what_the_whole_image_did_stands_below_the_aspects():
    told = {"scene": reading(-2.0), "object": reading(0.4)}
    for whole, decided in ((0.3, True), (0.9, False)):
        lines = drawn(aspect_table(prediction(aspects=told, image_effect=whole), {}), colours=True).splitlines()
        assert ("whole image" in lines[-1], f"+{whole:.2f}" in lines[-1]) == (True, True)
        assert any("\x1b[1m" in line and "object" in line for line in lines) == decided
        assert ("\x1b[1m" in lines[-1]) != decided
    assert "whole image" not in drawn(aspect_table(prediction(aspects=told), {}))


def prediction(**changes):
    look = PromptAttention({"scene": 0.02}, {"scene": 1.0})
    given = {"image": "a.png", "label": "joy", "probabilities": {"joy": 0.7, "fear": 0.3}, "answer": "joy"}
    given |= {"aspects": {"scene": reading(1.0)}, "prompt_attention": look, "adapter": "x", "backbone": "y"}
    return Prediction(**(given | changes))


def panel(**changes):
    return drawn(prediction_panel(prediction(**changes)))


def test_a_panel_shows_label_reasons_and_a_deviating_answer():
    text = panel()
    assert "joy  70%  a.png" in text
    assert "+1.00" in text
    assert "100 %" in text
    assert "own words" not in text
    assert "In its own words: happiness" in panel(answer="happiness")
    assert "scene" not in panel(aspects={}, prompt_attention=None)


def test_foreign_text_cannot_steer_the_terminal_or_the_markup():
    text = panel(image="[red]\x1b]0;a.png", answer="\x1b[2Jgone", aspects={"scene": reading(1.0, "[bold]\x07b")})
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text
    assert "[bold]" in text
    assert printable("a\x1bb\nc") == "a�b\nc"
