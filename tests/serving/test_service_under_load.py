"""The service behind a socket: bursts, overload, deadlines, clients that leave or dawdle, and its end."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures import service as small_service
from fixtures import tiny
from fixtures.service import TASKS, Gate, forms, png, running, same, small_app, until
from masp.predictor import Masp

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def masp(tmp_path_factory) -> Masp:
    return Masp.from_pretrained(small_service.write_tasks(tmp_path_factory.mktemp("tasks")), tiny.backbone())


def post(url: str, *contents: bytes, task: str = "first", **options):
    """One request, each over a connection of its own."""
    headers = options.pop("headers", {})
    return httpx.post(
        f"{url}/v1/predict", files=forms(*(contents or (png(),))), data={"task": task} | options, headers=headers,
        timeout=60, trust_env=False,
    )  # fmt: skip


def figure(url: str, name: str) -> float:
    """One of the service's figures."""
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def raw(url: str) -> socket.socket:
    """A connection that a test misuses."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(length: int | None, task: str = "first") -> bytes:
    """The beginning of a request with a form; None: a body in chunks."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        "POST /v1/predict HTTP/1.1\r\nhost: localhost\r\nx-api-key: none\r\n"
        f"content-type: multipart/form-data; boundary=b\r\n{size}\r\n\r\n"
    ).encode()


def body(task: str = "first") -> bytes:
    """A whole form with one image."""
    return (
        f'--b\r\ncontent-disposition: form-data; name="task"\r\n\r\n{task}\r\n'.encode()
        + b'--b\r\ncontent-disposition: form-data; name="images"; filename="x.png"\r\n\r\n'
        + png()
        + b"\r\n--b--\r\n"
    )


# --- at once --------------------------------------------------------------------------------------------------------


def test_two_requests_at_once_break_nothing_deepface_571_500(masp):
    """And more: any mixture of tasks, sizes, label sets and explanations, each answered as the library does."""
    wanted = []
    for number in range(12):
        task = list(TASKS)[number % 3]
        explain = "full" if number % 8 == 0 else "none"
        labels = ["good", "bad"] if number % 5 == 0 else None
        view = masp.for_task(task, labels)
        expected = view.predict(small_service.image(png(number)), explain=explain == "full").to_json()
        options = {"explain": explain} | ({"labels": labels} if labels else {})
        wanted.append((number, task, options, expected))
    with running(small_app(masp)) as url, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: post(url, png(one[0]), task=one[1], **one[2]), wanted))
        batches, images = figure(url, "masp_batch_images_count"), figure(url, "masp_batch_images_sum")
    assert [answer.status_code for answer in answers] == [200] * 12
    for answer, (_, _, _, expected) in zip(answers, wanted, strict=True):
        (told,) = answer.json()["predictions"]
        for aspect in told["aspects"].values():
            aspect.pop("heatmap", None)
        assert same(told, expected, aside=("image", "adapter", "backbone"))
    assert images == 12
    assert batches < 12


def test_a_burst_of_16_on_an_idle_server_is_answered(masp):
    """Ray Serve answered such a burst with eleven refusals, because its queue was shorter than the burst."""
    begin = threading.Barrier(16)

    def ask(number: int) -> int:
        begin.wait()
        return post(url, png(number)).status_code

    with running(small_app(masp)) as url, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == [200] * 16


def test_images_are_computed_in_batches_deepface_1335(masp, monkeypatch):
    gate = Gate(monkeypatch)
    with running(small_app(masp, max_batch=5)) as url, ThreadPoolExecutor(12) as pool:
        first = pool.submit(post, url)
        assert gate.entered.acquire(timeout=60)
        others = [pool.submit(post, url, png(number)) for number in range(11)]
        until(lambda: figure(url, "masp_images_waiting") == 12)
        gate.open()
        assert {one.result().status_code for one in (first, *others)} == {200}
    assert [len(batch) for batch in gate.batches] == [1, 5, 5, 1]


def test_images_are_resized_as_in_the_library_ms_swift_2445_llamafactory_6925_8856(masp):
    """Whatever their size and shape; there is no other cap on the resolution."""
    sizes = ((1200, 900), (37, 61), (90, 1000))
    with running(small_app(masp)) as url:
        for number, size in enumerate(sizes):
            content = png(number, size)
            (told,) = post(url, content).json()["predictions"]
            expected = masp.predict(small_service.image(content), explain=False, task="first")
            assert told["probabilities"] == pytest.approx(dict(expected.probabilities), abs=1e-5)


def test_not_always_one_emotion_deepface_247_1618(masp):
    """An answer is about its own image and its own task, also among others in a batch."""
    with running(small_app(masp)) as url:
        found = post(url, *(png(number) for number in range(6)), task="third").json()["predictions"]
        assert len({tuple(one["probabilities"].values()) for one in found}) == 6
        again = post(url, *(png(number) for number in reversed(range(6))), task="third").json()["predictions"]
    for one, other in zip(found, reversed(again), strict=True):
        assert same(one, other, aside=("image",))


# --- too much -------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(masp, monkeypatch):
    gate = Gate(monkeypatch)
    with running(small_app(masp, queue=4, max_images=3)) as url, ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(post, url) for _ in range(3)]
        until(lambda: figure(url, "masp_images_waiting") == 3)
        answer = post(url, png(), png())  # two more are one too many
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        accepted.append(pool.submit(post, url))
        until(lambda: figure(url, "masp_images_waiting") == 4)
        assert post(url).status_code == 429
        gate.open()
        assert {one.result().status_code for one in accepted} == {200}
        assert post(url).status_code == 200


def test_a_deadline_ends_a_request_and_frees_its_place(masp, monkeypatch):
    gate = Gate(monkeypatch)
    with running(small_app(masp, queue=2, max_images=2)) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url)
        assert gate.entered.acquire(timeout=60)
        begun = time.monotonic()
        answer = post(url, headers={"x-request-timeout-seconds": "0.3"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_passed")
        assert time.monotonic() - begun >= 0.3
        assert figure(url, "masp_images_waiting") == 1
        gate.open()
        assert first.result().status_code == 200
        assert post(url).status_code == 200
    assert [len(batch) for batch in gate.batches] == [1, 1]  # what nobody waited for was not computed


def test_images_of_clients_that_left_are_not_computed(masp, monkeypatch):
    gate = Gate(monkeypatch)
    with running(small_app(masp, queue=32)) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, url)
        assert gate.entered.acquire(timeout=60)
        leaving = [raw(url) for _ in range(20)]
        for connection in leaving:
            connection.sendall(head(len(body())) + body())
        until(lambda: figure(url, "masp_images_waiting") == 21)
        for connection in leaving:
            connection.close()
        until(lambda: figure(url, "masp_images_waiting") == 1)  # their places are free at once
        gate.open()
        assert first.result().status_code == 200
        assert post(url).status_code == 200
        assert figure(url, 'masp_images_total{outcome="abandoned"}') == 20
    assert [len(batch) for batch in gate.batches] == [1, 1]


def test_decoded_images_wait_outside_of_memory(masp, monkeypatch):
    """A few huge images are decoded at a time, not as many as the queue has room for."""
    from masp.serving import batcher

    now = 0
    lock = threading.Lock()
    real = batcher._decoded

    def counted(job, need_dark):
        image, dark = real(job, need_dark)
        nonlocal now
        with lock:
            now += image.width * image.height
        return image.copy(), dark

    monkeypatch.setattr(batcher, "_decoded", counted)
    monkeypatch.setattr(batcher, "MIB", 3 * 1000)  # 64,000 pixels at a time
    gate = Gate(monkeypatch)
    with running(small_app(masp, memory_mb=64)) as url, ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(post, url, png(number, (160, 160))) for number in range(16)]
        assert gate.entered.acquire(timeout=60)
        time.sleep(0.5)
        decoded = now
        gate.open()
        assert {one.result().status_code for one in asked} == {200}
    assert decoded <= 64_000 + 3 * 160 * 160


# --- clients that dawdle --------------------------------------------------------------------------------------------


def test_headers_that_come_byte_by_byte_lose_their_connection(masp):
    """Slow loris."""
    with running(small_app(masp), idle_seconds=0.4) as url:
        slow = [raw(url) for _ in range(30)]
        end = time.monotonic() + 20
        alive = set(slow)
        while alive and time.monotonic() < end:
            for connection in list(alive):
                try:
                    connection.sendall(b"G")
                    connection.settimeout(0.001)
                    if connection.recv(1) == b"":
                        alive.discard(connection)
                except TimeoutError:
                    pass
                except OSError:
                    alive.discard(connection)
            time.sleep(0.05)
        for connection in slow:
            connection.close()
        assert not alive
        assert post(url).status_code == 200


def test_a_body_that_does_not_end_meets_the_deadline(masp):
    with running(small_app(masp, deadline=0.5)) as url, raw(url) as connection:
        connection.sendall(head(1000) + b"--b\r\n")
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"deadline_passed" in answer + connection.recv(4096)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_without_end_is_cut_off(masp, chunked):
    """However it comes: announced as huge, or in chunks that never stop."""
    with running(small_app(masp, max_body_mb=1, memory_mb=2)) as url, raw(url) as connection:
        connection.sendall(head(None if chunked else 2**40))
        block = b"x" * 65_536
        sent = 0
        answer = b""
        connection.settimeout(0.2)
        while not answer and sent < 2**30:
            try:
                connection.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
                if sent % (16 * len(block)) == 0 and sent > 2**21:
                    answer = connection.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                break
        assert sent < 2**30
        assert answer.startswith(b"HTTP/1.1 413 ") or not answer
        assert post(url).status_code == 200


# --- the end --------------------------------------------------------------------------------------------------------


def test_the_end_answers_what_was_accepted_and_refuses_the_rest(masp, monkeypatch):
    gate = Gate(monkeypatch)
    app = small_app(masp)
    server = small_service.HttpServer(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = server.address
    until(lambda: server._server.started)
    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(post, url, png(number)) for number in range(8)]
        until(lambda: figure(url, "masp_images_waiting") == 8)
        server.stop()
        until(lambda: app.state.service.batcher.draining)
        refused = post(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{url}/ready", trust_env=False).status_code == 503
        gate.open()
        assert [one.result().status_code for one in accepted] == [200] * 8
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        post(url)


def test_answers_do_not_wait_for_an_acknowledgement(masp):
    server = small_service.HttpServer(small_app(masp), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server._server.started)
    try:
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{server.address}/health").status_code == 200
            (accepted,) = [one.transport for one in server._server.server_state.connections]
            assert accepted.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        server.stop()
        thread.join(60)


def test_a_port_that_is_taken_is_an_error(masp):
    from masp.core.errors import MaspError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MaspError, match="cannot be used"):
        small_service.HttpServer(small_app(masp), "127.0.0.1", taken.getsockname()[1])
