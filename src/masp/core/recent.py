"""Values that were used lately, kept in bounded memory for any number of threads."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Sized(Protocol):
    """A value that knows how much memory it takes.

    Attributes:
        nbytes: bytes, with what belongs to it.
    """

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


Value = TypeVar("Value", bound=Sized)


class LRUCache:
    """Values by key, as many as take `limit` bytes together; what was used lately stays.

    New values fill one table. Once it has half of the bytes it takes the place of the table before it, whose values are
    gone unless they were used since. Values are made outside the lock: at worst two threads make one value each, and
    both get the one that was there first.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._young: dict[Hashable, Any] = {}
        self._old: dict[Hashable, Any] = {}
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not kept. What `make` raises is raised, and nothing is kept."""
        with self._lock:
            found = self._young.get(key)
            if found is not None:
                return found
            found = self._old.get(key)
            if found is not None:
                return self._keep(key, found)
        made = make()
        with self._lock:
            return self._keep(key, made)

    def _keep(self, key: Hashable, value: Value) -> Value:
        if key not in self._young:
            if self._bytes + value.nbytes > self._limit // 2:
                self._old, self._young, self._bytes = self._young, {}, 0
            self._young[key] = value
            self._bytes += value.nbytes
        return self._young[key]

    def kept(self) -> tuple[Any, ...]:
        """The values that need not be made again."""
        with self._lock:
            return tuple({**self._old, **self._young}.values())
