"""Middleware around every request: gives it an id, checks who may ask, logs it, and counts it."""

import hashlib
import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masp.serving.metrics import Metrics
from masp.serving.schemas import ApiError, invalid, unauthorized
from masp.serving.settings import ServerSettings

PROTECTED = ("/v1/", "/metrics")
"""What needs a token where there are tokens; the page, the document of the routes and the probes need none."""

log = logging.getLogger("masp.serving")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what is guarded.
        settings: tokens and names of the host.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._tokens = [_digest(token.encode()) for token in settings.tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; other protocols than HTTP are closed, and the application's own start and end go through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        scope.setdefault("state", {})
        state = scope["state"]
        state["id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = state["id"]
                for name, value in _SAFE.items():
                    answer.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], headers)
            await self._app(scope, receive, send_with_headers)
        except ApiError as error:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_with_headers)
        except Exception as error:
            log.error("unexpected %s", type(error).__name__, exc_info=True, extra={"fields": {"id": state["id"]}})
            if not status:
                failed = ApiError(500, "server_error", "internal_error", "the server failed; its log has this id")
                await JSONResponse(failed.body, failed.status)(scope, receive, send_with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _check(self, path: str, headers: Headers) -> None:
        """Whether this request is from somebody who may ask.

        Raises:
            ApiError: no valid token (401), or a web page of another origin sent it (403).
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._settings.hosts is not None and _name(host) not in self._settings.hosts:
            raise invalid("unknown_host", "this server is not addressed by that name", "host", 403)
        if origin is not None and origin.partition("://")[2].casefold() != host.casefold():
            raise invalid("cross_origin", "web pages of other origins may not use this server", "origin", 403)
        if self._tokens and path.startswith(PROTECTED) and not self._known(_token(headers)):
            raise unauthorized()

    def _known(self, token: bytes) -> bool:
        """Whether a token is one of ours; takes the same time for every wrong one."""
        digest = _digest(token)
        return any([hmac.compare_digest(digest, own) for own in self._tokens])  # noqa: C419  (all of them, always)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request and log it; a route may have put `log_fields` into the state."""
        route: Any = scope.get("route")
        name = getattr(route, "path", "other") if status != 404 else "other"
        self._metrics.requests.labels(name, str(status)).inc()
        self._metrics.seconds.labels(name).observe(seconds)
        fields = {"id": scope["state"]["id"], "method": scope["method"], "route": name, "status": status}
        fields |= {"ms": round(1000 * seconds, 1), **scope["state"].get("log_fields", {})}
        log.info("request", extra={"fields": fields})


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _token(headers: Headers) -> bytes:
    """The token of a request; empty where there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.casefold() == "bearer":
        return token.strip().encode()
    return headers.get("x-api-key", "").encode()


def _name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    return re.sub(r":\d*$", "", host).strip("[]").casefold()
