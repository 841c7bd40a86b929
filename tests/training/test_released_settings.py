"""The variant `released` by its settings: its file says what the authors' code does, and training does it."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from fixtures import tiny
from fixtures import training as small
from masp.adapters import AdapterInfo, BackboneRecord, read_info
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, load_config
from masp.core.labels import LABEL_SETS, RELEASED_LABELS
from masp.core.prompts import EMOTION
from masp.data.images import open_image, shrunk_size
from masp.data.prefetch import prefetch
from masp.model.masp_model import MaspModel
from masp.model.prediction import task_of
from masp.training import train_aspects, train_prompt
from masp.training.trainer import rate_factor

FILE = Path(__file__).resolve().parents[2] / "configs" / "released.yaml"
PAPER = FILE.with_name("paper.yaml")


def test_the_file_says_what_the_authors_code_does() -> None:
    config = load_config(FILE)
    method = config.method.resolved()
    assert method.model_dump() == {
        "variant": "released",
        "queries": 5,
        "prompt_length": 32,
        "attention": "multihead",
        "prompt_places": "both",
        "positions": "sequential",
        "supervised": "newline_answer",
        "label_list": "python",
        "label_order": "once",
        "shrink_rounding": "down",
        "routing": False,
    }
    for stage, rate, epochs in ((config.aspects, 1e-5, 3), (config.prompt, 5e-6, 1)):
        assert (stage.learning_rate, stage.epochs, stage.batch_size) == (rate, epochs, 1)
        assert (stage.warmup, stage.schedule, stage.weight_decay, stage.keep) == (0.03, "linear", 0.01, "last")
        assert stage.max_grad_norm == 1.0
    assert (config.aspects.query_std, config.prompt.init.kind) == (1.0, "unused_rows")
    assert config.data.longest_side == 1024


def test_the_papers_file_says_what_the_paper_does() -> None:
    config = load_config(PAPER)
    assert config.method.resolved() == MethodConfig(variant="paper", prompt_length=32).resolved()
    for stage in (config.aspects, config.prompt):
        assert (stage.learning_rate, stage.batch_size, stage.max_grad_norm) == (1e-4, 1, None)
        assert stage.epochs is not None  # exact: no least number of steps comes on top


def test_its_rate_rises_for_three_percent_and_falls_in_a_line() -> None:
    stage = load_config(FILE).prompt
    factors = [rate_factor(step, 100, stage.warmup, stage.schedule) for step in range(100)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == pytest.approx(96 / 97)
    assert factors[-1] == pytest.approx(1 / 97)


def test_both_stages_train_with_the_file(tmp_path: Path) -> None:
    few = ["data.path=unused", "data.workers=1", "method.prompt_length=3", "aspects.max_steps=2", "prompt.max_steps=2"]
    config, dataset, backbone = load_config(FILE, few), small.write_dataset(tmp_path / "data"), tiny.backbone()
    first = train_aspects(config, dataset, backbone, tmp_path / "aspects")
    second = train_prompt(config, dataset, backbone, tmp_path / "aspects", tmp_path / "prompt")
    assert (first.steps, second.steps) == (2, 2)
    info = read_info(second.adapter)
    assert info.method == config.method.resolved()
    assert (info.aspects, info.prompt_length) == (ASPECTS, 3)


@pytest.mark.parametrize(
    ("changes", "style", "orders"),
    [
        (["method.variant=released"], "['", 6),
        (["method.variant=released", "method.label_order=fixed"], "['", 1),
        (["method.label_order=shuffled"], ", ", 6),
        ([], ", ", 1),
    ],
)
def test_training_asks_in_the_order_and_print_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], style: str, orders: int
) -> None:
    asked: list[str] = []
    original = MaspModel.prompt_loss

    def heard(model, visual, questions, *others):
        asked.extend(questions)
        return original(model, visual, questions, *others)

    monkeypatch.setattr(MaspModel, "prompt_loss", heard)
    config = small.config("prompt.epochs=3", "prompt.evaluate_every=0", *changes)
    train_prompt(config, small.write_dataset(tmp_path / "data"), tiny.backbone(), None, tmp_path / "run")
    assert len(asked) == 39
    assert all(style in question for question in asked)
    found = {tuple(re.findall("joy|fear|disgust", question)) for question in asked}
    assert {frozenset(order) for order in found} == {frozenset(small.LABELS)}
    assert len(found) == orders


def test_the_authors_lists_hold_the_labels_of_the_data_sets() -> None:
    assert RELEASED_LABELS.keys() == LABEL_SETS.keys()
    for name, labels in RELEASED_LABELS.items():
        assert sorted(labels) == sorted(LABEL_SETS[name])
    assert RELEASED_LABELS["emotion6"] == ("sadness", "fear", "surprise", "anger", "joy", "disgust")


def test_large_pictures_are_shrunk_with_lanczos_before_the_backbones_own_rule(tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    tiny.picture(1900, 957).save(file)  # 515.8 pixels high
    backbone, config = tiny.backbone(), load_config(FILE)
    side, rounding = config.data.longest_side, config.method.resolved().shrink_rounding or "nearest"
    with Image.open(file) as image:
        by_hand = image.resize((1024, 515), Image.Resampling.LANCZOS)
    opened = open_image(file, side, rounding)
    assert opened.tobytes() == by_hand.tobytes()
    assert open_image(file, side).size == (1024, 516), "the paper variant rounds"
    found, whole = (backbone.preprocess([image]).values for image in (opened, open_image(file)))
    assert torch.equal(found, backbone.preprocess([by_hand]).values)
    assert found.shape == whole.shape
    assert not torch.equal(found, whole)


@pytest.mark.parametrize(
    ("size", "down", "nearest", "rows"),
    [
        ((1900, 957), (1024, 515), (1024, 516), (18, 18)),
        ((957, 1900), (515, 1024), (516, 1024), (37, 37)),
        ((3000, 2001), (1024, 683), (1024, 683), (24, 24)),
        ((1025, 1024), (1024, 1023), (1024, 1023), (37, 37)),
        ((2787, 2784), (1024, 1022), (1024, 1023), (36, 37)),  # a row of visual tokens less
        ((4851, 2586), (1024, 545), (1024, 546), (19, 20)),
        ((2586, 4851), (545, 1024), (546, 1024), (37, 37)),
        ((1024, 1023), (1024, 1023), (1024, 1023), (37, 37)),  # nothing is shrunk
        ((5000, 2), (1024, 1), (1024, 1), None),
    ],
)
def test_sizes_after_the_first_shrink_and_qwens_rule(
    size: tuple[int, int], down: tuple[int, int], nearest: tuple[int, int], rows: tuple[int, int] | None
) -> None:
    """`rows`: visual tokens from top to bottom of each, one for 28 pixels."""
    assert shrunk_size(size, 1024, "down") == down
    assert shrunk_size(size, 1024) == nearest
    if rows is not None:
        found = [smart_resize(height, width, 28, 56 * 56, 12_845_056)[0] // 28 for width, height in (down, nearest)]
        assert tuple(found) == rows


def test_a_released_adapter_reads_images_as_its_training_did(tmp_path: Path) -> None:
    """The rounding comes with the method of an adapter."""
    file = tmp_path / "large.png"
    tiny.picture(2787, 2784).save(file)
    sides = {}
    for variant in ("paper", "released"):
        method = MethodConfig(variant=variant).resolved()
        info = AdapterInfo(
            backbone=BackboneRecord.of(tiny.backbone()),
            method=method,
            aspects=(),
            labels=small.LABELS,
            longest_side=1024,
            questions={**dict.fromkeys(ASPECTS, "What?"), EMOTION: "Which of {}?"},
            data={},
        )
        task = task_of(info)
        assert open_image(file, task.longest_side, task.rounding).size == shrunk_size((2787, 2784), 1024, task.rounding)
        read = prefetch([file], lambda images: images[0].height, 1, 0, task.longest_side, rounding=task.rounding)
        sides[variant] = next(read).pixels
    assert sides == {"paper": 1023, "released": 1022}
