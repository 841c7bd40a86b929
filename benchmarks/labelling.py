"""Labelling on Ray: the memory of a manifest, throughput against `masp predict`, and seeded kills.

All but `in turns` runs as a user would run it, in processes of its own, on the embedded backbone and emoji scenes, on
one machine. Kills are seeded; after each the same command is given again. Parts are written to the file as they finish,
and `--only` measures some of them.

    pip install 'masp[ray]'
    python benchmarks/labelling.py WORK_FOLDER --images 2000 --kills 100
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from machine import machine
from pyarrow import parquet

from masp.adapters.info import library_versions
from masp.labelling.labeller import Job, Labeller
from masp.labelling.manifest import read_chunk, read_manifest, write_manifest
from masp.predictor import Masp

RESULT = Path(__file__).parent / "results" / "labelling.json"
CHUNK = 32
BACKBONE = ("--backbone", "embedded")
KINDS = ("driver", "actor", "raylet")
MARKS = {"actor": "ray::MapWorker", "raylet": "raylet/raylet"}


def images(work: Path, count: int) -> Path:
    """Emoji scenes as PNG files."""
    folder = work / f"images-{count}"
    if not folder.exists():
        from masp.data.emoji.dataset import write_dataset

        write_dataset(folder, images=count, seed=1)
    return folder / "image"


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """`masp label run` in a session of its own."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"  # with Ray's own, 15, it would not be measured beside its equals
    words = [sys.executable, "-m", "masp", "label", "run", str(folder), "--device", "cpu", *BACKBONE]
    return subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def parts(folder: Path) -> list[Path]:
    """The finished files of labels."""
    return sorted((folder / "labels").rglob("part-*.parquet"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows in the order of the images."""
    return pa.concat_tables([parquet.read_table(part) for part in parts(folder)]).sort_by("id").to_pylist()


def below(parent: int) -> dict[int, str]:
    """Processes below one, with their command lines."""
    found: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = (int((entry / "stat").read_text().rpartition(")")[2].split()[1]), line)
            except (OSError, ValueError):
                continue
    inside = {parent}
    while more := {pid for pid, (above, _) in found.items() if above in inside} - inside:
        inside |= more
    return {pid: found[pid][1] for pid in inside - {parent} if pid in found}


def kill(process: "subprocess.Popen[bytes]", kind: str) -> bool:
    """SIGKILL to the driver, an actor or the raylet; whether there was one. Without driver or raylet all of it ends."""
    under = below(process.pid)
    chosen = [process.pid] if kind == "driver" else [pid for pid, line in under.items() if MARKS[kind] in line]
    for pid in [*chosen[:1], *([] if kind == "actor" else under)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(chosen)


def kills(work: Path, source: Path, calm: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Seeded kills at moments that are drawn; the rows at the end against those of a run that nobody disturbed."""
    draw, done, again, number, finished = random.Random(0), Counter[str](), 0, 0, 0
    folder = work / "killed"
    while sum(done.values()) < count:
        folder = work / f"killed-{number}"
        number += 1
        write_manifest([str(source)], folder, CHUNK, 100 * CHUNK)
        while sum(done.values()) < count:
            process, before = start(folder), len(parts(folder))
            goal = before + draw.randint(0, 6)
            while process.poll() is None and len(parts(folder)) < goal:
                time.sleep(0.02)
            time.sleep(draw.random())
            kind = KINDS[sum(done.values()) % 3]
            if process.poll() is None and kill(process, kind):
                done[kind] += 1
                again += CHUNK  # at most the chunk that an actor was at
            process.wait()
            if len(parts(folder)) == -(-len(calm) // CHUNK):
                break
        assert start(folder).wait() == 0
        found = rows(folder)
        assert found == calm, f"the rows of {folder} are others"
        assert len({row["id"] for row in found}) == len(found)
        finished += 1
        print(f"{sum(done.values())} of {count} kills, {finished} runs with the rows of a calm one", flush=True)
    return {"kills": dict(done), "runs": finished, "lost": 0, "twice": 0, "images_computed_again_at_most": again}


def killed(work: Path, source: Path, count: int) -> dict[str, Any]:
    """A run that nobody disturbs, and then the kills."""
    write_manifest([str(source)], work / "calm", CHUNK, 100 * CHUNK)
    assert start(work / "calm").wait() == 0
    return kills(work, source, rows(work / "calm"), count)


def predicted(source: Path, chunk: int) -> float:
    """Images per second of `masp predict` from the end of its first so many images to its last line."""
    words = [sys.executable, "-m", "masp", "predict", str(source), "--no-explain", "--json", "--device", "cpu"]
    with subprocess.Popen([*words, *BACKBONE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        times = [time.monotonic() for _ in process.stdout]
    assert process.returncode == 0
    return (len(times) - chunk) / (times[-1] - times[chunk - 1])


def throughput(work: Path, source: Path, repeats: int, chunk: int) -> dict[str, Any]:
    """`masp predict` and `masp label run` in turn: whole commands, and from the first chunk's end to the last's."""
    found: dict[str, list[float]] = {}
    count = sum(1 for _ in source.rglob("*.jpg"))
    for repeat in range(repeats):
        began = time.monotonic()
        rate = predicted(source, chunk)
        found.setdefault("predict", []).append(rate)
        found.setdefault("predict, whole command", []).append(count / (time.monotonic() - began))
        folder = work / f"rate-{chunk}-{repeat}"
        write_manifest([str(source)], folder, chunk, 100 * chunk)
        began = time.monotonic()
        assert start(folder).wait() == 0
        found.setdefault("label, whole command", []).append(count / (time.monotonic() - began))
        words = [sys.executable, "-m", "masp", "label", "status", str(folder), "--json"]
        said = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        found.setdefault("label", []).append(said["rate"])
        print({key: values[-1] for key, values in found.items()}, flush=True)
    ratio = median(found["label"]) / median(found["predict"])
    medians = {key: median(values) for key, values in found.items()}
    told = {"images": count, "chunk": chunk, "images_per_second": found, "median": medians}
    return told | {"ratio": ratio, "met": ratio >= 0.85}


def in_turns(work: Path, source: Path, turns: int) -> dict[str, Any]:
    """The same chunks by `Masp.predict_stream` and by what an actor does, in one process, in turn; without Ray.

    Where other work comes and goes, two whole commands do not meet the same machine; neighbouring chunks nearly do.
    """
    if not (work / "in-turns").exists():
        write_manifest([str(source)], work / "in-turns", 2 * CHUNK, 100 * CHUNK)
    manifest = read_manifest(work / "in-turns")
    masp = Masp.from_pretrained(backbone=BACKBONE[1], device="cpu")
    job = Job(str(work / "in-turns"), manifest.sha256, backbone=BACKBONE[1], device="cpu")
    seconds: dict[str, list[float]] = {"predict": [], "label": []}
    with Labeller(job) as labeller:
        for turn in range(turns + 1):
            chunk = read_chunk(job.folder, 0, turn % manifest.chunks(0))
            calls: dict[str, Callable[[], object]] = {
                "predict": partial(list, masp.predict_stream(chunk["uri"].to_pylist(), job.batch_size, explain=False)),
                "label": partial(labeller.labelled, chunk),
            }
            for name in sorted(calls, reverse=turn % 2 == 0):
                began = time.monotonic()
                calls[name]()
                seconds[name].append((time.monotonic() - began) / len(chunk))
    del seconds["predict"][0], seconds["label"][0]  # what is made on first use
    ratios = [mine / other for mine, other in zip(seconds["predict"], seconds["label"], strict=True)]
    return {"seconds_per_image": seconds, "ratios": ratios, "ratio": median(ratios), "met": median(ratios) >= 0.85}


_PLANS = """
import re, sys
from masp.labelling.labeller import Job, Labeller
from masp.labelling.manifest import read_chunk, read_manifest, write_manifest
from masp.predictor import Masp
write_manifest([sys.argv[1]], sys.argv[2])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def manifest_memory(work: Path, counts: tuple[int, ...]) -> dict[str, Any]:
    """Peak memory, bytes, of a process that plans so many images, and how much the last one's is above the first's."""
    peaks: dict[str, int] = {}
    for count in counts:
        file = work / "list.txt"
        with file.open("w") as out:
            out.writelines(f"/images/{number:09}.jpg\n" for number in range(count))
        words = [sys.executable, "-c", _PLANS, str(file), str(work / f"manifest-{count}")]
        peaks[str(count)] = 1024 * int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    least, most = peaks[str(counts[0])], peaks[str(counts[-1])]
    return {"peak_bytes": peaks, "growth": most / least - 1, "met": abs(most / least - 1) <= 0.1}


def measure(given: argparse.Namespace) -> None:
    """The parts that are wanted; the file is written after each, and keeps what it holds of the others."""
    given.work.mkdir(parents=True, exist_ok=True)
    out: Path = given.out
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    parts = {
        "memory": lambda: manifest_memory(given.work, tuple(given.memory)),
        "throughput": lambda: throughput(given.work, images(given.work, 4 * given.chunk), given.repeats, given.chunk),
        "in turns": lambda: in_turns(given.work, images(given.work, given.images), given.turns),
        "kills": lambda: killed(given.work, images(given.work, given.images), given.kills),
    }
    for name in given.only:
        before = os.getloadavg()[0]
        found = parts[name]()
        content["command"] = "python benchmarks/labelling.py WORK_FOLDER"
        content["machine"] = machine()
        content["versions"] = library_versions() | {"ray": metadata.version("ray")}
        content[name] = found | {"load_average": [before, os.getloadavg()[0]]}
        print(f"{name}: {found}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="of the kills and the turns")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chunk", type=int, default=1024, help="of the throughput, which is of four such chunks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20, help="of 64 images by library and actor, in one process")
    parser.add_argument("--memory", type=int, nargs="*", default=[100_000, 10_000_000], help="images of the manifests")
    parser.add_argument("--only", nargs="*", default=["memory", "throughput", "in turns", "kills"])
    parser.add_argument("--out", type=Path, default=RESULT)
    measure(parser.parse_args())
