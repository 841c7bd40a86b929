"""The variant `released` by its settings: its file says what the authors' code does, and training does it."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import small_training as small
import tiny
from masp.adapters import read_info
from masp.aspects import ASPECTS
from masp.config import MethodConfig, RunConfig, load_config
from masp.data.images import open_image
from masp.labels import LABEL_SETS, RELEASED_LABELS
from masp.model import MaspModel
from masp.training import train_aspects, train_prompt
from masp.training.schedule import rate_factor

FILE = Path(__file__).resolve().parents[1] / "configs" / "released.yaml"
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
    }
    for stage, rate, epochs in ((config.aspects, 1e-5, 3), (config.prompt, 5e-6, 1)):
        assert (stage.learning_rate, stage.epochs, stage.batch_size) == (rate, epochs, 1)
        assert (stage.warmup, stage.schedule, stage.weight_decay, stage.keep) == (0.03, "linear", 0.01, "last")
    assert (config.aspects.query_std, config.prompt.init.kind) == (1.0, "unused_rows")
    assert config.data.longest_side == 1024


def test_the_papers_file_says_what_the_paper_does() -> None:
    config = load_config(PAPER)
    assert config.method.resolved() == MethodConfig(variant="paper", prompt_length=32).resolved()
    for stage in (config.aspects, config.prompt):
        assert (stage.learning_rate, stage.batch_size) == (1e-4, 1)
        assert stage.epochs is not None  # exact: no least number of steps comes on top


def test_the_file_leaves_the_images_as_they_are_by_default() -> None:
    assert load_config(FILE).data == RunConfig().data


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
    tiny.picture(1900, 950).save(file)
    backbone, side = tiny.backbone(), load_config(FILE).data.longest_side
    with Image.open(file) as image:
        by_hand = image.resize((1024, 512), Image.Resampling.LANCZOS)
    found, whole = (backbone.preprocess([open_image(file, limit)]).values for limit in (side, None))
    assert torch.equal(found, backbone.preprocess([by_hand]).values)
    assert found.shape == whole.shape
    assert not torch.equal(found, whole)
