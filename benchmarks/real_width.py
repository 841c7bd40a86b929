"""Both stages and a prediction on a randomly initialised backbone of real width, loaded from an ordinary folder.

The language model is as wide as Qwen2's 0.5B (d = 896, 14 heads, 2 key/value heads, intermediate 4864), 12 layers deep,
with a vision tower of width 640 and depth 12. The weights are random, so what it answers means nothing; time and memory
are what a backbone of this width costs. Each step is the command a user would give, in a process of its own.

    python benchmarks/real_width.py WORK_FOLDER
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from masp.adapters.info import library_versions

IMAGES = 40
STEPS = ["aspects.max_steps=4", "prompt.max_steps=4", "aspects.batch_size=4", "prompt.batch_size=4"]
EXTRA = ["aspects.evaluate_every=0", "prompt.evaluate_every=0"]


def write_checkpoint(folder: Path) -> int:
    """A random checkpoint in bfloat16 with the embedded backbone's tokenizer; its number of parameters."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    embedded = Path(str(files("masp").joinpath("backbones", "embedded")))
    content = json.loads((embedded / "config.json").read_text())
    content["text_config"] |= {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 12,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    content["vision_config"] |= {"depth": 12, "embed_dim": 640, "num_heads": 10, "hidden_size": 896}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**content)).bfloat16()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(embedded / name, folder / name)
    return sum(parameter.numel() for parameter in model.parameters())


def timed(*arguments: str) -> dict[str, Any]:
    """Run `masp` with these arguments; seconds, and the largest memory of any such process so far."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "masp", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"masp {' '.join(arguments)} failed:\n{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": round(time.perf_counter() - started, 1), "peak_gb": round(peak / 2**20, 2), "out": done.stdout}


def measure(work: Path, out: Path) -> None:
    """Write the checkpoint and the data, train both stages for a few steps, predict, write the result file."""
    backbone, data, runs = work / "backbone", work / "data", work / "runs"
    parameters = write_checkpoint(backbone)
    timed("data", "make", str(data), "--images", str(IMAGES))
    common = ["--data", str(data), "--backbone", str(backbone), *EXTRA, *STEPS]
    steps = {"train all (4 steps of 4 examples in each stage)": timed("train", "all", "--out", str(runs), *common)}
    picture = next((data / "image").rglob("*.jpg"))
    adapter = ["--adapter", str(runs / "prompt"), "--backbone", str(backbone)]
    steps["predict one picture with reasons"] = answer = timed("predict", str(picture), *adapter, "--json")
    prediction = json.loads(answer.pop("out"))
    for step in steps.values():
        step.pop("out", None)
    content = {
        "command": "python benchmarks/real_width.py WORK_FOLDER",
        "backbone": {"parameters": parameters, "dim": 896, "layers": 12, "weights": "random"},
        "machine": {"processor": platform.processor() or platform.machine()},
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
