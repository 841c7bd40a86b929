"""The examples of docs/how-to/serving.md do what it says, with curl and the client; and its files for deployment."""

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from fixtures import service as small_service
from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.service import Gate, png, running, same, small_app
from masp.cli import main
from masp.core.errors import ImageError
from masp.predictor import Masp
from masp.serving import AsyncClient, Client
from masp.serving.client import ServiceError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "how-to" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def masp(tmp_path_factory) -> Masp:
    folder = tmp_path_factory.mktemp("document") / "mine"
    return Masp.from_pretrained(write_adapter(folder), tiny.backbone())


@pytest.fixture(scope="module")
def url(masp) -> Iterator[str]:
    with running(small_app(masp)) as address:
        yield address


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """A folder, the current one, with the images that the examples name."""
    for number, name in enumerate(("photo.jpg", "one.jpg", "two.png")):
        tiny.picture(84, 112, seed=number).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_every_curl_example_is_answered_emotion_llama_46(url, pictures):
    """The simplest usage is one line."""
    lines = re.findall(r"^curl .+$", DOCUMENT, flags=re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        assert ADDRESS in line
        command = line.replace("curl", "curl --silent --show-error --fail-with-body --noproxy '*'", 1)
        done = subprocess.run(
            ["bash", "-c", command.replace(ADDRESS, url)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, line + done.stdout + done.stderr
        if "report.html" in line:
            assert (pictures / "report.html").read_text().startswith("<!doctype html>")
        elif "predict" in line:
            told = json.loads(done.stdout)["predictions"]
            assert len(told) == line.count("images=@") or len(told) == 1
            assert all(one["label"] in one["probabilities"] for one in told)


def test_the_example_in_python_runs(url, pictures, capsys):
    (code,) = re.findall(r"```python\n(.+?)```", DOCUMENT, flags=re.DOTALL)
    exec(compile(code.replace(ADDRESS, url), "serving.md", "exec"), {})
    assert capsys.readouterr().out.split(maxsplit=1)[0] in ("joy", "fear", "awe")


def test_the_options_that_the_document_names_exist(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", DOCUMENT)) - {"--json"}:
        assert option in shown


# --- the client -----------------------------------------------------------------------------------------------------


def test_both_clients_answer_as_the_library_does(masp, url, pictures):
    given = [pictures / "photo.jpg", png(1), tiny.picture(84, 112, seed=2)]
    expected = masp.predict([pictures / "photo.jpg", small_service.image(png(1)), given[2]], explain=False)
    with Client(url) as client:
        found = client.predict(given)
        assert client.get("/v1/tasks")["tasks"][0]["default"] is True
        (alone,) = client.predict(str(pictures / "photo.jpg"), labels=["good", "bad"], top_k=1)

    async def ask() -> list:
        async with AsyncClient(url) as other:
            assert (await other.get("/ready"))["status"] == "ready"
            return await other.predict(given)

    for answers in (found, asyncio.run(ask())):
        for one, own in zip(answers, expected, strict=True):
            assert same(one, own.to_json(), aside=("image", "adapter", "backbone"))
    assert [one["image"] for one in found] == ["photo.jpg", "image 2", "image 3.png"]
    assert len(alone["probabilities"]) == 1


def test_a_client_says_what_the_service_refused(masp, url, pictures):
    with Client(url) as client:
        with pytest.raises(ServiceError, match="no such task") as refused:
            client.predict("photo.jpg", task="nothing")
        assert (refused.value.status, refused.value.code) == (400, "unknown_task")
        assert refused.value.request_id
        with pytest.raises(ImageError):
            client.predict("gone.jpg")
        (broken, good) = client.predict([b"no image", png()])
        assert "error" in broken
        assert "label" in good
    with running(small_app(masp, tokens=("correct-horse",))) as closed:
        with Client(closed) as client, pytest.raises(ServiceError, match="401"):
            client.get("/v1/tasks")
        with Client(closed, token="correct-horse") as client:
            assert client.get("/v1/tasks")["tasks"]


def test_a_client_comes_back_when_it_was_told_to(masp, monkeypatch):
    waited = []
    gate = Gate(monkeypatch)

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        gate.open()

    clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)  # the client's own, not that of everybody
    monkeypatch.setattr("masp.serving.client.time", clock)
    app = small_app(masp, queue=1, max_images=1)
    with running(app) as url, ThreadPoolExecutor(1) as pool, Client(url, retries=50) as patient, Client(url) as first:
        held = pool.submit(first.predict, png(0))
        assert gate.entered.acquire(timeout=60)
        with Client(url, retries=0) as hasty, pytest.raises(ServiceError, match="429"):
            hasty.predict(png(1))
        assert waited == []
        assert "label" in patient.predict(png(2))[0]
        assert "label" in held.result()[0]
    assert waited
    assert all(1 <= seconds <= 1.25 for seconds in waited)


def test_a_service_that_is_not_there_is_an_error_in_time():
    with Client("http://127.0.0.1:9", timeout=1.5) as client, pytest.raises(ServiceError, match="did not answer"):
        client.predict(png())


# --- the commands ---------------------------------------------------------------------------------------------------


def test_the_load_test_tells_what_came_back(url, pictures, capsys):
    for words in ((), ("--json",)):
        with pytest.raises(SystemExit) as end:
            main(["load-test", url, "--images", ".", "--clients", "3", "--seconds", "1", *words])
        assert end.value.code == 0
    shown, _, told = capsys.readouterr().out.rpartition("\n{")
    assert "images a second, 3 clients" in shown
    result = json.loads("{" + told)
    assert set(result["statuses"]) == {"200"}
    assert result["latency"]["p50"] <= result["latency"]["p99"]
    assert result["refused_without_retry_after"] == 0


def test_what_cannot_be_served_is_refused_before_anything_is_loaded(masp, capsys):
    for words, message in (
        (["--host", "0.0.0.0"], "--open-to-anyone"),
        (["--token", "short"], "secrets.token_urlsafe"),
        (["--deadline", "0"], "deadline"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["serve", *words])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


# --- deployment -----------------------------------------------------------------------------------------------------


def test_containers_run_without_root_and_write_nothing():
    recipe = (ROOT / "docs" / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^USER 10001$", recipe, flags=re.MULTILINE)
    assert "HEALTHCHECK" in recipe
    assert "ARG BASE=" in recipe
    (service,) = yaml.safe_load((ROOT / "docs" / "deploy" / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    deployment, _ = yaml.safe_load_all((ROOT / "docs" / "deploy" / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert pod["terminationGracePeriodSeconds"] > 30
