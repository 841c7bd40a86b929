"""One prediction and one step of each stage on a randomly initialised Qwen2-VL-2B in bfloat16, loaded from a folder.

The checkpoint has the shape of Qwen/Qwen2-VL-2B-Instruct (2.2 billion parameters, 4.1 GiB) and random weights, so what
it answers means nothing; that it runs, and what that costs, does not depend on the weights. Each step is the command a
user would give, in a process of its own. Images are 224 × 224 pixels, 64 visual tokens.

    python benchmarks/full_size.py WORK_FOLDER
"""

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import machine
from random_backbone import Timed, configuration, timed, write_checkpoint

from masp.adapters.info import library_versions
from masp.backbones.known_models import describe
from masp.backbones.model_stats import count
from masp.data.emoji.dataset import split_sizes

IMAGES, BATCH = 8, 2
SIDE = 224
MODEL = "Qwen/Qwen2-VL-2B-Instruct"
ROPE = {"rope_type": "default", "rope_theta": 1e6}
RESULT = Path(__file__).parent / "results" / "full_size.json"


def full() -> dict[str, Any]:
    """The configuration of the published 2B, from the table of the package."""
    content = dict(describe(MODEL).config)
    vision, tied = content.pop("vision_config"), content.pop("tie_word_embeddings")
    del content["model_type"]
    return configuration(content | {"rope_parameters": ROPE | {"mrope_section": [16, 24, 24]}}, vision, tied)


def tiny() -> dict[str, Any]:
    """The same with next to nothing in it, to try this script."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}}
    return configuration(text, {"depth": 2, "embed_dim": 24, "num_heads": 2, "hidden_size": 32})


SHAPES = {"2B": full, "tiny": tiny}


def measure(work: Path, shape: str, out: Path) -> None:
    """Write the checkpoint and the data, run the three commands, write the result file."""
    backbone, data, runs = work / f"backbone-{shape}", work / "data", work / f"runs-{shape}"
    parameters = write_checkpoint(backbone, SHAPES[shape](), pixels=SIDE**2)
    if not data.exists():
        timed("data", "make", str(data), "--images", str(IMAGES))
    facts = count(describe(str(backbone)))
    assert facts.total == parameters, (facts.total, parameters)
    shutil.rmtree(runs, ignore_errors=True)  # a finished run would not be trained again
    steps = run(backbone, data, runs)
    splits = split_sizes(IMAGES)
    read = splits["train"] + splits["val"]
    content = {
        "command": f"python benchmarks/full_size.py WORK_FOLDER{'' if shape == '2B' else f' --shape {shape}'}",
        "backbone": {
            "shape": MODEL if shape == "2B" else shape,
            "parameters": parameters,
            "dim": facts.dim,
            "layers": facts.layers,
            "dtype": "bfloat16",
            "weights": "random",
            "weights_bytes": facts.memory["bfloat16"],
        },
        "pictures": {
            "side": SIDE,
            "visual_tokens": (SIDE // 28) ** 2,
            "read_before_training": read,
        },
        "machine": machine(),
        "versions": library_versions(),
        "steps": steps,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


def run(backbone: Path, data: Path, runs: Path) -> dict[str, dict[str, float]]:
    """A step of each stage, then two images, the second of which shows what one more costs."""
    stages = {"aspects": runs / "aspects", "prompt": runs / "prompt"}
    found: dict[str, dict[str, float]] = {}
    for number, (stage, out) in enumerate(stages.items(), 1):
        short = [f"{stage}.{key}" for key in ("max_steps=1", f"batch_size={BATCH}", "evaluate_every=0")]
        words = ["--data", str(data), "--backbone", str(backbone), "--out", str(out), "backbone.dtype=bfloat16"]
        given = ["--aspects", str(stages["aspects"])] if stage == "prompt" else []
        done = timed("train", stage, *words, *short, *given)
        found[f"stage {number}: one step of {BATCH} examples"] = done.record() | {"inside": in_steps(done)}
    pictures = [str(path) for path in sorted((data / "image").rglob("*.jpg"))[:2]]
    options = ["--backbone", str(backbone), "--dtype", "bfloat16", "--batch-size", "1", "--no-explain", "--json"]
    done = timed("predict", *pictures, "--adapter", str(stages["prompt"]), *options)
    check(done)
    (first, _), (second, _) = done.lines
    scored = "score: the probability of every label for one image"
    return found | {scored: done.record() | {"inside": round(second - first, 1)}}


def in_steps(done: Timed) -> float:
    """Seconds of a training that its steps took, from what the command says at its end."""
    said = re.search(r"1 steps in (\d+) s", done.log)
    assert said is not None, done.log
    return float(said[1])


def check(done: Timed) -> None:
    """Both images have probabilities that sum to 1."""
    answers: list[Mapping[str, Any]] = [json.loads(line) for _, line in done.lines]
    assert len(answers) == 2, done.lines
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-3 for answer in answers), answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--out", type=Path, help="default: the committed result, or WORK/tiny.json for --shape tiny")
    args = parser.parse_args()
    measure(args.work, args.shape, args.out or (RESULT if args.shape == "2B" else args.work / f"{args.shape}.json"))
