"""The concept bottleneck by hand: its words, the optimum of its first layer, effects that add up, refusals."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.noise_lessons import LABELS, TRAIN, VAL, Watched, aspects_of, lessons
from fixtures.training import write_dataset
from masp.adapters import combine, load_adapter
from masp.baselines import concept_bottleneck
from masp.baselines.base import Example, SystemPrediction, TrainingData
from masp.baselines.concept_bottleneck import ConceptBottleneck, ConceptBottleneckSettings
from masp.baselines.probe import logits
from masp.baselines.prompted import ZeroShotSettings, zero_shot_system
from masp.baselines.registry import make_system
from masp.baselines.word_regression import present, read_words, vocabulary
from masp.core.aspects import ASPECTS
from masp.core.errors import DataError, UsageError
from masp.core.types import VisualTokens
from masp.data.images import open_image
from masp.evaluation.metrics import fit_temperature, scaled
from masp.model.masp_model import MaspModel
from masp.predictor import Masp

FREELY = ConceptBottleneckSettings(fewest=2, strengths=(1.0,))


def taught(out: Path, images: Watched) -> TrainingData:
    """The lessons of noise, with objects that some of them share."""
    made = lessons(out, images)
    told = [{}, {"object": "Cat, Dog"}, {"object": "Dog", "scene": "beach"}]
    rows = [replace(one, aspects=told[one.image % 3]) for one in (*made.train, *made.val)]
    return replace(made, train=tuple(rows[:TRAIN]), val=tuple(rows[TRAIN:]))


def head(over: bool = False, settings: ConceptBottleneckSettings = FREELY) -> ConceptBottleneck:
    backbone = tiny.backbone()
    adapter = load_adapter(aspects_of("qwen2_vl"), backbone)
    model = MaspModel(backbone, adapter.info.method, adapter.aspects)
    return ConceptBottleneck(model, LABELS, zero_shot_system(backbone, LABELS) if over else None, settings)


def test_the_words_are_those_of_enough_images() -> None:
    told = [Example(0, "awe", {"object": "Dog, Cat"}), Example(1, "awe", {"object": "Cat", "scene": ""})]
    assert vocabulary(told, ("object", "scene"), 1) == {"object": ("Cat", "Dog"), "scene": ()}
    assert vocabulary(told, ("object", "scene"), 2) == {"object": ("Cat",), "scene": ()}
    assert present(told, "object", ("Cat", "Dog")).tolist() == [[1, 1], [1, 0]]
    with pytest.raises(DataError, match="annotated often enough"):
        vocabulary(told, ("object", "scene"), 3)


def test_words_are_a_ridge_regression_and_platts_scaling() -> None:
    """Against scikit-learn: its ridge with each image left out, and its unpenalised logistic regression on that."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(40, 7, generator=generator)
    wanted = (tokens[:, :2] + torch.randn(40, 2, generator=generator) > 0).float()
    layer, left_out, told = read_words(tokens, wanted, (1e-3, 5.0, 1e5))
    columns, truth = ((tokens - tokens.mean(0)) / tokens.std(0, correction=0)).numpy(), wanted.numpy()
    held, errors = {}, {}
    for penalty in (1e-3, 5.0, 1e5):
        rest = [np.arange(40) != one for one in range(40)]
        held[penalty] = np.array(
            [Ridge(penalty).fit(columns[kept], truth[kept]).predict(columns[~kept])[0] for kept in rest]
        )
        errors[penalty] = float(((held[penalty] - truth) ** 2).mean())
    assert told == {"penalty": 5.0, "squared_error": pytest.approx(errors[5.0], rel=1e-3)}
    assert min(errors, key=errors.__getitem__) == 5.0
    whole = Ridge(5.0).fit(columns, truth).predict(columns)
    for word in range(2):
        count, own = float(truth[:, word].sum()), held[5.0][:, word]
        soft = np.where(truth[:, word] > 0, (count + 1) / (count + 2), 1 / (40 - count + 2))
        twice = np.concatenate([own, own])[:, None]  # a soft target is an image of both classes, with weights
        model = LogisticRegression(C=np.inf).fit(twice, [1] * 40 + [0] * 40, np.concatenate([soft, 1 - soft]))
        odds = model.decision_function(own[:, None])
        assert left_out[:, word].tolist() == pytest.approx((1 / (1 + np.exp(-odds))).tolist(), abs=2e-3)
        there = model.decision_function(whole[:, word][:, None])
        assert logits(layer, tokens)[:, word].tolist() == pytest.approx(there.tolist(), abs=2e-2)


@pytest.mark.parametrize("over", [False, True])
def test_effects_scores_and_bias_are_the_logits(over: bool, tmp_path: Path) -> None:
    system, images = head(over), Watched(tiny.backbone())
    system.fit(taught(tmp_path / "out", images))
    layer = {name: system.learned.tensors[f"labels.{name}"] for name in ("weight", "bias", "mean", "scale")}
    visual = images.visual([0, 1, 2])
    scores = None if system.over is None else [one.log_probabilities for one in system.over.predict(visual)]
    seen = [place for place, label in enumerate(LABELS) if label in ("amusement", "anger", "fear")]
    for row, (words, one) in enumerate(zip(system.concept_effects(visual), system.predict(visual), strict=True)):
        assert all(tuple(concept.effects) == ("amusement", "anger", "fear") for concept in words), (
            "no other label was seen"
        )
        odds = layer["bias"][seen] + torch.tensor(
            [sum(concept.effects[LABELS[place]] for concept in words) for place in seen]
        )
        if scores is not None and system.learned.state["labels"]["scores"]:
            own = scores[row]
            told = torch.tensor([own[label] for label in LABELS])
            odds = odds + (((told - layer["mean"][-8:]) / layer["scale"][-8:]) @ layer["weight"][:, -8:].T)[seen]
        found = torch.tensor([one.log_probabilities[LABELS[place]] for place in seen])
        assert (found - found[0]).tolist() == pytest.approx((odds - odds[0]).tolist(), abs=1e-4)


def test_each_image_has_every_word_the_likeliest_first(tmp_path: Path) -> None:
    system, images = head(), Watched(tiny.backbone())
    system.fit(taught(tmp_path / "out", images))
    for words in system.concept_effects(images.visual([0, 1])):
        assert {(concept.aspect, concept.word) for concept in words} == {
            ("object", "Cat"),
            ("object", "Dog"),
            ("scene", "beach"),
        }
        assert [concept.probability for concept in words] == sorted(
            (concept.probability for concept in words), reverse=True
        )


def test_the_words_come_from_the_tokens_of_their_own_aspect(tmp_path: Path) -> None:
    system, images = head(), Watched(tiny.backbone())
    system.fit(taught(tmp_path / "out", images))
    assert system.learned is not None
    visual = images.visual([4])
    tokens = system.model.aspect_tokens(visual).tokens[:, ASPECTS.index("scene")].flatten(1)
    layer = {name: system.learned.tensors[f"scene.{name}"] for name in ("weight", "bias", "mean", "scale", "known")}
    (beach,) = logits(layer, tokens).sigmoid()[0].tolist()
    (found,) = [concept.probability for concept in system.concept_effects(visual)[0] if concept.aspect == "scene"]
    assert found == pytest.approx(beach, abs=1e-6)


def test_the_penalty_of_the_labels_is_the_likeliest_on_val(tmp_path: Path) -> None:
    images, found = Watched(tiny.backbone()), {}
    for name, strengths in {"weak": (100.0,), "strong": (1e-4,), "both": (1e-4, 100.0)}.items():
        system = head(settings=replace(FREELY, strengths=strengths))
        system.fit(taught(tmp_path / name, images))
        found[name] = system.config()["fitted"]["labels"]
    assert found["both"] == max((found[name] for name in ("weak", "strong")), key=lambda one: one["log_likelihood"])
    assert found["weak"] != found["strong"]


class Knowing:
    """A system that knows the right label of some images, and is as sure of a wrong one of all others."""

    def __init__(self, images: Watched, right: frozenset[int]) -> None:
        self.backbone, self.labels, self.images, self.right = tiny.backbone(), LABELS, images, right

    def fit(self, lessons: TrainingData) -> None:
        pass

    def predict(self, visual: VisualTokens) -> list[SystemPrediction]:
        said = []
        for row in range(len(visual)):
            one = visual.select([row])
            (number,) = [n for n in range(TRAIN + VAL) if same(self.images.all.select([n]), one)]
            label = LABELS[(0, 4, 6)[(number + (number not in self.right)) % 3]]
            said.append(SystemPrediction(label, {name: math.log(0.93 if name == label else 0.01) for name in LABELS}))
        return said

    def config(self) -> dict[str, Any]:
        return {"system": "knowing", "right": sorted(self.right), "question": "Which?"}


def same(one: VisualTokens, other: VisualTokens) -> bool:
    kept = [visual.tokens[0, visual.mask[0]] for visual in (one, other)]
    return kept[0].shape == kept[1].shape and torch.equal(*kept)


def test_scores_that_only_know_the_training_images_are_left_out(tmp_path: Path) -> None:
    images, everything = Watched(tiny.backbone()), frozenset(range(TRAIN + VAL))
    found = {}
    for name, right in {"learned by heart": frozenset(range(TRAIN)), "knows": everything}.items():
        adapter = load_adapter(aspects_of("qwen2_vl"), tiny.backbone())
        model = MaspModel(tiny.backbone(), adapter.info.method, adapter.aspects)
        system = ConceptBottleneck(model, LABELS, Knowing(images, right), FREELY)
        system.fit(taught(tmp_path / name, images))
        found[name] = system.learned.state["labels"]["scores"]
        said = [one.predicted for one in system.predict(images.visual(range(TRAIN, TRAIN + VAL)))]
        wanted = [LABELS[(0, 4, 6)[number % 3]] for number in range(TRAIN, TRAIN + VAL)]
        assert (said == wanted) == (name == "knows")
    assert found == {"learned by heart": False, "knows": True}


def test_the_labels_learn_from_words_that_were_left_out() -> None:
    """Noise has no word to read: what is said about an image of training is no better than a guess."""
    generator = torch.Generator().manual_seed(0)
    tokens, wanted = torch.randn(40, 60, generator=generator), torch.randint(0, 2, (40, 1), generator=generator).float()
    layer, left_out, _ = read_words(tokens, wanted, (0.1,))
    assert torch.equal(logits(layer, tokens).sigmoid().round(), wanted), "the layer itself knows these images by heart"
    assert 0.25 < float((left_out.round() == wanted).float().mean()) < 0.75


def test_without_validation_the_settings_decide(tmp_path: Path) -> None:
    system, images = head(over=True), Watched(tiny.backbone())
    system.fit(replace(taught(tmp_path / "out", images), val=()))
    state = system.learned.state
    assert state["labels"] == {"C": 0.1, "scores": True}
    assert len(system.predict(images.visual([0, 1]))) == 2


def test_after_val_has_chosen_the_labels_are_learned_from_all(tmp_path: Path) -> None:
    both = (1e-4, 1.0)
    system, images = head(settings=replace(FREELY, refit=True, strengths=both)), Watched(tiny.backbone())
    told = taught(tmp_path / "out", images)
    system.fit(told)
    state, targets = system.learned.state["labels"], np.array([LABELS.index(one.label) for one in told.val])
    every = head(settings=replace(FREELY, without_val=1.0))
    every.fit(replace(told, train=told.train + told.val, val=(), out=tmp_path / "every"))
    shown = images.visual([one.image for one in told.val])
    logs_of, likelihoods = {}, {}
    for strength in both:
        one = head(settings=replace(FREELY, strengths=(strength,)))
        one.fit(replace(told, out=tmp_path / f"{strength}"))
        logs_of[strength] = np.array([list(answer.log_probabilities.values()) for answer in one.predict(shown)])
        best = scaled(logs_of[strength], fit_temperature(logs_of[strength], targets))
        likelihoods[strength] = best[np.arange(len(targets)), targets].mean()
    assert state["C"] == max(both, key=likelihoods.__getitem__)
    logs = logs_of[state["C"]]
    assert state["temperature"] == pytest.approx(fit_temperature(logs, targets), rel=1e-4)
    divided = scaled(logs, state["temperature"])[np.arange(len(targets)), targets].mean()
    assert state["log_likelihood"] == pytest.approx(divided, abs=1e-4)
    # The words learn from train alone, so only the mean of what the labels read tells the two fits apart.
    inputs = system._inputs(
        system._read(images.visual([one.image for one in (*told.train, *told.val)])), system.learned
    )
    assert len(inputs) == int(system.learned.tensors["labels.n"]) == int(every.learned.tensors["labels.n"])
    raw = logits({k.removeprefix("labels."): v for k, v in system.learned.tensors.items() if "labels." in k}, inputs)
    found = [list(one.log_probabilities.values()) for one in system.predict(shown)]
    wanted = (raw[len(told.train) :] / state["temperature"]).log_softmax(1)
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=1e-5)


def test_the_residual_reads_the_whole_image_where_the_tower_gives_it(tmp_path: Path) -> None:
    seen, backbone = ("amusement", "anger", "fear"), tiny.backbone("photo")
    images = Watched(backbone)
    asked = [f"aspects={aspects_of('photo')}", "fewest=2", "strengths=[1.0]", "residual=true", "refit=true"]
    asked.append("token_scale=0.5")
    system = make_system("concepts", backbone, seen, asked)
    assert isinstance(system, ConceptBottleneck)
    system.fit(taught(tmp_path / "concepts" / "training", images))
    found = Masp.from_pretrained(tmp_path / "concepts", backbone)
    visual = images.visual([0, 1, 2])
    features = visual.pooled.shape[1]
    assert (found.info.concepts.image_features, found.info.temperature) == (
        features,
        pytest.approx(temperature(system)),
    )
    handle = found.handle()
    read = handle.concepts.read(handle.model, visual, handle.task.question, handle.task.labels)
    layer, words = system.learned.tensors, len(system.learned.state["words"])
    own = slice(words + len(ASPECTS) * backbone.dim * handle.model.aspect_module().queries, None)
    assert layer["labels.mean"][own].shape == (features,)
    every = images.visual(range(len(images.all)))
    spread = handle.model.aspect_tokens(every).tokens.flatten(1).std(0, correction=0)
    torch.testing.assert_close(layer["labels.scale"][words : own.start], 2 * spread, atol=1e-5, rtol=1e-3)
    by_hand = (visual.pooled - layer["labels.mean"][own]) / layer["labels.scale"][own]
    effect = handle.concepts.image_effect(read)
    assert effect is not None
    # Some features of the tiny tower hardly vary, so that folding the standardisation into the weights costs digits.
    torch.testing.assert_close(effect, by_hand @ layer["labels.weight"][:, own].T, atol=1e-2, rtol=1e-2)
    tensors = handle.concepts.tensors
    bias = tensors["labels.bias"] + tensors["labels.weight"] @ tensors["labels.mean"]
    whole = handle.concepts.effects(read, ASPECTS).sum(1) + effect + bias
    torch.testing.assert_close(whole.log_softmax(1), handle.concepts.log_probabilities(read), atol=1e-4, rtol=1e-4)
    tiny.picture(84, 84, seed=3).save(tmp_path / "a.png")
    one = found.predict(tmp_path / "a.png")
    assert one.image_effect is not None
    assert "image_effect" in one.to_json()
    assert found.predict(tmp_path / "a.png", explain=False).image_effect is None
    again = Masp.from_pretrained(found.save_pretrained(tmp_path / "copy"), backbone)
    assert again.predict(tmp_path / "a.png") == replace(one, adapter=again.adapter)
    wanted = torch.tensor([list(answer.log_probabilities.values()) for answer in system.predict(visual)])
    torch.testing.assert_close(found.task.calibrated(found.log_probabilities(visual)), wanted, atol=1e-2, rtol=1e-2)


def temperature(system: ConceptBottleneck) -> float:
    """That val gave before the labels were learned again."""
    return system.learned.state["labels"]["temperature"]


def test_other_annotations_are_another_run(tmp_path: Path) -> None:
    images = Watched(tiny.backbone())
    told = replace(taught(tmp_path / "out", images), fingerprint="")
    head().fit(told)
    zebras = tuple(replace(one, aspects={"object": "Zebra"}) for one in told.train)
    with pytest.raises(UsageError, match="another"):
        head().fit(replace(told, train=zebras))


def test_too_few_annotations_are_told_before_anything_is_read(tmp_path: Path) -> None:
    images = Watched(tiny.backbone())
    with pytest.raises(DataError, match="a word that 20 or more of them have"):
        head(settings=ConceptBottleneckSettings()).fit(taught(tmp_path / "out", images))
    assert images.calls == 0
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_added_up_with_its_own_scores(tmp_path: Path) -> None:
    prompt = write_adapter(tmp_path / "prompt", LABELS, aspects=())
    whole = write_adapter(tmp_path / "whole", LABELS)
    images, quick = Watched(tiny.backbone()), ["fewest=2", "strengths=[1.0]"]
    said = {}
    for place in (prompt, whole):
        named = [f"aspects={whole}", f"prompt={place}", *quick]
        system = make_system("concepts", tiny.backbone(), LABELS, named)
        system.fit(taught(tmp_path / place.name / "out", images))
        said[place.name] = system.predict(images.visual([0, 1]))
        (alone,) = system.predict(images.visual([1]))
        assert alone.log_probabilities == pytest.approx(said[place.name][1].log_probabilities, abs=1e-4)
        assert system.config()["tuned"]["adapter"]["aspects"] == ([] if place is prompt else list(ASPECTS))
    assert said["prompt"] != said["whole"]


@torch.no_grad()
def residual_by_hand(system: ConceptBottleneck, visual: VisualTokens) -> dict[str, torch.Tensor]:
    """What the standardised tokens of each aspect add to the logits: zero on the mean training image."""
    layer, words = system.learned.tensors, len(system.learned.state["words"])
    tokens = system.model.aspect_tokens(visual).tokens.flatten(2)
    width, result = tokens.shape[2], {}
    for index, aspect in enumerate(ASPECTS):
        own = slice(words + index * width, words + (index + 1) * width)
        columns = (tokens[:, index] - layer["labels.mean"][own]) / layer["labels.scale"][own]
        result[aspect] = columns @ layer["labels.weight"][:, own].T
    return result


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("prompt", "scores"), [(False, False), (True, True), (True, False)])
def test_what_was_learned_is_an_adapter_that_predicts_the_same(
    tmp_path: Path, prompt: bool, scores: bool, residual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = ("amusement", "anger", "fear")  # the labels that occur
    whole = write_adapter(tmp_path / "whole", seen)
    tuned = write_adapter(tmp_path / "prompt", seen, aspects=())
    info = json.loads((tuned / "adapter.json").read_text())
    (tuned / "adapter.json").write_text(json.dumps(info | {"temperature": 2.0}))  # its scores are added undivided
    named = [f"prompt={tuned}"] * prompt
    backbone = tiny.backbone()
    images = Watched(backbone)
    asked = [f"aspects={whole}", *named, "fewest=2", "strengths=[1.0]", f"residual={residual}"]
    system = make_system("concepts", backbone, seen, asked)
    teaching = taught(tmp_path / "concepts" / "training", images)
    if prompt:  # the first of two fits adds the scores; it is the likelier one, or not
        likelihoods = iter((-1.0, -2.0) if scores else (-2.0, -1.0))
        monkeypatch.setattr(concept_bottleneck, "figures", lambda *_: {"log_likelihood": next(likelihoods)})
    system.fit(teaching)
    found = Masp.from_pretrained(tmp_path / "concepts", backbone)
    told = found.info.data["concepts"]
    assert (told.fingerprint, told.images, found.info.seeds["concepts"]) == ("noise", {"train": TRAIN, "val": VAL}, 0)
    visual = images.visual([0, 1, 2])
    assert found.info.parts == (("aspects", "prompt", "concepts") if prompt else ("aspects", "concepts"))
    assert (found.info.concepts.scores, found.info.concepts.residual) == (scores or not prompt, residual)
    wanted = torch.tensor([list(one.log_probabilities.values()) for one in system.predict(visual)])
    torch.testing.assert_close(found.log_probabilities(visual), wanted, atol=1e-4, rtol=1e-4)
    tiny.picture(84, 84, seed=3).save(tmp_path / "a.png")
    one = found.predict(tmp_path / "a.png")
    own = found.visual_tokens(found.backbone.preprocess([tiny.picture(84, 84, seed=3)]))
    assert isinstance(system, ConceptBottleneck)
    (words,) = system.concept_effects(own)
    beside = residual_by_hand(system, own) if residual else {}
    for aspect, reading in one.aspects.items():
        added = sum(concept.effects[one.label] for concept in words if concept.aspect == aspect)
        if residual:
            added += float(beside[aspect][0, seen.index(one.label)])
        assert reading.effect == pytest.approx(added, abs=1e-4)
        there = [concept.word for concept in words if concept.aspect == aspect and concept.probability >= 0.5]
        assert sorted(reading.answer.split(", ")) == sorted(there or [""])
    assert (one.attribution, one.answer) == ("concept_bottleneck", None)
    assert list(one.probabilities.values()) == pytest.approx(found.log_probabilities(own)[0].exp().tolist(), abs=1e-5)
    again = Masp.from_pretrained(found.save_pretrained(tmp_path / "copy"), backbone)
    assert again.predict(tmp_path / "a.png").probabilities == one.probabilities
    view = Masp.from_pretrained(again.for_task().save_pretrained(tmp_path / "view"), backbone)
    assert view.predict(tmp_path / "a.png").probabilities == one.probabilities
    if prompt:
        plain = Masp.from_pretrained(tmp_path / "copy", backbone, concepts=False)
        alone = Masp.from_pretrained(tmp_path / "prompt", backbone)
        torch.testing.assert_close(plain.log_probabilities(visual), alone.log_probabilities(visual))
        assert (plain.handle().concepts, plain.info.parts, plain.task.temperature) == (None, ("prompt",), 2.0)
        loaded = Masp.from_pretrained(tmp_path / "copy", backbone, labels="joy,fear")
        wanted = alone.for_task(labels=["joy", "fear"]).log_probabilities(visual)
        for other in (again.for_task(labels=["joy", "fear"]), loaded):  # which the words say nothing about
            torch.testing.assert_close(other.log_probabilities(visual), wanted)
    else:
        with pytest.raises(UsageError, match="other labels for a concept bottleneck; expected amusement, anger, fear"):
            Masp.from_pretrained(tmp_path / "copy", backbone, labels=["joy", "fear"])
        with pytest.raises(UsageError, match="has no soft prompt"):
            Masp.from_pretrained(tmp_path / "copy", backbone, concepts=False)
    combine(tmp_path / "both", [f"a={tmp_path / 'copy'}", f"b={whole}"])
    both = Masp.from_pretrained(tmp_path / "both", backbone, task="a")
    assert both.predict(tmp_path / "a.png").probabilities == one.probabilities
    wanted = Masp.from_pretrained(whole, backbone).log_probabilities(visual)
    torch.testing.assert_close(both.use("b").log_probabilities(visual), wanted)
    third = Masp.from_pretrained(both.save_pretrained(tmp_path / "third"), backbone, task="a")
    assert third.predict(tmp_path / "a.png").probabilities == one.probabilities
    if prompt:
        bare = Masp.from_pretrained(tmp_path / "both", backbone, task="a", concepts=False)
        with pytest.raises(UsageError, match="different aspects"):
            bare.save_pretrained(tmp_path / "bare")
        wanted = Masp.from_pretrained(tuned, backbone).log_probabilities(visual)
        torch.testing.assert_close(bare.log_probabilities(visual), wanted)
    else:
        with pytest.raises(UsageError, match="has no soft prompt"):
            Masp.from_pretrained(tmp_path / "both", backbone, task="a", concepts=False)
        named = Masp.from_pretrained(tmp_path / "both", backbone, task="b", concepts=False)
        assert named.tasks == ("b",), "what cannot be asked so is left out where another task is named"


@pytest.mark.parametrize("absent", [(), ("scene",)])
def test_words_may_be_learned_from_other_images(tmp_path: Path, absent: tuple[str, ...]) -> None:
    settings = replace(FREELY, absent=absent)
    annotated = write_dataset(tmp_path / "annotated", train=30)
    adapter, images = load_adapter(aspects_of("qwen2_vl"), tiny.backbone()), Watched(tiny.backbone())
    model = MaspModel(tiny.backbone(), adapter.info.method, adapter.aspects)
    system = ConceptBottleneck(model, LABELS, None, settings, annotated=annotated)
    bare = lessons(tmp_path / "out", images)
    bare = replace(bare, train=tuple(replace(one, aspects={}) for one in bare.train))
    system.fit(bare)
    assert {tuple(word) for word in system.learned.state["words"]} >= {("scene", "beach"), ("object", "dog")}
    told = [record for record in annotated.split("train") if record.annotations]
    own = [record for record in told if absent or "scene" in record.annotations]
    assert (len(own) == len(told)) == bool(absent)
    pixels = model.backbone.preprocess([open_image(record.path) for record in own])
    with torch.no_grad():
        tokens = model.aspect_tokens(model.backbone.visual_tokens(pixels)).tokens[:, ASPECTS.index("scene")].flatten(1)
    wanted = torch.tensor(
        [[float(record.annotations.get("scene") == name) for name in ("beach", "city")] for record in own]
    )
    layer, _, _ = read_words(tokens, wanted, FREELY.penalties)
    torch.testing.assert_close(system.learned.tensors["scene.weight"], layer["weight"], atol=1e-3, rtol=1e-3)
    again = ConceptBottleneck(model, LABELS, None, settings, annotated=annotated).load(tmp_path / "out")
    assert again.predict(images.visual([0])) == system.predict(images.visual([0]))


def test_labels_that_never_occur_leave_no_adapter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, backbone = write_adapter(tmp_path / "whole", LABELS), tiny.backbone()
    images = Watched(backbone)
    system = make_system("concepts", backbone, LABELS, [f"aspects={whole}", "fewest=2", "strengths=[1.0]"])
    system.fit(taught(tmp_path / "out", images))
    assert not (tmp_path / "out" / "adapter").exists()
    assert "no adapter is written: a label occurs on no image" in caplog.text


def test_what_was_learned_is_loaded_without_the_lessons(tmp_path: Path) -> None:
    system, images = head(over=True), Watched(tiny.backbone())
    system.fit(replace(taught(tmp_path / "out", images), seed=3))
    again = head(over=True).load(tmp_path / "out")
    visual = images.visual([0, 1])
    assert again.predict(visual) == system.predict(visual)
    assert again.concept_effects(visual) == system.concept_effects(visual)
    assert again.config() == system.config()
    with pytest.raises(UsageError, match="tuned: "):
        head(over=False).load(tmp_path / "out")
    with pytest.raises(UsageError, match="settings: "):
        head(over=True, settings=replace(FREELY, fewest=3)).load(tmp_path / "out")
    with pytest.raises(UsageError, match="holds no fitted concept bottleneck"):
        head().load(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "out" / "learned")
    with pytest.raises(UsageError, match="has not learned to the end"):
        head(over=True).load(tmp_path / "out")


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    backbone, bare = tiny.backbone(), write_adapter(tmp_path / "bare", aspects=())
    with pytest.raises(UsageError, match="no aspects"):
        make_system("concepts", backbone, LABELS)
    with pytest.raises(UsageError, match="holds no aspect modules"):
        make_system("concepts", backbone, LABELS, [f"aspects={bare}"])
    with pytest.raises(UsageError, match="before it learned"):
        head().predict(Watched(backbone).visual([0]))
    model = head().model
    with pytest.raises(UsageError, match="chooses from joy, fear"):
        ConceptBottleneck(model, LABELS, zero_shot_system(backbone, ("joy", "fear")))
    silent = ConceptBottleneck(
        model, LABELS, zero_shot_system(backbone, LABELS, ZeroShotSettings(reading="generate")), FREELY
    )
    with pytest.raises(UsageError, match="no probabilities"):
        silent.fit(taught(tmp_path / "silent", Watched(backbone)))
    aspects = aspects_of("qwen2_vl")
    with pytest.raises(UsageError, match="holds no soft prompt"):
        make_system("concepts", backbone, LABELS, [f"aspects={aspects}", f"prompt={aspects}"])
