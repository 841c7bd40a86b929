"""Labelling out of object stores and on Ray: outages, kills at any moment, images that kill their decoder."""

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from pyarrow import fs, parquet

from fixtures.adapters import write_adapter
from fixtures.labelling import Store, job_of, kill_one, label_all, parts, ray_run, rows, write_images
from masp.cli import main
from masp.labelling import manifest, run
from masp.labelling.manifest import StorePath, write_manifest

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='needs pip install "masp[ray]"')


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "a", aspects=("scene", "object"))


# --- an object store ------------------------------------------------------------------------------------------------

MOTO = os.environ.get("MASP_MOTO_SERVER") or shutil.which("moto_server")
NAMES = ("a b.png", "50%25.png", "c#d+e.png", "größe.png", "plain.png", "broken.png")
"""Objects whose names an address would write otherwise, and one that is no image."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of moto's server, which the environment names as it would name any other store."""
    if MOTO is None:
        pytest.skip('needs moto_server: pip install "moto[server,s3]", on PATH or named by MASP_MOTO_SERVER')
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    given = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}
    for name, value in (given | {"REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    manifest._store.cache_clear()
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        fs.S3FileSystem(endpoint_override=given["ENDPOINT_URL"], allow_bucket_creation=True).create_dir("bucket")
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        manifest._store.cache_clear()


def write_bucket(bucket: str, local: Path) -> None:
    """Images, a list of some of them and a tar file of others, in the bucket and, by the same names, in a folder."""
    write_images(local / "images", len(NAMES))
    for file, name in zip(sorted((local / "images").iterdir()), NAMES, strict=True):
        file.rename(local / "images" / name)
    (local / "images" / "broken.png").write_bytes(b"no image")
    with tarfile.open(local / "more.tar", "w") as archive:
        archive.add(local / "images" / "plain.png", "plain.png")
    listed = [f"{bucket}/images/{name}" for name in (NAMES[0], NAMES[1], "none.png")]
    (local / "list.txt").write_text("\n".join(listed))
    for file in local.rglob("*.*"):
        (StorePath.of(bucket) / str(file.relative_to(local))).write(file.read_bytes())


@pytest.mark.long
def test_an_object_store_is_read_and_written(tmp_path, adapter, bucket, capsys):
    """Images, list, tar file, manifest and labels in S3; the rows are those of the same images here."""
    local = tmp_path / "local"
    write_bucket(bucket, local)
    sources = [f"{bucket}/{name}" for name in ("images", "list.txt", "more.tar")]

    def masp(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["label", *words])
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out + err

    assert "10 images in 1 files" in masp("plan", *sources, "--out", f"{bucket}/job", "--chunk", "4")
    job = job_of(f"{bucket}/job", adapter)
    label_all(job)
    home = StorePath.of(bucket)
    part = home / "job/labels/shard-000000/part-000001.parquet"
    before = part.sha256()
    home.files.delete_file(part.path)
    assert "6 of 10 images (2 of 3 chunks)" in masp("status", f"{bucket}/job")
    label_all(job)  # goes on with what is missing
    assert part.sha256() == before
    assert "10 rows" in masp("merge", f"{bucket}/job", f"{bucket}/all")
    found = parquet.read_table("bucket/all/shard-000000.parquet", filesystem=home.files).to_pylist()

    write_manifest([str(local / "images"), str(local / "more.tar")], tmp_path / "out", 4, 4)
    label_all(job_of(tmp_path / "out", adapter))
    expected = {row["uri"]: row for row in rows(tmp_path / "out")}
    for row in found:
        if row["uri"].endswith("none.png"):
            assert row["status"] == "missing"
            continue
        own = expected[row["uri"].replace(bucket, str(local))]
        assert (row["status"], row["label"], row["error"]) == (own["status"], own["label"], own["error"])
        assert row["probabilities"] == pytest.approx(own["probabilities"], abs=1e-6)
    assert Counter(row["status"] for row in found) == {"ok": 8, "unreadable": 1, "missing": 1}


@needs_ray
@pytest.mark.long
def test_ray_labels_from_an_object_store(tmp_path, adapter, bucket):
    write_bucket(bucket, tmp_path / "local")
    write_manifest([f"{bucket}/images"], f"{bucket}/job", 2, 2)
    process = ray_run(f"{bucket}/job", adapter)
    assert process.wait(900) == 0
    assert run.status(f"{bucket}/job").counts["ok"] == 5
    again = ray_run(f"{bucket}/job", write_adapter(tmp_path / "other", aspects=("scene",)))
    assert again.wait(900) != 0  # begun with another adapter


@needs_ray
@pytest.mark.long
def test_a_run_during_an_outage_of_the_store_is_gone_on_with_later(tmp_path, adapter, monkeypatch):
    """First nobody listens at the store's address, then a store does; one object is not there, another is forbidden."""
    images = write_images(tmp_path / "images", 3)
    names = ["00000.png", "none.png", "00001.png", "secret.png", "00002.png"]
    (tmp_path / "list.txt").write_text("\n".join(f"s3://bucket/{name}" for name in names))
    write_manifest([str(tmp_path / "list.txt")], tmp_path / "out", 2, 6)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing"}
    for name, value in (given | {"REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    process = ray_run(tmp_path / "out", adapter, stderr=subprocess.PIPE)
    said = process.communicate(timeout=900)[1].decode()
    assert process.returncode != 0
    assert "3 chunks were left, the first as s3://bucket/00000.png cannot be read" in said
    assert "Give the same command again" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("part-*"))
    monkeypatch.setattr(Store, "objects", {f"/bucket/{file.name}": file.read_bytes() for file in images.iterdir()})
    with ThreadingHTTPServer(("127.0.0.1", port), Store) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        code = ray_run(tmp_path / "out", adapter).wait(900)
        server.shutdown()
    assert code == 0
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "missing", "ok", "missing", "ok"]


# --- Ray ------------------------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.long
def test_kills_at_any_moment_lose_nothing_and_label_nothing_twice(tmp_path, adapter):
    """Seeded kills of driver, actor and raylet; the rows are those of a run that nobody disturbed.

    A run whose actor was killed goes on by itself and is killed again; after any other kill it is begun again.
    """
    kills = int(os.environ.get("MASP_KILLS", "4"))
    out, count = tmp_path / "out", 40 * (kills + 1)
    write_manifest([str(write_images(tmp_path / "images", count))], out, 4, count)
    (tmp_path / "calm").mkdir()
    for name in ("manifest", "manifest.json"):
        (tmp_path / "calm" / name).symlink_to(out / name)
    label_all(job_of(tmp_path / "calm", adapter))
    generator, done, process = np.random.default_rng(0), Counter[str](), None
    for kind in [("actor", "driver", "raylet")[int(drawn)] for drawn in generator.integers(3, size=kills)]:
        killed = False
        while not killed:
            before = parts(out)
            assert 4 * before < count, f"all is labelled after {dict(done)}"
            process = ray_run(out, adapter) if process is None else process
            goal = before + int(generator.integers(1, 4))
            while process.poll() is None and parts(out) < goal:
                time.sleep(0.02)
            killed = process.poll() is None and kill_one(process, kind)
            if process.poll() is not None or (killed and kind != "actor"):
                process.wait(300)
                process = None
        done[kind] += 1
        print(f"{dict(done)}, {parts(out)} parts", flush=True)
    if process is not None:
        process.wait(600)
    assert ray_run(out, adapter).wait(600) == 0
    assert rows(out) == rows(tmp_path / "calm")
    assert len(rows(out)) == count


@needs_ray
@pytest.mark.long
def test_five_poison_images_cost_five_rows(tmp_path, adapter, monkeypatch):
    """Among 10,000: one that aborts its decoder, one that never ends, one too large, one damaged, and one that left."""
    count = int(os.environ.get("MASP_POISON_IMAGES", "10000"))
    images = write_images(tmp_path / "images", 7)
    for number in range(7, count):
        (images / f"{number:05}.png").hardlink_to(images / f"{number % 7:05}.png")
    (tmp_path / "fragile").mkdir()
    (tmp_path / "fragile" / "sitecustomize.py").write_text(
        "import os\n"
        "from PIL import Image\n"
        "plain = Image.open\n"
        "def fragile(source, *rest, **named):\n"
        "    if hasattr(source, 'getvalue') and b'poison' in source.getvalue(): os.abort()\n"
        "    return plain(source, *rest, **named)\n"
        "Image.open = fragile\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "fragile"), *sys.path])
    poison = {number: images / f"{number:05}.png" for number in range(count // 10, count, count // 5)}
    aborts, stalls, large, damaged, left = poison.values()
    for file in poison.values():
        file.unlink()
    aborts.write_bytes(b"\x89PNG\r\n\x1a\n poison")
    os.mkfifo(stalls)  # nobody writes to it
    with large.open("wb") as file:
        file.truncate(300_000_000)
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    left.write_bytes(b"")
    write_manifest([str(images)], tmp_path / "out")
    left.unlink()
    assert ray_run(tmp_path / "out", adapter).wait() == 0
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(count))
    statuses = ("crashed", "crashed", "too_large", "unreadable", "missing")
    assert {row["id"]: row["status"] for row in found if row["status"] != "ok"} == dict(
        zip(poison, statuses, strict=True)
    )


@needs_ray
@pytest.mark.long
def test_a_restart_near_the_end_opens_what_is_missing(tmp_path, adapter):
    images = write_images(tmp_path / "images", 200)
    write_manifest([str(images)], tmp_path / "out", 2, 200)
    job = job_of(tmp_path / "out", adapter)
    label_all(job)
    next((tmp_path / "out").rglob("part-000042.parquet")).unlink()
    for file in sorted(images.iterdir())[:84]:
        file.unlink()  # whatever is opened again would be missing now
    assert ray_run(tmp_path / "out", adapter).wait(600) == 0
    assert {row["status"] for row in rows(tmp_path / "out")} == {"ok"}
