"""A service: `masp serve` behind HTTP, the page for people, the client for programs; and adapters in other engines.

Needs the extra `masp[serve]`. The names below load what they need when they are first used, so that a client loads no
model.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masp.serving.app import create_app
    from masp.serving.client import AsyncClient, Client
    from masp.serving.settings import ServerSettings

__all__ = ["AsyncClient", "Client", "ServerSettings", "create_app"]

_HOMES = {
    "AsyncClient": "masp.serving.client",
    "Client": "masp.serving.client",
    "ServerSettings": "masp.serving.settings",
    "create_app": "masp.serving.app",
}


def __getattr__(name: str) -> object:
    """The public object of this name, imported from its home on first use (PEP 562).

    Raises:
        AttributeError: the package offers no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
