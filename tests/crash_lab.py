"""Kills training at chosen moments, starts it again, and compares what comes out. A program, not a test.

`python tests/crash_lab.py STAGE POINTS FOLDER` imports everything once and forks a child for every run. A moment is a
call that changes the disk (flush, rename, new folder, removal) or a step of the optimizer; the child dies by SIGKILL
right before it. It prints one JSON line with the number of moments and, for each point, what was found.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import small_training as small
import tiny
from masp.backbones.base import Backbone
from masp.data.records import Dataset
from masp.training import train_aspects, train_prompt

MOMENTS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (Path, "replace"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (shutil, "rmtree"),
    (torch.optim.AdamW, "step"),
]
SHORT = ("aspects.max_steps=5", "prompt.max_steps=5", "aspects.aspects=[scene, object]", "prompt.epochs=3")


def in_child(work: Callable[[], None]) -> int:
    """The wait status of a child that does `work`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def count_moments(limit: int | None, report: Path | None) -> None:
    """Make every moment count; die before number `limit`, and keep the count in `report`."""
    seen = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            if report is not None:
                report.write_text(str(seen))
            return call(*args, **kwargs)

        return wrapper

    for owner, name in MOMENTS:
        setattr(owner, name, watched(getattr(owner, name)))


def train(stage: str, dataset: Dataset, backbone: Backbone, out: Path) -> None:
    config = small.config(*SHORT)
    if stage == "stored":  # a store of its own, so that it is killed while the store grows
        config = small.config(*SHORT, "prompt.store=prefix", f"prompt.store_dir={out}-store")
    if stage == "aspects":
        train_aspects(config, dataset, backbone, out)
    else:
        train_prompt(config, dataset, backbone, None, out)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}


def main(stage: str, points: int, root: Path) -> None:
    torch.set_num_threads(1)
    dataset, backbone = small.write_dataset(root / "data", train=11, val=3), tiny.backbone()

    def run(out: Path, limit: int | None = None, report: Path | None = None) -> int:
        def work() -> None:
            count_moments(limit, report)
            train(stage, dataset, backbone, out)

        return in_child(work)

    assert run(root / "whole", report=root / "moments") == 0
    moments = int((root / "moments").read_text())
    expected = content(root / "whole" / "adapter")
    found = []
    for point in range(points):
        limit, out = point * moments // points, root / f"cut-{point}"
        killed = run(out, limit)
        # every third run is killed once more on its second start
        twice = run(out, moments // 5) if point % 3 == 2 else None
        again = run(out)
        left = [str(path) for path in out.rglob("*") if path.name.startswith(".masp")]
        same = again == 0 and content(out / "adapter") == expected
        found.append({"moment": limit, "killed": killed, "twice": twice, "again": again, "same": same, "left": left})
        shutil.rmtree(out)
        shutil.rmtree(f"{out}-store", ignore_errors=True)
    print(json.dumps({"moments": moments, "points": found}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
