"""`masp serve` as a process: how it begins, and that SIGTERM under load loses nothing that was accepted."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures import service as small_service
from fixtures import tiny
from fixtures.service import TASKS, forms, png, until

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")

pytestmark = pytest.mark.long
MINE = ("--backbone", tiny.checkpoint(), "--adapter")
SERVE = "from masp.cli import main; main()"


@dataclass
class Process:
    """A running `masp serve`, with what it wrote so far."""

    process: subprocess.Popen
    lines: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        for line in self.process.stderr:
            if line.startswith("{"):  # the last line of a failure is for people
                self.lines.append(json.loads(line))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]


@contextmanager
def serving(*words: object, **environment: str) -> Iterator[tuple[Process, str]]:
    """The command on a free port, once it is ready; and its address."""
    command = [sys.executable, "-c", SERVE, "serve", "--port", "0", *map(str, words)]
    held = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    process = Process(held)
    reader = threading.Thread(target=process.read)
    reader.start()
    try:
        until(lambda: process.events("listening") or held.poll() is not None, 600)
        url = process.events("listening")[0]["address"]
        until(lambda: httpx.get(f"{url}/ready", trust_env=False).status_code == 200, 600)
        yield process, url
    finally:
        if held.poll() is None:
            held.kill()
        held.wait()
        reader.join()
        held.stderr.close()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return small_service.write_tasks(tmp_path_factory.mktemp("process"))


def test_sigterm_under_load_20_times_loses_nothing(adapter):
    """Whatever the service's log says was answered was received; what was accepted was answered; by the deadline."""
    chance = random.Random(13)
    for _ in range(20):
        _end_under_load(adapter, chance.random(), deadline=30)


def _end_under_load(adapter: Path, wait: float, deadline: int) -> None:
    answers: dict[str, str] = {}
    stop = threading.Event()

    def client(number: int, url: str) -> None:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            for turn in range(100_000):
                identity = f"{number}-{turn}"
                files, data = forms(png(turn)), {"task": list(TASKS)[turn % 3]}
                try:
                    answer = http.post("/v1/predict", files=files, data=data, headers={"x-request-id": identity})
                    answers[identity] = str(answer.status_code)
                except httpx.HTTPError as error:
                    answers[identity] = type(error).__name__
                if stop.is_set():
                    return

    with serving(*MINE, adapter, "--queue", 16, "--deadline", deadline) as (process, url):
        threads = [threading.Thread(target=client, args=(number, url)) for number in range(24)]
        for thread in threads:
            thread.start()
        until(lambda: sum(status == "200" for status in list(answers.values())) > 10, 300)
        time.sleep(wait)
        process.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        stop.set()
        assert process.process.wait(300) == 0
        assert time.monotonic() - begun < deadline + 15
        for thread in threads:
            thread.join(300)
    said = {line["id"]: str(line["status"]) for line in process.events("request") if line["route"] == "/v1/predict"}
    assert process.events("drained")[0]["unanswered"] == 0
    assert set(said.values()) <= {"200", "429", "503"}, Counter(said.values())
    lost = {identity for identity, status in said.items() if status == "200" and answers[identity] != "200"}
    assert not lost
    assert set(answers.values()) <= {"200", "429", "503", "ConnectError", "ReadError", "RemoteProtocolError"}


def test_it_serves_what_the_command_says(adapter, tmp_path):
    """With a home that cannot be written to, as in a container; and a token from the environment."""
    words = (*MINE, adapter, "--host", "0.0.0.0", "--max-batch", 3)
    home = {"HOME": "/nonexistent", "MASP_SERVE_TOKEN": "correct-horse"}
    with serving(*words, **home) as (process, address):
        url = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/tasks", trust_env=False).status_code == 401
        headers = {"x-api-key": "correct-horse"}
        info = httpx.get(f"{url}/v1/info", headers=headers, trust_env=False).json()
        assert info["limits"]["batch"] == 3
        assert str(tiny.checkpoint()) not in json.dumps(info)
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(120) == 0


def test_a_wrong_checkpoint_is_refused_with_words_emotion_llama_127(adapter, tmp_path):
    command = [sys.executable, "-c", SERVE, "serve", "--port", "0", "--adapter", str(adapter)]
    command += ["--backbone", str(tiny.checkpoint(seed=1))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "expected" in done.stderr
    assert "Traceback" not in done.stderr
