"""kill -9 at any moment, then the same command: the adapter has the same bytes as that of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import small_training
import tiny

ROOT = Path(__file__).parents[2]


def crash_lab(stage: str, points: int, folder: Path) -> dict:
    paths = [str(ROOT / "tests"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "crash_lab.py"), stage, str(points), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(report: dict, points: int) -> None:
    assert report["moments"] > 20
    assert len(report["points"]) == points
    for point in report["points"]:
        assert point["killed"] == signal.SIGKILL, point
        assert point["again"] == 0, point
        assert point["same"], point
        assert point["left"] == [], point


def test_three_kills(tmp_path):
    check(crash_lab("prompt", 3, tmp_path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["aspects", "prompt", "stored"])
def test_many_kills(tmp_path, stage):
    points = int(os.environ.get("MASP_KILL_POINTS", "24"))
    check(crash_lab(stage, points, tmp_path), points)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    work = """
import sys, torch
from pathlib import Path
import small_training as small
from masp.backbones.loading import load_backbone
from masp.training import train_aspects, train_prompt
torch.set_num_threads(1)
root = Path(sys.argv[1])
backbone = load_backbone(str(root / "checkpoint"), dtype="float32", device="cpu")
dataset = small.write_dataset(root / "data")
out = root / sys.argv[2]
train_aspects(small.config("aspects.max_steps=7"), dataset, backbone, out / "a")
train_prompt(small.config(), dataset, backbone, out / "a", out / "p")
"""
    (tmp_path / "work.py").write_text(work)
    (tmp_path / "checkpoint").mkdir()
    tiny.write_checkpoint(tmp_path / "checkpoint", "qwen2_vl")
    small_training.write_dataset(tmp_path / "data")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("two", several)):
        command = [sys.executable, *launcher, str(tmp_path / "work.py"), str(tmp_path), name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    for stage in "ap":
        one, two = (load_file(tmp_path / name / stage / "adapter" / "weights.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert (value - two[key]).abs().max() < 1e-4, key
