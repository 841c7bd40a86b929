"""The client: images to a service and its answers back, waiting where the service is busy."""

import asyncio
import io
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from PIL import Image

from masp.core.errors import MaspError
from masp.data.images import read_content

Picture = str | Path | bytes | Image.Image
RETRIED = (429, 503)
"""Answers after which the same request may succeed."""
LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever the service asks for."""


class ServiceError(MaspError):
    """The service refused a request, or could not be reached.

    Args:
        got: what happened.
        status: of its answer; 0 where there was none.
        code: the word for programs in its answer.
        request_id: under which the service's log has the request.
    """

    def __init__(self, got: str, status: int = 0, code: str = "", request_id: str = "") -> None:
        super().__init__(got)
        self.args = (got, status, code, request_id)
        self.status, self.code, self.request_id = status, code, request_id


@dataclass(frozen=True)
class _Try:
    """One request, ready to be sent any number of times."""

    method: str
    path: str
    files: tuple[tuple[str, tuple[str, bytes]], ...] = ()
    fields: tuple[tuple[str, str], ...] = ()

    def arguments(self) -> dict[str, Any]:
        data: dict[str, list[str]] = {}
        for name, value in self.fields:
            data.setdefault(name, []).append(value)
        return {"method": self.method, "url": self.path, "files": list(self.files) or None, "data": data or None}


class Client:
    """A service, for programs. Safe for several threads; close it, or use it with `with`.

    Args:
        url: Where it is: "http://127.0.0.1:8000".
        token: What `masp serve --token` was given.
        timeout: Seconds that one call may take, with all its tries.
        retries: How often a request is sent again after 429, 503 or a lost connection; the service says when.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout)
        self._timeout, self._retries = timeout, retries

    def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        task: str | None = None,
        labels: Sequence[str] | None = None,
        explain: str = "none",
        attribution: str | None = None,
        top_k: int | None = None,
        heatmaps: bool = False,
    ) -> list[dict[str, Any]]:
        """Predicts images.

        Args:
            images: Paths, bytes of image files, or PIL images; one or several.
            task: Which task, where the service has several.
            labels: What to choose from instead.
            explain: `none`, `words`, or `full` with attention maps.
            attribution: How effects are found, `leave_one_out` or `shapley`; None: as the service was told.
            top_k: Keep the most probable labels only.
            heatmaps: With `full`: also PNGs, in base64.

        Returns:
            For each image what `masp predict --json` writes: its prediction, or its name with an `error`.

        Raises:
            ImageError: A file cannot be read.
            ServiceError: The service refused, or could not be reached in time.
        """
        call = _predict(images, task, labels, (explain, attribution), top_k, heatmaps)
        return self._send(call)["predictions"]

    def get(self, path: str) -> dict[str, Any]:
        """What the service says at a path, such as "/v1/tasks"; raises `ServiceError`."""
        return self._send(_Try("GET", path))

    def _send(self, call: _Try) -> dict[str, Any]:
        end = time.monotonic() + self._timeout
        for last in _tries(self._retries):
            try:
                answer: httpx.Response | Exception = self._http.request(**call.arguments())
            except httpx.TransportError as error:
                answer = error
            wait = _wait(answer, last, end)
            if wait is None:
                return _content(answer)
            time.sleep(wait)
        raise AssertionError("the last try ends the loop")

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """As `Client`, for asyncio: `async with AsyncClient(url) as client: await client.predict(…)`."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), timeout=timeout)
        self._timeout, self._retries = timeout, retries

    async def predict(
        self,
        images: Picture | Sequence[Picture],
        *,
        task: str | None = None,
        labels: Sequence[str] | None = None,
        explain: str = "none",
        attribution: str | None = None,
        top_k: int | None = None,
        heatmaps: bool = False,
    ) -> list[dict[str, Any]]:
        """As `Client.predict`."""
        call = await asyncio.to_thread(_predict, images, task, labels, (explain, attribution), top_k, heatmaps)
        return (await self._send(call))["predictions"]

    async def get(self, path: str) -> dict[str, Any]:
        """As `Client.get`."""
        return await self._send(_Try("GET", path))

    async def _send(self, call: _Try) -> dict[str, Any]:
        end = time.monotonic() + self._timeout
        for last in _tries(self._retries):
            try:
                answer: httpx.Response | Exception = await self._http.request(**call.arguments())
            except httpx.TransportError as error:
                answer = error
            wait = _wait(answer, last, end)
            if wait is None:
                return _content(answer)
            await asyncio.sleep(wait)
        raise AssertionError("the last try ends the loop")

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _tries(retries: int) -> Iterator[bool]:
    """Every try there may be: whether it is the last one."""
    yield from (number == retries for number in range(retries + 1))


def _wait(answer: httpx.Response | Exception, last: bool, end: float) -> float | None:
    """Seconds until the next try; None where there is none: it succeeded, will never, or time is up.

    The service's own Retry-After counts, and a part of it by chance, so that many clients do not come back at once.
    """
    if last or (isinstance(answer, httpx.Response) and answer.status_code not in RETRIED):
        return None
    if isinstance(answer, httpx.TimeoutException):
        return None
    given = answer.headers.get("retry-after", "1") if isinstance(answer, httpx.Response) else "1"
    seconds = min(LONGEST_WAIT, float(given) if given.isascii() and given.isdigit() else 1.0)
    wait = seconds * random.uniform(1.0, 1.25)
    return wait if time.monotonic() + wait < end else None


def _content(answer: httpx.Response | Exception) -> dict[str, Any]:
    """The JSON of a success.

    Raises:
        ServiceError: it is none.
    """
    if isinstance(answer, Exception):
        raise ServiceError(f"the service did not answer ({type(answer).__name__})") from answer
    identity = answer.headers.get("x-request-id", "")
    try:
        content = answer.json()
    except ValueError:
        content = {}
    if answer.is_success and isinstance(content, dict):
        return content
    body = content.get("error", {}) if isinstance(content, dict) else {}
    message = body.get("message", "no message") if isinstance(body, dict) else "no message"
    code = body.get("code", "") if isinstance(body, dict) else ""
    raise ServiceError(f"the service answered {answer.status_code}: {message}", answer.status_code, code, identity)


def _predict(
    images: Picture | Sequence[Picture],
    task: str | None,
    labels: Sequence[str] | None,
    reasons: tuple[str, str | None],
    top_k: int | None,
    heatmaps: bool,
) -> _Try:
    """The request for images; `reasons` are `explain` and `attribution`."""
    several = [images] if isinstance(images, str | Path | bytes | Image.Image) else list(images)
    files = [("images", _file(image, index)) for index, image in enumerate(several, start=1)]
    given = {"task": task, "explain": reasons[0], "attribution": reasons[1], "top_k": top_k}
    given |= {"heatmaps": str(heatmaps).lower()}
    fields = [(name, str(value)) for name, value in given.items() if value is not None]
    fields += [("labels", label) for label in labels or ()]
    return _Try("POST", "/v1/predict", tuple(files), tuple(fields))


def _file(image: Picture, index: int) -> tuple[str, bytes]:
    """What an image is called, and its file."""
    if isinstance(image, bytes):
        return f"image {index}", image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return f"image {index}.png", buffer.getvalue()
    return Path(image).name, read_content(image)
