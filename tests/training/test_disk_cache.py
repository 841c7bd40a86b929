"""What is kept on the disk between runs: never wrong, never more than allowed, and to the byte what a run computes."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fixtures import tiny
from fixtures import training as small
from masp.core.atomic_io import TEMPORARY
from masp.core.config import MethodConfig
from masp.core.errors import MaspError
from masp.core.prompts import Questions, load_questions
from masp.core.types import VisualTokens
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import ActiveParts, MaspModel
from masp.training import train_aspects, train_prompt
from masp.training.disk_cache import ABANDONED, CacheGroup, DiskCache, key_of
from masp.training.feature_cache import FeatureCache, ImageReading, VisualGroup, rows_of
from masp.training.prefix_cache import PrefixCache
from masp.training.signals import StopRequest

FEW = ("prompt.max_steps=6", "prompt.batch_size=7", "prompt.epochs=3", "prompt.store=prefix")
ROOM = 10**9


def group(seed=0, size=1000):
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return CacheGroup({"a.0": numbers, "b": torch.tensor([[True, False]]), "half": numbers.bfloat16()}, {"said": "yes"})


def names(folder):
    return sorted(path.stem for path in folder.iterdir())


def same(left, right):
    return left.notes == right.notes and all(
        torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors
    )


def test_a_group_comes_back_as_it_was(tmp_path):
    shelf = DiskCache(tmp_path / "new", ROOM)
    assert shelf.load("k") is None
    assert same(shelf.save("k", group()), group())
    assert same(DiskCache(tmp_path / "new", ROOM).load("k"), group())
    assert names(tmp_path / "new") == ["k"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def header(path):
    """A first number that promises more than there is."""
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def nonsense(path):
    path.write_bytes(b"this is no such file at all")


def swap(path):
    """The whole content of another group under this name."""
    DiskCache(path.parent, ROOM).save("other", group(1))
    (path.parent / "other.safetensors").replace(path)


@pytest.mark.parametrize("harm", [flip, cut, empty, header, nonsense, swap])
def test_a_damaged_group_is_not_used(tmp_path, harm, caplog):
    shelf = DiskCache(tmp_path, ROOM)
    shelf.save("k", group())
    harm(tmp_path / "k.safetensors")
    assert DiskCache(tmp_path, ROOM).load("k") is None
    assert "computed again" in caplog.text
    assert not (tmp_path / "k.safetensors").exists()
    assert same(shelf.save("k", group()), group())


@contextmanager
def no_more_files():
    """As many files are open as may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_group_that_is_not_read_for_want_of_open_files_stays(tmp_path):
    DiskCache(tmp_path, ROOM).save("k", group())
    shelf = DiskCache(tmp_path, ROOM)
    with no_more_files(), pytest.raises(MaspError, match=r"k\.safetensors in the store .*Too many open files.*ulimit"):
        shelf.load("k")
    assert same(shelf.load("k"), group())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOMEM, errno.ENFILE, errno.EMFILE])
@pytest.mark.parametrize("step", ["open", "map", "torch"])
def test_a_group_that_cannot_be_read_now_is_told_and_stays(tmp_path, monkeypatch, number, step, caplog):
    """Whoever says so: the system when the file is opened, the library when it maps it, or torch when it does."""
    from masp.training import disk_cache as room

    shelf = DiskCache(tmp_path, ROOM)
    shelf.save("k", group())
    content = (tmp_path / "k.safetensors").read_bytes()

    def refuse(*arguments, **more):
        if step == "torch":
            raise RuntimeError(f"unable to mmap 123 bytes from file <k>: {os.strerror(number)} ({number})")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "open") if step == "open" else (room, "safe_open")), refuse)
        with pytest.raises(MaspError, match=rf"cannot be read: .*{os.strerror(number)}.*left as it is"):
            shelf.load("k")
    assert "damaged" not in caplog.text
    assert (tmp_path / "k.safetensors").read_bytes() == content
    assert same(shelf.load("k"), group())


def test_what_is_no_file_is_told_and_stays(tmp_path):
    (tmp_path / "k.safetensors").mkdir()
    (tmp_path / "l.safetensors").symlink_to("l.safetensors")
    for name in "kl":
        with pytest.raises(MaspError, match=r"cannot be read: (Is a directory|Too many levels of symbolic links)"):
            DiskCache(tmp_path, ROOM).load(name)
    assert names(tmp_path) == ["k", "l"]


def test_a_full_store_is_an_error_and_loses_nothing(tmp_path):
    DiskCache(tmp_path, ROOM).save("a", group())
    size = (tmp_path / "a.safetensors").stat().st_size
    shelf = DiskCache(tmp_path, 2 * size + 1)
    shelf.save("b", group(1))
    with pytest.raises(MaspError, match=r"with all that lies in .* at most store_disk_gb.*remove files there"):
        shelf.save("c", group(2))
    assert names(tmp_path) == ["a", "b"]
    assert same(shelf.save("a", group()), group())  # what is written again needs no room


def test_room_is_what_others_leave(tmp_path, monkeypatch):
    from masp.training import disk_cache as room

    DiskCache(tmp_path, ROOM).save("mine", group())
    size = (tmp_path / "mine.safetensors").stat().st_size
    DiskCache(tmp_path, ROOM).save("your", group(1))
    shelf = DiskCache(tmp_path, 3 * size)
    assert (shelf.room(), shelf.room({"mine", "missing"}), shelf.room({"mine", "your"})) == (size, 2 * size, 3 * size)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    assert (shelf.room(), shelf.room({"mine"})) == (100, 100 + size)


def test_a_budget_too_small_for_one_group_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MaspError, match=r"the store needs .* at most store_disk_gb"):
        DiskCache(tmp_path, 100).save("k", group())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_a_group_is_written_leaves_nothing_half(tmp_path, monkeypatch):
    """The library writes a part, then says so in an error of its own."""
    from safetensors import SafetensorError

    from masp.training import disk_cache as room

    def full(tensors, path, notes):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    shelf = DiskCache(tmp_path, ROOM)
    shelf.save("k", group())
    monkeypatch.setattr(room, "save_file", full)
    with pytest.raises(MaspError, match=r"No space left on device.*run the same command again: it goes on"):
        shelf.save("l", group(1))
    assert names(tmp_path) == ["k"]
    assert same(shelf.load("k"), group())


def test_what_a_dead_writer_left_is_removed_after_a_while(tmp_path):
    for name, age in ((".masp-partial-1-old", 2 * ABANDONED), (".masp-partial-2-new", 0)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    DiskCache(tmp_path, ROOM)
    assert [path.name for path in tmp_path.iterdir()] == [".masp-partial-2-new"]  # it may be being written


def test_a_writer_that_finishes_meanwhile_is_no_error(tmp_path, monkeypatch):
    (tmp_path / ".masp-partial-3-k").write_bytes(b"whole")
    glob = Path.glob

    def listed(self, pattern):
        found = list(glob(self, pattern))
        for path in found:
            path.rename(tmp_path / "k.safetensors")
        return iter(found)

    monkeypatch.setattr(Path, "glob", listed)
    DiskCache(tmp_path, ROOM)
    assert [path.name for path in tmp_path.iterdir()] == ["k.safetensors"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaspError, match=r"the store in .*file cannot be written"):
        DiskCache(tmp_path / "file", ROOM)


def test_keys_differ_with_every_part():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of({"a": 1}), key_of({"a": 2}), key_of({"b": 1}), key_of({"a": "1"})}) == 4


# --- in training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"), train=21)


def trained(dataset, out, store, *changes, family="qwen2_vl", dtype="float32", seed=0, aspects=None):
    config = small.config(*FEW, *([] if store is None else [f"prompt.store_dir={store}"]), *changes)
    return train_prompt(config, dataset, tiny.backbone(family, dtype, seed), aspects, out).adapter


def equal(left, right):
    return all(path.read_bytes() == (right / path.name).read_bytes() for path in left.iterdir())


@pytest.fixture
def work(monkeypatch):
    """Counts of images through the vision tower and through a prefix."""
    counts = {"vision": 0, "prefix": 0}
    backbone, prefix = type(tiny.backbone()), MaspModel.prefix
    vision = backbone.visual_tokens

    def seen(self, pixels):
        counts["vision"] += len(pixels)
        return vision(self, pixels)

    def passed(self, visual, questions, use=None):
        counts["prefix"] += len(visual)
        return prefix(self, visual, questions, use)

    monkeypatch.setattr(backbone, "visual_tokens", seen)
    monkeypatch.setattr(MaspModel, "prefix", passed)
    return counts


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "instructblip"])
def test_a_store_changes_no_byte_and_is_used_again(tmp_path, dataset, work, family):
    store = tmp_path / "store"
    expected = trained(dataset, tmp_path / "memory", None, family=family)
    assert equal(trained(dataset, tmp_path / "disk", store, family=family), expected)
    work.update(vision=0, prefix=0)
    assert equal(trained(dataset, tmp_path / "again", store, family=family), expected)
    trained(dataset, tmp_path / "other", store, "prompt.seed=3", "method.prompt_length=5", family=family)
    assert work["vision"] == 0
    if family != "instructblip":  # there another seed asks an image another question first
        assert work["prefix"] == 2  # one image in each run, to learn the size


def test_both_stages_share_a_store(tmp_path, dataset, work):
    config = small.config("aspects.max_steps=2", f"aspects.store_dir={tmp_path / 'store'}")
    train_aspects(config, dataset, tiny.backbone(), tmp_path / "a")
    before = work["vision"]
    trained(dataset, tmp_path / "p", tmp_path / "store", aspects=tmp_path / "a")
    assert work["vision"] == before == 26


def test_what_depends_on_something_else_is_not_used(tmp_path, dataset, work):
    """Other weights, another image size, a changed image, other aspects: each is computed again."""
    store = tmp_path / "store"
    trained(dataset, tmp_path / "first", store)
    for number, (changes, seed) in enumerate([((), 1), (("data.longest_side=60",), 0)]):
        work.update(vision=0, prefix=0)
        found = trained(dataset, tmp_path / f"disk{number}", store, *changes, seed=seed)
        assert (work["vision"], work["prefix"]) == (26, 27)
        assert equal(found, trained(dataset, tmp_path / f"memory{number}", None, *changes, seed=seed))
    for stage_seed in (0, 1):
        out = tmp_path / f"aspects{stage_seed}"
        train_aspects(small.config("aspects.max_steps=1", f"aspects.seed={stage_seed}"), dataset, tiny.backbone(), out)
        work.update(vision=0, prefix=0)
        trained(dataset, tmp_path / f"with{stage_seed}", store, aspects=out)
        assert (work["vision"], work["prefix"]) == (0, 27)


def built(tmp_path, dataset, family, aspects, questions):
    """The first prefix as a store gives it, which is how it is computed."""
    backbone, method = tiny.backbone(family), MethodConfig(queries=2, prompt_length=3).resolved()
    model = MaspModel(backbone, method, aspects, None, questions)
    paths = [record.path for record in dataset.split("train")[:2]]
    features = FeatureCache(backbone, paths, ImageReading(workers=0), disk_cache=DiskCache(tmp_path, ROOM))
    features.fill(StopRequest())
    use, asked = ActiveParts(aspects.aspects), ["Which emotion?"] * 2
    store = PrefixCache(model, features, use, asked)
    store.size()
    expected = model.prefix(features.visual([0, 1]), asked, use).rows()[0].states
    assert torch.equal(store.seen([0], asked[:1]).states, expected)
    return expected


def test_the_same_aspects_in_another_order_have_another_prefix(tmp_path, dataset):
    first = AspectModules(tiny.DIM, ("scene", "object"), 2, "single", torch.Generator().manual_seed(1))
    with torch.no_grad():
        first.module("scene").value.mul_(-2)
    second = AspectModules(tiny.DIM, ("object", "scene"), 2, "single")
    second.load_state_dict(first.state_dict())
    left, right = (built(tmp_path, dataset, "qwen2_vl", modules, None) for modules in (first, second))
    assert (left - right).abs().max() > 1e-3


def test_aspects_that_were_asked_something_else_have_another_prefix(tmp_path, dataset):
    """Where visual tokens depend on the question, an aspect reads those for its own question."""
    modules = AspectModules(tiny.DIM, ("scene", "object"), 2, "single", torch.Generator().manual_seed(1))
    known = load_questions()
    other = Questions({**known.aspects, "scene": ("Indoors or outdoors, and where exactly?",)}, known.emotion)
    left, right = (built(tmp_path, dataset, "instructblip", modules, questions) for questions in (known, other))
    assert (left - right).abs().max() > 1e-5


def test_what_another_number_format_saw_is_not_used(tmp_path, dataset, work):
    """Also where the dtype that is computed in is the same."""
    pytest.importorskip("bitsandbytes")
    trained(dataset, tmp_path / "first", tmp_path / "store")
    work.update(vision=0, prefix=0)
    found = trained(dataset, tmp_path / "disk", tmp_path / "store", dtype="nf4")
    assert (work["vision"], work["prefix"]) == (26, 27)
    assert equal(found, trained(dataset, tmp_path / "memory", None, dtype="nf4"))


def test_a_changed_picture_is_read_again(tmp_path, work):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    trained(dataset, tmp_path / "first", tmp_path / "store")
    tiny.picture(84, 56, seed=99).save(tmp_path / "data" / "020.png")
    changed = small.write_dataset(tmp_path / "data", train=21)
    work.update(vision=0, prefix=0)
    found = trained(changed, tmp_path / "disk", tmp_path / "store")
    assert work["vision"] == 10  # its group, of the second ten images
    assert equal(found, trained(changed, tmp_path / "memory", None))


def test_a_damaged_store_is_repaired(tmp_path, dataset):
    store = tmp_path / "store"
    expected = trained(dataset, tmp_path / "whole", store)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    assert len(before) == 4  # two groups of visual tokens, two of prefixes
    for path, harm in zip(sorted(store.iterdir()), (flip, cut, empty, flip), strict=True):
        harm(path)
    assert equal(trained(dataset, tmp_path / "again", store), expected)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_bad_images_are_remembered_with_their_reasons(tmp_path, work):
    dataset = small.write_dataset(tmp_path / "data", train=21)
    (tmp_path / "data" / "003.png").write_bytes(b"no image")
    first, again = (trained(dataset, tmp_path / name, tmp_path / "store") for name in ("first", "again"))
    assert work["vision"] == 25
    assert equal(first, again)
    accounts = [(tmp_path / name / "quarantine.jsonl").read_text() for name in ("first", "again")]
    assert accounts[0] == accounts[1]
    assert "003.png" in accounts[0]


def test_a_full_disk_while_the_store_grows_ends_the_run_and_the_same_command_goes_on(tmp_path, dataset, monkeypatch):
    expected = trained(dataset, tmp_path / "whole", None)
    out, store = tmp_path / "cut", tmp_path / "store"
    replace, written = Path.replace, []

    def refuse(self, target):
        if Path(target).suffix == ".safetensors" and Path(target).parent == store:
            written.append(target)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        with pytest.raises(MaspError, match=r"No space left on device.*run the same command again"):
            trained(dataset, out, store)
    assert len(list(store.iterdir())) == 2  # what was whole stays, nothing half
    assert equal(trained(dataset, out, store), expected)


def test_auto_takes_no_more_of_the_disk_than_it_may(tmp_path, dataset):
    trained(dataset, tmp_path / "out", tmp_path / "store", "prompt.store=auto", "prompt.store_disk_gb=1e-4")
    assert '"features"' in (tmp_path / "out" / "store.json").read_text()
    with pytest.raises(MaspError, match="store_disk_gb"):
        trained(dataset, tmp_path / "asked", tmp_path / "store", "prompt.store_disk_gb=1e-4")


WORK = """
import sys
from pathlib import Path
import torch
from fixtures import training as small
from masp.backbones.loading import load_backbone
from masp.training import train_prompt
torch.set_num_threads(1)
root, out, changes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
backbone = load_backbone(str(root / "checkpoint"), dtype="float32", device="cpu")
train_prompt(small.config(*changes), small.write_dataset(root / "data", train=21), backbone, None, out)
"""


@pytest.mark.slow
def test_two_runs_that_build_one_store_at_once_disturb_nobody(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "checkpoint").mkdir()
    tiny.write_checkpoint(tmp_path / "checkpoint", "qwen2_vl")
    small.write_dataset(tmp_path / "data", train=21)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    shared = f"prompt.store_dir={tmp_path / 'store'}"
    runs = {"alone": [], "left": [shared], "right": [shared]}
    children = [
        subprocess.Popen(
            [sys.executable, tmp_path / "work.py", tmp_path, tmp_path / name, *FEW, *changes],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for name, changes in runs.items()
    ]
    for child in children:
        _, said = child.communicate()
        assert child.returncode == 0, said.decode()[-2000:]
    for name in ("left", "right"):
        assert equal(tmp_path / "alone" / "adapter", tmp_path / name / "adapter")
    assert not list((tmp_path / "store").glob(".masp*"))


KILLED = """
import os, signal
from masp.training import disk_cache as shelf
flush, calls = shelf.flush, []

def dying(path):
    calls.append(path)
    if len(calls) == 3:  # the first group is whole (file, folder), the second is written aside
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)

shelf.flush = dying
"""


@pytest.mark.slow
def test_a_run_that_is_killed_while_its_store_grows_goes_on_with_what_is_whole(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    tiny.write_checkpoint(tmp_path / "checkpoint", "qwen2_vl")
    small.write_dataset(tmp_path / "data", train=21)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    store = tmp_path / "store"

    def run(name, before, *changes):
        (tmp_path / "work.py").write_text(before + WORK)
        command = [sys.executable, tmp_path / "work.py", tmp_path, tmp_path / name, *FEW, *changes]
        return subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False)

    assert run("whole", "").returncode == 0
    assert run("cut", KILLED, f"prompt.store_dir={store}").returncode == -signal.SIGKILL
    (whole,) = store.glob("*.safetensors")
    (half,) = store.glob(f"{TEMPORARY}*")
    kept = whole.read_bytes()
    os.utime(half, (time.time() - 2 * ABANDONED,) * 2)
    done = run("cut", "", f"prompt.store_dir={store}")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert whole.read_bytes() == kept
    assert not list(store.glob(".masp*"))
    assert equal(tmp_path / "whole" / "adapter", tmp_path / "cut" / "adapter")


def test_pooled_features_are_kept_with_their_tokens() -> None:
    backbone = tiny.backbone("photo")
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 62), tiny.picture(58, 140, seed=1)]))
    rows = rows_of(visual)
    group = VisualGroup.unpacked(VisualGroup((3, 7), (), tuple(rows), 0).packed(), [3, 7])
    found = VisualTokens.stack(group.tokens)
    assert torch.equal(found.tokens, visual.tokens)
    assert torch.equal(found.pooled, visual.pooled)
    assert group.size == sum(4 * (one.tokens.numel() + one.pooled.numel()) for one in rows)
