"""Only a complete checkpoint is ever loaded, and a disk that refuses costs nothing that was saved before."""

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fixtures.adapters import write_adapter
from masp.core import atomic_io as storage
from masp.core.errors import CheckpointError
from masp.training.checkpoints import Checkpoint, CheckpointStore
from masp.training.disk_cache import CacheGroup, DiskCache


def checkpoint(step: int) -> Checkpoint:
    tensors = {"a": torch.full((3, 5), float(step)), "b": torch.arange(7, dtype=torch.uint8)}
    return Checkpoint(step, tensors, {"step": step, "third": 1 / 3, "list": [1, [2, None]]})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_what_is_saved_is_loaded(store):
    assert store.latest() is None
    store.save(checkpoint(12))
    found = store.latest()
    assert found.step == 12
    assert found.state == checkpoint(12).state
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == {"a": torch.float32, "b": torch.uint8}
    assert torch.equal(found.tensors["a"], checkpoint(12).tensors["a"])


def test_the_last_ones_are_kept_and_found_by_number(store):
    for step in (2, 9, 10, 100_000_001):
        store.save(checkpoint(step))
    assert names(store) == ["step-00000010", "step-100000001"]
    assert store.latest().step == 100_000_001


def test_a_folder_without_manifest_is_ignored(store, caplog):
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    (store.folder / "step-00000002" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 1
    assert "step-00000002 is passed over: it is incomplete" in caplog.text


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_checkpoint_is_ignored_with_a_warning(store, caplog, name, damage):
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    path = store.folder / "step-00000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    changed = {"flip": bytes(content), "cut": path.read_bytes()[:-3], "empty": b"", "remove": None}[damage]
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 1
    assert "passed over" in caplog.text


def test_an_unknown_format_is_ignored(store):
    folder = store.save(checkpoint(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    assert store.latest() is None


def test_what_was_passed_over_takes_no_place_of_a_new_one(store):
    store.save(checkpoint(2))
    (store.save(checkpoint(9)) / "state.json").write_text("{")
    one = CheckpointStore(store.folder, keep=1)
    assert one.latest().step == 2
    assert names(one) == ["step-00000002", "step-00000009"]  # nothing goes before there is something new
    one.save(checkpoint(4))
    assert names(one) == ["step-00000004"]
    assert one.latest().step == 4


def test_a_damaged_checkpoint_does_not_count_among_the_kept_ones(store):
    store.save(checkpoint(2))
    (store.save(checkpoint(4)) / "state.json").write_text("{")
    assert store.latest().step == 2
    store.save(checkpoint(5))
    assert names(store) == ["step-00000002", "step-00000005"]


def test_a_damaged_checkpoint_that_is_written_again_counts(store):
    store.save(checkpoint(2))
    (store.save(checkpoint(4)) / "state.json").write_text("{")
    assert store.latest().step == 2
    store.save(checkpoint(4))
    store.save(checkpoint(6))
    assert names(store) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_refusing_disk_is_a_clear_error_and_costs_nothing(store, monkeypatch, call, number):
    store.save(checkpoint(1))

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(CheckpointError) as caught:
            store.save(checkpoint(2))
    assert os.strerror(number) in str(caught.value)
    assert "give the same command again" in str(caught.value)
    store.clean()
    assert store.latest().step == 1
    assert names(store) == ["step-00000001"]


@pytest.mark.parametrize("limit", [0, 300, 4096, 30_000])
def test_a_disk_that_fills_up_while_writing(store, limit):
    store.save(checkpoint(1))
    large = Checkpoint(2, {"a": torch.zeros(11, 1013)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python turns the signal into an OSError
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            store.save(large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.clean()
    assert store.latest().step == 1
    assert names(store) == ["step-00000001"]
    store.save(large)
    assert store.latest().step == 2


def test_files_get_the_rights_that_new_files_have(tmp_path):
    """The safetensors library writes with mode 0600, which a shared folder has no use for."""
    usual = os.umask(0o027)
    try:
        store = CheckpointStore(tmp_path / "checkpoints")
        folder = store.save(checkpoint(1))
        DiskCache(tmp_path / "shelf", 10**6).save("k", CacheGroup({"a": torch.zeros(3)}, {}))
        write_adapter(tmp_path / "adapter")
        storage.write_file(tmp_path / "file", b"x")
        storage.write_file(tmp_path / "file", b"y")
    finally:
        os.umask(usual)
    homes = (folder, tmp_path / "shelf", tmp_path / "adapter")
    files = [path for home in homes for path in home.rglob("*") if path.is_file()] + [tmp_path / "file"]
    assert {path.name for path in files} >= {"tensors.safetensors", "k.safetensors", "weights.safetensors"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o640" for path in files}


def test_leftovers_go_and_what_was_only_moved_aside_comes_back(tmp_path):
    (tmp_path / f"{storage.TEMPORARY}step-00000003").mkdir()
    (tmp_path / f"{storage.TEMPORARY}run.json").write_text("half")
    aside = tmp_path / f"{storage.ASIDE}adapter"
    aside.mkdir()
    (aside / "adapter.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("stays")
    storage.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "mine.txt"]
    assert (tmp_path / "adapter" / "adapter.json").read_text() == "{}"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "adapter"
    storage.write_folder(target, lambda folder: (folder / "one").write_text("1") and None)
    storage.write_folder(target, lambda folder: (folder / "two").write_text("2") and None)
    assert [path.name for path in target.iterdir()] == ["two"]

    def fail(folder: Path) -> None:
        (folder / "three").write_text("3")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        storage.write_folder(target, fail)
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


ROOT = Path(__file__).parents[2]


def crash_lab(stage: str, points: int, folder: Path) -> dict:
    paths = [str(ROOT / "tests"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "fixtures" / "crash_lab.py"), stage, str(points), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(report: dict, points: int) -> None:
    assert report["moments"] > 20
    assert len(report["points"]) == points
    for point in report["points"]:
        assert point["killed"] == signal.SIGKILL, point
        assert point["again"] == 0, point
        assert point["same"], point
        assert point["left"] == [], point


def test_three_kills(tmp_path):
    check(crash_lab("prompt", 3, tmp_path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["aspects", "prompt", "stored"])
def test_many_kills(tmp_path, stage):
    points = int(os.environ.get("MASP_KILL_POINTS", "24"))
    check(crash_lab(stage, points, tmp_path), points)
