"""The type checker that the import hook in `conftest.py` puts around every function of the package."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, with `Any` for what it cannot know while a function is being defined.

    That is `Self`, because the class does not exist yet, and names written as text that are not imported at run time.
    """
    function.__annotations__ = {name: _known(hint, function) for name, hint in function.__annotations__.items()}
    return beartype(function)


def _known(hint: Any, function: Callable[..., Any]) -> Any:
    if isinstance(hint, str):
        try:
            hint = eval(hint, function.__globals__)
        except NameError:
            return Any
    return Any if "typing.Self" in str(hint) else hint
