"""Both stages and a prediction on a randomly initialised backbone of real width, loaded from an ordinary folder.

The language model is as wide as Qwen2's 0.5B (d = 896, 14 heads, 2 key/value heads, intermediate 4864), 12 layers deep,
with a vision tower of width 640 and depth 12. The weights are random, so what it answers means nothing; time and memory
are what a backbone of this width costs. Each step is the command a user would give, in a process of its own.

    python benchmarks/real_width.py WORK_FOLDER
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import machine
from random_backbone import configuration, timed, write_checkpoint

from masp.adapters.info import library_versions

IMAGES = 40
STEPS = ["aspects.max_steps=4", "prompt.max_steps=4", "aspects.batch_size=4", "prompt.batch_size=4"]
EXTRA = ["aspects.evaluate_every=0", "prompt.evaluate_every=0"]


def shape() -> dict[str, Any]:
    """The configuration: the width of Qwen2's 0.5B, the embedded backbone's vocabulary."""
    text = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 12,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    return configuration(text, {"depth": 12, "embed_dim": 640, "num_heads": 10, "hidden_size": 896})


def measure(work: Path, out: Path) -> None:
    """Write the checkpoint and the data, train both stages for a few steps, predict, write the result file."""
    backbone, data, runs = work / "backbone", work / "data", work / "runs"
    parameters = write_checkpoint(backbone, shape())
    timed("data", "make", str(data), "--images", str(IMAGES))
    common = ["--data", str(data), "--backbone", str(backbone), *EXTRA, *STEPS]
    trained = timed("train", "all", "--out", str(runs), *common)
    picture = next((data / "image").rglob("*.jpg"))
    adapter = ["--adapter", str(runs / "prompt"), "--backbone", str(backbone)]
    answered = timed("predict", str(picture), *adapter, "--json")
    prediction = json.loads(answered.lines[0][1])
    steps = {
        "train all (4 steps of 4 examples in each stage)": trained.record(),
        "predict one image with reasons": answered.record(),
    }
    content = {
        "command": "python benchmarks/real_width.py WORK_FOLDER",
        "backbone": {"parameters": parameters, "dim": 896, "layers": 12, "weights": "random"},
        "machine": machine(),
        "versions": library_versions(),
        "steps": steps,
        "probabilities_sum": sum(prediction["probabilities"].values()),
        "aspects_answered": len(prediction["aspects"]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real_width.json")
    args = parser.parse_args()
    measure(args.work, args.out)
