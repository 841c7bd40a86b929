"""Shared by the benchmarks without released weights: a random checkpoint in an ordinary folder, and timed commands."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

SHARD = 10**9  # bytes of weights in one file
SPREAD = 0.02  # standard deviation of the random weights, as transformers starts them
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json")
GIB = 2**20  # KiB, in which the system counts memory


@dataclass(frozen=True)
class Timed:
    """A command that has run.

    Attributes:
        seconds: from start to end, loading included.
        peak_gb: the largest memory it held, GiB.
        lines: what it printed, each line with the seconds at which it came.
        log: what it said on stderr.
    """

    seconds: float
    peak_gb: float
    lines: tuple[tuple[float, str], ...]
    log: str

    def record(self) -> dict[str, float]:
        """Time and memory as they stand in a result file."""
        return {"seconds": round(self.seconds, 1), "peak_gb": round(self.peak_gb, 2)}


def embedded() -> Path:
    """The folder of the embedded backbone, whose tokenizer and configuration the random ones take over."""
    return Path(str(files("masp").joinpath("backbones", "embedded")))


def configuration(text: Mapping[str, Any], vision: Mapping[str, Any], tied: bool = True) -> dict[str, Any]:
    """The embedded backbone's configuration in another shape."""
    content = json.loads((embedded() / "config.json").read_text())
    content["text_config"] |= {"layer_types": ["full_attention"] * text["num_hidden_layers"], **text}
    content["vision_config"] |= vision
    content["tie_word_embeddings"] = content["text_config"]["tie_word_embeddings"] = tied
    return content


def write_checkpoint(
    folder: Path, content: Mapping[str, Any], pixels: int | None = None, seed: int = 0, shard: int = SHARD
) -> int:
    """A random Qwen2-VL checkpoint in bfloat16, never whole in memory, with the embedded backbone's tokenizer.

    Args:
        folder: where it goes. One that is finished there is taken as it is.
        content: its configuration.
        pixels: area to which every image is brought; None: as the embedded backbone does it.
        seed: of the weights.
        shard: bytes of weights in one file.

    Returns:
        The number of its parameters.
    """
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**content)).bfloat16()
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    if (folder / "config.json").is_file():  # written last
        return total
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shards, places = list(_shards(parameters, shard)), {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _random(name, parameters[name], generator) for name in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in COPIED:
        shutil.copy(embedded() / name, folder / name)
    if pixels is not None:
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        bounds = {"min_pixels": pixels, "max_pixels": pixels}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | bounds))
    model.config.save_pretrained(folder)
    return total


def _shards(parameters: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Names in groups of at most `limit` bytes in bfloat16, or of one."""
    group, size = [], 0
    for name, parameter in parameters.items():
        if group and size + 2 * parameter.numel() > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += 2 * parameter.numel()
    yield group


def _random(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights as transformers starts them: normal matrices, ones for norms, zeros for biases."""
    if like.ndim > 1:
        return torch.empty(like.shape, dtype=torch.bfloat16).normal_(0, SPREAD, generator=generator)
    return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)


def timed(*arguments: str) -> Timed:
    """Run `masp` with these arguments in a process of its own; a failure ends the benchmark."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "masp", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        lines = tuple((time.perf_counter() - started, line) for line in process.stdout)
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already, only not by Popen
        log.seek(0)
        said = log.read()
    if process.returncode:
        raise SystemExit(f"masp {' '.join(arguments)} failed:\n{said}")
    return Timed(time.perf_counter() - started, usage.ru_maxrss / GIB, lines, said)
