"""SEPM by hand: the ambiguity rule, the routes, which tokens go, and that they are really gone."""

import math

import pytest
import torch

from fixtures import tiny
from fixtures.noise_lessons import LABELS, Watched
from masp.baselines.base import SystemPrediction
from masp.baselines.registry import make_system
from masp.baselines.sepm import (
    COARSE,
    CUE,
    Sepm,
    SepmSettings,
    cue_span,
    least_attended,
    route,
    routes,
    spread,
    without,
)
from masp.core.config import MethodConfig
from masp.core.errors import ConfigError, UsageError
from masp.model.masp_model import MaspModel
from masp.model.scoring import first_word


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        (0.72, 0.28, "ambiguous"),  # 0.44² / 2 = 0.0968
        (0.73, 0.27, "positive"),  # 0.46² / 2 = 0.1058
        (0.27, 0.73, "negative"),
        (0.4, 0.0, "ambiguous"),  # 0.08: other words have the rest
        (0.0, 0.5, "negative"),  # 0.125
    ],
)
def test_the_ambiguity_rule(good: float, bad: float, expected: str) -> None:
    assert route((good, bad), 0.1) == expected
    assert math.isclose(torch.tensor([good, bad]).var().item(), (good - bad) ** 2 / 2, rel_tol=1e-5)


def test_routes_follow_the_taxonomy() -> None:
    found = routes(LABELS)
    assert found["positive"] == LABELS[:4]
    assert found["negative"] == LABELS[4:]
    assert found["ambiguous"] == LABELS
    ekman = routes(("anger", "joy", "surprise"))
    assert (ekman["positive"], ekman["negative"]) == (("joy", "surprise"), ("anger", "surprise"))
    assert routes(("negative", "positive"))["positive"] == ("positive",)
    own = routes(("calm", "tense", "odd"), ["calm"], ["tense"])
    assert (own["positive"], own["negative"]) == (("calm", "odd"), ("tense", "odd"))


@pytest.mark.parametrize(
    ("labels", "positive", "message"),
    [
        (("calm", "tense"), (), "nobody knows"),
        (("anger", "fear"), (), "is positive"),
        (("joy", "anger"), ("happy",), "none of the labels"),
    ],
)
def test_routes_that_nobody_knows_are_refused(labels: tuple[str, ...], positive: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        routes(labels, positive)


def test_the_other_labels_share_what_the_route_lacks() -> None:
    fine = torch.tensor([[0.75, 0.25]]).log()
    (row,) = spread(fine, torch.tensor([[0.6, 0.2]]), [0, 1], 4).exp().tolist()  # the route has 0.6 / 0.8 = 0.75
    assert row == pytest.approx([0.5625, 0.1875, 0.125, 0.125], abs=1e-6)
    (row,) = spread(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.6, 0.3]]), [0, 1], 3).exp().tolist()
    # the third label would have 1/3, as much as the two of the route
    assert row == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-6)
    (row,) = spread(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.51, 0.49]]), [0, 1], 3).exp().tolist()
    # 0.49 would beat both with 0.255: it gets no more than they have
    assert row == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-6)
    everything = torch.tensor([[0.5, 0.2, 0.3]]).log()
    assert spread(everything, torch.tensor([[0.5, 0.5]]), [0, 1, 2], 3).exp().tolist()[0] == pytest.approx(
        [0.5, 0.2, 0.3]
    )


def test_the_least_attended_tokens() -> None:
    attention = torch.tensor([[0.9, 0.05, 0.01, 0.04, 0.0], [0.2, 0.2, 0.1, 0.3, 0.2]])
    visual = torch.tensor([[False, True, True, True, False], [False, True, True, True, True]])
    found = least_attended(attention, visual, 0.5)
    assert [one.tolist() for one in found] == [[1], [1, 0]]  # 0.2 comes first of two equals
    assert [len(one) for one in least_attended(attention, visual, 0.2)] == [0, 0]
    assert len(least_attended(torch.rand(1, 100), torch.ones(1, 100, dtype=torch.bool), 0.29)[0]) == 29


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_cue_is_found_in_every_family(family: str) -> None:
    backbone = tiny.backbone(family)
    question = f"{COARSE} {CUE}"
    image = backbone.condition_on(Watched(backbone).visual([0]), [question]).layouts[0]
    ids = backbone.template(question, image).ids
    first, last = cue_span(backbone, question, CUE, image)
    assert backbone.decode(ids[first:last]).strip() == CUE
    assert last - first < len(backbone.tokenize(CUE)) + 3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dropped_tokens_have_no_part_and_the_others_keep_their_places(family: str) -> None:
    model = MaspModel(tiny.backbone(family), MethodConfig())
    visual = Watched(model.backbone).visual([0, 1])
    rows = model.build_inputs(visual, [COARSE] * 2)
    dropped = [torch.tensor([1]), torch.tensor([0, 3])]
    found = without(rows, dropped)
    for row, gone in enumerate(dropped):
        columns = rows.visual_columns[row].nonzero().flatten()
        kept = rows.attention_mask[row].clone()
        kept[columns[gone]] = False
        assert torch.equal(found.position_ids[:, row, found.attention_mask[row]], rows.position_ids[:, row, kept])
        assert torch.equal(found.inputs_embeds[row, found.attention_mask[row]], rows.inputs_embeds[row, kept])
        assert int(found.visual_columns[row].sum()) == len(columns) - len(gone)
    # whatever stands at the dropped places before, nothing of it arrives
    noisy = rows.inputs_embeds.clone()
    for row, gone in enumerate(dropped):
        noisy[row, rows.visual_columns[row].nonzero().flatten()[gone]] = 7.0
    from dataclasses import replace

    again = without(replace(rows, inputs_embeds=noisy), dropped)
    assert torch.equal(first_word(model, again), first_word(model, found))
    assert (first_word(model, found) - first_word(model, rows)).abs().max() > 1e-3
    nothing = without(rows, [torch.tensor([], dtype=torch.long)] * 2)
    assert (first_word(model, nothing) - first_word(model, rows)).abs().max() < 1e-4


def test_the_attention_read_is_the_cues() -> None:
    system = Sepm(tiny.backbone(), LABELS)
    question = f"{COARSE} {CUE}"
    rows = system.model.build_inputs(Watched(tiny.backbone()).visual([0]), [question])
    found = system._attention(rows, question)[0]
    weights = tiny.backbone().last_attention(rows, 0)[0].mean(0)  # heads
    length = len(tiny.backbone().template(question, rows.images[0]).ids)
    tail = length - cue_span(tiny.backbone(), question, CUE, rows.images[0])[1]
    count = len(tiny.backbone().tokenize(f" {CUE}"))
    expected = weights[length - tail - count : length - tail].mean(0)
    assert (found - expected).abs().max() < 1e-6


def test_settings_decide_the_route_and_what_the_second_pass_goes_without() -> None:
    visual = Watched(tiny.backbone()).visual([0, 1, 2])

    def said(**settings: float) -> list[SystemPrediction]:
        return Sepm(tiny.backbone(), LABELS, SepmSettings(**settings)).predict(visual)

    unsure, whole = said(ambiguous_below=0.5), said(ambiguous_below=0.5, dropped=0.0)
    assert unsure != whole
    assert said(ambiguous_below=0.5, dropped=0.01) == whole, "less than one token of an image"
    system = Sepm(tiny.backbone(), LABELS, SepmSettings(ambiguous_below=0.0))
    rows = system.model.build_inputs(visual, [f"{COARSE} {CUE}"] * 3)
    for one, (good, bad) in zip(system.predict(visual), system._chances(rows).tolist(), strict=True):
        assert one.predicted in system.routes["positive" if good > bad else "negative"]
        assert sum(map(math.exp, (one.log_probabilities or {}).values())) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dropped=1.0", "dropped is 1.0.*less than 1"),
        ("dropped=-0.1", "dropped is -0.1"),
        ("ambiguous_below=0.6", r"ambiguous_below is 0.6.*0\.5"),
        ("reading=shout", "reading is 'shout'.*'score' or 'generate'"),
        ("beta=0.2", "no setting 'beta'"),
    ],
)
def test_wrong_settings_are_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_system("sepm", tiny.backbone(), LABELS, [change])


def test_a_route_with_one_label_needs_no_second_question() -> None:
    labels = ("negative", "positive")
    visual = Watched(tiny.backbone()).visual([0, 1])
    system = Sepm(tiny.backbone(), labels, SepmSettings(ambiguous_below=0.0))
    rows = system.model.build_inputs(visual, [f"{COARSE} {CUE}"] * 2)
    chances = system._chances(rows)
    for one, (good, bad) in zip(system.predict(visual), chances.tolist(), strict=True):
        assert one.predicted == ("positive" if good > bad else "negative")
        assert math.exp(one.log_probabilities["positive"]) == pytest.approx(good / (good + bad), abs=2e-6)
