"""What the tests of several processes run in each of them: a program, not a test.

`several_lab.py FOLDER NAME [CASE …]` trains and measures in FOLDER/NAME on the data and the checkpoint in FOLDER.
Started by a launcher it is one of several processes; by itself, the only one.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import small_training as small
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.cli.console import guarded
from masp.data.records import Dataset, Record
from masp.evaluation.predict_split import Batching
from masp.evaluation.runner import evaluate
from masp.model.masp_model import MaspModel
from masp.predictor import Masp
from masp.training import launched, train_aspects, train_prompt
from masp.training.trainer import Trainer

RANK = int(os.environ.get("RANK", "0"))
RATE = ("aspects.learning_rate=0.001", "prompt.learning_rate=0.001")
PIECES = ("prompt.micro_batch_size=1", "prompt.gradient_checkpointing=true", "prompt.max_grad_norm=0.01")
STORES = {
    "none": ["prompt.store=none"],
    "features": ["prompt.store=features"],
    "prefix": ["prompt.store=prefix"],
    "disk": ["prompt.store=prefix", "prompt.store_dir={out}/shelf"],
    "disk-features": ["prompt.store=features", "prompt.store_dir={out}/shelf2"],
}


def tell(found: dict[str, object]) -> None:
    """One line in one piece: what two processes print must not run together."""
    os.write(1, (json.dumps(found) + "\n").encode())


def dataset(root: Path) -> Dataset:
    """Noise images; of the split to measure on, an odd number, one of them unreadable."""
    found = small.write_dataset(root / "data", train=21, val=5)
    extra = small.write_dataset(root / "more", train=13, val=0).splits["train"]
    test = tuple(Record(record.path, record.label, {}) for record in extra)
    return Dataset("noise", root, found.labels, {**found.splits, "test": test}, "folder")


def config(out: Path, *changes: str):
    return small.config("prompt.epochs=3", "prompt.batch_size=7", *RATE, *(line.format(out=out) for line in changes))


def learn(data: Dataset, backbone: Backbone, out: Path) -> None:
    """Both stages, stage 2 with and without aspects and with everything that can be kept; and stage 1 from the disk."""
    train_aspects(config(out), data, backbone, out / "aspects")
    train_aspects(config(out, "aspects.store_dir={out}/shelf3"), data, backbone, out / "aspects-disk")
    for name, changes in STORES.items():
        settings = config(out, *changes)
        train_prompt(settings, data, backbone, None, out / f"plain-{name}")
        train_prompt(settings, data, backbone, out / "aspects", out / f"with-{name}")
    train_prompt(config(out, *PIECES), data, backbone, out / "aspects", out / "pieces")
    for name in ("none", "features"):  # 21 examples: the last step of an epoch has one, and nothing for process 1
        train_prompt(config(out, *STORES[name], "prompt.batch_size=4"), data, backbone, None, out / f"few-{name}")


def measure(data: Dataset, backbone: Backbone, out: Path) -> None:
    """Label scores and generated answers of a split of 13 images, one unreadable, four at a time."""
    for mode in ("score", "generate"):
        masp = Masp.from_pretrained(out.parent / "one" / "with-none", backbone)
        evaluate(masp, data, "test", mode, Batching(4, workers=1), out / mode)


def count(data: Dataset, backbone: Backbone, out: Path) -> None:
    """How many images go through the vision tower, and how many prefixes are computed, in this process."""
    done = {"vision": 0, "prefix": 0}
    kind, vision, prefix = type(backbone), type(backbone).visual_tokens, MaspModel.prefix

    def seen(self, pixels):
        done["vision"] += len(pixels)
        return vision(self, pixels)

    def passed(self, visual, questions, use=None):
        done["prefix"] += len(visual)
        return prefix(self, visual, questions, use)

    kind.visual_tokens, MaspModel.prefix = seen, passed
    settings = config(out, "prompt.store=prefix", "prompt.store_dir={out}/shelf4")
    train_prompt(settings, data, backbone, None, out / "counted")
    tell({"rank": RANK, **done})


def late() -> None:
    """Let this process be asked to stop behind the last step."""
    fit = Trainer.fit

    def wrapped(self, *args):
        found = fit(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    Trainer.fit = wrapped  # pyright: ignore[reportAttributeAccessIssue]


def stumble(kind: str) -> None:
    """Let this process fail, hang or be asked to stop before its fourth step."""
    step, done = torch.optim.AdamW.step, []

    def wrapped(self, *args, **more):
        done.append(1)
        if len(done) == 4:
            if kind == "fail":
                raise ValueError("made up\nin two lines")
            if kind == "hang":
                time.sleep(600)
            os.kill(os.getpid(), {"term": signal.SIGTERM, "kill": signal.SIGKILL}[kind])
        return step(self, *args, **more)

    torch.optim.AdamW.step = wrapped


def slow() -> None:
    """Let every step take a while."""
    step = torch.optim.AdamW.step

    def wrapped(self, *args, **more):
        time.sleep(3)
        return step(self, *args, **more)

    torch.optim.AdamW.step = wrapped


def main(root: Path, name: str, *cases: str) -> None:
    torch.set_num_threads(1)
    launched(torch.device("cpu"))
    backbone = load_backbone(str(root / "checkpoint"), dtype="float32", device="cpu")
    data, out = dataset(root), root / name
    for case in cases:
        if case == "learn":
            learn(data, backbone, out)
        elif case == "measure":
            measure(data, backbone, out)
        elif case == "resume":
            train_prompt(config(out, "prompt.checkpoint_every=1"), data, backbone, None, out / "resumed")
        elif case == "count":
            count(data, backbone, out)
        elif case == "slow":
            slow()
        else:
            who, kind = case.split(":")
            if int(who) == RANK:
                late() if kind == "late" else stumble(kind)
    tell({"rank": RANK, "done": cases})


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(Path(sys.argv[1]), *sys.argv[2:]), False))
