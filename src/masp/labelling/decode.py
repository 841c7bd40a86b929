"""Reading images in a process of its own, so that one that kills its decoder costs that image and nothing else.

The process reads a request per line and answers with a line of JSON and, where that says so, raw pixels. It ends when
its input ends, so none is left behind by a parent that was killed.
"""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

from PIL import Image

from masp.core.errors import ImageError, MaspError
from masp.data.images import Rounding, decode_image

OK, MISSING, UNREADABLE, TOO_LARGE, CRASHED = "ok", "missing", "unreadable", "too_large", "crashed"
HOME = __name__
"""The module whose `serve` the process runs."""
READY = b"ready\n"
STATUSES = (OK, MISSING, UNREADABLE, TOO_LARGE, CRASHED)


@dataclass(frozen=True)
class Decoded:
    """An image, or why there is none.

    Attributes:
        image: RGB pixels; None unless the status is `ok`.
        status: one of `STATUSES`.
        error: why there is no image.
    """

    image: Image.Image | None
    status: str
    error: str | None = None


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

    def read(self, uri: str, offset: int | None, size: int | None) -> Decoded:
        """The image at a place; never raises because of an image.

        Raises:
            MaspError: the process cannot be started.
        """
        if size is not None and size > self._limits.max_bytes:
            return Decoded(None, TOO_LARGE, f"{size:,} bytes, more than {self._limits.max_bytes:,}")
        process = self._started()
        timer = threading.Timer(self._limits.seconds, process.kill)
        timer.start()
        try:
            return self._asked(process, {"uri": uri, "offset": offset, "size": size, **self._how()})
        except (OSError, ValueError, KeyError):
            process.kill()  # one that answers nonsense is still there
            code = process.wait()
            self.close()
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
        answer = json.loads(process.stdout.readline())
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
        image, answer = _decoded(json.loads(line))
        out.write(json.dumps(answer).encode() + b"\n")
        if image is not None:
            out.write(image.tobytes())
        out.flush()


def _decoded(request: dict[str, Any]) -> tuple[Image.Image | None, dict[str, Any]]:
    """The image that a request names, and what is said of it."""
    try:
        content = read_bytes(request["uri"], request["offset"], request["size"], request["most"])
    except FileNotFoundError:
        return None, {"status": MISSING, "error": "there is no such file"}
    except OSError as error:
        return None, {"status": MISSING, "error": f"cannot be read ({error})"[:300]}
    if len(content) > request["most"]:
        return None, {"status": TOO_LARGE, "error": f"more than {request['most']:,} bytes"}
    try:
        image = decode_image(content, request["uri"], request["side"], request["rounding"])
    except ImageError as error:
        return None, {"status": UNREADABLE, "error": error.reason[:300]}
    return image, {"status": OK, "size": image.size}


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
