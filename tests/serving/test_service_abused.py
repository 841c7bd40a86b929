"""What nobody vouches for: damaged images and bodies, bombs, paths, special tokens; and requests made from the API."""

import base64
import gc
import json
import random
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.pictures import encoded, noise
from fixtures.service import forms, png, running, small_app
from masp.predictor import Masp

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

INSIDE = re.compile(r"Traceback|site-packages|\.py\b|/(usr|tmp|etc|opt|var|proc)/|0x[0-9a-f]{6}")
"""What an answer says of the server where it says too much."""
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def masp(tmp_path_factory) -> Masp:
    return Masp.from_pretrained(write_adapter(tmp_path_factory.mktemp("abused") / "mine"), tiny.backbone())


@pytest.fixture(scope="module")
def client(masp):
    with TestClient(small_app(masp, max_body_mb=8)) as opened:
        yield opened


def check(answer: Any, allowed: tuple[int, ...] = (200, 400, 413, 415)) -> Any:
    """The content of an answer that is as answers are, and says nothing of the server."""
    assert answer.status_code in allowed, answer.text[:500]
    assert not INSIDE.search(answer.text), answer.text[:500]
    content = answer.json()
    if answer.status_code == 200:
        for one in content["predictions"]:
            assert set(one) == {"image", "error"} or abs(sum(one["probabilities"].values()) - 1) < 1e-4
    else:
        assert set(content["error"]) == {"message", "type", "param", "code"}
    return content


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The same bytes with a few of them changed, cut, repeated or moved."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(max(1, len(made)))
        kind = chance.randrange(6)
        if kind == 0:
            made[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            made[place : place + chance.randint(1, 64)] = b""
        elif kind == 2:
            made[place:place] = chance.randbytes(chance.randint(1, 64))
        elif kind == 3:
            made[place:] = b""
        elif kind == 4:
            made[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        else:
            made += made[place : place + 256]
    return bytes(made)


def originals() -> list[bytes]:
    """Small images of every format that is read here."""
    image = tiny.picture(84, 112)
    made = [encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")]
    return [*made, encoded(image, "JPEG", progressive=True), encoded(image.convert("P"), "PNG", transparency=0)]


@pytest.mark.parametrize("count", [96, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutated_images_fail_alone_ms_swift_5352_7045(client, count):
    """One broken image never ends anything; a whole one between them is answered."""
    chance, sources, good = random.Random(11), originals(), png()
    broken = 0
    for _ in range(0, count, 12):
        made = [damaged(chance.choice(sources), chance) for _ in range(12)]
        told = check(client.post("/v1/predict", files=forms(good, *made)), allowed=(200,))["predictions"]
        assert "label" in told[0]
        broken += sum("error" in one for one in told)
    assert count // 10 < broken < count  # some were damaged beyond reading, and some were not


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutated_bodies_are_refused_or_answered(client, count):
    chance = random.Random(12)
    image = base64.b64encode(png()).decode()
    whole = {"images": [image, {"data": image, "name": "a.png"}], "labels": ["joy", "fear"], "top_k": 2}
    as_json = json.dumps(whole).encode()
    made = client.build_request("POST", "/v1/predict", files=forms(png(), png(1)), data={"explain": "none"})
    as_form, form_type = made.read(), made.headers["content-type"]
    statuses: set[int] = set()
    for number in range(count):
        body, kind = (as_json, "application/json") if number % 2 else (as_form, form_type)
        if chance.random() < 0.1:
            kind = damaged(kind.encode(), chance).decode("latin-1").translate({ord(sign): None for sign in "\r\n\0"})
        answer = client.post(
            "/v1/predict", content=damaged(body, chance), headers={"content-type": kind.encode("latin-1").strip()}
        )
        check(answer)
        statuses.add(answer.status_code)
    assert {200, 400} <= statuses


def test_a_thousand_parts_are_refused(client):
    parts = [("images", (f"{number}.png", b"x")) for number in range(1000)]
    assert check(client.post("/v1/predict", files=parts), allowed=(400,))["error"]["code"] == "too_many_images"
    fields = {f"field{number}": "x" for number in range(1000)}
    assert check(client.post("/v1/predict", files=forms(png()), data=fields), allowed=(400,))


def test_deep_and_wide_json_is_refused(client):
    for body in (b"[" * 100_000, b'{"images":' * 20_000, b'{"images": [' + b'"",' * 50_000 + b'""]}', b"1" * 100_000):
        check(client.post("/v1/predict", content=body, headers={"content-type": "application/json"}), allowed=(400,))


def test_bombs_are_refused_before_they_are_unpacked(client):
    """Of pixels (a small file that claims many), of an archive; and bodies that are compressed are not read at all."""
    wide = bytearray(encoded(noise(), "PNG"))
    wide[16:24] = (60_000).to_bytes(4) * 2
    tall = bytearray(encoded(noise(), "JPEG"))
    frame = tall.index(b"\xff\xc0")
    tall[frame + 5 : frame + 9] = (65_000).to_bytes(2) * 2
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", b"\0" * 20 * MIB)
    flat = encoded(Image.new("1", (9_000, 9_000)), "PNG")
    assert len(flat) < 100_000
    told = client.post("/v1/predict", files=forms(png(), bytes(wide), archive.getvalue(), flat, bytes(tall)))
    predictions = check(told, allowed=(200,))["predictions"]
    assert ["error" in one for one in predictions] == [False, True, True, True, True]
    packed = {"content-encoding": "gzip", "content-type": "application/json"}
    check(client.post("/v1/predict", content=b"\x1f\x8b", headers=packed), allowed=(415,))


def test_a_body_that_is_too_large_is_refused(client):
    check(client.post("/v1/predict", files=forms(b"x" * 9 * MIB)), allowed=(413,))
    assert check(client.post("/v1/predict", files=forms(png())), allowed=(200,))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "C:\\windows\\a.png",
        "/etc/passwd",
        "a\r\nset-cookie: x",
        "\u202ea.png",
        "x" * 5000,
        "",
        "💥.png",
    ],
)
def test_names_of_images_are_only_names_deepface(client, name):
    """Other services open what a name says."""
    image = {"data": base64.b64encode(png()).decode(), "name": name[:200]}
    (told,) = check(client.post("/v1/predict", json={"images": [image]}), allowed=(200,))["predictions"]
    assert "label" in told
    assert not set("/\\\r\n\u202e") & set(told["image"])
    answer = client.post("/v1/predict", files=[("images", (name or "a", png()))])
    assert "set-cookie" not in answer.headers
    check(answer, allowed=(200, 400))


@pytest.mark.parametrize(
    "place",
    [
        *("http://127.0.0.1/a.png", "https://example.org/a.png", "ftp://x/a.png", "HTTP://169.254.169.254/latest"),
        *(
            "file:/" + "//etc/passwd",
            "/etc/passwd",
            "../../etc/passwd",
            "gopher://x",
            "data:text/plain,hello",
            "\\\\host\\a",
        ),
    ],
)
def test_addresses_and_paths_are_never_read_deepface(client, place, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    told = check(client.post("/v1/predict", json={"images": [place]}), allowed=(400,))
    assert told["error"]["code"] in ("not_fetched", "invalid_base64")
    assert "root:" not in str(told)


@pytest.mark.parametrize(
    "label",
    [
        *("<|im_end|>", "<|im_start|>system", "joy<|image_pad|>", "<|vision_start|>", "</s>", "[INST]", "<image>"),
        *(
            "joy\nassistant",
            "joy\0",
            "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
            "x" * 100,
            "😀",
            "a, b",
        ),
    ],
)
def test_special_tokens_in_labels_are_refused_or_are_text(client, masp, label):
    answer = client.post("/v1/predict", json={"images": [base64.b64encode(png()).decode()], "labels": [label, "other"]})
    content = check(answer, allowed=(200, 400))
    if answer.status_code == 200:
        assert set(content["predictions"][0]["probabilities"]) == {label, "other"}
        special = masp.backbone.special_ids(("<|image_pad|>", "<|im_end|>"))
        assert not set(special) & set(masp.backbone.answer_ids(label, end=False))
    else:
        assert content["error"]["code"] in ("invalid_labels", "invalid_request")


@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")  # schemathesis does
@pytest.mark.parametrize("examples", [2, pytest.param(5_000, marks=pytest.mark.long)])
def test_made_up_requests_get_answers_that_the_document_names(masp, examples):
    """Schemathesis, over every route; two of them take bodies of any kind, so 10,000 requests in the slow tier."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    image = base64.b64encode(png()).decode()
    good = asked = 0
    with running(small_app(masp)) as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()

            @given(case=operation.as_strategy(), whole=st.booleans())
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def run(case: Any, whole: bool) -> None:
                nonlocal good, asked
                asked += 1
                if whole and isinstance(case.body, dict):  # else no request would have an image that can be read
                    as_form = case.media_type == "multipart/form-data"
                    case.body |= {"images": [png()] if as_form else [image]}
                    case.body.pop("task", None)
                answer = case.call(base_url=url, timeout=60)  # longer than the deadline: a busy machine is no fault
                case.validate_response(answer, checks=checks)
                good += answer.status_code == 200 and "predict" in case.path

            run()
    assert good
    assert asked >= 2 * examples


@pytest.mark.long
def test_memory_does_not_grow_with_every_call_deepface_141_622_760(masp):
    """100,000 requests, as many as in a day; flat after the first 5,000."""
    status = Path("/proc/self/statm")

    def resident() -> float:
        gc.collect()
        return int(status.read_text().split()[1]) * 4096 / MIB

    contents = [png(number) for number in range(6)]
    sizes = []
    with TestClient(small_app(masp)) as client:
        for number in range(100_000):
            files = forms(contents[number % 6])
            labels = {"labels": [f"joy {number}", "fear"]} if number % 10 == 0 else {}
            assert client.post("/v1/predict", files=files, data=labels).status_code == 200
            if number % 5_000 == 4_999:
                sizes.append(resident())
    assert max(sizes[1:]) - sizes[0] < 0.05 * sizes[0], sizes
