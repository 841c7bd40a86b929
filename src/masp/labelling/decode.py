"""Reading images in a process of its own, so that one that kills its decoder costs that image and nothing else.

The process reads a request per line and answers with a line of JSON and, where that says so, raw pixels. It ends when
its input ends, so none is left behind by a parent that was killed.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from masp.core.errors import ImageError, MaspError, OutageError
from masp.data.images import Rounding, decode_image

OK, MISSING, UNREADABLE, TOO_LARGE, CRASHED = "ok", "missing", "unreadable", "too_large", "crashed"
HOME = __name__
"""The module whose `serve` the process runs."""
READY, FETCHED = b"ready\n", b"fetched\n"
STATUSES = (OK, MISSING, UNREADABLE, TOO_LARGE, CRASHED)
UNAVAILABLE = "unavailable"
"""Never written: the store may answer another time."""
PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each further try of an object whose store does not answer; the store's client tries for some too."""
_OUTAGE = re.compile(
    r"AWS Error (NETWORK_CONNECTION|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|SLOW_DOWN|THROTTLING)"
    r"|HTTP status (408|429|5\d\d)"
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED)"
)
_BUSY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN}
_BUSY |= {errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
"""Numbers of errors of a network's or a machine's state, beside those of ConnectionError and TimeoutError."""


@dataclass(frozen=True)
class Decoded:
    """An image, or why there is none.

    Attributes:
        image: RGB pixels; None unless the status is `ok`.
        status: one of `STATUSES`.
        error: why there is no image.
        late: the store took too long, and said nothing.
    """

    image: Image.Image | None
    status: str
    error: str | None = None
    late: bool = False


@dataclass(frozen=True)
class Limits:
    """How an image is read.

    Attributes:
        longest_side: it is shrunk to this; None: never.
        rounding: of the shorter side.
        max_bytes: a larger file is not opened.
        seconds: an image that takes longer has crashed its decoder.
    """

    longest_side: int | None
    rounding: Rounding
    max_bytes: int
    seconds: float


class Decoder:
    """One such process; started when it is needed, and again after it died. For one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._fetched = False  # whether the image that is being read is no longer the store's affair

    def read(self, uri: str, offset: int | None, size: int | None) -> Decoded:
        """The image at a place; never raises because of an image.

        One that never comes in time has crashed its decoder, if its store still gives the first byte of it.

        Raises:
            OutageError: what holds the image does not answer, after several tries.
            MaspError: the process cannot be started.
        """
        if size is not None and size > self._limits.max_bytes:
            return Decoded(None, TOO_LARGE, f"{size:,} bytes, more than {self._limits.max_bytes:,}")
        found = self._read_once(uri, offset, size)
        for pause in PAUSES:
            if found.status == UNAVAILABLE:
                time.sleep(pause)
                found = self._read_once(uri, offset, size)
        if found.status != UNAVAILABLE:
            return found
        if found.late:
            first = self._read_once(uri, offset, 1)
            if first.status != UNAVAILABLE:  # a byte comes, or there is none: it is this image that is too slow
                return first if first.status == MISSING else Decoded(None, CRASHED, found.error)
        raise OutageError(f"{uri} {found.error}", "a store that answers", "Give the same command again when it does.")

    def _read_once(self, uri: str, offset: int | None, size: int | None) -> Decoded:
        process = self._started()
        self._fetched = False
        timer = threading.Timer(self._limits.seconds, process.kill)
        timer.start()
        try:
            return self._asked(process, {"uri": uri, "offset": offset, "size": size, **self._how()})
        except (OSError, ValueError, KeyError):
            process.kill()  # one that answers nonsense is still there
            code = process.wait()
            self.close()
            if code == -signal.SIGKILL and "://" in uri and not self._fetched:
                return Decoded(None, UNAVAILABLE, f"was not there after {self._limits.seconds:g} s", late=True)
            return Decoded(None, CRASHED, f"the decoder ended with {code} or took over {self._limits.seconds:g} s")
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _how(self) -> dict[str, Any]:
        limits = self._limits
        return {"side": limits.longest_side, "rounding": limits.rounding, "most": limits.max_bytes}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            words = [sys.executable, "-c", f"from {HOME} import serve; serve()"]
            environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
            )
            assert self._process.stdout is not None
            if self._process.stdout.readline() != READY:  # its start is no image's fault
                self.close()
                raise MaspError("the process that reads images does not start", "", "Its own message stands above.")
        return self._process

    def _asked(self, process: subprocess.Popen[bytes], request: dict[str, Any]) -> Decoded:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        self._fetched = line == FETCHED
        answer = json.loads(process.stdout.readline() if self._fetched else line)
        if answer["status"] != OK:
            return Decoded(None, answer["status"], answer["error"])
        width, height = answer["size"]
        pixels = process.stdout.read(3 * width * height)
        return Decoded(Image.frombytes("RGB", (width, height), pixels), OK)


def serve() -> None:
    """The process: answers every request on standard input."""
    out = sys.stdout.buffer
    out.write(READY)
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content, answer = _fetch(request)
        image = None
        if content is not None:
            out.write(FETCHED)
            out.flush()
            image, answer = _decode(content, request)
        out.write(json.dumps(answer).encode() + b"\n")
        if image is not None:
            out.write(image.tobytes())
        out.flush()


def _fetch(request: dict[str, Any]) -> tuple[bytes | None, dict[str, Any]]:
    """The bytes that a request names, or what is said of them."""
    try:
        content = read_bytes(request["uri"], request["offset"], request["size"], request["most"])
    except FileNotFoundError:
        return None, {"status": MISSING, "error": "there is no such file"}
    except OSError as error:
        status = UNAVAILABLE if may_pass(error) else MISSING
        return None, {"status": status, "error": f"cannot be read ({error})"[:300]}
    if len(content) > request["most"]:
        return None, {"status": TOO_LARGE, "error": f"more than {request['most']:,} bytes"}
    return content, {}


def _decode(content: bytes, request: dict[str, Any]) -> tuple[Image.Image | None, dict[str, Any]]:
    """The image in these bytes, and what is said of it."""
    try:
        image = decode_image(content, request["uri"], request["side"], request["rounding"])
    except ImageError as error:
        return None, {"status": UNREADABLE, "error": error.reason[:300]}
    return image, {"status": OK, "size": image.size}


def may_pass(error: OSError) -> bool:
    """Whether a store or this machine refused for now, and not because of what was asked for.

    Without an answer, overloaded, or broken inside (5xx): yes. No such object, or no right to it: no. Object stores
    say so in words only.
    """
    known = isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _BUSY
    return known or _OUTAGE.search(str(error)) is not None


def read_bytes(uri: str, offset: int | None, size: int | None, most: int) -> bytes:
    """The content of a file or of a part of one, at most one byte more than `most`.

    Raises:
        OSError: it cannot be read.
    """
    if "://" not in uri:
        with open(uri, "rb") as file:  # noqa: PTH123  (a path of any spelling, a million times)
            file.seek(offset or 0)
            return file.read(most + 1 if size is None else min(size, most + 1))
    from masp.labelling.manifest import remote  # pyarrow, for those who need it

    files, path = remote(uri)
    with files.open_input_file(path) as source:
        source.seek(offset or 0)
        return source.read(most + 1 if size is None else min(size, most + 1))
