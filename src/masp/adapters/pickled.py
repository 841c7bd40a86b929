"""Reading the tensors of a file that `torch.save` wrote, so that nothing in it runs and nothing in it grows.

The only file that calls `torch.load`. It takes weights only; before that, the directory of the archive and every
instruction of the pickle in it are held against what dense tensors need, which is far less than torch would let pass.
"""

import pickletools
import re
import warnings
import zipfile
from pathlib import Path

import torch

from masp.core.errors import AdapterError, reason_of, shown

MOST_INSTRUCTIONS = 2**20  # bytes; those of the authors' aspect modules take 3 KB
MOST_ENTRIES = 10_000
DEEPEST = 4  # tuples in tuples; a tensor's own arguments need two

NAMES = {
    "collections OrderedDict",
    "torch BFloat16Storage",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
PLAIN = {"BININT", "BININT1", "BININT2", "BINUNICODE", "LONG1", "NEWFALSE", "NEWTRUE", "NONE"}
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
BUILDING = {"BINPERSID", "BUILD", "EMPTY_DICT", "GLOBAL", "MARK", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "STOP"}
INSTRUCTIONS = TUPLES | PLAIN | PUT | GET | BUILDING

_ONLY = "dense tensors of float32, float16 or bfloat16 in tables, and nothing else"
_STRANGER = "Do not open this file with anything else unless you know who made it."
_AGAIN = "Download it again; if it is your own, save it again with torch.save."


def load_tensors(path: Path) -> object:
    """What the file holds, on the CPU and mapped, not read: tables of tensors, whose names and shapes are not checked.

    Raises:
        AdapterError: not an archive of `torch.save`, damaged, compressed, or with anything but dense tensors in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # readers warn of what is refused here anyway
        _check_instructions(_instructions(path), path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged file makes torch raise anything
            raise AdapterError(f"{path} cannot be read ({reason_of(error, 160)})", _ONLY, _AGAIN) from None


def _instructions(path: Path) -> bytes:
    """The pickle of the archive, once its directory is honest."""
    try:
        size = path.stat().st_size
        if not path.is_file() or not _begins_as_archive(path) or not zipfile.is_zipfile(path):
            todo = (
                "Files of torch before 1.6 are plain pickles, which masp does not read: save it again with torch.save."
            )
            raise AdapterError(f"{path} is no archive of torch.save", "a zip archive of tensors", todo)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_directory(entries, size, path)
            pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
            if len(pickles) != 1 or pickles[0].file_size > MOST_INSTRUCTIONS:
                got = f"{path} has {len(pickles)} pickles of {sum(entry.file_size for entry in pickles):,} bytes"
                raise AdapterError(got, f"one of at most {MOST_INSTRUCTIONS:,} bytes", _AGAIN)
            if (broken := archive.testzip()) is not None:
                raise AdapterError(f"{path} is damaged at {shown(broken)}", "the bytes that were saved", _AGAIN)
            return archive.read(pickles[0])
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror or error})", "", "Check the path.") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise AdapterError(f"{path} is damaged ({reason_of(error, 160)})", "an archive of torch.save", _AGAIN) from None


def _begins_as_archive(path: Path) -> bool:
    """Whether the file is one archive from its first byte on, not a pickle with an archive behind it."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_directory(entries: list[zipfile.ZipInfo], size: int, path: Path) -> None:
    """Nothing is larger in memory than on the disk: no compression, no shared bytes, each name once.

    (`torch.save` never compresses. Names are compared as torch's own reader does, without regard to case.)
    """
    declared = sum(entry.file_size for entry in entries)
    packed = next(
        (entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1), None
    )
    if packed is not None:
        got = f"{path} is compressed or encrypted ({shown(packed.filename)}, {packed.file_size:,} bytes unpacked)"
        raise AdapterError(got, "tensors stored as they are, as torch.save does", _STRANGER)
    if declared > size or any(entry.file_size != entry.compress_size for entry in entries):
        got = f"{path} claims to hold {declared:,} bytes"
        raise AdapterError(got, f"at most the {size:,} bytes of the file", _STRANGER)
    if len(entries) > MOST_ENTRIES or len({entry.filename.casefold() for entry in entries}) < len(entries):
        got = f"{path} has {len(entries):,} entries, some perhaps twice"
        raise AdapterError(got, f"at most {MOST_ENTRIES:,}, each once", _STRANGER)


def _check_instructions(content: bytes, path: Path) -> None:
    """Every instruction builds tensors, tables or what they are made of; nothing else is named, nothing nests deeply.

    The pickle is not run: its stack is followed with the depth of each value in its place.
    """
    stack: list[int | None] = []  # None is a mark
    memo: dict[object, int] = {}
    try:
        for kind, argument, _ in pickletools.genops(content):
            if kind.name not in INSTRUCTIONS:
                raise AdapterError(f"the pickle in {path} has the instruction {kind.name}", _ONLY, _STRANGER)
            if kind.name == "PROTO" and argument != 2:
                raise AdapterError(
                    f"the pickle in {path} has the protocol {argument}", "2, as torch.save writes", _AGAIN
                )
            if kind.name == "GLOBAL" and argument not in NAMES:
                name = ".".join(str(argument).split(" "))
                raise AdapterError(f"the pickle in {path} asks for {shown(name)}", _ONLY, _STRANGER)
            if kind.name in PUT:
                memo[argument] = stack[-1] or 0
            elif kind.name in GET:
                stack.append(memo[argument])
            else:
                _follow(kind, stack)
            if (stack and (stack[-1] or 0) > DEEPEST) or (kind.name in GET and stack[-1]):
                raise AdapterError(f"the pickle in {path} nests its values too deeply", _ONLY, _STRANGER)
    except (ValueError, LookupError, TypeError) as error:
        raise AdapterError(f"the pickle in {path} is damaged ({reason_of(error, 160)})", _ONLY, _AGAIN) from None


def _follow(kind: pickletools.OpcodeInfo, stack: list[int | None]) -> None:
    """What one instruction does to the stack; a tuple is one deeper than what it holds."""
    needs = list(kind.stack_before)
    taken: list[int | None] = []
    if pickletools.markobject in needs:
        while stack[-1] is not None:
            taken.append(stack.pop())
        stack.pop()
        needs = needs[: needs.index(pickletools.markobject)]
    taken += [stack.pop() for _ in needs]
    if kind.name == "MARK":
        stack.append(None)
        return
    depth = 1 + max((value or 0 for value in taken), default=-1) if kind.name in TUPLES else 0
    stack += [depth] * len(kind.stack_after)
