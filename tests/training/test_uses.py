"""Several runs on one shelf: none takes away what another one uses, and all together keep the bound."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

import small_training as small
import tiny
from masp.core.errors import MaspError
from masp.training import train_prompt
from masp.training.disk_cache import CacheGroup, DiskCache
from masp.training.uses import NAMED

ROOM = 10**9


def group(seed=0):
    return CacheGroup({"a": torch.randn(1000, generator=torch.Generator().manual_seed(seed))}, {})


def names(folder):
    return sorted(path.stem for path in folder.glob("*.safetensors"))


def aged(folder, *chosen):
    """Make groups the longest unused, in this order."""
    for number, name in enumerate(chosen):
        os.utime(folder / f"{name}.safetensors", (number, number))


def size_of_one(folder):
    shelf = DiskCache(folder, ROOM)
    shelf.save("x", group())
    return (folder / "x.safetensors").stat().st_size


def test_what_a_living_run_uses_makes_no_room_however_long_ago(tmp_path):
    size = size_of_one(tmp_path / "measured")
    other, mine = DiskCache(tmp_path, ROOM), DiskCache(tmp_path, 3 * size)
    for name in "abc":
        other.save(name, group())
    other.close()
    assert other.load("a") is not None
    aged(tmp_path, "a", "b", "c")
    mine.save("d", group())
    mine.save("e", group())
    assert names(tmp_path) == ["a", "d", "e"]
    with pytest.raises(MaspError, match=r"needs .* GB, with .* that other runs are using; .*Wait until they have"):
        mine.save("f", group())
    assert names(tmp_path) == ["a", "d", "e"]
    other.close()
    mine.save("f", group())
    assert names(tmp_path) == ["d", "e", "f"]


def test_room_is_what_others_do_not_use_unless_it_may_be_the_same(tmp_path):
    size = size_of_one(tmp_path / "measured")
    left, used, mine = DiskCache(tmp_path, ROOM), DiskCache(tmp_path, ROOM), DiskCache(tmp_path, 10 * size)
    left.save("l", group())
    used.save("u", group())
    used.save("s", group())
    left.close()
    assert mine.room() == 10 * size  # nobody knows yet what is the same
    assert mine.room({"s", "n"}) == 9 * size
    mine.save("o", group())
    assert mine.room() == 9 * size
    assert mine.room({"s", "n"}) == 8 * size
    assert mine.room({"o"}) == 7 * size


def test_a_group_that_is_written_again_needs_no_room(tmp_path):
    """Two runs that build one store: the second to write finds the budget taken by the same group."""
    size = size_of_one(tmp_path / "measured")
    first, second = DiskCache(tmp_path, size), DiskCache(tmp_path, size)
    first.save("x", group())
    second.save("x", group())
    assert names(tmp_path) == ["x"]


def test_what_is_used_is_known_for_as_long_as_its_shelf_lives(tmp_path):
    shelf = DiskCache(tmp_path, ROOM)
    shelf.save("a", group())
    (mark,) = tmp_path.glob(f"{NAMED}*")
    assert mark.read_text() == "a\n"
    other = DiskCache(tmp_path, ROOM)
    assert mark.exists()  # it is held
    del shelf
    assert not mark.exists()
    other.close()


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch):
    from masp.training import disk_cache as room
    from masp.training import uses

    def refuse(handle, how):
        raise OSError(95, "Operation not supported")

    size = size_of_one(tmp_path / "measured")
    for module in (room, uses):
        monkeypatch.setattr(module.fcntl, "flock", refuse)
    first, second = DiskCache(tmp_path, ROOM), DiskCache(tmp_path, 2 * size)
    first.save("a", group())
    first.save("b", group())
    second.save("c", group())
    assert names(tmp_path) == ["b", "c"]  # nothing is known of others, and nothing else is wrong
    assert first.load("a") is None


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"), train=21)


def trained(dataset, out, store, *changes):
    config = small.config("prompt.max_steps=6", "prompt.batch_size=7", f"prompt.store_dir={store}", *changes)
    train_prompt(config, dataset, tiny.backbone(), None, out)
    return json.loads((out / "store.json").read_text())["kept"]


def test_a_run_leaves_what_it_used_to_others(tmp_path, dataset):
    store = tmp_path / "store"
    assert trained(dataset, tmp_path / "first", store) == "prefix"
    assert not list(store.glob(".masp*"))
    taken = sum(path.stat().st_size for path in store.iterdir())
    other = f"prompt.store_disk_gb={taken * 1.01 / 1024**3:.9f}"
    assert trained(dataset, tmp_path / "second", store, "data.longest_side=60", other) == "prefix"
    assert sum(path.stat().st_size for path in store.iterdir()) <= taken * 1.01


def test_auto_reckons_with_what_others_use_and_shares_what_is_the_same(tmp_path, dataset):
    store = tmp_path / "store"
    trained(dataset, tmp_path / "first", store)
    taken = sum(path.stat().st_size for path in store.iterdir())
    budget = f"prompt.store_disk_gb={taken * 1.3 / 1024**3:.9f}"
    living = DiskCache(store, ROOM)
    for name in names(store):
        assert living.load(name) is not None
    before = names(store)
    assert trained(dataset, tmp_path / "same", store, budget, "prompt.seed=3") == "prefix"
    assert names(store) == before
    # another size of the images: their visual tokens find room beside what is in use, their prefixes do not
    assert trained(dataset, tmp_path / "other", store, budget, "data.longest_side=60") == "features"
    assert set(names(store)) > set(before)


# --- real processes --------------------------------------------------------------------------------------------------

BUILDER = """
import sys
from pathlib import Path
import torch
from masp.core.errors import MaspError
from masp.training.disk_cache import Group, Shelf

folder, budget, who, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
shelf, saved = Shelf(folder, budget), []
print("ready", flush=True)
sys.stdin.readline()
for number in range(wanted):
    try:
        shelf.save(f"{who}{number}", Group({"a": torch.full((1000,), float(number))}, {}))
    except MaspError as error:
        print("full", error, flush=True)
        break
    saved.append(f"{who}{number}")
print("saved", *saved, flush=True)
sys.stdin.readline()
print("there", *[name for name in saved if shelf.load(name) is not None], flush=True)
sys.stdin.readline()
"""


def started(tmp_path, *arguments):
    (tmp_path / "builder.py").write_text(BUILDER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "builder.py", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def heard(child, word):
    """What a child says behind a word, which is one of its next lines."""
    for line in child.stdout:
        first, *rest = line.split()
        if first == word:
            return rest
    raise AssertionError(f"it never said {word}")


def go_on(children):
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()


@pytest.mark.slow
def test_two_processes_that_fill_one_store_keep_their_own_and_the_bound(tmp_path):
    """Ten groups fit; eight are there that nobody uses; two processes want eight each."""
    store = tmp_path / "store"
    size = size_of_one(tmp_path / "measured")
    before = DiskCache(store, ROOM)
    for number in range(8):
        before.save(f"old{number}", group())
    before.close()
    budget = 10 * size + size // 2
    children = [started(tmp_path, store, budget, who, 8) for who in "ab"]
    for child in children:
        heard(child, "ready")
    go_on(children)
    counts, ended = [], threading.Event()
    watch = threading.Thread(target=lambda: [counts.append(len(names(store))) for _ in iter(ended.is_set, True)])
    watch.start()
    saved = [heard(child, "saved") for child in children]
    ended.set()
    watch.join()
    counts.append(len(names(store)))
    go_on(children)
    assert [heard(child, "there") for child in children] == saved  # nobody lost anything to the other
    assert 10 <= sum(map(len, saved)) <= 12
    assert not [name for name in names(store) if name.startswith("old")]
    assert max(counts) <= 12
    go_on(children)
    for child in children:
        child.communicate()
    assert not list(store.glob(".masp*"))


@pytest.mark.slow
def test_what_a_killed_process_used_makes_room_again(tmp_path):
    store = tmp_path / "store"
    size = size_of_one(tmp_path / "measured")
    child = started(tmp_path, store, ROOM, "a", 3)
    heard(child, "ready")
    go_on([child])
    assert heard(child, "saved") == ["a0", "a1", "a2"]
    mine = DiskCache(store, 3 * size + size // 2)
    with pytest.raises(MaspError, match="other runs are using"):
        mine.save("b", group())
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert len(list(store.glob(f"{NAMED}*"))) >= 1
    mine.save("b", group())
    assert names(store) == ["a1", "a2", "b"]
    mine.close()
    assert not list(store.glob(f"{NAMED}*"))
