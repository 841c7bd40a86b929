"""What every test stands on: no network, few threads, shapes and types checked.

Order matters. The environment is set before torch is imported, and the import hook is installed before any module of
`masp` is, because it rewrites them while they load.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job; processes the tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
)

import pytest
from jaxtyping import install_import_hook

import fixtures.typechecking  # noqa: F401  the hook finds it by its name

install_import_hook("masp", "fixtures.typechecking.checked")


@pytest.fixture(autouse=True)
def log_level_of_its_own() -> Iterator[None]:
    """The command sets the level of our log for its process; the tests behind it start with the one before."""
    log = logging.getLogger("masp")
    kept = log.level
    yield
    log.setLevel(kept)


@pytest.fixture
def masp(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs the command with these words: (exit code, stdout, stderr)."""
    from masp.cli import main

    def run(*words: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run
