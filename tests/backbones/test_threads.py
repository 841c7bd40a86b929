"""One backbone asked by several threads at once answers each of them as it would alone."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.models import full_model, visual_tokens
from fixtures.tiny.kind import text_config
from masp.adapters import combine
from masp.backbones import device_map as placement
from masp.backbones.base import Backbone
from masp.backbones.decoder import Decoder
from masp.backbones.loading import load_backbone
from masp.core.types import ImageLayout
from masp.model.masp_model import MaspModel
from masp.model.scoring import score
from masp.predictor import Masp

MIXED = 257  # different calls
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
WORDS = ("joy", "fear", "awe", "anger", "sadness", "disgust")
TASKS = {"first": WORDS[:3], "second": WORDS[2:], "third": ("good", "bad")}
SIZES = ((62, 90), (140, 58), (90, 118), (61, 61))


@pytest.fixture
def hasty() -> Iterator[None]:
    """Python switches between threads a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(usual)


def fresh(family: str) -> Backbone:
    """A tiny backbone that has cached nothing yet."""
    return load_backbone(str(tiny.checkpoint(family)), dtype="float32", device="cpu")


class _Meddled:
    """A tokenizer of the `tokenizers` library; before its first call encodes, something else happens."""

    def __init__(self, inner: Any, meanwhile: Callable[[], object]) -> None:
        self.__dict__.update(inner=inner, meanwhile=meanwhile, due=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.inner, name, value)

    def encode_batch(self, *texts: Any, **options: Any) -> Any:
        if self.due:
            self.__dict__["due"] = False
            self.meanwhile()
        return self.inner.encode_batch(*texts, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_answer_in_the_middle_of_a_template_does_not_reach_it(family: str) -> None:
    """Marks are tokens in a template and text in an answer, and transformers' tokenizer keeps which as its state."""
    backbone: Any = fresh(family)
    tokenizer, image = backbone._tokenizer, ImageLayout(0)
    expected = tiny.backbone(family).template("How does it feel?", image)
    other = threading.Thread(target=backbone.answer_ids, args=("joy", True))

    def meanwhile() -> None:
        other.start()
        other.join(timeout=0.3)  # the other may have to wait for us

    tokenizer._tokenizer = _Meddled(tokenizer._tokenizer, meanwhile)
    assert backbone.template("How does it feel?", image) == expected
    other.join()
    assert backbone.answer_ids("<s>joy", True) == tiny.backbone(family).answer_ids("<s>joy", True)


def test_a_longer_row_leaves_no_trace_in_the_rotary_embedding() -> None:
    """InternVL3's language model stretches its frequencies with the length, and transformers keeps the stretch."""
    sizes = text_config(max_position_embeddings=16, rope_parameters=DYNAMIC)
    torch.manual_seed(0)
    decoders = [Decoder(LlamaModel(LlamaConfig(**sizes)).eval()) for _ in range(2)]
    decoders[1]._language.load_state_dict(decoders[0]._language.state_dict())
    rows = torch.randn(1, 60, tiny.DIM)

    def states(decoder: Decoder, length: int) -> torch.Tensor:
        positions, mask = torch.arange(length).expand(1, 1, -1), torch.ones(1, length, dtype=torch.bool)
        with torch.no_grad():
            return decoder.forward(rows[:, :length], positions, mask, None, None, None, None).hidden

    states(decoders[0], 60)
    assert torch.equal(states(decoders[0], 24), states(decoders[1], 24))
    assert not torch.allclose(states(decoders[0], 60)[:, :24], states(decoders[0], 24))


def test_layers_that_wait_on_the_disk_serve_one_pass_at_a_time(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
    network: Any = load_backbone(str(tiny.checkpoint()), dtype="float32", device="cpu")
    total = 4 * sum(value.numel() for value in network._model.parameters())
    layer = 4 * sum(value.numel() for value in network._parts.language.layers[0].parameters())
    monkeypatch.setattr(placement, "get_max_memory", lambda: {"cpu": int((total - layer / 2) / placement.USABLE)})
    model = MaspModel(load_backbone(str(tiny.checkpoint()), dtype="float32", device="spread"), full_model().method)
    assert any(value.device.type == "meta" for value in model.backbone._model.parameters())  # pyright: ignore
    visual = visual_tokens(full_model())

    def ask(number: int) -> torch.Tensor:
        return score(model, visual, f"question {number}", WORDS[:3])

    expected = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(8)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@dataclass(frozen=True)
class Call:
    """A call of `predict`, and the object that is asked."""

    masp: int
    task: str | None
    images: tuple[int, ...]
    explain: bool


@dataclass(frozen=True)
class Desk:
    """Adapters on the disk and images, from which calls are mixed."""

    several: Path
    single: Path
    pictures: tuple[Path, ...]
    label_sets: tuple[tuple[str, ...], ...]

    def masps(self, backbone: Backbone) -> list[Masp]:
        """One with several tasks, and for each label set one with its own, all over one backbone."""
        own = [Masp.from_pretrained(self.single, backbone, labels=labels) for labels in self.label_sets]
        return [Masp.from_pretrained(self.several, backbone), *own]

    def calls(self, count: int) -> list[Call]:
        """Tasks, label sets, sizes, numbers of images, with reasons and without; most come several times."""
        names, made = list(TASKS), []
        for number in [place % MIXED for place in range(count)]:
            masp = 0 if number % 3 == 0 else 1 + number % len(self.label_sets)
            images = tuple((number + step) % len(self.pictures) for step in range(1 + number % 2))
            made.append(Call(masp, None if masp else names[number // 3 % 3], images, number % 11 == 0))
        return made

    def answer(self, masps: list[Masp], call: Call) -> list[dict[str, Any]]:
        """What is predicted, as JSON values."""
        images = [self.pictures[image] for image in call.images]
        return [one.to_json() for one in masps[call.masp].predict(images, explain=call.explain, task=call.task)]


def desk_of(folder: Path, family: str, label_sets: int) -> Desk:
    for task, labels in TASKS.items():
        write_adapter(folder / task, labels=labels, family=family)
    combine(folder / "several", [f"{task}={folder / task}" for task in TASKS])
    write_adapter(folder / "single", family=family)
    pictures = tuple(folder / f"{number}.png" for number in range(len(SIZES)))
    for number, (path, size) in enumerate(zip(pictures, SIZES, strict=True)):
        tiny.picture(*size, seed=number).save(path)
    sets = tuple(islice(permutations(WORDS, 3), label_sets))
    return Desk(folder / "several", folder / "single", pictures, sets)


def hold(desk: Desk, family: str, threads: int, count: int) -> None:
    """Ask in threads, each beginning at another place, and hold every answer against what one thread gets."""
    calls = desk.calls(count)
    alone = desk.masps(fresh(family))
    expected = {call: desk.answer(alone, call) for call in dict.fromkeys(calls)}
    together = desk.masps(fresh(family))
    begin = threading.Barrier(threads)

    def work(place: int) -> list[Call]:
        begin.wait()
        mine = calls[place::threads]
        return [call for call in mine if desk.answer(together, call) != expected[call]]

    with ThreadPoolExecutor(threads) as pool:
        wrong = [call for found in pool.map(work, range(threads)) for call in found]
    assert not wrong


def test_a_few_calls_in_four_threads_equal_those_of_one(tmp_path: Path, hasty: None) -> None:
    hold(desk_of(tmp_path, "qwen2_vl", 17), "qwen2_vl", threads=4, count=40)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "instructblip"])
def test_thousands_of_mixed_calls_in_eight_threads_equal_those_of_one(family: str, tmp_path: Path, hasty: None) -> None:
    hold(desk_of(tmp_path, family, 61), family, threads=8, count=2000)


def test_a_switch_of_task_does_not_reach_a_call_that_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`use` of another thread once gave a call the labels of one task and the prompt of another."""
    desk = desk_of(tmp_path, "qwen2_vl", 1)
    masp = desk.masps(fresh("qwen2_vl"))[0].use("first")
    expected = desk.answer([masp], Call(0, "first", (0,), True))
    preprocess = masp.backbone.preprocess

    def meanwhile(images: Any) -> Any:
        masp.use("second")
        return preprocess(images)

    monkeypatch.setattr(masp.backbone, "preprocess", meanwhile)
    assert desk.answer([masp], Call(0, None, (0,), True)) == expected
    assert masp.task_name == "second"
