"""Both stages on a tiny random backbone: what moves, what does not, what is written, and what is refused."""

import json
import logging
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from fixtures.toy_stage import gradients
from masp.adapters import load_adapter, read_info
from masp.backbones.decoder import Decoder
from masp.backbones.loading import load_backbone
from masp.core.aspects import ASPECTS
from masp.core.config import BackboneConfig, MethodConfig, PromptInit, TrainConfig, load_config
from masp.core.errors import AdapterError, CheckpointError, ConfigError, DataError, MaspError, UsageError
from masp.core.prompts import load_questions
from masp.evaluation import metrics
from masp.evaluation.runner import evaluate
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import score
from masp.model.soft_prompt import SoftPrompt
from masp.predictor import Masp
from masp.training import Interrupted, VisualMemory, train_aspects, train_prompt
from masp.training import stage1 as stage1_aspects
from masp.training import stage2 as stage2_prompt
from masp.training.feature_cache import FeatureCache, ImageReading
from masp.training.run_stage import measured_at_once
from masp.training.signals import StopRequest
from masp.training.stage1 import AspectExample, AspectStage, ImageMajorOrder, measured
from masp.training.stage2 import PromptStage, QuestionSettings
from masp.training.trainer import StepBatch

PROMPT = ("prompt.max_steps=3", "aspects.max_steps=3")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def aspects(tmp_path_factory, dataset) -> Path:
    out = tmp_path_factory.mktemp("runs") / "aspects"
    train_aspects(small.config(*PROMPT), dataset, tiny.backbone(), out)
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stage_1_leaves_a_run_folder_and_an_adapter(aspects, dataset):
    assert {path.name for path in aspects.iterdir()} == {
        "adapter",
        "checkpoints",
        "metrics.jsonl",
        "quarantine.jsonl",
        "run.json",
        "splits.json",
        "store.json",
    }
    info = read_info(aspects)  # a run folder stands for its adapter
    assert info.parts == ("aspects",)
    assert info.aspects == ASPECTS
    assert info.data["aspects"].images == {"train": 13, "val": 5}
    assert info.metrics.keys() >= {"aspects/score", "aspects/accuracy/scene", "aspects/f1/object"}
    assert lines(aspects / "quarantine.jsonl") == [{"read": 18, "used": 18, "quarantined": 0}]
    run = json.loads((aspects / "run.json").read_text())
    assert run["result"]["steps"] == 3
    assert run["identity"]["aspects.learning_rate"] == 0.01
    (conditions,) = info.training.values()
    assert (conditions.learning_rate, conditions.steps, conditions.batch_size) == (0.01, 3, 5)
    assert (conditions.dtype, conditions.prompt_start) == ("float32", None)
    assert info.backbone.name == tiny.checkpoint().name
    assert not [
        path for path in (aspects / "adapter").iterdir() if str(tiny.checkpoint()).encode() in path.read_bytes()
    ]


def test_stage_1_moves_every_aspect(tmp_path, dataset):
    trained, start = (
        load_adapter(
            train_aspects(
                small.config(
                    "aspects.max_steps=3", "aspects.batch_size=40", "aspects.epochs=3", f"aspects.learning_rate={rate}"
                ),
                dataset,
                tiny.backbone(),
                tmp_path / str(rate),
            ).adapter,
            tiny.backbone(),
        ).aspects
        for rate in (1e-2, 1e-9)
    )
    for name in ASPECTS:
        change = (trained.module(name).queries - start.module(name).queries).abs().max()
        assert change > 1e-3, name


def test_stage_2_fits_a_temperature_on_enough_validation_images(tmp_path, dataset, monkeypatch):
    settings, count = small.config(*PROMPT, "prompt.evaluate_every=1"), len(dataset.split("val"))
    monkeypatch.setattr(metrics, "CALIBRATION_IMAGES", count + 1)
    without = read_info(train_prompt(settings, dataset, tiny.backbone(), None, tmp_path / "few").adapter)
    assert (without.temperature, "prompt/temperature" in without.metrics) == (None, False)
    monkeypatch.setattr(metrics, "CALIBRATION_IMAGES", count)
    folder = train_prompt(settings, dataset, tiny.backbone(), None, tmp_path / "enough").adapter
    masp = Masp.from_pretrained(folder, tiny.backbone())
    answers = evaluate(Masp.from_pretrained(folder, tiny.backbone(), raw=True), dataset, "val").answers
    logs = np.array([[one.log_probabilities[label] for label in masp.labels] for one in answers])
    targets = np.array([masp.labels.index(one.truth) for one in answers])
    assert masp.task.temperature == pytest.approx(metrics.fit_temperature(logs, targets), rel=1e-3)
    assert masp.info.temperature == masp.info.metrics["prompt/temperature"] != 1.0


def test_only_the_modules_of_a_batch_get_gradients(dataset):
    backbone = tiny.backbone()
    records = dataset.split("train")
    store = FeatureCache(backbone, [record.path for record in records], ImageReading(workers=0))
    store.fill(StopRequest())
    model = MaspModel(backbone, MethodConfig(), AspectModules(backbone.dim, ASPECTS, 1))
    examples = [AspectExample(4, ASPECTS.index(name), "low") for name in ("scene", "brightness", "scene")]
    stage = AspectStage(model, store, examples, [], load_questions())
    share = next(stage.load([StepBatch(0, 0, (0, 2), 2)]))
    losses = stage.losses(share)
    assert losses.shape == (2,)
    losses.sum().backward()
    touched = {name.split(".")[1] for name, parameter in stage.parameters().items() if parameter.grad is not None}
    assert touched == {"scene"}
    assert stage.parameters().keys() == {
        f"by_aspect.{name}.{key}" for name in ASPECTS for key in ("queries", "key", "value")
    }


def test_queries_and_keys_may_learn_more_slowly(dataset, tmp_path):
    """The first step of AdamW moves every number that has a gradient by its own rate."""
    once = ("aspects.max_steps=1", "aspects.warmup=0", "aspects.schedule=constant", "aspects.evaluate_every=0")
    settings = small.config(*once, "aspects.attention_rate=0.25")
    backbone = tiny.backbone()
    run = train_aspects(settings, dataset, backbone, tmp_path / "run")
    adapter = load_adapter(run.adapter, backbone)
    trained, (told,) = adapter.aspects, adapter.info.training.values()
    assert told.attention_rate == 0.25
    method = settings.method.resolved()
    generator = torch.Generator().manual_seed(settings.aspects.seed)
    start = AspectModules(backbone.dim, ASPECTS, method.queries, method.attention, generator)
    moved: dict[str, float] = {}
    for (name, before), after in zip(start.named_parameters(), trained.parameters(), strict=True):
        part = name.split(".")[-1]
        moved[part] = max(moved.get(part, 0.0), float((after - before).detach().abs().max()))
    assert moved == pytest.approx({"queries": 0.0025, "key": 0.0025, "value": 0.01}, rel=1e-2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["learning_rate"] for line in lines if line["event"] == "step"} == {0.01}


def test_stage_1_meets_each_image_once_in_an_epoch(dataset):
    records = [record for record in dataset.split("train") if record.annotations]
    examples = [AspectExample(i, a, "low") for i, _ in enumerate(records) for a in range(6) if (i * a) % 5 != 3]
    order = ImageMajorOrder(examples, 7, seed=3)
    batches = list(order.batches(0))
    assert order.images == 1 < 7 * len(records) / len(examples) < 1.5
    assert len(batches) == order.per_epoch == len(records)
    assert sorted(number for batch in batches for number in batch) == list(range(len(examples)))
    assert list(order.batches(0, 2)) == batches[2:]
    assert list(order.batches(1)) != batches
    assert list(ImageMajorOrder(examples, 7, seed=4).batches(0)) != batches
    wide = ImageMajorOrder(examples, 17, seed=3)
    assert wide.images == 3
    images = [sorted({examples[number].image for number in batch}) for batch in wide.batches(0)]
    assert sum(map(len, images)) == len({image for batch in images for image in batch}) == len(records)
    assert [len(batch) for batch in images[:-1]] == [3] * (wide.per_epoch - 1)
    assert next(iter(ImageMajorOrder(examples, 1, seed=3).batches(0)))  # one image at least, with all its pairs


@pytest.mark.parametrize(("size", "images"), [(1, 1), (5, 1), (6, 2), (8, 2), (9, 2), (10, 3), (12, 3), (64, 16)])
def test_a_batch_has_the_number_of_images_whose_pairs_come_nearest(size, images):
    """Four pairs an image: 6 pairs are as far from one image as from two, and take two."""
    examples = [AspectExample(number // 4, number % 4, "low") for number in range(4 * 50)]
    order = ImageMajorOrder(examples, size, seed=0)
    assert order.images == images
    assert order.per_epoch == -(-50 // images)


def test_a_resumed_run_without_kept_tokens_does_not_read_everything_again(tmp_path):
    dataset = small.write_dataset(tmp_path / "data", train=41)
    paths = [record.path for record in dataset.split("train")]
    paths[7].write_bytes(b"no image")
    stores = []
    for before in (None, {paths[7], paths[30]}):
        store = FeatureCache(tiny.backbone(), paths, ImageReading(workers=0, budget=0))
        account = store.fill(StopRequest(), before)
        stores.append((store.usable, account.read))
    assert stores[0] == ([number != 7 for number in range(41)], 41)
    assert stores[1] == ([number not in (7, 30) for number in range(41)], 16)  # believed, not read


def test_runs_that_share_a_memory_compute_visual_tokens_once(tmp_path, dataset, monkeypatch):
    backbone = tiny.backbone()
    compute, runs = type(backbone).visual_tokens, []

    def counted(self, pixels):
        runs.append(len(pixels))
        return compute(self, pixels)

    monkeypatch.setattr(type(backbone), "visual_tokens", counted)
    memory = VisualMemory()
    train_aspects(small.config(*PROMPT), dataset, backbone, tmp_path / "a", memory)
    train_prompt(small.config(*PROMPT), dataset, backbone, tmp_path / "a", tmp_path / "p", memory=memory)
    assert sum(runs) == 18
    shared = load_adapter(
        train_prompt(small.config(*PROMPT), dataset, backbone, None, tmp_path / "s", memory=memory).adapter, backbone
    )
    alone = load_adapter(train_prompt(small.config(*PROMPT), dataset, backbone, None, tmp_path / "t").adapter, backbone)
    assert sum(runs) == 36
    assert (shared.prompt.vectors - alone.prompt.vectors).abs().max() < 1e-3
    assert lines(tmp_path / "p" / "quarantine.jsonl")[-1] == {"read": 18, "used": 18, "quarantined": 0}


@pytest.mark.parametrize("change", ["weights", "side", "format", "file", "nothing"])
def test_a_shared_memory_gives_nothing_of_another_backbone_or_picture(tmp_path, change):
    path, memory = tmp_path / "a.png", VisualMemory()
    tiny.picture(112, 112, seed=1).save(path)

    def seen(backbone, side=None, memory=None):
        store = FeatureCache(backbone, [path], ImageReading(side, workers=0), memory)
        store.fill(StopRequest())
        return store.visual([0]).tokens

    first = seen(tiny.backbone(), memory=memory)
    backbone, side = tiny.backbone(), 56 if change == "side" else None
    if change == "weights":
        backbone = tiny.backbone(seed=1)
    if change == "format":
        backbone = tiny.backbone(dtype="bfloat16")
    if change == "file":
        tiny.picture(112, 112, seed=2).save(path)
        os.utime(path, ns=(1, 1))
    found = seen(backbone, side, memory)
    assert torch.equal(found, seen(backbone, side))
    assert (found.shape == first.shape and torch.equal(found.float(), first)) == (change == "nothing")


def test_an_untrained_subset_of_aspects_is_not_in_the_adapter(dataset, tmp_path):
    config = small.config("aspects.aspects=[scene, brightness]", *PROMPT)
    train_aspects(config, dataset, tiny.backbone(), tmp_path / "two")
    assert read_info(tmp_path / "two").aspects == ("scene", "brightness")


def test_each_aspect_learns_from_so_many_images_at_most(tmp_path, dataset):
    few = stage1_aspects.annotated_records(dataset.split("train"), ASPECTS, 3)
    assert Counter(name for record in few for name in record.annotations) == dict.fromkeys(ASPECTS, 3)
    whole = {record.path: record.annotations for record in dataset.split("train")}
    assert all(record.annotations.items() <= whole[record.path].items() for record in few)
    mixed = stage1_aspects.annotated_records(dataset.split("train"), ASPECTS, {"scene": 2, "object": 1})
    counts = Counter(name for record in mixed for name in record.annotations)
    every = Counter(name for record in dataset.split("train") for name in record.annotations)
    assert counts == Counter({**every, "scene": 2, "object": 1})
    train_aspects(small.config(*PROMPT, "aspects.max_per_aspect=1"), dataset, tiny.backbone(), tmp_path / "one")
    assert read_info(tmp_path / "one" / "adapter").data["aspects"].images["train"] <= len(ASPECTS)


def test_the_prompt_holds_a_copy_of_its_aspects_or_names_them(tmp_path, aspects, dataset):
    backbone = tiny.backbone()
    with_copy = train_prompt(small.config(*PROMPT), dataset, backbone, aspects, tmp_path / "both").adapter
    without = train_prompt(
        small.config(*PROMPT), dataset, backbone, aspects, tmp_path / "only", include_aspects=False
    ).adapter
    assert read_info(with_copy).parts == ("aspects", "prompt")
    assert read_info(without).parts == ("prompt",)
    one, two = load_adapter(with_copy, backbone), load_adapter(without, backbone, aspects=aspects)
    assert torch.equal(one.prompt.vectors, two.prompt.vectors)
    original = load_adapter(aspects, backbone).aspects.state_dict()
    for name, value in original.items():
        assert torch.equal(one.aspects.state_dict()[name], value)
        assert torch.equal(two.aspects.state_dict()[name], value)
    assert read_info(with_copy).seeds == {"aspects": 0, "prompt": 0}
    conditions = read_info(with_copy).training  # those of stage 1 come along
    assert conditions["aspects"] == read_info(aspects).training["aspects"]
    assert conditions["prompt"].prompt_start == PromptInit(kind="random")
    assert read_info(with_copy).metrics.keys() > read_info(aspects).metrics.keys()
    with pytest.raises(AdapterError, match="does not hold its aspects"):
        load_adapter(without, backbone)


def test_without_aspects_the_run_and_the_adapter_say_so(tmp_path, dataset, caplog):
    with caplog.at_level(logging.INFO):
        result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "vs")
    assert "training without aspects (V+S)" in caplog.text
    assert "largest : smallest = 1.25" in caplog.text  # the imbalance of the labels
    info = read_info(result.adapter)
    assert info.aspects == ()
    assert info.parts == ("prompt",)
    assert "without aspects (V+S)" in (result.adapter / "README.md").read_text()


def test_a_prompt_may_use_some_of_the_aspects(tmp_path, aspects, dataset):
    config = small.config(*PROMPT, "prompt.aspects=[scene, object]")
    result = train_prompt(config, dataset, tiny.backbone(), aspects, tmp_path / "some")
    assert load_adapter(result.adapter, tiny.backbone()).aspects.aspects == ("object", "scene")


def test_a_prompt_keeps_the_division_of_aspects_that_learned_from_other_pictures(tmp_path, aspects, dataset):
    records = dataset.records
    other = replace(dataset, splits={"train": records[4:], "val": records[:4]})
    kept = tmp_path / "other" / "splits.aspects.json"
    result = train_prompt(small.config(*PROMPT), other, tiny.backbone(), aspects, tmp_path / "other")
    assert kept.read_bytes() == (aspects / "splits.json").read_bytes()
    assert json.loads(kept.read_text())["fingerprint"] == read_info(result.adapter).data["aspects"].fingerprint
    # the next prompt takes its aspects out of this run, whose own splits.json is not that of the aspects
    train_prompt(small.config(*PROMPT), other, tiny.backbone(), tmp_path / "other", tmp_path / "next")
    assert (tmp_path / "next" / "splits.aspects.json").read_bytes() == kept.read_bytes()
    train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), aspects, tmp_path / "same")
    assert not (tmp_path / "same" / "splits.aspects.json").exists()


def test_queries_and_attention_come_from_the_aspects(tmp_path, dataset):
    config = small.config(*PROMPT, "method.variant=released", "aspects.aspects=[scene]")
    train_aspects(config, dataset, tiny.backbone(), tmp_path / "a")
    result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), tmp_path / "a", tmp_path / "p")
    method = read_info(result.adapter).method
    assert (method.variant, method.queries, method.attention) == ("paper", 5, "multihead")


def test_balanced_weights_change_what_is_learned(tmp_path, dataset):
    vectors = []
    for weights in ("none", "balanced"):
        config = small.config(*PROMPT, f"prompt.class_weights={weights}", "prompt.batch_size=7")
        result = train_prompt(config, dataset, tiny.backbone(), None, tmp_path / weights)
        vectors.append(load_adapter(result.adapter, tiny.backbone()).prompt.vectors)
    assert not torch.equal(*vectors)


def test_the_loss_over_the_labels_is_learned_and_recorded(tmp_path, dataset):
    """The logged loss of a step that moves nothing is minus the likelihood that validation on the same images gives."""
    texts = {**{name: ["What is it?"] for name in ASPECTS}, "emotion": ["Which emotion is it? One of: {}."]}
    (tmp_path / "questions.json").write_text(json.dumps(texts))
    still = ("prompt.max_steps=1", "prompt.learning_rate=1e-12", "prompt.batch_size=64", "prompt.log_every=1")
    still = (*still, f"questions={tmp_path / 'questions.json'}")
    divided = replace(dataset, splits={**dataset.splits, "val": dataset.split("train")})
    for loss in ("answer", "labels"):
        config = small.config(*PROMPT, *still, f"prompt.loss={loss}")
        result = train_prompt(config, divided, tiny.backbone(), None, tmp_path / loss)
        lines = [json.loads(line) for line in (tmp_path / loss / "metrics.jsonl").read_text().splitlines()]
        step, validation = (next(line for line in lines if line["event"] == name) for name in ("step", "validation"))
        assert (step["loss"] == pytest.approx(-validation["log_likelihood"], rel=1e-4)) is (loss == "labels")
        record = read_info(result.adapter).training["prompt"]
        assert record.loss == (None if loss == "answer" else "labels")
        assert ("loss" in record.model_dump(mode="json")) is (loss == "labels")
        card = (tmp_path / loss / "adapter" / "README.md").read_text()
        assert ("loss over the probabilities of all labels" in card) is (loss == "labels")


def test_a_run_from_before_there_was_a_choice_of_loss_is_known(tmp_path, dataset):
    config = small.config(*PROMPT)
    train_prompt(config, dataset, tiny.backbone(), None, tmp_path / "run")
    assert "prompt.loss" not in json.loads((tmp_path / "run" / "run.json").read_text())["identity"]
    with pytest.raises(UsageError, match=r"prompt\.loss"):
        train_prompt(small.config(*PROMPT, "prompt.loss=labels"), dataset, tiny.backbone(), None, tmp_path / "run")


def test_a_finished_run_is_not_trained_again(aspects, dataset, monkeypatch, caplog):
    before = {path: path.stat().st_mtime_ns for path in aspects.rglob("*")}
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: pytest.fail("it trains"))
    with caplog.at_level(logging.INFO):
        result = train_aspects(small.config(*PROMPT), dataset, tiny.backbone(), aspects)
    assert "finished already" in caplog.text
    assert result.steps == 3
    assert {path: path.stat().st_mtime_ns for path in aspects.rglob("*")} == before


def test_another_configuration_in_the_same_folder_names_what_differs(aspects, dataset):
    config = small.config(*PROMPT, "aspects.learning_rate=0.02", "aspects.seed=5", "aspects.log_every=3")
    with pytest.raises(UsageError) as caught:
        train_aspects(config, dataset, tiny.backbone(), aspects)
    assert "aspects.learning_rate: 0.01 there, 0.02 now; aspects.seed: 0 there, 5 now" in str(caught.value)
    assert "log_every" not in str(caught.value)  # it changes nothing about the result


def test_other_data_or_another_backbone_in_the_same_folder_is_refused(aspects, dataset, tmp_path):
    with pytest.raises(UsageError, match="data: "):
        train_aspects(small.config(*PROMPT), small.write_dataset(tmp_path / "d", 10), tiny.backbone(), aspects)
    with pytest.raises(UsageError, match="backbone: "):
        train_aspects(small.config(*PROMPT), dataset, tiny.backbone(seed=1), aspects)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("out/adapter", None, "holds adapter, but no run.json"),
        ("out/checkpoints", None, "holds checkpoints, but no run.json"),
        ("out/run.json", "{", r"run.json cannot be read"),
        ("out", "", "is a file"),
    ],
)
def test_a_folder_of_unknown_origin_is_left_alone(tmp_path, dataset, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UsageError, match=message):
        train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "out")


def test_two_runs_cannot_share_a_folder(tmp_path, dataset, monkeypatch):
    from masp.training.run_dir import RunFolder

    with RunFolder(tmp_path).opened({}, {}), pytest.raises(CheckpointError, match="another run is writing"):
        train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path)


def test_a_signal_while_images_are_read_ends_the_run(tmp_path, dataset, monkeypatch):
    backbone = tiny.backbone()
    compute = type(backbone).visual_tokens

    def interrupted(self, pixels):
        signal.raise_signal(signal.SIGTERM)
        return compute(self, pixels)

    monkeypatch.setattr(type(backbone), "visual_tokens", interrupted)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train_prompt(small.config(*PROMPT), dataset, backbone, None, tmp_path)


def test_a_bad_image_is_left_out_and_accounted_for(tmp_path):
    dataset = small.write_dataset(tmp_path / "data")
    (tmp_path / "data" / "002.png").write_bytes(b"no image")
    result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "out")
    *bad, total = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [Path(row["path"]).name for row in bad] == ["002.png"]
    assert all(row["reason"] for row in bad)
    assert total == {"read": 18, "used": 17, "quarantined": 1}
    assert read_info(result.adapter).data["prompt"].images == {"train": 12, "val": 5}
    with pytest.raises(DataError, match=r"002\.png cannot be used"):
        train_prompt(small.config(*PROMPT, "prompt.strict=true"), dataset, tiny.backbone(), None, tmp_path / "strict")


def test_two_bad_images_of_few_stop_a_run(tmp_path):
    """One in each split: the limit is of both together."""
    dataset = small.write_dataset(tmp_path / "data")
    for number in (2, 15):
        (tmp_path / "data" / f"{number:03}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 18 files cannot be used, the last is .*015\.png"):
        train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "out")


def test_an_image_that_breaks_during_training_stops_it(tmp_path):
    dataset = small.write_dataset(tmp_path / "data")
    config = small.config(*PROMPT, "prompt.feature_memory_gb=0", "data.workers=0", "prompt.epochs=3")
    backbone = tiny.backbone()
    out = tmp_path / "out"

    from masp.training import stage2 as stage2_prompt

    class Breaking(stage2_prompt.PromptStage):
        def losses(self, share):
            for path in (tmp_path / "data").iterdir():
                path.write_bytes(b"broken")
            return super().losses(share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage2_prompt, "PromptStage", Breaking)
        with pytest.raises(DataError, match="could be read before and cannot now"):
            train_prompt(config, dataset, backbone, None, out)


def test_stage_1_needs_annotations(tmp_path):
    dataset = small.write_dataset(tmp_path / "data", train=1, val=1)
    with pytest.raises(DataError, match="is annotated with"):
        train_aspects(small.config(*PROMPT), dataset, tiny.backbone(), tmp_path / "out")


def test_without_a_validation_split_the_last_state_is_kept(tmp_path, caplog):
    dataset = small.write_dataset(tmp_path / "data", val=0)
    result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "out")
    assert result.metrics == {}
    assert "there is no validation split" in caplog.text


def test_a_prompt_of_length_0_is_refused(tmp_path, dataset):
    with pytest.raises(ConfigError, match="prompt_length is 0"):
        train_prompt(small.config("method.prompt_length=0"), dataset, tiny.backbone(), None, tmp_path)


def test_a_prompt_adapter_is_no_aspects_adapter(tmp_path, dataset):
    result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "vs")
    with pytest.raises(AdapterError, match="holds no aspect modules"):
        train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), result.adapter, tmp_path / "p")


def test_an_aspect_that_was_not_trained_cannot_be_used(tmp_path, dataset):
    config = small.config(*PROMPT, "aspects.aspects=[scene]")
    train_aspects(config, dataset, tiny.backbone(), tmp_path / "a")
    with pytest.raises(AdapterError, match="no module for object"):
        train_prompt(
            small.config(*PROMPT, "prompt.aspects=[scene, object]"), dataset, tiny.backbone(), tmp_path / "a", tmp_path
        )


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path, dataset):
    from accelerate.tracking import get_available_trackers

    missing = next(name for name in ("aim", "swanlab", "clearml") if name not in map(str, get_available_trackers()))
    with pytest.raises(ConfigError, match=f"prompt.trackers names {missing}"):
        train_prompt(small.config(f"prompt.trackers=[{missing}]"), dataset, tiny.backbone(), None, tmp_path)


@pytest.mark.parametrize("full", ["metrics.jsonl", "adapter", "run.json"])
def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on(tmp_path, dataset, monkeypatch, full):
    expected = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, tmp_path / "whole").adapter
    out = tmp_path / "cut"
    replace = Path.replace

    def refuse(self, target):
        if Path(target).name == full and (full != "run.json" or (out / "adapter").exists()):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    def refuse_writing(self, event, values):
        raise CheckpointError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        if full == "metrics.jsonl":
            patch.setattr("masp.training.checkpoints.MetricsFile.write", refuse_writing)
        with pytest.raises(MaspError, match="No space left on device"):
            train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, out)
    result = train_prompt(small.config(*PROMPT), dataset, tiny.backbone(), None, out)
    assert not list(out.rglob(".masp*"))
    for path in expected.iterdir():
        assert path.read_bytes() == (result.adapter / path.name).read_bytes(), path.name


def test_only_the_released_variant_shuffles_its_labels():
    questions = load_questions()
    fixed = QuestionSettings(questions, small.LABELS, "comma", "fixed", seed=0)
    mixed = QuestionSettings(questions, small.LABELS, "python", "shuffled", seed=0)
    count = len(questions.emotion)
    assert fixed.evaluation() == fixed.training(0, 0) == questions.ask_emotion("joy, fear, disgust")
    assert [fixed.training(0, epoch) for epoch in range(count)] == [
        questions.ask_emotion("joy, fear, disgust", number) for number in range(count)
    ]  # training takes the texts in turn
    assert mixed.evaluation() == questions.ask_emotion("['joy', 'fear', 'disgust']")
    orders = {mixed.training(example * count, 0) for example in range(40)}
    assert len(orders) == 6
    assert mixed.training(5, 1) == mixed.training(5, 1)


def test_a_run_without_a_rate_takes_that_of_the_backbone_and_as_many_steps_as_it_needs(tmp_path, dataset):
    backbone = tiny.backbone()
    few = ["data.path=unused", "data.workers=1", "method.prompt_length=3", "aspects.min_steps=4", "prompt.min_steps=5"]
    config = load_config(None, few)
    aspects = train_aspects(config, dataset, backbone, tmp_path / "aspects")
    prompt = train_prompt(config, dataset, backbone, None, tmp_path / "prompt")
    assert (aspects.steps, prompt.steps) == (4, 5)  # an epoch is one step in each, and three epochs are too few
    rates = {name: read_info(tmp_path / name).training[name].learning_rate for name in ("aspects", "prompt")}
    assert rates["aspects"] == pytest.approx(config.aspects.learning_rate_scale / backbone.dim)
    assert rates["prompt"] == pytest.approx(config.prompt.learning_rate_scale * backbone.embedding_std())


def test_an_order_that_is_drawn_once_a_run_belongs_to_the_text_and_the_seed():
    questions, orders = load_questions(), set()
    count = len(questions.emotion)
    for seed in range(20):
        once = QuestionSettings(questions, small.LABELS, "comma", "once", seed)
        asked = [{once.training(example, epoch) for epoch in range(30)} for example in range(5)]
        assert all(found == asked[0] for found in asked)
        assert len(asked[0]) == count  # one list for each text
        assert asked[0] <= set(once.all())
        assert once.evaluation() == once.all()[0] == questions.ask_emotion("joy, fear, disgust")
        orders.add(once.training(0, 0))
    assert len(orders) > 3


def test_trackers_hear_of_the_run(tmp_path, dataset):
    pytest.importorskip("tensorboard")
    config = small.config(*PROMPT, "prompt.trackers=[tensorboard]", "prompt.log_every=1")
    train_prompt(config, dataset, tiny.backbone(), None, tmp_path)
    events = list(tmp_path.rglob("events.out.tfevents.*"))
    assert events
    assert any(b"step/loss" in path.read_bytes() for path in events)


def test_measures_of_stage_1():
    pairs = [("scene", " Beach.", "beach"), ("scene", "city", "beach"), ("object", "dog, cat", "cat, dog, cup")]
    found = measured(pairs)
    assert found["accuracy/scene"] == 0.5
    assert found["accuracy/object"] == 0.0
    assert found["f1/object"] == pytest.approx(2 * 2 / (2 + 3))
    assert found["score"] == pytest.approx((0.5 + 0.8) / 2)
    assert measured([]) == {}
    repeated = [("object", "cat, cat", "cat"), ("object", "", "cup")]  # a list is a set, as in an evaluation
    assert measured(repeated)["f1/object"] == pytest.approx(2 / (1 + 2))


def test_stage_1_is_measured_on_images_from_everywhere_in_the_split(tmp_path, monkeypatch):
    """24 validation images that are listed label by label, of which 9 are measured on, by every start the same ones."""

    found = small.write_dataset(tmp_path / "data", train=9, val=24)
    held = tuple(sorted(found.splits["val"], key=lambda record: record.label))
    dataset, seen = replace(found, splits={**found.splits, "val": held}), []

    def validate(self, stop):
        seen.append([record for _, record in self.validation])
        return {}

    monkeypatch.setattr(stage1_aspects, "VALIDATED", 9)
    monkeypatch.setattr(AspectStage, "validate", validate)
    for name in "ab":
        train_aspects(small.config("aspects.max_steps=1"), dataset, tiny.backbone(), tmp_path / name)
    assert seen[0] == seen[1]
    places = [held.index(record) for record in seen[0]]
    assert len(places) == 9
    assert places == sorted(places)
    assert {place // 8 for place in places} == {0, 1, 2}
    assert stage1_aspects.spread(held, 24) == stage1_aspects.spread(held, 256) == list(held)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [10**9, 0])
@pytest.mark.parametrize("name", ["aspects", "prompt"])
def test_a_process_without_an_example_in_a_step_is_given_none(dataset, name, budget, workers):
    """Where the last batch of an epoch has fewer examples than there are processes; reading goes on behind it."""
    backbone, questions = tiny.backbone(), load_questions()
    records = dataset.split("train")
    store = FeatureCache(backbone, [record.path for record in records], ImageReading(workers=workers, budget=budget))
    store.fill(StopRequest())
    model = MaspModel(backbone, MethodConfig(), AspectModules(backbone.dim, ASPECTS, 1))
    if name == "aspects":
        stage = AspectStage(model, store, [AspectExample(i, 0, "low") for i in range(7)], [], questions)
    else:
        asking = QuestionSettings(questions, small.LABELS, "comma", "fixed", seed=0)
        stage = PromptStage(model, store, [(i, "joy") for i in range(7)], [], asking, ActiveParts(()))
    shares = [StepBatch(0, 0, (0, 1), 4), StepBatch(1, 0, (), 1), StepBatch(2, 1, (3,), 2), StepBatch(3, 1, (), 1)]
    loaded = [share.loaded for share in stage.load(shares)]
    assert [share.step for share in stage.load(shares)] == [0, 1, 2, 3]
    assert [None if tokens is None else len(tokens) for tokens in loaded] == [2, None, 1, None]
    assert torch.equal(loaded[2].tokens, store.visual([3]).tokens)


def stage_of(name, dataset):
    """A stage over seven examples, fresh every time."""
    backbone, questions = tiny.backbone(), load_questions()
    records = dataset.split("train")
    store = FeatureCache(backbone, [record.path for record in records], ImageReading(workers=0, budget=0))
    store.fill(StopRequest())
    generator = torch.Generator().manual_seed(2)
    modules = AspectModules(backbone.dim, ASPECTS, 1, "single", generator)
    if name == "aspects":
        examples = [AspectExample(i, a, "very low") for i in range(3) for a in (0, 2, 5)][:7]
        return AspectStage(MaspModel(backbone, MethodConfig(), modules), store, examples, [], questions)
    prompt = SoftPrompt(3, backbone.dim, torch.randn(3, backbone.dim, generator=generator))
    model = MaspModel(backbone, MethodConfig(prompt_length=3), modules.requires_grad_(False), prompt)
    asking = QuestionSettings(questions, small.LABELS, "comma", order="fixed", seed=0)
    chosen = [(i, small.LABELS[i % 3]) for i in range(7)]
    return PromptStage(model, store, chosen, [], asking, ActiveParts(), torch.linspace(0.1, 1.9, 7))


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("name", ["aspects", "prompt"])
def test_the_gradient_of_a_step_in_pieces_is_that_of_the_whole_batch(tmp_path, dataset, name, micro):
    """In fp32, with a weight for each label, images of several sizes, visual tokens read for every piece."""
    whole, pieces = stage_of(name, dataset), stage_of(name, dataset)
    wanted = gradients(tmp_path, whole, range(7), None)
    found = gradients(tmp_path, pieces, range(7), micro)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 1e-4
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        assert (gradient - wanted[key]).abs().max() <= 1e-5 * largest, key


def test_settings_of_memory_reach_both_stages(tmp_path, dataset, aspects, monkeypatch):
    """Pieces of two, layers computed again, validation of two images at once; the run goes on being the same run."""
    passed = []
    run = Decoder.forward

    def watched(self, embeddings, *given):
        if torch.is_grad_enabled():
            passed.append((len(embeddings), given[-1] is not None))
        return run(self, embeddings, *given)

    monkeypatch.setattr(Decoder, "forward", watched)
    measured = []
    monkeypatch.setattr(stage2_prompt, "score", lambda *given: (measured.append(len(given[1])), score(*given))[1])
    memory = [f"{stage}.{line}" for stage in ("aspects", "prompt") for line in ("micro_batch_size=2", "epochs=1")]
    memory += ["aspects.gradient_checkpointing=true", "prompt.gradient_checkpointing=true", "prompt.eval_batch_size=2"]
    train_aspects(small.config(*memory), dataset, tiny.backbone(), tmp_path / "aspects")
    assert passed
    assert set(passed) <= {(1, True), (2, True)}
    passed.clear()
    train_prompt(small.config(*memory), dataset, tiny.backbone(), None, tmp_path / "prompt")
    assert [size for size, _ in passed] == [2, 2, 1, 2, 2, 1, 2, 1]  # 13 images in batches of 5
    assert measured == [2, 2, 1]
    other = [line for line in memory if "checkpointing" not in line]
    again = train_prompt(small.config(*other), dataset, tiny.backbone(), None, tmp_path / "prompt")
    assert again.steps == 3
    with pytest.raises(UsageError, match=r"prompt\.micro_batch_size: 2 there, 3 now"):
        train_prompt(
            small.config(*memory, "prompt.micro_batch_size=3"), dataset, tiny.backbone(), None, tmp_path / "prompt"
        )


@pytest.mark.parametrize(
    ("width", "settings", "images"),
    [
        (64, {}, 64),
        (3584, {}, 8),
        (3584, {"micro_batch_size": 2}, 2),
        (3584, {"batch_size": 4, "micro_batch_size": 6}, 4),
        (3584, {"eval_batch_size": 32}, 32),
        (64, {"eval_batch_size": 3}, 3),
    ],
)
def test_validation_takes_as_many_images_as_a_step_of_training_fits(width, settings, images):
    assert measured_at_once(TrainConfig(**settings), width) == images


def test_pixel_bounds_of_training_are_those_of_prediction(tmp_path, dataset):
    """Whatever the checkpoint says of itself, also when it says something else by then."""
    place = str(tiny.checkpoint())
    bounded = load_backbone(BackboneConfig(id=place, dtype="float32", device="cpu", max_pixels=5000))
    settings = small.config("prompt.max_steps=1", "prompt.evaluate_every=0")
    trained = train_prompt(settings, dataset, bounded, None, tmp_path / "run")
    found = Masp.from_pretrained(trained.adapter, place, dtype="float32", device="cpu")
    assert found.backbone.image_transform == bounded.image_transform != tiny.backbone().image_transform
    assert found.predict(tiny.picture(300, 300)).label in dataset.labels
