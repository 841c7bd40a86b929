"""Where exceptions end: every one becomes a readable line on stderr and an exit code.

Exit codes: 0 done, 1 failed (or a training stopped after saving its state), 2 wrong use (arguments, configuration keys,
names of labels or aspects), 130 interrupted.
"""

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator

from masp.core.errors import ConfigError, MaspError, UsageError

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory", re.IGNORECASE)


def guarded(command: Callable[[], object], debug: bool) -> int:
    """Runs a command and turns whatever it raises into an exit code.

    With `debug` the stack trace is printed before the line.
    """
    code = _run(command, debug)
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError) and code == 0:
            _say(describe(error)[0])
        return code or FAILED
    return code


def _run(command: Callable[[], object], debug: bool) -> int:
    try:
        command()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _say("interrupted")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = describe(error)
        agreed = error.agreed if isinstance(error, MaspError) else None
        if agreed is None or agreed.tells:  # of several processes, one says what happened
            _say(line)
        if agreed is not None:
            agreed.leave()
        return code
    return 0


def describe(error: BaseException) -> tuple[str, int]:
    """One line about an exception, and the exit code it deserves."""
    for cause in _chain(error):
        if _is_full_disk(cause):
            return f"error: the disk is full{_place(cause)}; free some space and run the same command again", FAILED
    if isinstance(error, MaspError):
        return f"error: {_one_line(str(error))}", WRONG_USE if isinstance(error, UsageError | ConfigError) else FAILED
    if isinstance(error, OSError):
        return f"error: {error.strerror or _one_line(str(error))}{_place(error)}", FAILED
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return "error: not enough memory; use a smaller --batch-size or batch_size, or a smaller backbone", FAILED
    what = f"{type(error).__name__}: {_one_line(str(error))}"
    return f"error: unexpected {what} (run it again with --debug for the stack trace)", FAILED


def _say(line: str) -> None:
    """Writes a line to stderr; where nobody reads it any more, silence is all that is left."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"masp: {line}\n")
        sys.stderr.flush()


def _drop_output() -> None:
    """Points stdout at nowhere, so that Python does not complain when it flushes a closed pipe at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.__stdout__.fileno())  # pyright: ignore[reportOptionalMemberAccess]
        os.close(nowhere)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_full_disk(error: BaseException) -> bool:
    """Libraries in Rust and C++ report a full disk with an exception type of their own, so its text counts too."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def _place(error: BaseException) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return f": {os.fsdecode(name)}" if isinstance(name, str | bytes) else ""


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "no message"
