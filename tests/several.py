"""Starting `several_lab.py` and commands in one process or several; with gloo.

Most tests take processes from a nursery (`several_nursery.py`), which has imported everything: what is tested begins
with the first line of ours. What a launcher does itself is tested with one, `accelerate launch` or `torchrun`.
"""

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import small_training
import tiny

ROOT = Path(__file__).parents[1]
LAB = ROOT / "tests" / "several_lab.py"
ACCELERATE = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LIMIT = 900  # seconds after which a test calls it a hang, on a machine that others use too
GRACE = 120  # seconds that processes from the nursery have once one has failed


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def reports(self) -> list[dict]:
        """The JSON lines that the processes wrote."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def environment(**more: str) -> dict[str, str]:
    """What every process sees; none of a launcher's own variables is passed on."""
    paths = [str(ROOT / "tests"), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}


def launch(processes: int, *arguments: object, kind: str = "--multi_gpu") -> list[str]:
    """The command by which a launcher runs these arguments of Python; `kind` is its word for it, or "torchrun"."""
    words = [str(argument) for argument in arguments]
    if kind == "torchrun":
        own = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    else:
        own = [*ACCELERATE, kind, "--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, "-m", *own, *words]


def launched(processes: int, *arguments: object, kind: str = "--multi_gpu", **more: str) -> Done:
    """Run it by a launcher to its end."""
    done = subprocess.run(
        launch(processes, *arguments, kind=kind),
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd=ROOT,
        check=False,
        timeout=LIMIT,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run(processes: int, *arguments: object, grace: float = GRACE, **more: str) -> Done:
    """Run it to its end in processes from the nursery; the code is that of the first that failed."""
    with tempfile.TemporaryDirectory(prefix="masp-several-") as folder:
        files = {name: str(Path(folder) / name) for name in ("out", "err")}
        words = [str(argument) for argument in arguments]
        job = {"arguments": words, "count": processes, "environment": more, "grace": grace, **files}
        codes = json.loads(_nursery().ask(json.dumps(job)))
        out, err = (Path(files[name]).read_text() for name in ("out", "err"))
    return Done(next((code for code in codes if code), 0), out, err)


def lab(processes: int, folder: Path, name: str, *cases: str, grace: float = GRACE, **more: str) -> Done:
    """Run the laboratory in `folder`, which `prepare` has made."""
    return run(processes, LAB, folder, name, *cases, grace=grace, **more)


@dataclass(frozen=True)
class Nursery:
    """A running `several_nursery.py`."""

    process: subprocess.Popen

    def ask(self, line: str) -> str:
        """The line that answers a line; the first one only comes."""
        into, out = self.process.stdin, self.process.stdout
        assert into is not None
        assert out is not None
        if line:
            into.write(f"{line}\n")
            into.flush()
        return self._next(out)

    def _next(self, out: IO[str]) -> str:
        if not select.select([out], [], [], LIMIT)[0]:
            self.end()
            raise TimeoutError(f"no answer within {LIMIT} seconds")
        return out.readline()

    def end(self) -> None:
        """End it and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@functools.cache
def _nursery() -> Nursery:
    """One for all tests of this process."""
    command = [sys.executable, str(ROOT / "tests" / "several_nursery.py")]
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment(), cwd=ROOT, start_new_session=True
    )
    nursery = Nursery(child)
    atexit.register(nursery.end)
    assert nursery.ask("") == "ready\n"
    return nursery


def prepare(folder: Path) -> Path:
    """A checkpoint and images, written before several processes look at them."""
    (folder / "checkpoint").mkdir()
    tiny.write_checkpoint(folder / "checkpoint", "qwen2_vl")
    small_training.write_dataset(folder / "data", train=21, val=5)
    small_training.write_dataset(folder / "more", train=13, val=0)
    (folder / "more" / "006.png").write_bytes(b"no image")
    return folder
