"""Prefixes that stage 2 keeps: the same adapter for less, whatever is kept, and to the byte after an interruption."""

import json
import logging
import re

import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from masp.adapters import load_adapter
from masp.core.errors import ConfigError, MaspError
from masp.model.masp_model import MaspModel
from masp.training import Interrupted, train_aspects, train_prompt
from masp.training.prefix_cache import GROUP

STORES = ("none", "features", "prefix")
FEW = ("prompt.max_steps=4", "prompt.batch_size=7")
ROOMS = (("9.5367431640625e-7", "9.54e-07"), ("0", "0"))  # 1,024 bytes and none; and as it is printed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"), train=21)


def trained(dataset, out, *changes, family="qwen2_vl"):
    config = small.config(*FEW, *changes)
    return train_prompt(config, dataset, tiny.backbone(family), None, out).adapter


def vectors(adapter, family="qwen2_vl"):
    return load_adapter(adapter, tiny.backbone(family)).prompt.vectors


def kept(out):
    return json.loads((out / "store.json").read_text())["kept"]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "instructblip"])
def test_every_store_trains_alike(tmp_path, dataset, family):
    found = []
    for store in STORES:
        found.append(vectors(trained(dataset, tmp_path / store, f"prompt.store={store}", family=family), family))
        assert kept(tmp_path / store) == store
    untouched = trained(dataset, tmp_path / "not", "prompt.learning_rate=1e-9", family=family)
    assert (found[0] - vectors(untouched, family)).abs().max() > 1e-2
    for other in found[1:]:
        assert (found[0] - other).abs().max() < 2e-3


def counted(monkeypatch):
    """Images of every pass over prefixes."""
    seen, prefix = [], MaspModel.prefix

    def watched(self, visual, questions, use=None):
        seen.append(len(visual))
        return prefix(self, visual, questions, use)

    monkeypatch.setattr(MaspModel, "prefix", watched)
    return seen


def test_each_prefix_is_computed_once(tmp_path, dataset, monkeypatch):
    seen = counted(monkeypatch)
    trained(dataset, tmp_path, "prompt.store=prefix", "prompt.max_steps=9", "prompt.epochs=3")
    assert sorted(seen[1:]) == sorted([GROUP, 26 - GROUP])  # and one image to learn the size


def test_auto_keeps_the_most_that_fits_and_is_used_again(tmp_path, dataset, monkeypatch):
    seen = counted(monkeypatch)
    trained(dataset, tmp_path / "all")
    trained(dataset, tmp_path / "tight", "prompt.feature_memory_gb=1e-4")
    trained(dataset, tmp_path / "nothing", "prompt.feature_memory_gb=1e-6")
    assert [kept(tmp_path / name) for name in ("all", "tight", "nothing")] == ["prefix", "features", "none"]
    seen.clear()
    trained(dataset, tmp_path / "once", "prompt.max_steps=3")  # 21 images, none of them twice
    assert kept(tmp_path / "once") == "features"
    assert seen == []


def test_an_interrupted_run_goes_on_with_what_it_kept(tmp_path, dataset, monkeypatch):
    """The first steps keep prefixes; the same command with another store and no memory ends in the same bytes."""
    changes = ("prompt.max_steps=8", "prompt.epochs=3")
    expected = trained(dataset, tmp_path / "whole", *changes)
    assert kept(tmp_path / "whole") == "prefix"
    step, done = torch.optim.AdamW.step, []

    def stumbling(self, *args, **more):
        done.append(1)
        if len(done) == 5:
            raise Interrupted("made up", "")
        return step(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stumbling)
        with pytest.raises(Interrupted):
            trained(dataset, tmp_path / "cut", *changes)
    result = trained(dataset, tmp_path / "cut", *changes, "prompt.store=features", "prompt.feature_memory_gb=1e-6")
    assert kept(tmp_path / "cut") == "prefix"
    for path in expected.iterdir():
        assert path.read_bytes() == (result / path.name).read_bytes(), path.name


def test_a_budget_too_small_for_what_was_asked_is_an_error(tmp_path, dataset):
    with pytest.raises(MaspError, match=r"need 0\.000\d+ GB; expected at most 0\.0001,.*feature_memory_gb"):
        trained(dataset, tmp_path, "prompt.store=prefix", "prompt.feature_memory_gb=1e-4")


def test_a_budget_too_small_for_visual_tokens_even_is_an_error_too(tmp_path, dataset):
    for number, (room, said) in enumerate(ROOMS):
        words = rf"visual tokens of these images do not fit: they need about 2\.\d+e-05 GB of {said};.*feature_memory"
        with pytest.raises(MaspError, match=words):
            trained(dataset, tmp_path / str(number), "prompt.store=prefix", f"prompt.feature_memory_gb={room}")


@pytest.mark.parametrize("where", ["feature_memory_gb", "store_disk_gb"])
def test_features_that_were_asked_for_and_do_not_fit_are_a_warning(tmp_path, dataset, caplog, where):
    changes = [] if where == "feature_memory_gb" else [f"prompt.store_dir={tmp_path / 'store'}"]
    for number, (room, said) in enumerate(ROOMS):
        caplog.clear()
        trained(dataset, tmp_path / str(number), "prompt.store=features", f"prompt.{where}={room}", *changes)
        assert kept(tmp_path / str(number)) == "none"
        (warning,) = warnings(caplog)
        assert f"allows {said}: they are not kept" in warning
        assert f"To keep them, set {where}=0.01 or more" in warning
        needed = float(re.search(r"need about (\S+) GB", warning)[1]) * 1024**3
        tokens = sum(12 if number % 3 == 0 else 6 for number in range(26))
        assert needed == pytest.approx(tokens * tiny.DIM * 4, rel=0.1)  # from the first sixteen


def test_questions_without_end_have_no_prefixes_where_each_has_its_own(tmp_path, dataset, monkeypatch):
    """With shuffled labels nearly every example asks something else, so a prefix is hardly ever met again."""
    seen = counted(monkeypatch)
    shuffled, family = "method.label_order=shuffled", "instructblip"
    trained(dataset, tmp_path / "auto", shuffled, family=family)
    assert (kept(tmp_path / "auto"), seen) == ("features", [])
    with pytest.raises(MaspError, match=r"another question.*prompt\.store=features"):
        trained(dataset, tmp_path / "asked", shuffled, "prompt.store=prefix", family=family)
    trained(dataset, tmp_path / "shared", shuffled)  # one prefix serves all questions
    assert kept(tmp_path / "shared") == "prefix"


def test_the_released_layout_has_no_prefixes(tmp_path, dataset):
    with pytest.raises(MaspError, match="stands before the image too"):
        trained(dataset, tmp_path / "asked", "prompt.store=prefix", "method.variant=released")
    trained(dataset, tmp_path / "auto", "method.variant=released")
    assert kept(tmp_path / "auto") == "features"


def test_images_of_one_size_share_a_batch_whatever_is_kept(tmp_path, dataset, monkeypatch):
    """21 images in batches of 7: a third of them is wider, so one batch of each three is all wide."""
    from masp.training import stage2 as stage2_prompt

    seen, losses = {}, stage2_prompt.PromptStage.losses

    def watched(self, share):
        seen.setdefault(name, []).append([self.examples[number][0] % 3 == 0 for number in share.examples])
        return losses(self, share)

    monkeypatch.setattr(stage2_prompt.PromptStage, "losses", watched)
    for name, changes in {"kept": [], "none": ["prompt.store=none"], "mixed": ["prompt.bucketed=false"]}.items():
        trained(dataset, tmp_path / name, "prompt.max_steps=3", *changes)
    assert seen["kept"] == seen["none"]
    assert sorted(map(sum, seen["kept"])) == [0, 0, 7]
    assert sorted(map(sum, seen["mixed"])) != [0, 0, 7]


def test_stage_1_has_no_prefixes():
    with pytest.raises(ConfigError, match="no image stands before the trained part"):
        small.config("aspects.store=prefix")


def test_no_images_are_an_error_whatever_is_kept(tmp_path):
    empty = small.write_dataset(tmp_path / "data", train=0)
    for store in STORES:
        with pytest.raises(MaspError, match=r"the split 'train' .* is empty"):
            trained(empty, tmp_path / store, f"prompt.store={store}")
    with pytest.raises(MaspError, match=r"the split 'train' .* is empty"):
        train_aspects(small.config(), empty, tiny.backbone(), tmp_path / "aspects")


def test_images_of_extreme_shape_are_kept_or_left_out_like_the_others(tmp_path):
    """A strip that the vision tower takes is trained on; one that it refuses is left out, with its reason."""
    dataset = small.write_dataset(tmp_path / "data", train=21)
    tiny.picture(600, 30, seed=1).save(tmp_path / "data" / "004.png")
    tiny.picture(900, 1, seed=2).save(tmp_path / "data" / "005.png")
    found = [vectors(trained(dataset, tmp_path / store, f"prompt.store={store}")) for store in STORES]
    for other in found[1:]:
        assert (found[0] - other).abs().max() < 2e-3
    for store in STORES:
        bad = (tmp_path / store / "quarantine.jsonl").read_text().splitlines()[:-1]
        assert ["005.png" in line for line in bad] == [True]
