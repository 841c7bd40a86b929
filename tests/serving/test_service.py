"""The service in process: answers, errors, who may ask, and what is written of a request."""

import base64
import json
import logging
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fixtures import service as small_service
from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.noise_lessons import Watched, lessons
from fixtures.service import TASKS, Gate, forms, image, png, same, small_app, until
from masp.baselines.registry import make_system
from masp.cli.serve import _loaded
from masp.core.errors import UsageError
from masp.model.explain import ATTRIBUTIONS, DEFAULT_ATTRIBUTION
from masp.predictor import Masp
from masp.serving import create_app
from masp.serving.app import SWITCH_SECONDS, named_tasks
from masp.serving.batcher import Upload, _Job
from masp.serving.server import JsonLines
from masp.serving.settings import ServerSettings, check_exposure


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    return small_service.write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def masp(several) -> Masp:
    return Masp.from_pretrained(several, tiny.backbone())


@pytest.fixture(scope="module")
def client(masp):
    with TestClient(small_app(masp)) as opened:
        yield opened


def error(answer) -> dict[str, Any]:
    """The error of an answer, which has the one shape that errors have."""
    (body,) = answer.json().values()
    assert set(body) == {"message", "type", "param", "code"}
    return body


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explain", ["none", "full"])
def test_answers_are_those_of_the_library(client, masp, explain):
    contents = [png(index) for index in range(3)]
    answer = client.post("/v1/predict", files=forms(*contents), data={"task": "third", "explain": explain})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    expected = masp.predict([image(one) for one in contents], explain=explain == "full", task="third")
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        told = json.loads(json.dumps(other.to_json()))
        assert one["image"] == f"{index}.png"
        assert all(aspect.pop("heatmap", None) is None for aspect in one["aspects"].values())
        assert same(one, told, aside=("image", "adapter", "backbone"))
        assert set(one) == set(told)


def test_effects_are_found_by_the_attribution_that_is_named(client, masp):
    """One batch with both attributions and without reasons; each is what the library says."""
    found = {}
    for how in (None, *ATTRIBUTIONS):
        named = {} if how is None else {"attribution": how}
        answer = client.post("/v1/predict", files=forms(png(1)), data={"task": "third", "explain": "words"} | named)
        (found[how],) = answer.json()["predictions"]
    for how in ATTRIBUTIONS:
        told = masp.predict(image(png(1)), explain=how, task="third")
        assert found[how]["attribution"] == told.attribution == how
        effects = {name: aspect["effect"] for name, aspect in found[how]["aspects"].items()}
        assert effects == pytest.approx({name: aspect.effect for name, aspect in told.aspects.items()}, abs=1e-4)
    assert found["shapley"]["aspects"] != found["leave_one_out"]["aspects"]
    assert found[None] == found[DEFAULT_ATTRIBUTION]
    (other,) = (name for name in ATTRIBUTIONS if name != DEFAULT_ATTRIBUTION)
    with TestClient(small_app(masp, attribution=other)) as told_otherwise:
        assert told_otherwise.get("/v1/info").json()["attribution"] == other
        body = {"images": [base64.b64encode(png(1)).decode()], "task": "third", "explain": "words"}
        (own,) = told_otherwise.post("/v1/predict", json=body).json()["predictions"]
    assert same(own, found[other], aside=("image",))


def test_an_adapter_that_is_named_by_a_dot_has_the_name_of_its_folder(tmp_path, monkeypatch):
    """`masp serve --adapter .`, and `..` beside it."""
    for name in ("inner", "inner/other"):
        write_adapter(tmp_path / name)
    monkeypatch.chdir(tmp_path / "inner" / "other")
    tasks, _ = named_tasks(_loaded((".", ".."), str(tiny.checkpoint()), {}))
    assert list(tasks) == ["other", "inner"]


def test_a_concept_bottleneck_answers_with_its_words(tmp_path):
    seen = ("amusement", "anger", "fear")
    aspects, backbone = write_adapter(tmp_path / "whole", seen), tiny.backbone()
    given = [f"aspects={aspects}", "fewest=2", "strengths=[1.0]"]
    system = make_system("concepts", backbone, seen, given)
    system.fit(replace(lessons(tmp_path / "concepts" / "training", Watched(backbone)), val=()))
    masps = [Masp.from_pretrained(tmp_path / "concepts", backbone), Masp.from_pretrained(aspects, backbone)]
    with TestClient(create_app(masps)) as opened:
        for task, library in zip(("concepts", "whole"), masps, strict=True):
            data = {"task": task, "explain": "full", "attribution": "shapley", "heatmaps": "true"}
            answer = opened.post("/v1/predict", files=forms(png(0)), data=data)
            assert answer.status_code == 200, answer.text
            (found,) = answer.json()["predictions"]
            assert all(aspect.pop("heatmap") for aspect in found["aspects"].values())
            told = json.loads(json.dumps(library.predict(image(png(0)), explain="shapley").to_json()))
            assert same(found, told, aside=("image", "adapter", "backbone"))
            assert found["attribution"] == ("concept_bottleneck" if task == "concepts" else "shapley")
        assert opened.post("/v1/report", files=forms(png(0)), data={"task": "concepts", "explain": "full"}).is_success
        wrong = opened.post("/v1/predict", files=forms(png(0)), data={"task": "concepts", "labels": "joy,fear"})
        assert (wrong.status_code, error(wrong)["code"]) == (400, "invalid_labels")


def test_json_and_a_form_ask_the_same(client):
    content = png(1)
    form = client.post("/v1/predict", files=forms(content), data={"task": "first", "explain": "words", "top_k": "2"})
    encoded = base64.b64encode(content).decode()
    for sent in (encoded, {"data": encoded, "name": "0.png"}, f"data:image/png;base64,{encoded}"):
        body = {"images": [sent], "task": "first", "explain": "words", "top_k": 2}
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == 200, answer.text
        assert same(answer.json()["predictions"][0], form.json()["predictions"][0], aside=("image",))
    told = form.json()["predictions"][0]
    assert len(told["probabilities"]) == 2
    assert {aspect["attention"] for aspect in told["aspects"].values()} == {None}
    assert len(told["aspects"]) == 6


def test_labels_replace_those_of_a_task(client, masp):
    for given in (["good", "bad"], ["polarity"], ["good,bad"]):
        answer = client.post("/v1/predict", files=forms(png()), data={"task": "first", "labels": given})
        told = answer.json()["predictions"][0]["probabilities"]
        assert tuple(told) == (("positive", "negative") if given == ["polarity"] else ("good", "bad"))
        expected = masp.for_task("first", tuple(told)).predict(image(png()), explain=False)
        assert told == pytest.approx(dict(expected.probabilities), abs=1e-4)


def test_heatmaps_come_as_png_where_they_are_asked_for(client):
    asked = {"task": "first", "explain": "full", "heatmaps": "true"}
    (told,) = client.post("/v1/predict", files=forms(png()), data=asked).json()["predictions"]
    for aspect in told["aspects"].values():
        veil = image(base64.b64decode(aspect["heatmap"]))
        assert (veil.format, veil.mode) == ("PNG", "RGBA")
        rows, columns = len(aspect["attention"]), len(aspect["attention"][0])
        assert veil.width / veil.height == pytest.approx(columns / rows, rel=0.05)


def test_a_report_is_a_page_that_loads_nothing(client):
    answer = client.post("/v1/report", files=forms(png(), b"no image"), data={"task": "first", "explain": "words"})
    assert answer.headers["content-type"].startswith("text/html")
    assert "not a JPEG" in answer.text
    assert "http" not in answer.text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_what_there_is_to_ask(client):
    tasks = client.get("/v1/tasks").json()["tasks"]
    assert {task["name"]: tuple(task["labels"]) for task in tasks} == TASKS
    assert [task["default"] for task in tasks] == [False] * 3
    labels = client.get("/v1/labels").json()
    assert labels["tasks"] == {name: list(own) for name, own in TASKS.items()}
    assert labels["sets"]["polarity"] == ["positive", "negative"]
    info = client.get("/v1/info").json()
    assert info["family"] == "qwen2_vl"
    assert info["limits"]["images"] == 16
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_no_answer_names_a_place_on_the_server(client, several):
    asked = {"task": "first", "explain": "words"}
    texts = [client.get(path).text for path in ("/v1/tasks", "/v1/info", "/v1/labels", "/metrics", "/openapi.json")]
    texts += [client.post(path, files=forms(png()), data=asked).text for path in ("/v1/predict", "/v1/report")]
    for text in texts:
        assert str(several.parent) not in text
        assert str(tiny.checkpoint().parent) + "/" not in text


# --- errors ---------------------------------------------------------------------------------------------------------

ENCODED = base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    ("sent", "status", "code", "param"),
    [
        ({"json": {"images": [ENCODED]}}, 400, "task_needed", "task"),
        ({"json": {"images": [ENCODED], "task": "fist"}}, 400, "unknown_task", "task"),
        ({"json": {"images": [ENCODED], "task": "first", "labels": ["joy"]}}, 400, "invalid_labels", "labels"),
        ({"json": {"images": [ENCODED], "task": "first", "labels": ["joy", "Joy "]}}, 400, "invalid_labels", "labels"),
        ({"json": {"images": [ENCODED], "task": "first", "labels": ["a"] * 101}}, 400, "invalid_request", "labels"),
        ({"json": {"images": [ENCODED], "task": "first", "explain": "all"}}, 400, "invalid_request", "explain"),
        ({"json": {"images": [ENCODED], "task": "first", "top_k": 0}}, 400, "invalid_request", "top_k"),
        ({"json": {"images": [ENCODED], "taks": "first"}}, 400, "invalid_request", "taks"),
        ({"json": {"images": []}}, 400, "invalid_request", "images"),
        ({"json": {"images": [ENCODED] * 17, "task": "first"}}, 400, "too_many_images", "images"),
        ({"json": {"images": ["https://example.org/a.png"]}}, 400, "not_fetched", "images.0"),
        ({"json": {"images": ["file:/" + "//etc/passwd"]}}, 400, "not_fetched", "images.0"),
        ({"json": {"images": ["/etc/passwd"]}}, 400, "invalid_base64", "images.0"),
        ({"json": {"images": ["%%%"]}}, 400, "invalid_base64", "images.0"),
        ({"json": {"images": ["aaaa"], "task": "first"}}, 400, "unreadable_image", "images"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_request", None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_form", "content-type"),
        (
            {"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            400,
            "invalid_form",
            None,
        ),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported_type", "content-type"),
        ({"data": {"task": "first"}}, 415, "unsupported_type", "content-type"),
        ({"files": [("picture", ("a.png", png()))]}, 400, "invalid_request", "picture"),
        ({"files": [("task", (None, "first"))]}, 400, "no_images", "images"),
        ({"files": forms(*[png()] * 17)}, 400, "too_many_images", "images"),
        (
            {"json": {"images": [ENCODED], "task": "first"}, "headers": {"x-request-timeout-seconds": "soon"}},
            400,
            "invalid_timeout",
            "x-request-timeout-seconds",
        ),
        (
            {"content": b"x", "headers": {"content-type": "application/json", "content-encoding": "gzip"}},
            415,
            "unsupported_encoding",
            "content-encoding",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, sent, status, code, param):
    answer = client.post("/v1/predict", **sent)
    told = error(answer)
    assert (answer.status_code, told["code"], told["param"]) == (status, code, param)


def test_unknown_routes_and_methods_answer_in_the_same_shape(client):
    assert error(client.get("/v1/nothing"))["code"] == "not_found"
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert error(answer)["code"] == "method_not_allowed"


def test_one_broken_image_fails_alone(client):
    answer = client.post(
        "/v1/predict", files=forms(png(0), b"\x89PNG\r\n\x1a\n broken", png(2)), data={"task": "first"}
    )
    first, broken, third = answer.json()["predictions"]
    assert set(broken) == {"image", "error"}
    assert "label" in first
    assert "label" in third


def test_an_image_that_the_backbone_refuses_fails_alone(client):
    answer = client.post("/v1/predict", files=forms(png(0), png(1, (1, 900))), data={"task": "first"})
    assert answer.status_code == 200, answer.text
    assert [set(one) == {"image", "error"} for one in answer.json()["predictions"]] == [False, True]


def test_an_image_that_breaks_the_model_fails_alone(masp, monkeypatch):
    """The others of its batch are computed one by one."""
    import masp.serving.batcher as home

    real = home.predict_mixed

    def sometimes(pixels, queries):
        if any(query.name == "poison.png" for query in queries):
            raise RuntimeError("/secret/place")
        return real(pixels, queries)

    monkeypatch.setattr(home, "predict_mixed", sometimes)
    files = [("images", (name, png())) for name in ("a.png", "poison.png", "b.png")]
    with TestClient(small_app(masp)) as client:
        mixed = client.post("/v1/predict", files=files, data={"task": "first"})
        alone = client.post("/v1/predict", files=files[1:2], data={"task": "first"})
    assert [set(one) == {"image", "error"} for one in mixed.json()["predictions"]] == [False, True, False]
    assert (alone.status_code, error(alone)["code"]) == (500, "prediction_failed")
    assert "secret" not in mixed.text + alone.text


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_without_a_valid_token_nothing_is_answered(masp):
    with TestClient(small_app(masp, tokens=("correct-horse", "battery-staple"))) as client:
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": "Basic a"}):
            for path in ("/v1/tasks", "/v1/info", "/metrics"):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, error(answer)["code"]) == (401, "invalid_token")
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/predict", files=forms(png()), headers=headers).status_code == 401
        for headers in ({"x-api-key": "correct-horse"}, {"authorization": "bearer battery-staple"}):
            assert client.get("/v1/tasks", headers=headers).status_code == 200
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_tokens_are_compared_in_constant_time(masp, monkeypatch):
    """Every token is compared, by `hmac.compare_digest` over digests of one length, wherever the first one fits."""
    import masp.serving.guard as home

    compared = []
    real = home.hmac.compare_digest
    monkeypatch.setattr(home.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    with TestClient(small_app(masp, tokens=("correct-horse", "battery-staple"))) as client:
        for given in ("correct-horse", "", "x" * 5000):
            compared.clear()
            client.get("/v1/tasks", headers={"x-api-key": given})
            assert compared == [(32, 32)] * 2


def test_a_server_is_open_to_others_only_when_told_so_in_words():
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_exposure(host, ServerSettings(), False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(UsageError, match="no token"):
            check_exposure(host, ServerSettings(), False)
        check_exposure(host, ServerSettings(tokens=("long-enough",)), False)
        check_exposure(host, ServerSettings(), True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"queue": 0},
        {"deadline": 0.0},
        {"deadline": float("nan")},
        {"queue": 8, "max_images": 9},
        {"tokens": ("short",)},
        {"max_body_mb": 2000},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        ServerSettings(**wrong)


def test_web_pages_of_other_places_may_not_use_it(masp):
    with TestClient(small_app(masp, hosts=("testserver",))) as client:
        answer = client.get("/v1/tasks", headers={"origin": "https://evil.example"})
        assert (answer.status_code, error(answer)["code"]) == (403, "cross_origin")
        assert client.get("/v1/tasks", headers={"origin": "http://testserver"}).status_code == 200
        answer = client.get("/v1/tasks", headers={"host": "evil.example"})
        assert (answer.status_code, error(answer)["code"]) == (403, "unknown_host")


# --- starting, and several models -----------------------------------------------------------------------------------


def test_until_the_model_is_loaded_it_is_unavailable(masp):
    go = threading.Event()

    def load() -> Masp:
        assert go.wait(60)
        return masp.for_task("first")

    with TestClient(create_app(load)) as client:
        for answer in (client.get("/ready"), client.post("/v1/predict", files=forms(png())), client.get("/v1/tasks")):
            assert (answer.status_code, error(answer)["code"]) == (503, "starting")
            assert int(answer.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
        go.set()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/v1/predict", files=forms(png())).status_code == 200


def test_a_model_that_cannot_be_loaded_is_not_healthy(caplog):
    def load() -> Masp:
        raise RuntimeError("no weights")

    with TestClient(create_app(load)) as client:
        until(lambda: client.get("/health").status_code == 503)
        assert client.get("/ready").status_code == 503
    assert "cannot be loaded" in caplog.text


def test_tasks_of_several_adapters_have_names_of_their_own(masp, tmp_path):
    write_adapter(tmp_path / "one", labels=("good", "bad"))
    single = Masp.from_pretrained(tmp_path / "one", tiny.backbone())
    tasks, default = named_tasks([masp, single])
    assert (list(tasks), default) == ([*TASKS, "one"], None)
    assert tasks["one"].labels == ("good", "bad")
    assert named_tasks([single])[1] == "one"
    shutil.copytree(masp.adapter, tmp_path / "copy")
    tasks, _ = named_tasks([masp, Masp.from_pretrained(tmp_path / "copy", tiny.backbone()), single])
    assert list(tasks) == [f"{folder}/{task}" for folder in ("several", "copy") for task in TASKS] + ["one"]
    with pytest.raises(UsageError, match="one name"):
        named_tasks([single, single])
    with pytest.raises(UsageError, match="one backbone"):
        named_tasks([])


# --- what is written ------------------------------------------------------------------------------------------------


def test_a_request_has_an_id_in_its_answer_and_in_the_log(client, caplog):
    with caplog.at_level(logging.INFO, logger="masp.serving"):
        files = [("images", ("my holiday.png", png()))]
        answer = client.post("/v1/predict", files=files, data={"task": "first"}, headers={"x-request-id": "abc-1.2"})
        client.get("/v1/tasks", headers={"x-request-id": "no\tid " + "x" * 100})
    assert answer.headers["x-request-id"] == answer.json()["id"] == "abc-1.2"
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "masp.serving"]
    first, second = [line for line in lines if line["event"] == "request"]
    assert first | {"ms": 0, "time": ""} == {
        "time": "",
        "level": "info",
        "event": "request",
        "id": "abc-1.2",
        "method": "POST",
        "route": "/v1/predict",
        "status": 200,
        "ms": 0,
        "images": 1,
        "explain": "none",
    }
    assert len(second["id"]) == 32  # made, as the given one is none
    assert "holiday" not in json.dumps(lines)


def test_the_log_tells_where_an_error_was_and_not_what_was_sent(masp, monkeypatch, caplog):
    monkeypatch.setattr("masp.serving.app._info", lambda service: 1 / 0)
    with TestClient(small_app(masp)) as client:
        answer = client.get("/v1/info")
    assert (answer.status_code, error(answer)["code"]) == (500, "internal_error")
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    line = json.loads(JsonLines().format(record))
    assert (line["error"], line["id"]) == ("ZeroDivisionError", answer.headers["x-request-id"])
    assert any("guard.py" in frame for frame in line["frames"])
    assert "Traceback" not in answer.text


def test_the_bytes_of_an_image_are_never_spelled_out(client, monkeypatch):
    assert len(repr(Upload("a", bytes(10_000)))) < 100
    spelled = []
    monkeypatch.setattr(_Job, "__repr__", lambda job: spelled.append(job) or "a job")
    assert client.post("/v1/predict", files=forms(png(0)), data={"task": "third"}).status_code == 200
    assert not spelled  # as in the error of a queue that has no such job


def test_threads_take_turns_sooner_while_it_runs(masp):
    usual = sys.getswitchinterval()
    with TestClient(small_app(masp)):
        assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    assert sys.getswitchinterval() == usual


def test_figures_are_counted(masp):
    with TestClient(small_app(masp)) as client:
        client.post("/v1/predict", files=forms(png(0), b"broken", png(1)), data={"task": "first"})
        client.get("/v1/made-up-by-somebody")
        text = client.get("/metrics").text
    assert 'masp_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'masp_requests_total{route="other",status="404"} 1.0' in text
    assert 'masp_images_total{outcome="predicted"} 2.0' in text
    assert 'masp_images_total{outcome="failed"} 1.0' in text
    assert "masp_images_waiting 0.0" in text
    assert "made-up" not in text


def test_answers_fit_the_document_of_the_routes(client):
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/predict"]["post"]
    assert set(body["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "400", "401", "408", "413", "429", "503"} <= set(body["responses"])
    assert "$defs" not in json.dumps(document)
    from masp.serving.schemas import PredictAnswer

    asked = {"task": "first", "explain": "full", "heatmaps": "true"}
    PredictAnswer.model_validate(client.post("/v1/predict", files=forms(png()), data=asked).json())


def test_the_page_loads_nothing_from_elsewhere(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.get("/page/page.css").headers["content-type"].startswith("text/css")
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e%2fapp.py").status_code == 404


def test_two_requests_at_once_are_one_batch(masp, monkeypatch):
    gate = Gate(monkeypatch)
    with TestClient(small_app(masp)) as client:
        answers: list[Any] = []

        def ask(task: str) -> None:
            answers.append(client.post("/v1/predict", files=forms(png()), data={"task": task}))

        threads = [threading.Thread(target=ask, args=("first",))]
        threads[0].start()
        assert gate.entered.acquire(timeout=60)  # the model is busy; the others gather
        threads += [threading.Thread(target=ask, args=(task,)) for task in ("first", "second", "third")]
        for thread in threads[1:]:
            thread.start()
        until(lambda: "masp_images_waiting 4.0" in client.get("/metrics").text)
        gate.open()
        for thread in threads:
            thread.join()
    assert [len(batch) for batch in gate.batches] == [1, 3]
    assert {answer.status_code for answer in answers} == {200}
