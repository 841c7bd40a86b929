"""A run trains on the same images to its end, whatever can be read when it goes on."""

import logging
import os
from pathlib import Path

import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from masp.adapters import load_adapter, read_info
from masp.core.errors import DataError
from masp.training import Interrupted, train_prompt
from masp.training.disk_cache import DiskCache
from masp.training.feature_cache import FeatureCache, ImageReading
from masp.training.signals import StopRequest

FEW = ("prompt.max_steps=6", "prompt.batch_size=7", "prompt.epochs=3")
HURT = 4


def trained(dataset, out, *changes):
    return train_prompt(small.config(*FEW, *changes), dataset, tiny.backbone(), None, out).adapter


def cut(dataset, out, *changes, step=4, error=Interrupted):
    """A run that ends before a step; an interruption leaves a checkpoint."""
    update, done = torch.optim.AdamW.step, []

    def stumbling(self, *args, **more):
        done.append(1)
        if len(done) == step:
            raise error("made up")
        return update(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stumbling)
        with pytest.raises(error):
            trained(dataset, out, *changes)


def spoil(dataset):
    """Damage one image, as a failing disk would; its size stays, by which a data set is known again."""
    path = dataset.split("train")[HURT].path
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    return lambda: path.write_bytes(content)


def same_bytes(left, right):
    return all(path.read_bytes() == (right / path.name).read_bytes() for path in left.iterdir())


@pytest.mark.parametrize("kept", ["features", "prefix", "disk"])
def test_a_run_does_not_go_on_without_an_image_it_began_with(tmp_path, kept):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    disk = [f"prompt.store_dir={tmp_path / 'store'}"] if kept == "disk" else []
    changes = [f"prompt.store={'prefix' if kept == 'disk' else kept}", *disk]
    expected = trained(dataset, tmp_path / "whole", *changes)
    cut(dataset, tmp_path / "cut", *changes)
    account = (tmp_path / "cut" / "quarantine.jsonl").read_bytes()
    restore = spoil(dataset)
    with pytest.raises(DataError) as caught:
        trained(dataset, tmp_path / "cut", *changes)
    for part in (
        r"1 of the images that this run began with cannot be read now: ",
        "004.png (not a JPEG",
        "expected the images of its checkpoint (none was left out)",
        "name another --out",
    ):
        assert part in str(caught.value)
    assert (tmp_path / "cut" / "quarantine.jsonl").read_bytes() == account
    restore()
    assert same_bytes(expected, trained(dataset, tmp_path / "cut", *changes))


def test_an_image_that_was_left_out_stays_out_to_the_end_of_the_run(tmp_path, caplog):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    whole = trained(dataset, tmp_path / "whole")
    restore = spoil(dataset)
    without = trained(dataset, tmp_path / "without")
    cut(dataset, tmp_path / "cut")
    account = (tmp_path / "cut" / "quarantine.jsonl").read_bytes()
    restore()
    with caplog.at_level(logging.WARNING):
        found = trained(dataset, tmp_path / "cut")
    assert "left out to the end of this run, which began without, though readable now: " in caplog.text
    assert read_info(found).data["prompt"].images == {"train": 20, "val": 5}
    assert (tmp_path / "cut" / "quarantine.jsonl").read_bytes() == account
    vectors = [load_adapter(adapter, tiny.backbone()).prompt.vectors for adapter in (found, without, whole)]
    assert (vectors[0] - vectors[1]).abs().max() < 1e-5
    assert (vectors[2] - vectors[1]).abs().max() > 1e-3


def test_before_the_first_checkpoint_an_image_may_come_back(tmp_path):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    restore = spoil(dataset)
    cut(dataset, tmp_path / "cut", step=1, error=ValueError)
    restore()
    assert read_info(trained(dataset, tmp_path / "cut")).data["prompt"].images == {"train": 21, "val": 5}
    assert "004.png" not in (tmp_path / "cut" / "quarantine.jsonl").read_text()


def test_a_moved_data_set_is_held_to_its_account(tmp_path):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    restore = spoil(dataset)
    cut(dataset, tmp_path / "cut")
    restore()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = small.write_dataset(tmp_path / "elsewhere", train=21)
    assert read_info(trained(moved, tmp_path / "cut")).data["prompt"].images == {"train": 20, "val": 5}


def test_a_failure_of_the_system_is_not_remembered_on_the_shelf(tmp_path, monkeypatch):
    """Only the image's own damage is; so the next run reads it."""
    paths = [record.path for record in small.write_dataset(tmp_path / "data", train=5, val=0).split("train")]
    read, stores = Path.read_bytes, []

    def refusing(self):
        if self == paths[HURT]:
            raise OSError(24, os.strerror(24))
        return read(self)

    for refused in (True, False):
        with monkeypatch.context() as patch:
            if refused:
                patch.setattr(Path, "read_bytes", refusing)
            store = FeatureCache(
                tiny.backbone(), paths, ImageReading(workers=0), disk_cache=DiskCache(tmp_path / "store", 10**9)
            )
            store.fill(StopRequest())
        stores.append((store, len(list((tmp_path / "store").glob("*.safetensors")))))
    (first, after_first), (second, after_second) = stores
    assert first.usable == [True] * HURT + [False]
    assert second.usable == [True] * (HURT + 1)
    assert (after_first, after_second) == (0, 1)
    assert (first.visual([0, 1]).tokens - second.visual([0, 1]).tokens).abs().max() < 1e-5
