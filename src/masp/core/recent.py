"""Values that were used lately, kept in bounded memory for any number of threads."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Sized(Protocol):
    """A value that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, with what belongs to it."""
        ...


Value = TypeVar("Value", bound=Sized)


class LRUCache:
    """Values by key, as many as take `limit` bytes together; what was used lately stays.

    Values are made outside the lock: at worst two threads make one value each, and both get the one that was there
    first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: dict[Hashable, Any] = {}  # the least lately used first
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not kept. What `make` raises is raised, and nothing is kept."""
        with self._lock:
            found = self._values.pop(key, None)
            if found is not None:
                self._values[key] = found
                return found
        made = make()
        with self._lock:
            if key in self._values:
                return self._values[key]
            self._values[key] = made
            self._bytes += made.nbytes
            while self._bytes > self._limit and len(self._values) > 1:  # one that was just made stays
                oldest = next(iter(self._values))
                self._bytes -= self._values.pop(oldest).nbytes
        return made

    def kept(self) -> tuple[Any, ...]:
        """The values that need not be made again."""
        with self._lock:
            return tuple(self._values.values())
