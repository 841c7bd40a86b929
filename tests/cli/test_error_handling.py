"""Whatever a command raises ends as one line on stderr and an exit code; the stack trace only on request."""

import errno
import sys

import pytest

from masp.cli.console import FAILED, INTERRUPTED, WRONG_USE, describe, guarded
from masp.core.errors import AdapterError, ConfigError, DataError, UsageError


def raising(error):
    def command():
        raise error

    return command


def from_cause(cause):
    error = RuntimeError("writing failed")
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "out/weights.safetensors")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            DataError("the folder photos is empty", "images", "Check the path."),
            FAILED,
            "photos is empty; expected images",
        ),
        (AdapterError("hidden size 64", "3584"), FAILED, "hidden size 64; expected 3584"),
        (ConfigError("unknown key 'epoch'", "", "Did you mean 'epochs'?"), WRONG_USE, "Did you mean 'epochs'?"),
        (UsageError("two\nlines"), WRONG_USE, "two lines"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jpg"),
            FAILED,
            "No such file or directory: a.jpg",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"b.jpg"), FAILED, "Permission denied: b.jpg"),
        (FULL, FAILED, "the disk is full: out/weights.safetensors"),
        (from_cause(FULL), FAILED, "the disk is full: out/weights.safetensors"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FAILED, "the disk is full"),
        (from_cause(OSError(errno.EDQUOT, "Disk quota exceeded")), FAILED, "the disk is full"),
        (MemoryError(), FAILED, "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), FAILED, "not enough memory"),
        (RuntimeError("CUDA out of memory. Tried"), FAILED, "not enough memory"),
        (ZeroDivisionError("division\nby zero"), FAILED, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_every_error_is_one_readable_line(capsys, error, code, words):
    assert guarded(raising(error), debug=False) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("masp: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_debug_shows_the_trace_and_still_the_line(capsys):
    assert guarded(raising(DataError("no images")), debug=True) == FAILED
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("masp: error: no images\n")


def test_a_full_disk_is_found_through_a_configuration_error():
    error = UsageError("the report cannot be written")
    error.__cause__ = FULL
    assert describe(error)[1] == FAILED


def test_success_is_zero_and_exits_keep_their_code(capsys):
    assert guarded(lambda: None, debug=False) == 0
    assert guarded(lambda: sys.exit(2), debug=False) == 2
    assert guarded(lambda: sys.exit(None), debug=False) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(INTERRUPTED)])
def test_ctrl_c_says_so(capsys, error):
    assert guarded(raising(error), debug=False) == INTERRUPTED
    assert capsys.readouterr().err == "masp: interrupted\n"


def test_a_cycle_of_causes_ends():
    error = RuntimeError("round")
    error.__context__ = error.__cause__ = ValueError("and round")
    error.__cause__.__cause__ = error
    assert "round" in describe(error)[0]
