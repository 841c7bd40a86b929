"""Multi-aspect soft prompts for visual emotion recognition on frozen vision-language models.

Importing this package is cheap: the names below load what they need when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masp.core.errors import MaspError
    from masp.predictor import Masp, Prediction

__version__ = "0.2.0"
__all__ = ["Masp", "MaspError", "Prediction", "__version__"]

_HOMES = {"Masp": "masp.predictor", "MaspError": "masp.core.errors", "Prediction": "masp.predictor"}


def __getattr__(name: str) -> object:
    """The public object of this name, imported from its home on first use (PEP 562).

    Raises:
        AttributeError: the package offers no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, for completion in a shell."""
    return sorted(__all__)
