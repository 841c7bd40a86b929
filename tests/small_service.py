"""A service over tiny adapters: in process, or behind a socket in a thread of the test's own process."""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from fastapi import FastAPI
from PIL import Image

import tiny
from masp.adapters import combine
from masp.predictor import Masp
from masp.serving import ServerSettings, create_app
from masp.serving.server import HttpServer
from small_adapters import write_adapter

TASKS = {"first": ("joy", "fear", "awe"), "second": ("calm", "anger"), "third": ("joy", "sadness", "anger", "disgust")}
SIZES = ((84, 112), (112, 84), (56, 140), (140, 56), (84, 84), (112, 112))


def write_tasks(folder: Path) -> Path:
    """An adapter with three tasks over the same aspects."""
    for task, labels in TASKS.items():
        write_adapter(folder / task, labels=labels)
    combine(folder / "several", [f"{task}={folder / task}" for task in TASKS])
    return folder / "several"


def png(index: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """A small image file, another one for another index."""
    buffer = io.BytesIO()
    tiny.picture(*(size or SIZES[index % len(SIZES)]), seed=index).save(buffer, "PNG")
    return buffer.getvalue()


def image(content: bytes) -> Image.Image:
    """The image in a file."""
    return Image.open(io.BytesIO(content))


def forms(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """Images as files of a form."""
    return [("images", (f"{index}.png", content)) for index, content in enumerate(contents)]


def same(found: dict[str, Any], expected: dict[str, Any], aside: Sequence[str] = ()) -> bool:
    """Whether two answers about one image say the same: numbers to 1e-4, everything else exactly."""
    left, right = ({key: one[key] for key in one if key not in aside} for one in (found, expected))
    return _close(left, right)


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_close, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= 1e-4
    return left == right


@contextmanager
def running(app: FastAPI, idle_seconds: float = 10.0) -> Iterator[str]:
    """The application behind a socket on the loopback; its address."""
    server = HttpServer(app, "127.0.0.1", 0, idle_seconds)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server._server.started)
        yield server.address
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


def until(ready: Callable[[], object], seconds: float = 60) -> None:
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.01)


def small_app(masp: Masp, **settings: Any) -> FastAPI:
    """The service of one model with these settings."""
    return create_app(masp, ServerSettings(**settings))


class Gate:
    """Stands before the model: batches wait in front of it until it is opened, and their sizes are noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, opened: bool = False) -> None:
        import masp.serving.batcher as home

        self.batches: list[list[str]] = []
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        real = home.predict_mixed

        def held(pixels: Any, queries: Any) -> Any:
            self.batches.append([query.name for query in queries])
            self.entered.release()
            assert self._open.wait(60)
            return real(pixels, queries)

        monkeypatch.setattr(home, "predict_mixed", held)
        if opened:
            self.open()

    def open(self) -> None:
        """Lets everything through."""
        self._open.set()
