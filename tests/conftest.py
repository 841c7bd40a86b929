"""What every test stands on: no network, few threads, shapes and types checked.

Order matters. The environment is set before torch is imported, and the import hook is installed before any module of
`masp` is, because it rewrites them while they load.
"""

import logging
import os
import signal

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

install_import_hook("masp", "typechecking.checked")


@pytest.fixture(autouse=True)
def _the_log_stays_as_it_was():
    """The command sets the level of the log for its process; tests that come later must not notice."""
    log = logging.getLogger("masp")
    before = log.level
    yield
    log.setLevel(before)
