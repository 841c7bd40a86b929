"""What a server is told when it starts, and what it refuses to start with."""

import ipaddress
from dataclasses import dataclass

from masp.core.errors import UsageError
from masp.model.explain import ATTRIBUTIONS, DEFAULT_ATTRIBUTION, Attribution

MOST_LABELS = 100
"""Labels of one request; each costs a few columns in the language model for every image."""
LONGEST_LABEL = 100
"""Characters of one label."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class ServerSettings:
    """How a server batches, what it bounds, and who may use it.

    Attributes:
        max_batch: images that go through the model together.
        max_wait_ms: milliseconds that an idle model waits for images that are still being decoded.
        queue: images that are accepted and not answered yet; more are refused with 429.
        deadline: seconds that a request may take; one may ask for less with `x-request-timeout-seconds`.
        workers: threads that decode images.
        max_images: images of one request.
        max_body_mb: MiB of one request's body.
        memory_mb: MiB of all bodies and decoded images that are held at a time.
        tokens: who may use it: any of these as Bearer or `X-API-Key`; empty: everyone who can connect.
        attribution: how the effects of aspects are found where a request does not say.
        hosts: names under which it may be addressed (the `Host` header); None: any.

    Raises:
        UsageError: a number out of range, an empty token, no such attribution, or more images in a request than the
            queue holds.
    """

    max_batch: int = 16
    max_wait_ms: float = 5.0
    queue: int = 64
    deadline: float = 30.0
    workers: int = 2
    max_images: int = 16
    max_body_mb: int = 64
    memory_mb: int = 1024
    tokens: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    attribution: Attribution = DEFAULT_ATTRIBUTION

    def __post_init__(self) -> None:
        least = {"max_batch": 1, "max_wait_ms": 0, "queue": 1, "workers": 1, "max_images": 1, "max_body_mb": 1}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise UsageError(f"{name} is {getattr(self, name)}", f"{low} or more", f"Correct {name}.")
        if not 0 < self.deadline <= 3600:
            raise UsageError(f"the deadline is {self.deadline} s", "more than 0 and at most 3600", "Correct deadline.")
        if self.attribution not in ATTRIBUTIONS:
            raise UsageError(f"the attribution is '{self.attribution}'", f"one of {', '.join(ATTRIBUTIONS)}")
        if self.max_images > self.queue:
            got = f"a request may hold {self.max_images} images and the queue {self.queue}"
            raise UsageError(got, "room in the queue for a whole request", "Raise queue, or lower max_images.")
        if self.memory_mb < self.max_body_mb:
            got = f"memory_mb is {self.memory_mb} and max_body_mb {self.max_body_mb}"
            raise UsageError(got, "room for one body at least", "Raise memory_mb, or lower max_body_mb.")
        if any(len(token) < 8 or not token.isprintable() or not token.isascii() for token in self.tokens):
            todo = "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            raise UsageError("a token is shorter than 8 characters or not plain ASCII", "a long random one", todo)


def is_loopback(host: str) -> bool:
    """Whether an address or a name reaches this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def check_exposure(host: str, settings: ServerSettings, open_to_anyone: bool) -> None:
    """Makes sure that a server without a token listens on this machine only, unless that is wanted in words.

    Raises:
        UsageError: it would listen beyond loopback, and anyone could use it.
    """
    if not (is_loopback(host) or settings.tokens or open_to_anyone):
        raise UsageError(
            f"the server would listen on {host} and has no token, so anyone who reaches it could use it",
            "a token, or --host 127.0.0.1",
            "Name one with --token or MASP_SERVE_TOKEN, or say --open-to-anyone.",
        )
