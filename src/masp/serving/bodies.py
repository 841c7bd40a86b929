"""Reading a request's body: bounded in bytes, parts and time, in memory only, as JSON or as a form with files."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from masp.serving.batcher import Upload
from masp.serving.schemas import (
    LONGEST_NAME,
    ApiError,
    ImageData,
    Options,
    PredictRequest,
    describe,
    image_bytes,
    invalid,
    overloaded,
    public_name,
)
from masp.serving.settings import MIB, MOST_LABELS, ServerSettings

FILES = ("images", "image")
"""Fields of a form that hold images."""
MOST_FIELDS = MOST_LABELS + 10
"""Fields of a form that are no images."""
LONGEST_FIELD = 64 * 1024
"""Bytes of a field of a form that is no image."""
SMALL = 64 * 1024
"""Bytes of a body that is read sooner than another thread would be at it."""
LINGER = 1.0
"""Seconds for which a body that is refused is still read, so that the client gets to read why."""


@dataclass(frozen=True)
class Asked:
    """A request, read: its images and what is wanted of them."""

    uploads: tuple[Upload, ...]
    options: Options


class BodyReader:
    """Reads bodies, all of which together take no more memory than they may.

    Args:
        settings: the bounds.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Asked]:
        """The request; its bytes count as held until the end of the block.

        Raises:
            ApiError: too large (413), of another type (415), no room for it (429), or not well formed (400).
            ClientDisconnect: the client left before its end.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
        if kind not in ("application/json", "multipart/form-data"):
            raise invalid("unsupported_type", "send multipart/form-data or application/json", "content-type", 415)
        if request.headers.get("content-encoding", "identity").casefold() != "identity":
            raise invalid("unsupported_encoding", "compressed bodies are not read", "content-encoding", 415)
        body = bytearray()
        try:
            await self._fill(request, body)
            given = request.headers["content-type"]
            parse = _from_json if kind == "application/json" else partial(_from_form, kind=given)
            if len(body) <= SMALL:
                yield parse(bytes(body), settings=self._settings)
            else:
                yield await asyncio.to_thread(parse, bytes(body), settings=self._settings)
        finally:
            self._held -= len(body)

    async def _fill(self, request: Request, body: bytearray) -> None:
        most = self._settings.max_body_mb * MIB
        length = request.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > most:
            await self._refuse(request, _too_large(self._settings))
        stream = request.stream()
        async for chunk in stream:
            if len(body) + len(chunk) > most:
                await self._refuse(request, _too_large(self._settings))
            if self._held + len(chunk) > self._settings.memory_mb * MIB:
                await self._refuse(request, overloaded(1))
            body += chunk
            self._held += len(chunk)

    async def _refuse(self, request: Request, error: ApiError) -> None:
        """Reads a little more, so that the answer is not lost with the connection, and raises the error."""
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(LINGER):
                while (message := await request.receive()).get("more_body"):
                    del message
        error.headers["Connection"] = "close"
        raise error


def _too_large(settings: ServerSettings) -> ApiError:
    return invalid("body_too_large", f"the body has more than {settings.max_body_mb} MiB", status=413)


def _too_many(settings: ServerSettings) -> ApiError:
    return invalid("too_many_images", f"there are more than {settings.max_images} images", "images")


def _from_json(body: bytes, settings: ServerSettings) -> Asked:
    try:
        given = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise describe(error) from None
    if len(given.images) > settings.max_images:
        raise _too_many(settings)
    uploads = []
    for index, image in enumerate(given.images):
        data, name = (image.data, image.name) if isinstance(image, ImageData) else (image, None)
        uploads.append(Upload(public_name(name, index), image_bytes(data, index)))
    return Asked(tuple(uploads), given)


def _from_form(body: bytes, kind: str, settings: ServerSettings) -> Asked:
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    for part in _parts(body, kind, settings):
        if part.filename is not None:
            if part.name not in FILES:
                raise invalid("invalid_request", "an image in a field of another name than images", part.name)
            uploads.append(Upload(public_name(part.filename, len(uploads)), bytes(part.content)))
        elif part.name == "labels":
            fields.setdefault("labels", []).append(_text(part))
        elif part.name in fields:
            raise invalid("invalid_request", "a field is there twice", part.name)
        else:
            fields[part.name] = _text(part)
    if not uploads:
        raise invalid("no_images", "there is no image: send files in the field images", "images")
    if len(fields.get("labels", ())) == 1:
        fields["labels"] = [label.strip() for label in fields["labels"][0].split(",")]
    try:
        # Of JSON's lenient kind: in a form every value is a text.
        options = Options.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise describe(error) from None
    return Asked(tuple(uploads), options)


@dataclass
class _Part:
    """One part of a form, as far as it was read: its header lines, and its content."""

    header: bytearray = field(default_factory=bytearray)
    content: bytearray = field(default_factory=bytearray)
    name: str = ""
    filename: str | None = None

    def named(self) -> None:
        """Takes the names out of the header, once it is whole."""
        disposition, options = parse_options_header(bytes(self.header))
        given = options.get(b"name")
        if disposition != b"form-data" or given is None:
            raise invalid("invalid_form", "a part of the form has no name")
        self.name = given.decode("utf-8", "replace")[:LONGEST_NAME]
        filename = options.get(b"filename")
        self.filename = None if filename is None else filename.decode("utf-8", "replace")


class _Form:
    """Collects the parts of a form as a parser meets them, and stops where there are too many or too long ones."""

    def __init__(self, settings: ServerSettings) -> None:
        self.parts: list[_Part] = []
        self._settings = settings
        self.whole = False
        self._line = bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """What the parser calls."""
        return {
            "on_part_begin": lambda: self.parts.append(_Part()),
            "on_header_begin": self._line.clear,
            "on_header_field": lambda data, start, end: self._line.extend(data[start:end]),
            "on_header_value": self._value,
            "on_headers_finished": self._finished,
            "on_part_data": self._content,
            "on_end": self._end,
        }

    def _end(self) -> None:
        self.whole = True

    def _value(self, data: bytes, start: int, end: int) -> None:
        if self._line.lower() == b"content-disposition":
            self.parts[-1].header += data[start:end]

    def _finished(self) -> None:
        self.parts[-1].named()
        files = sum(part.filename is not None for part in self.parts)
        if files > self._settings.max_images:
            raise _too_many(self._settings)
        if len(self.parts) - files > MOST_FIELDS:
            raise invalid("invalid_form", f"the form has more than {MOST_FIELDS} fields")

    def _content(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.content += data[start:end]
        if part.filename is None and len(part.content) > LONGEST_FIELD:
            raise invalid("invalid_form", "a field of the form is too long", part.name)


def _parts(body: bytes, kind: str, settings: ServerSettings) -> list[_Part]:
    """The parts of a form.

    Raises:
        ApiError: it is none, or has too many parts.
    """
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary:
        raise invalid("invalid_form", "the content type names no boundary", "content-type")
    form = _Form(settings)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # pyright: ignore[reportArgumentType]
        parser.write(body)
        parser.finalize()
    except (FormParserError, LookupError, ValueError):  # of damaged headers of parts too
        raise invalid("invalid_form", "the form cannot be read") from None
    if not form.whole:
        raise invalid("invalid_form", "the form ends before its last boundary")
    return form.parts


def _text(part: _Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        raise invalid("invalid_form", "a field of the form is not UTF-8", part.name) from None
