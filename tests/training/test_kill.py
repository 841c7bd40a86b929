"""kill -9 at any moment, then the same command: the adapter has the same bytes as that of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def crash_lab(stage: str, points: int, folder: Path) -> dict:
    paths = [str(ROOT / "tests"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "fixtures" / "crash_lab.py"), stage, str(points), str(folder)]
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
