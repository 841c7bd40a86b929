"""Files that `torch.save` may have written: nothing in them runs or grows, and dense tensors come out."""

import builtins
import os
import pickle
import random
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.released_files import NAME, archive, aspect_tables, instructions, prompt_table, rewritten, saved
from masp.adapters.pickled import load_tensors
from masp.core.errors import AdapterError


class Runs:
    """What a pickle of it calls when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


class State:
    """A class of one's own, whose state would be set."""

    def __setstate__(self, state: str) -> None:
        Path(state).mkdir()

    def __getstate__(self) -> str:
        return self.folder

    folder = ""


def hostile(marker: str) -> dict[str, object]:
    """Values whose pickles make the folder `marker` when they are read in the ordinary way."""
    own = State()
    own.folder = marker
    return {
        "system": Runs(os.system, f"mkdir {marker}"),
        "process": Runs(subprocess.check_call, ["mkdir", marker]),
        "exec": Runs(builtins.exec, f"import os; os.mkdir({marker!r})"),
        "eval": Runs(builtins.eval, f"__import__('os').mkdir({marker!r})"),
        "in a table": {"q_view": {"scene": Runs(os.mkdir, marker)}, "cross_attn": {}, "fuser": None},
        "among tensors": {**prompt_table(), "<|reserved_special_token_7|>": Runs(os.mkdir, marker)},
        "in a list": [[[Runs(os.mkdir, marker)]]],
        "as a key": {Runs(os.mkdir, marker): torch.zeros(3)},
        "a state": own,
    }


@pytest.mark.parametrize("kind", hostile(""))
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_hostile_file_runs(
    tmp_path: Path, kind: str, legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "it-ran"
    value = hostile(str(marker))[kind]
    path = saved(tmp_path / "a.pth", value, _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(torch, "load", refuse)  # it is refused before anything is built
    with pytest.raises(AdapterError):
        load_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", hostile(""))
def test_the_hostile_files_are_hostile(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "it-ran"
    path = saved(tmp_path / "a.pth", hostile(str(marker))[kind])
    try:
        torch.load(path, weights_only=False)
    except TypeError:  # a table with what the call returned for a key
        assert kind == "as a key"
    assert marker.exists()


def refuse(*_: object, **__: object) -> object:
    raise AssertionError("torch.load was called")


INSTRUCTIONS = {
    "a call by old instructions": b"(cos\nsystem\nS'true'\no.",
    "a call by INST": b"(S'true'\nios\nsystem\n.",
    "a name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
    "a name from an extension table": b"\x80\x02\x82\x01.",
    "a persistent id as text": b"P0\n.",
    "an object": instructions(State()),
    "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
    "a name of torch that is no tensor": b"\x80\x02ctorch.hub\nload\n.",
    "a tensor that is not dense": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.",
    "a quantised tensor": b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.",
    "an array of numpy": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
    "64-bit numbers": b"\x80\x02ctorch\nDoubleStorage\n.",
    "whole numbers": b"\x80\x02ctorch\nLongStorage\n.",
    "a name with a blank": b"\x80\x02ctorch FloatStorage\n\n.",
    "another protocol": b"\x80\x04N.",
    "a list": instructions([1]),
    "a set": instructions({1}),
    "bytes": instructions(b"abc"),
    "a complex number": instructions(1j),
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x020.",
    "a store of nothing": b"\x80\x02q\x00.",
    "a value never stored": b"\x80\x02h\x05.",
    "no mark": b"\x80\x02K\x01t.",
    "a text cut short": b"\x80\x02X\xff\xff\xff\x7fabc.",
}


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_instructions_that_build_no_tensors(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AdapterError, match="pickle"):
        load_tensors(archive(tmp_path / "a.pth", INSTRUCTIONS[kind]))


def test_values_that_would_take_for_ever_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tuple holds the one before twice, so hashing the last one means 2^60 steps; or one lies in the other."""
    monkeypatch.setattr(torch, "load", refuse)
    doubled = b"".join(b"q" + bytes([n]) + b"0h" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60))
    for body in (doubled.replace(b"0h", b"h"), b"\x85" * 300_000):
        content = b"\x80\x02}K\x01\x85" + body + b"Ns."
        with pytest.raises(AdapterError, match="nests its values too deeply"):
            load_tensors(archive(tmp_path / "a.pth", content))


# --- archives ------------------------------------------------------------------------------------------------------


def test_a_compressed_archive_is_refused_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", instructions({}))
        file.writestr("x/data/0", bytes(50_000_000))
    assert path.stat().st_size < 60_000
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(zipfile.ZipFile, "read", refuse)
    with pytest.raises(AdapterError, match=r"is compressed or encrypted .*; expected tensors stored as they are"):
        load_tensors(path)


@pytest.mark.parametrize("both", [True, False])
def test_a_size_that_the_file_does_not_have(tmp_path: Path, both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory says 3 GB where 4 bytes are, stored, or packed into 4 bytes."""
    path = archive(tmp_path / "a.pth", instructions({}), "x")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data/0", b"abcd")
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    huge = struct.pack("<I", 3_000_000_000)
    content[place + 24 : place + 28] = huge
    if both:
        content[place + 20 : place + 24] = huge
    path.write_bytes(content)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AdapterError, match=r"claims to hold 3,000,000,\d+ bytes; expected at most the [\d,]+ bytes"):
        load_tensors(path)


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", instructions({}))
        file.writestr("x/data/0", bytes(1000))
        for number in range(1, 90):
            twin = zipfile.ZipInfo(f"x/data/{number}")
            first = file.getinfo("x/data/0")
            twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = (
                first.header_offset,
                1000,
                1000,
                first.CRC,
            )
            file.filelist.append(twin)
        file.start_dir = file.fp.tell()
        file._didModify = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AdapterError, match="claims to hold"):
        load_tensors(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["x/data.pkl", "x/DATA.pkl", "X/data.PKL"])
def test_a_name_twice(tmp_path: Path, second: str) -> None:
    path = archive(tmp_path / "a.pth", instructions({}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(second, instructions(Runs(os.getcwd)))
    with pytest.raises(AdapterError, match="some perhaps twice"):
        load_tensors(path)


def test_a_pickle_of_more_than_a_megabyte(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"has 1 pickles of 2,000,\d+ bytes; expected one of at most 1,048,576"):
        load_tensors(archive(tmp_path / "a.pth", instructions("a" * 2_000_000)))


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    old = saved(tmp_path / "old.pth", prompt_table(), _use_new_zipfile_serialization=False)
    assert torch.load(old, weights_only=True).keys() == prompt_table().keys()
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    for name in ("old.pth", "empty.pth", "plain.pth", "."):
        with pytest.raises(AdapterError, match=r"is no archive of torch\.save; .*save it again with torch\.save"):
            load_tensors(tmp_path / name)
    with pytest.raises(AdapterError, match=r"cannot be read \(No such file or directory\)\. Check the path"):
        load_tensors(tmp_path / "missing.pth")


def test_a_pickle_with_an_archive_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's reader would find the harmless archive at the end, torch's the pickle at the front."""
    front = saved(tmp_path / "a.pth", Runs(os.mkdir, str(tmp_path / "it-ran")), _use_new_zipfile_serialization=False)
    behind = saved(tmp_path / "b.pth", prompt_table())
    front.write_bytes(front.read_bytes() + behind.read_bytes())
    assert zipfile.is_zipfile(front)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AdapterError, match="is no archive"):
        load_tensors(front)
    assert not (tmp_path / "it-ran").exists()


def test_archives_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "word.pth", "w") as file:
        file.writestr("word/document.xml", "<a/>")
    with pytest.raises(AdapterError, match="has 0 pickles"):
        load_tensors(tmp_path / "word.pth")
    with pytest.raises(AdapterError, match="cannot be read"):
        load_tensors(archive(tmp_path / "no-data.pth", TENSOR_WITHOUT_DATA))


TENSOR_WITHOUT_DATA = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR."
)


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", prompt_table())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(prompt_table()[NAME.format(3)].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(AdapterError, match="damaged"):
        load_tensors(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="is no archive"):
        load_tensors(path)


# --- what comes through --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [aspect_tables(), prompt_table()], ids=["aspects", "prompt"])
def test_honest_files_come_through(tmp_path: Path, content: dict[str, Any]) -> None:
    found = load_tensors(saved(tmp_path / "a.pth", content))
    assert flat(found).keys() == flat(content).keys()
    assert all(torch.equal(value, flat(content)[name]) for name, value in flat(found).items())


def test_parameters_half_precision_and_shared_tensors_come_through(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    content = {
        "parameter": torch.nn.Parameter(one),
        "again": one,
        "turned": one.T,
        "half": one.half(),
        "bf16": one.bfloat16(),
    }
    found = flat(load_tensors(saved(tmp_path / "a.pth", content)))
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in content.items()}
    assert isinstance(found["parameter"], torch.nn.Parameter)


def test_tensors_from_a_gpu_come_through(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", prompt_table())
    rewritten(path, b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    found = flat(load_tensors(path))
    assert all(torch.equal(found[name], value) for name, value in prompt_table().items())


def test_a_module_s_state_comes_through(tmp_path: Path) -> None:
    """It has notes beside its tensors, which the pickle sets as an attribute."""
    module = torch.nn.MultiheadAttention(6, 1)
    found = load_tensors(saved(tmp_path / "a.pth", module.state_dict()))
    assert flat(found).keys() == module.state_dict().keys()


def flat(value: Any, before: str = "") -> dict[str, torch.Tensor]:
    """The tensors of nested tables under dotted names."""
    if isinstance(value, torch.Tensor):
        return {before.strip("."): value}
    return {} if value is None else {k: t for name, v in value.items() for k, t in flat(v, f"{before}.{name}").items()}


def test_a_pickle_with_changed_bytes_gives_tables_or_an_error(tmp_path: Path) -> None:
    """Nothing else, and no crash; the checksums of the archive fit."""
    source = saved(tmp_path / "a.pth", prompt_table())
    with zipfile.ZipFile(source) as file:
        entries = [(entry.filename, file.read(entry)) for entry in file.infolist()]
    said: list[str] = []
    for seed in range(150):
        dice = random.Random(seed)
        with zipfile.ZipFile(tmp_path / "b.pth", "w") as file:
            for name, data in entries:
                content = bytearray(data)
                if name.endswith("data.pkl"):
                    for _ in range(dice.randint(1, 3)):
                        content[dice.randrange(len(content))] = dice.randrange(256)
                file.writestr(name, bytes(content))
        try:
            load_tensors(tmp_path / "b.pth")
        except AdapterError as error:
            said.append(str(error))
    assert len(said) > 75
    assert all("\n" not in text for text in said)
