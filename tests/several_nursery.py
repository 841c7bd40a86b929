"""Processes without their start: everything is imported once, and each process of a run is a fork of this one.

A program, not a test. Each line of its input is a job, as JSON: `arguments` of Python (a file, or -m and a module),
`count` of processes, `environment`, `grace`, and the files `out` and `err`. Each process is told what a launcher would
tell it. When all have ended, a line with their exit codes is printed. Once one has failed, the others have `grace`
seconds to end as well, then they are killed.
"""

import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any

IMPORTED = (
    "several_lab",  # with all that trains and measures
    "masp.backbones.qwen2_vl",
    "masp.cli.app",
    "masp.cli.evaluate",
    "masp.cli.train",
    "torch.distributed.tensor",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
)


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has only the thread that forked"
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


def run(job: dict[str, Any]) -> list[int]:
    """The exit codes of a job's processes, by rank; minus the signal for one that was killed."""
    port = free_port()
    running = {fork(job, rank, port): rank for rank in range(job["count"])}
    codes, limit = [0] * job["count"], float("inf")
    while running:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            codes[running.pop(ended)] = code = os.waitstatus_to_exitcode(status)
            limit = min(limit, time.monotonic() + job["grace"]) if code else limit
        elif time.monotonic() > limit:
            for child in running:
                os.kill(child, signal.SIGKILL)
            limit = float("inf")
        else:
            time.sleep(0.02)
    return codes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        settle(job, rank, port)
        work(job["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:  # as the interpreter ends
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def settle(job: dict[str, Any], rank: int, port: int) -> None:
    """Give a process its place among the others, and its files."""
    os.environ.update(job["environment"])
    if job["count"] > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["count"], "LOCAL_WORLD_SIZE": job["count"]}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(path, flags, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def work(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
