"""Reading a request's body: bounded in bytes, parts and time, in memory only, as JSON or as a form with files."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
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
LONGEST_FIELD = 64 * 1024
"""Bytes of a field of a form that is no image."""
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
            if kind == "application/json":
                asked = await asyncio.to_thread(_from_json, bytes(body), self._settings)
            else:
                asked = await _from_form(request, bytes(body), self._settings)
            yield asked
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


async def _from_form(request: Request, body: bytes, settings: ServerSettings) -> Asked:
    async def stream() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), MIB):
            yield body[start : start + MIB]

    fields = MOST_LABELS + 10
    parser = MultiPartParser(
        request.headers, stream(), max_files=settings.max_images, max_fields=fields, max_part_size=LONGEST_FIELD
    )
    parser.spool_max_size = len(body) + 1  # nothing goes to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise _too_many(settings) from None
        raise invalid("invalid_form", f"the form cannot be read: {error.message[:200]}") from None
    except (FormParserError, AssertionError, LookupError, ValueError):  # of damaged headers of parts
        raise invalid("invalid_form", "the form cannot be read") from None
    try:
        return await _asked(form)
    finally:
        await form.close()


async def _asked(form: FormData) -> Asked:
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in FILES:
                raise invalid("invalid_request", "an image in a field of another name than images", name[:LONGEST_NAME])
            uploads.append(Upload(public_name(value.filename, len(uploads)), await value.read()))
        elif name == "labels":
            fields.setdefault("labels", []).append(value)
        elif name in fields:
            raise invalid("invalid_request", "a field is there twice", name[:LONGEST_NAME])
        else:
            fields[name] = value
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
