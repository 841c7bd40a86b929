"""Starting `several_lab.py` and commands in one process or, by `accelerate launch`, in several; with gloo."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import small_training
import tiny

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
LIMIT = 900  # seconds after which a test calls it a hang, on a machine that others use too


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


def command(processes: int, *arguments: object, kind: str = "--multi_gpu") -> list[str]:
    """The command that runs these arguments of Python in one process, or in several."""
    words = [str(argument) for argument in arguments]
    several = [*LAUNCH, kind, "--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, *words] if processes == 1 else [*several, *words]


def run(processes: int, *arguments: object, kind: str = "--multi_gpu", **more: str) -> Done:
    """Run it to its end."""
    done = subprocess.run(
        command(processes, *arguments, kind=kind),
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd=ROOT,
        check=False,
        timeout=LIMIT,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def lab(processes: int, folder: Path, name: str, *cases: str, kind: str = "--multi_gpu", **more: str) -> Done:
    """Run the laboratory in `folder`, which `prepare` has made."""
    return run(processes, ROOT / "tests" / "several_lab.py", folder, name, *cases, kind=kind, **more)


def prepare(folder: Path) -> Path:
    """A checkpoint and pictures, written before several processes look at them."""
    (folder / "checkpoint").mkdir()
    tiny.write_checkpoint(folder / "checkpoint", "qwen2_vl")
    small_training.write_dataset(folder / "data", train=21, val=5)
    small_training.write_dataset(folder / "more", train=13, val=0)
    (folder / "more" / "006.png").write_bytes(b"no image")
    return folder
