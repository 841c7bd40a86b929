"""The service as an ingress of Ray Serve: its settings arrive, and Ray's own queues never refuse before it does."""

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fixtures import service as small_service
from fixtures import tiny
from fixtures.service import TASKS, forms, png, same, until
from masp.predictor import Masp
from masp.serving import ServerSettings

pytest.importorskip("ray.serve", reason="the extra ray is not installed")
httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")


@pytest.mark.parametrize("queue", [1, 16, 64])
def test_rays_queues_are_longer_than_any_burst_that_has_room(queue):
    """With `max_queued_requests=4` an idle Ray Serve answered a burst of 16 with eleven refusals."""
    from masp.serving.ray_app import deployment_options

    told = deployment_options(ServerSettings(queue=queue, max_images=1, deadline=7.0), replicas=2, gpus=1)
    assert told["max_ongoing_requests"] > queue
    assert told["max_queued_requests"] > queue
    assert told["graceful_shutdown_timeout_s"] == 7.0
    assert (told["num_replicas"], told["ray_actor_options"]["num_gpus"]) == (2, 1)


@pytest.mark.long
def test_it_answers_on_ray_as_it_does_alone(tmp_path):
    """A burst of 16, every task, a token, a bad request, and its end."""
    adapter = small_service.write_tasks(tmp_path)
    masp = Masp.from_pretrained(adapter, tiny.backbone())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--ray", "--port", str(port), "--queue", "16", "--dtype", "float32"]
    words += ["--backbone", str(tiny.checkpoint()), "--adapter", str(adapter)]
    environment = os.environ | {"MASP_SERVE_TOKEN": "correct-horse", "RAY_USAGE_STATS_ENABLED": "0"}
    # A busy machine takes longer for Ray's own processes than the five seconds that Ray allows them.
    environment |= dict.fromkeys(
        ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "300"
    )
    environment["RAY_worker_niceness"] = "0"  # Ray's own, 15, starves its workers on a busy machine
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    log = (tmp_path / "log").open("w")
    command = [sys.executable, "-c", "from masp.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": "correct-horse"}, timeout=300, trust_env=False
    )

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        try:
            return http.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def ask(number: int) -> Any:
        return http.post("/v1/predict", files=forms(png(number)), data={"task": list(TASKS)[number % 3]})

    try:
        until(ready, 900)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(16)))
        assert [answer.status_code for answer in answers] == [200] * 16
        for number, answer in enumerate(answers):
            expected = masp.predict(small_service.image(png(number)), explain=False, task=list(TASKS)[number % 3])
            (told,) = answer.json()["predictions"]
            assert same(told, expected.to_json(), aside=("image", "adapter", "backbone"))
        assert http.get("/v1/tasks", headers={"x-api-key": "wrong"}).status_code == 401
        assert http.post("/v1/predict", files=forms(b"x"), data={"task": "first"}).status_code == 400
        assert http.get("/v1/info").json()["limits"]["queue"] == 16
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        http.close()
        log.close()
