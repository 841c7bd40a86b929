"""One machine: the application behind uvicorn, with time limits for connections, draining, and a log of JSON lines."""

import asyncio
import json
import logging
import socket
import sys
import time
import traceback
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn
from fastapi import FastAPI

from masp.core.errors import MaspError
from masp.serving.app import Service

IDLE_SECONDS = 10.0
"""A connection without a complete request for this long is closed, however slowly bytes of one come."""
GRACE_SECONDS = 30.0
"""Beyond its deadline, a request whose answer the client does not read is ended after this long."""
CONNECTIONS = 1000
BACKLOG = 2048

log = logging.getLogger("masp.serving")


class HttpServer:
    """An application of `create_app` behind a socket of its own.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0: a free one.
        idle_seconds: See `IDLE_SECONDS`.

    Raises:
        MaspError: the address cannot be used.
    """

    def __init__(self, app: FastAPI, host: str, port: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._service: Service = app.state.service
        self._idle = idle_seconds
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
            # asyncio sets this only on sockets that name their protocol; without it every answer waits 40 ms for an ACK
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise MaspError(f"port {port} of {host} cannot be used ({reason})", "", "Name another --port.") from None
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=max(1, round(idle_seconds)),
            timeout_graceful_shutdown=max(1, round(self._service.settings.deadline)),
        )
        self._server = uvicorn.Server(config)
        self._server.handle_exit = self._signalled
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    @property
    def address(self) -> str:
        """Where it listens, as an URL."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serves until `stop`, or until SIGTERM or SIGINT where this is the main thread.

        Raises:
            Exception: the models could not be loaded.
        """
        asyncio.run(self._run())
        if self._service.failure is not None:
            raise self._service.failure

    def stop(self) -> None:
        """Accepts nothing more, lets what was accepted be answered, and ends; from any thread, and at once."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _signalled(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._server.should_exit = self._server.force_exit = True
        self.stop()

    def _begin_to_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._draining = asyncio.create_task(self._drain())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        log.info("listening", extra={"fields": {"address": self.address}})
        watches = [asyncio.create_task(self._close_slow()), asyncio.create_task(self._end_if_failed())]
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            for watch in watches:
                watch.cancel()
            log.info("stopped")

    async def _drain(self) -> None:
        """New requests are refused with 503; ends once the others are answered, or their deadline has passed."""
        batcher = self._service.batcher
        batcher.drain()
        log.info("draining", extra={"fields": {"images": batcher.images}})
        end = time.monotonic() + self._service.settings.deadline
        while (batcher.images or self._server.server_state.tasks) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        log.info("drained", extra={"fields": {"unanswered": batcher.images}})
        self._server.should_exit = True

    async def _end_if_failed(self) -> None:
        while self._service.failure is None:
            await asyncio.sleep(0.1)
        self._server.should_exit = True

    async def _close_slow(self) -> None:
        """Closes connections that send no request, or read no answer, in time; uvicorn bounds neither."""
        since: WeakKeyDictionary[object, tuple[int, bool, float]] = WeakKeyDictionary()
        busy_limit = self._service.settings.deadline + GRACE_SECONDS
        while True:
            await asyncio.sleep(self._idle / 4)
            now = time.monotonic()
            for connection in list(self._server.server_state.connections):
                cycle = getattr(connection, "cycle", None)  # of the latest request on it
                idle = cycle is None or cycle.response_complete
                number, was_idle, begun = since.get(connection, (0, not idle, now))
                if (number, was_idle) != (id(cycle), idle):
                    since[connection] = (id(cycle), idle, now)
                elif now - begun > (self._idle if idle else busy_limit):
                    connection.transport.abort()


class JsonLines:
    """Formats a record of the log as a line of JSON; of an exception its type and where it was, not its words."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["error"] = record.exc_info[0].__name__
            line["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


def log_json_lines() -> None:
    """Makes every logger of this process write JSON lines to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())  # pyright: ignore[reportArgumentType]
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a damaged form is its sender's matter
