"""What the service stands, against the goals that were set for it: `python benchmarks/serving.py --json FILE`.

The service runs as a process of its own (`masp serve`, the embedded backbone); clients and the library run in this one.
Where two times are compared they are taken in turns. `--seconds` and `--requests` shorten the long measurements; the
result says how long each was. Figures of a machine that does other things at the same time say so little that the load
average before and after is written beside them.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
from machine import machine

from masp.predictor import Masp
from masp.serving.load_test import Load, load_test

PICTURES = [file for file in resources.files("masp").joinpath("demo_pictures").iterdir() if file.name.endswith(".png")]
CONTENTS = [file.read_bytes() for file in PICTURES]
SERVE = "from masp.cli import main; main()"


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command on a free port, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", "--backbone", "embedded", "--port", str(port), *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/ready", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, "the service did not start"
            time.sleep(0.2)
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def resident(process: subprocess.Popen) -> float:
    """MiB of a process in memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 2**20


def figure(url: str, name: str) -> float:
    """One of the service's figures, asked for again while all connections are taken (503)."""
    while (answer := httpx.get(f"{url}/metrics", timeout=300, trust_env=False)).status_code == 503:
        time.sleep(0.2)
    lines = answer.text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def overload(seconds: float) -> dict[str, Any]:
    """64 clients where 16 images have room: about four times what can be answered at once."""
    with serving("--queue", "16", "--deadline", "30") as (process, url):
        asyncio.run(load_test(url, CONTENTS, Load(16, min(10.0, seconds))))
        before = resident(process)
        result = asyncio.run(load_test(url, CONTENTS, Load(64, seconds)))
        after = resident(process)
    told = result.to_json() | {"deadline": 30, "memory_mib": [before, after], "memory_growth": after / before - 1}
    others = {status: count for status, count in result.statuses.items() if status not in ("200", "429", "408")}
    kept = not others and result.refused_without_retry_after == 0 and result.latency.get("p99", 99) <= 30
    return told | {"met": kept and after / before - 1 < 0.05}


def burst(times: int) -> dict[str, Any]:
    """16 requests at once on an idle service, again and again."""
    statuses: list[int] = []

    def ask(begin: threading.Barrier, content: bytes, url: str) -> None:
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
            http.get("/ready")
            begin.wait()
            statuses.append(http.post("/v1/predict", files=[("images", ("a", content))]).status_code)

    with serving() as (_, url):
        for _ in range(times):
            begin = threading.Barrier(16)
            threads = [threading.Thread(target=ask, args=(begin, CONTENTS[k % 6], url)) for k in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    return {"bursts": times, "answers": len(statuses), "ok": statuses.count(200), "met": set(statuses) == {200}}


def cpu_seconds(process: subprocess.Popen) -> float:
    """Processor time of a process, which says something on a busy machine too."""
    numbers = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def throughput(seconds: float, turns: int) -> dict[str, Any]:
    """Images a second of the library and of the service at the same batch, and one request alone, in turns.

    The service is asked twice: by 32 clients for one image at a time, and by three for a batch of 16 in one request.
    Each turn has its own ratios, because a machine's speed changes from minute to minute; the medians are reported.
    """
    masp = Masp.from_pretrained(backbone="embedded")
    shapes = {"one_image": Load(32, seconds), "batch": Load(3, seconds, images=16)}
    rates: dict[str, list[float]] = {"library": [], **{name: [] for name in shapes}}
    cpu: dict[str, list[float]] = {"library": [], **{name: [] for name in shapes}}
    alone, call = [], []
    content = CONTENTS[0]
    _rate(masp, 2.0)
    with serving("--queue", "128") as (process, url), httpx.Client(base_url=url, trust_env=False) as http:
        asyncio.run(load_test(url, CONTENTS, Load(32, 2.0)))
        for _ in range(turns):
            pause(process, True)
            before = time.process_time()
            rate, count = _rate(masp, seconds)
            cpu["library"].append((time.process_time() - before) / count)
            rates["library"].append(rate)
            call += _times(lambda: masp.predict(str(PICTURES[0]), explain=False), 20)
            pause(process, False)
            for name, load in shapes.items():
                before = cpu_seconds(process)
                result = asyncio.run(load_test(url, CONTENTS, load))
                cpu[name].append((cpu_seconds(process) - before) / (result.statuses["200"] * load.images))
                rates[name].append(result.images_per_second)
            alone += _times(lambda: http.post("/v1/predict", files=[("images", ("a", content))]), 20)
    ratio = {
        name: statistics.median(own / rate for own, rate in zip(rates[name], rates["library"], strict=True))
        for name in shapes
    }
    one, own = statistics.median(alone), statistics.median(call)
    return {
        "batch": 16,
        "seconds": seconds,
        "images_per_second": rates,
        "ratio": ratio,
        "cpu_seconds_per_image": cpu,
        "seconds_alone": {"library": own, "service": one},
        "met": {name: value >= 0.9 for name, value in ratio.items()} | {"alone": one <= 1.15 * own + 0.01},
    }


def pause(process: subprocess.Popen, held: bool) -> None:
    """Holds a process, so that it takes nothing from what is measured beside it."""
    process.send_signal(signal.SIGSTOP if held else signal.SIGCONT)


def _rate(masp: Masp, seconds: float) -> tuple[float, int]:
    def endless() -> Iterator[str]:
        while True:
            yield from (str(file) for file in PICTURES)

    count, begun = 0, time.perf_counter()
    for _ in masp.predict_stream(endless(), batch_size=16, explain=False):
        count += 1
        if time.perf_counter() - begun > seconds and count % 16 == 0:
            break
    return count / (time.perf_counter() - begun), count


def _times(call: Callable[[], object], count: int) -> list[float]:
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return found


def leaving(count: int) -> dict[str, Any]:
    """Clients that send an image to a busy service and leave before its turn."""
    with serving("--queue", "512") as (_, url):
        host, _, port = url.removeprefix("http://").partition(":")
        boundary = b'--b\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
        body = boundary + CONTENTS[0] + b"\r\n--b--\r\n"
        head = (
            f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: multipart/form-data; boundary=b\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()
        stop = threading.Event()

        def busy(number: int) -> None:
            with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
                while not stop.is_set():
                    files = [("images", ("a", CONTENTS[number % 6]))] * 16
                    http.post("/v1/predict", files=files)

        threads = [threading.Thread(target=busy, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        while figure(url, "masp_images_waiting") < 48:
            time.sleep(0.01)
        for _ in range(count // 64):
            held = [socket.create_connection((host, int(port))) for _ in range(64)]
            for connection in held:
                connection.sendall(head + body)
            time.sleep(0.02)
            for connection in held:
                connection.close()
        while figure(url, "masp_images_waiting") > 64:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        left = figure(url, 'masp_requests_total{route="/v1/predict",status="499"}')
        abandoned = figure(url, 'masp_images_total{outcome="abandoned"}')
        computed = figure(url, "masp_batch_images_sum")
        answered = figure(url, 'masp_images_total{outcome="predicted"}')
    extra = computed - answered  # went into the model for nobody
    share = extra / (count // 64 * 64)
    return {
        "clients": count // 64 * 64,
        "noticed": left,
        "abandoned": abandoned,
        "computed": extra,
        "met": share < 0.01,
    }


def memory(requests: int) -> dict[str, Any]:
    """Many small requests one after the other from 8 clients; the memory of the service along the way."""
    sizes: list[tuple[int, float]] = []
    with serving("--queue", "64") as (process, url):
        done, lock = 0, threading.Lock()

        def client(number: int) -> None:
            nonlocal done
            with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
                while done < requests:
                    http.post("/v1/predict", files=[("images", ("a", CONTENTS[number % 6]))]).raise_for_status()
                    with lock:
                        done += 1
                        if done % max(1, requests // 20) == 0:
                            sizes.append((done, resident(process)))

        threads = [threading.Thread(target=client, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first = next(size for count, size in sizes if count >= requests // 20)
    growth = max(size for _, size in sizes) / first - 1
    return {"requests": done, "memory_mib": sizes, "growth_after_the_first_twentieth": growth, "met": growth < 0.05}


def shown(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured so far as a table for people."""
    rows: list[list[str]] = []
    if one := found.get("burst"):
        rows.append(["a burst of 16 on an idle service, five times", f"{one['ok']} of {one['answers']} answered 200"])
    if one := found.get("throughput"):
        ways = {"one_image": "one image a request, 32 clients", "batch": "16 images a request, 3 clients"}
        rows += [
            [f"images a second, service to library, {ways[name]}", f"{ratio:.2f} times"]
            for name, ratio in one["ratio"].items()
        ]
        alone = one["seconds_alone"]
        rows.append(["one request alone: service, library", f"{alone['service']:.3f} s, {alone['library']:.3f} s"])
    if one := found.get("overload"):
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(one["statuses"].items()))
        what = f"{one['clients']} clients for {one['seconds']:.0f} s: answers"
        rows.append([what, f"{answers}; {one['refused_without_retry_after']} without Retry-After"])
        rows.append(
            [
                "the same: 99th percentile of the accepted, deadline",
                f"{one['latency']['p99']:.1f} s, {one['deadline']} s",
            ]
        )
    if one := found.get("leaving"):
        rows.append([f"{one['clients']} clients that leave: images that reached the model", f"{one['computed']:.0f}"])
    if one := found.get("memory"):
        what = f"{one['requests']} small requests: growth of memory after the first twentieth"
        rows.append([what, f"{one['growth_after_the_first_twentieth']:.1%}"])
    return {
        "title": "The service on one machine",
        "command": "python benchmarks/serving.py",
        "note": "The lengths are those of the table; the averages of the machine's load stand in the file.",
        "table": {"head": ["what", "measured"], "rows": rows},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/serving.json"))
    parser.add_argument("--seconds", type=float, default=60, help="of the overload; the goal is 60")
    parser.add_argument("--requests", type=int, default=100_000, help="of the memory test; the goal is 100,000")
    parser.add_argument("--leaving", type=int, default=1024, help="clients that leave")
    parser.add_argument("--turns", type=int, default=9, help="of library and service")
    parser.add_argument("--only", nargs="*", default=["burst", "throughput", "overload", "leaving", "memory"])
    given = parser.parse_args()
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "burst": lambda: burst(5),
        "throughput": lambda: throughput(min(5.0, given.seconds), given.turns),
        "overload": lambda: overload(given.seconds),
        "leaving": lambda: leaving(given.leaving),
        "memory": lambda: memory(given.requests),
    }
    found = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name in given.only:
        load = os.getloadavg()[0]
        result = measured[name]()
        found[name] = result | {"load_average": [load, os.getloadavg()[0]]}
        print(name, json.dumps(result))
        found["machine"] = machine()
        found |= shown(found)
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
