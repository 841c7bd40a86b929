"""What decides a run's result: every setting is in a run's identity, or marked as free to change on resume."""

from pathlib import Path
from typing import Any

import pytest

from fixtures import tiny
from fixtures import training as small
from fixtures.training import LEAVES
from masp.backbones.loading import load_backbone
from masp.core.config import BackboneConfig, load_config
from masp.data.records import Dataset
from masp.training.run_dir import hash_of
from masp.training.run_stage import identity_of

OTHER_VALUES = {
    "method.variant": "released",
    "method.queries": "7",
    "method.prompt_length": "7",
    "method.attention": "multihead",
    "method.prompt_places": "both",
    "method.positions": "sequential",
    "method.supervised": "newline_answer",
    "method.label_list": "python",
    "method.label_order": "shuffled",
    "method.routing": "true",
    "method.shrink_rounding": "down",
    "backbone.id": "other",
    "backbone.revision": "abc",
    "backbone.dtype": "float32",
    "backbone.device": "cpu",
    "backbone.min_pixels": "7000",
    "backbone.max_pixels": "7000",
    "backbone.accept": "[template]",
    "data.path": "elsewhere",
    "data.layout": "folder",
    "data.label_from": "majority",
    "data.label_pattern": "(?P<label>[a-z]+)",
    "data.label_thresholds": "{low: [null, 3], high: [3, null]}",
    "data.taxonomy": "polarity",
    **{f"data.columns.{name}": "x" for name in ("path", "label", "split", "positive", "negative", "neutral", "aspect")},
    "data.longest_side": "77",
    "data.workers": "5",
    "data.splits.kind": "content",
    "data.splits.seed": "7",
    "prompt.init.kind": "vocabulary",
    "prompt.bucketed": "false",
    "prompt.loss": "labels",
    "aspects.query_std": "0.5",
    "aspects.attention_rate": "0.5",
    "aspects.max_per_aspect": "2",
}
for _stage in ("aspects", "prompt"):
    OTHER_VALUES |= {
        f"{_stage}.learning_rate": "0.5",
        f"{_stage}.learning_rate_scale": "7",
        f"{_stage}.epochs": "7",
        f"{_stage}.min_steps": "7",
        f"{_stage}.keep": "last",
        f"{_stage}.max_steps": "7",
        f"{_stage}.batch_size": "7",
        f"{_stage}.warmup": "0.5",
        f"{_stage}.schedule": "linear",
        f"{_stage}.weight_decay": "0.5",
        f"{_stage}.seed": "7",
        f"{_stage}.patience": "7",
        f"{_stage}.evaluate_every": "7",
        f"{_stage}.micro_batch_size": "7",
        f"{_stage}.max_grad_norm": "7",
        f"{_stage}.gradient_checkpointing": "true",
        f"{_stage}.eval_batch_size": "7",
        f"{_stage}.checkpoint_minutes": "7",
        f"{_stage}.checkpoint_every": "7",
        f"{_stage}.keep_checkpoints": "7",
        f"{_stage}.log_every": "7",
        f"{_stage}.trackers": "[wandb]",
        f"{_stage}.store": "features",
        f"{_stage}.store_dir": "elsewhere",
        f"{_stage}.store_disk_gb": "7",
        f"{_stage}.feature_memory_gb": "7",
        f"{_stage}.strict": "true",
        f"{_stage}.aspects": "[scene]",
    }
TESTED_APART = {
    "prompt.init.text",
    "data.columns.value",
    "prompt.class_weights",
    "aspects.class_weights",
    "data.splits.train",
    "data.splits.val",
    "data.splits.test",
    "data.splits.file",
    "questions",
}
LOADED = {
    f"backbone.{name}" for name in ("id", "revision", "dtype", "device", "min_pixels", "max_pixels", "accept")
}  # known by what was loaded


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small.write_dataset(tmp_path_factory.mktemp("data"), train=3, val=2)


def identity(dataset: Dataset, *changes: str, stage: str = "prompt") -> dict[str, Any]:
    config = load_config(None, changes)
    settings = config.aspects if stage == "aspects" else config.prompt
    return identity_of(config, settings, stage, dataset, tiny.backbone())


def test_every_setting_is_tried() -> None:
    assert set(OTHER_VALUES) | TESTED_APART == set(LEAVES)


@pytest.mark.parametrize("key", sorted(set(OTHER_VALUES) - LOADED))
def test_the_identity_changes_with_what_must_match_for_a_resume(key: str, dataset: Dataset) -> None:
    stage = "aspects" if key.startswith("aspects.") else "prompt"
    before = identity(dataset, stage=stage)
    after = identity(dataset, f"{key}={OTHER_VALUES[key]}", stage=stage)
    assert (before == after) == LEAVES[key] == (hash_of(before) == hash_of(after))


@pytest.mark.parametrize(
    "changes",
    [
        ["prompt.class_weights=balanced"],
        ["prompt.init={kind: text, text: a}"],
        ["data.label_thresholds={low: [null, 3], high: [3, null]}", "data.columns.value=x"],
        ["data.splits={train: 0.7, val: 0.1, test: 0.2}"],
    ],
)
def test_the_identity_changes_with_groups_that_go_together(changes: list[str], dataset: Dataset) -> None:
    assert identity(dataset, *changes) != identity(dataset)


def test_what_the_variant_says_counts_as_written_out(dataset: Dataset) -> None:
    assert identity(dataset) == identity(dataset, "method.queries=1", "method.attention=single")
    released = "method.variant=released"
    assert identity(dataset, released) == identity(dataset, released, "method.queries=5")
    assert len(hash_of(identity(dataset))) == 64


def test_a_stages_identity_leaves_the_other_stage_out(dataset: Dataset) -> None:
    other = "aspects.epochs=7"
    assert identity(dataset) == identity(dataset, other)
    assert identity(dataset, stage="aspects") != identity(dataset, other, stage="aspects")


def test_a_division_counts_with_what_it_does_not_with_its_place(tmp_path: Path, dataset: Dataset) -> None:
    """The file's path is no JSON value and means nothing elsewhere; the data set that it divides is in the identity."""
    (tmp_path / "split.json").write_text("{}")
    given = f"data.splits.file={tmp_path / 'split.json'}"
    assert identity(dataset, given) == identity(dataset)
    swapped = Dataset("noise", dataset.root, dataset.labels, {"train": dataset.split("val")}, "folder")
    assert identity(swapped, given) != identity(dataset, given)


def test_questions_count_with_their_content(tmp_path: Path, dataset: Dataset) -> None:
    text = (Path(small.__file__).parents[2] / "src" / "masp" / "core" / "prompts.json").read_text()
    first, copy = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(text)
    copy.write_text(text)
    assert identity(dataset, f"questions={first}") == identity(dataset, f"questions={copy}") == identity(dataset)
    copy.write_text(text.replace("Name the place.", "Name this place."))
    assert identity(dataset, f"questions={copy}") != identity(dataset)


def test_pixel_bounds_count_by_the_backbone_that_was_loaded(dataset: Dataset) -> None:
    """They change every visual token, and the fingerprint of the weights not at all."""
    config, place = load_config(), str(tiny.checkpoint())
    usual, bounded = (
        load_backbone(BackboneConfig(id=place, dtype="float32", device="cpu", max_pixels=most)) for most in (None, 5000)
    )
    assert usual.fingerprint() == bounded.fingerprint()
    identities = [identity_of(config, config.prompt, "prompt", dataset, one) for one in (usual, bounded)]
    assert hash_of(identities[0]) != hash_of(identities[1])
    assert identities[1]["backbone.image_transform"]["max_pixels"] == 5000
    assert identities[0] == identity(dataset)
