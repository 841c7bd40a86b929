"""Labels for many images: the manifest, chunks that are there or not, images that kill their decoder."""

import errno
import json
import subprocess
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.labelling import job_of, label_all, rows, write_images
from masp.adapters import combine
from masp.core.errors import DataError, MaspError, OutageError, UsageError
from masp.labelling import decode, run
from masp.labelling.decode import Decoder, Limits
from masp.labelling.labeller import Job, Labeller
from masp.labelling.manifest import check_shard, read_chunk, read_manifest, write_manifest
from masp.predictor import Masp


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter") / "a", aspects=("scene", "object"))


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_a_manifest_lists_every_source_in_one_order(tmp_path):
    write_images(tmp_path / "b" / "inner", 2)
    write_images(tmp_path / "b", 1)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "list.txt").write_text("b/00000.png\n\nhttp-like/none.jpg\n")
    (tmp_path / "table.csv").write_text("label,path\njoy,b/00000.png\nfear,\n")
    parquet.write_table(pa.table({"image": ["b/00000.png", None]}), tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for name in ("inner/00001.png", "notes.txt", "00000.png"):
            archive.add(tmp_path / "b" / name, name)
    sources = [str(tmp_path / name) for name in ("b", "list.txt", "table.csv", "t.parquet", "w.tar")]
    made = write_manifest(sources, tmp_path / "out", chunk=3, shard=6)
    assert (made.images, made.shards, made.chunks(1)) == (9, (6, 3), 1)
    assert read_manifest(tmp_path / "out") == made
    found = [
        row
        for shard, chunk in run.missing(str(tmp_path / "out"), made)
        for row in read_chunk(tmp_path / "out", shard, chunk).to_pylist()
    ]
    assert [row["id"] for row in found] == list(range(9))
    names = [str(Path(row["uri"]).relative_to(tmp_path)) for row in found]
    assert names[:3] == ["b/00000.png", "b/inner/00000.png", "b/inner/00001.png"]
    assert names[3:7] == ["b/00000.png", "http-like/none.jpg", "b/00000.png", "b/00000.png"]
    assert names[7:] == ["w.tar", "w.tar"]
    content = decode.read_bytes(found[7]["uri"], found[7]["offset"], found[7]["size"], 10**6)
    assert content == (tmp_path / "b" / "inner" / "00001.png").read_bytes()
    assert write_manifest(sources, tmp_path / "again", chunk=3, shard=6).sha256 == made.sha256


def test_planning_holds_a_chunk_and_not_a_file(tmp_path):
    """Peak memory by Arrow's count, which is that of the columns and files, of 2,000 images and of 20,000."""
    peaks: dict[int, int] = {}
    default = pa.default_memory_pool()
    for number, count in enumerate((2_000, 20_000)):
        (tmp_path / "list.txt").write_text("".join(f"/{k * 7919:040x}.jpg\n" for k in range(count)))
        pool = pa.proxy_memory_pool(default)
        pa.set_memory_pool(pool)
        try:
            folder = tmp_path / f"{number}-{count}"
            write_manifest([str(tmp_path / "list.txt")], folder, 500, 500_000)
            check_shard(folder, read_manifest(folder), 0)
            peaks[count] = pool.max_memory() or 0
        finally:
            pa.set_memory_pool(default)
    assert (tmp_path / "1-20000" / "manifest" / "shard-000000.parquet").stat().st_size > 200_000
    assert 0 < peaks[20_000] < 1.1 * peaks[2_000], peaks


def test_what_cannot_be_planned_is_refused(tmp_path):
    write_images(tmp_path / "a", 1)
    write_manifest([str(tmp_path / "a")], tmp_path / "out", 2, 2)
    with pytest.raises(UsageError, match="holds a manifest already"):
        write_manifest([str(tmp_path / "a")], tmp_path / "out", 2, 2)
    with pytest.raises(DataError, match="does not exist"):
        write_manifest([str(tmp_path / "none")], tmp_path / "x", 2, 2)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has the columns a, b"):
        write_manifest([str(tmp_path / "t.csv")], tmp_path / "x", 2, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in"):
        write_manifest([str(tmp_path / "empty")], tmp_path / "x", 2, 2)
    with pytest.raises(DataError, match="holds no manifest"):
        read_manifest(tmp_path / "x")
    shard = tmp_path / "out" / "manifest" / "shard-000000.parquet"
    manifest = read_manifest(tmp_path / "out")
    check_shard(tmp_path / "out", manifest, 0)
    shard.write_bytes(shard.read_bytes() + b" ")
    with pytest.raises(DataError, match="has changed"):
        check_shard(tmp_path / "out", manifest, 0)


# --- one chunk after the other --------------------------------------------------------------------------------------


def test_labels_are_those_of_predict_and_every_image_has_a_row(tmp_path, adapter):
    images = write_images(tmp_path / "images", 7)
    (images / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (images / "00005.png").write_bytes(b"x" * 20_000)
    write_manifest([str(images)], tmp_path / "out", 4, 4)
    (images / "00001.png").unlink()
    job = job_of(tmp_path / "out", adapter, max_bytes=10_000)
    assert label_all(job) == {"ok": 4, "unreadable": 1, "missing": 1, "too_large": 1}
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(7))
    masp = Masp.from_pretrained(adapter, str(tiny.checkpoint()), dtype="float32")
    for row in found:
        if row["status"] != "ok":
            assert row["error"]
            assert row["label"] is row["probabilities"] is None
            continue
        expected = masp.predict(row["uri"], explain=False)
        assert row["label"] == expected.label
        assert row["probabilities"] == pytest.approx(list(expected.probabilities.values()), abs=1e-6)
    assert {row["manifest"] for row in found} == {job.manifest[:16]}
    status = run.status(job.folder)
    assert (status.done, status.chunks, status.all_chunks) == (7, 2, 2)
    assert status.counts["too_large"] == 1


def test_an_address_that_no_store_has_is_a_missing_image(tmp_path):
    """In the process that reads images, which goes on."""
    decoder = Decoder(Limits(None, "nearest", 10**6, 60.0))
    images = write_images(tmp_path / "images", 1)
    found = [decoder.read(uri, None, None) for uri in ("nowhere://a/b.png", str(images / "00000.png"))]
    decoder.close()
    assert [one.status for one in found] == ["missing", "ok"]
    with pytest.raises(UsageError, match="has options; expected an address without"):
        write_manifest(["s3://bucket/images?region=nowhere"], tmp_path / "out")


def test_a_chunk_that_is_labelled_again_has_the_same_bytes(tmp_path, adapter):
    write_manifest([str(write_images(tmp_path / "images", 9))], tmp_path / "out", 3, 9)
    job = job_of(tmp_path / "out", adapter)
    label_all(job)
    files = {file: file.read_bytes() for file in (tmp_path / "out").rglob("part-*.parquet")}
    assert len(files) == 3
    victim = sorted(files)[1]
    victim.unlink()
    (victim.parent / ".partial-part-000001.parquet").write_bytes(b"half")  # what a kill leaves
    assert list(run.missing(job.folder, read_manifest(job.folder))) == [(0, 1)]
    label_all(job)
    assert {file: file.read_bytes() for file in files} == files


def test_an_image_that_kills_its_decoder_costs_itself_alone(tmp_path, adapter, monkeypatch):
    """The decoder aborts, as a broken library would; another hangs, and is killed after its time."""
    (tmp_path / "fragile.py").write_text(
        "import os, time\n"
        "from masp.labelling import decode\n"
        "plain = decode.read_bytes\n"
        "def read(uri, *rest):\n"
        "    if 'poison' in uri: os.abort()\n"
        "    if 'hangs' in uri: time.sleep(600)\n"
        "    return plain(uri, *rest)\n"
        "decode.read_bytes = read\n"
        "serve = decode.serve\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(decode, "HOME", "fragile")
    images = write_images(tmp_path / "images", 3)
    (images / "00001.png").rename(images / "00001-poison.png")
    decoder = Decoder(Limits(None, "nearest", 10**6, 60.0))
    found = [decoder.read(str(file), None, None) for file in sorted(images.iterdir())]
    assert [one.status for one in found] == ["ok", "crashed", "ok"]
    assert found[0].image == tiny.picture(60, 60, seed=0)
    decoder.close()
    impatient = Decoder(Limits(None, "nearest", 10**6, 0.01))
    assert impatient.read("hangs", None, None).status == "crashed"
    impatient.close()
    monkeypatch.setattr(decode, "HOME", "nowhere")
    with pytest.raises(MaspError, match="does not start"):
        decoder.read(str(images / "00000.png"), None, None)


FAILURES = {
    "When reading information for key 'a.png' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject": True,
    "When reading information for key 'a.png' in bucket 'b': AWS Error UNKNOWN (HTTP status 503) during": True,
    "When reading information for key 'a.png' in bucket 'b': AWS Error UNKNOWN (HTTP status 429) during": True,
    "AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.": True,
    "google::cloud::Status(UNAVAILABLE: Permanent error, with a last message of": True,
    "When reading information for key 'a.png' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject": False,
    "When reading information for key '503.png' in bucket 'b': AWS Error UNKNOWN (HTTP status 400) during": False,
    "AWS Error NO_SUCH_BUCKET during GetObject operation: The specified bucket does not exist": False,
}
"""What pyarrow said of a store that does not answer for now, and of objects that nobody will get."""


def test_an_outage_is_told_from_a_missing_object():
    for text, passes in FAILURES.items():
        assert decode.may_pass(OSError(text)) is passes, text
    assert decode.may_pass(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    assert decode.may_pass(OSError(errno.EMFILE, "too many open files"))
    assert not decode.may_pass(OSError(errno.EIO, "a broken sector"))
    assert not decode.may_pass(FileNotFoundError(errno.ENOENT, "none"))


@pytest.fixture
def flaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders without a pause whose store fails as an object's name says.

    "fails2.png" twice, "hangs.png" for ever, and "large.png" unless one byte is asked for.
    """
    (tmp_path / "flaky.py").write_text(
        "import re, time\n"
        "from masp.labelling import decode\n"
        "plain, tries = decode.read_bytes, {}\n"
        "def read(uri, *rest):\n"
        "    if 'hangs' in uri or ('large' in uri and rest[1] != 1): time.sleep(600)\n"
        "    tries[uri] = tries.get(uri, 0) + 1\n"
        "    if (found := re.search(r'fails(\\d+)', uri)) and tries[uri] <= int(found[1]):\n"
        "        raise OSError('AWS Error NETWORK_CONNECTION during HeadObject operation')\n"
        "    return plain(uri.removeprefix('s3:/'), *rest)\n"
        "decode.read_bytes = read\n"
        "serve = decode.serve\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(decode, "HOME", "flaky")
    monkeypatch.setattr(decode, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("flaky")
def test_a_store_that_fails_for_a_while_is_asked_again(tmp_path):
    images = write_images(tmp_path / "images", 2)
    (images / "00000.png").rename(images / "fails3.png")
    (images / "00001.png").rename(images / "fails4.png")
    decoder = Decoder(Limits(None, "nearest", 10**6, 60.0))
    assert decoder.read(f"s3:/{images}/fails3.png", None, None).status == "ok"
    with pytest.raises(OutageError, match=r"fails4\.png cannot be read .*NETWORK_CONNECTION"):
        decoder.read(f"s3:/{images}/fails4.png", None, None)
    decoder.close()
    impatient = Decoder(Limits(None, "nearest", 10**6, 0.01))
    with pytest.raises(OutageError, match=r"hangs\.png was not there after 0\.01 s"):
        impatient.read(f"s3:/{images}/hangs.png", None, None)
    impatient.close()


@pytest.mark.usefixtures("flaky")
def test_an_image_that_never_comes_in_time_is_no_outage(tmp_path):
    images = write_images(tmp_path / "images", 1)
    (images / "00000.png").rename(images / "large.png")
    decoder = Decoder(Limits(None, "nearest", 10**6, 2.0))
    found = decoder.read(f"s3:/{images}/large.png", None, None)
    assert (found.status, found.error) == ("crashed", "was not there after 2 s")
    decoder.close()


@pytest.mark.usefixtures("flaky")
def test_a_chunk_that_meets_an_outage_is_left_and_the_others_go_on(tmp_path, adapter):
    images = write_images(tmp_path / "images", 6)
    listed = [f"s3:/{images}/{number:05}.png" for number in range(6)]
    (tmp_path / "list.txt").write_text("\n".join([*listed[:2], f"s3:/{images}/fails4.png", *listed[3:]]))
    (images / "00002.png").rename(images / "fails4.png")
    write_manifest([str(tmp_path / "list.txt")], tmp_path / "out", 2, 6)
    job = job_of(tmp_path / "out", adapter)
    with Labeller(job) as labeller:
        batches = [labeller({"shard": [0], "chunk": [chunk]}) for chunk in range(3)]
        assert ["NETWORK_CONNECTION" in batch["outage"][0] for batch in batches] == [False, True, False]
        left = [(0, 1)]
        assert list(run.missing(job.folder, read_manifest(job.folder))) == left
        told: list[dict[str, int]] = []
        answers = [{name: values[0] for name, values in batch.items()} for batch in batches]
        with pytest.raises(OutageError, match=r"1 chunks were left.*fails4\.png.*Give the same command again"):
            run.gather(answers, told.append)
        assert told == [{"ok": 2}, {"ok": 2}]
        labeller.label(0, 1)  # the store answers again
    assert run.status(job.folder).counts["ok"] == 6
    endless = iter([*answers[:1], *answers[1:2] * 100])
    with pytest.raises(OutageError, match=f"{run.GIVE_UP} chunks were left"):
        run.gather(endless, told.append)
    assert len(list(endless)) == 100 - run.GIVE_UP


def test_a_manifest_or_labels_that_cannot_be_reached_are_an_outage(tmp_path, adapter):
    write_manifest([str(write_images(tmp_path / "images", 2))], tmp_path / "out", 2, 2)
    job = job_of(tmp_path / "out", adapter)
    (tmp_path / "out" / "labels").write_text("a file where a folder goes")
    with Labeller(job) as labeller, pytest.raises(OutageError, match="cannot be read or written"):
        labeller.label(0, 0)


def test_several_tasks_share_one_prefix_and_words_are_written(tmp_path):
    write_adapter(tmp_path / "a", labels=("joy", "fear", "awe"), aspects=("scene",))
    write_adapter(tmp_path / "b", labels=("anger", "sadness"), aspects=("scene",))
    combine(tmp_path / "both", [f"first={tmp_path / 'a'}", f"second={tmp_path / 'b'}"])
    write_manifest([str(write_images(tmp_path / "images", 3))], tmp_path / "out", 3, 3)
    label_all(job_of(tmp_path / "out", tmp_path / "both", tasks=("first", "second"), explain="words"))
    masp = Masp.from_pretrained(tmp_path / "both", str(tiny.checkpoint()), dtype="float32")
    for row in rows(tmp_path / "out"):
        for task in ("first", "second"):
            expected = masp.predict(row["uri"], explain=False, task=task)
            assert row[f"{task}.label"] == expected.label
            assert row[f"{task}.probabilities"] == pytest.approx(list(expected.probabilities.values()), abs=1e-5)
        assert set(json.loads(row["aspects"])) == {"scene"}


def test_a_run_of_something_else_is_refused(tmp_path, adapter):
    write_manifest([str(write_images(tmp_path / "images", 2))], tmp_path / "out", 2, 2)
    job = job_of(tmp_path / "out", adapter)
    run._check_identity(job)
    run._check_identity(job)
    other = write_adapter(tmp_path / "other", aspects=("scene", "object"), seed=1)
    with pytest.raises(UsageError, match="begun with another adapter"):
        run._check_identity(job_of(tmp_path / "out", other))
    with pytest.raises(UsageError, match="begun with another batch_size"):
        run._check_identity(job_of(tmp_path / "out", adapter, batch_size=5))
    description = tmp_path / "out" / run.RUN
    before = json.loads(description.read_text())
    description.write_text(json.dumps({"identity": before["identity"] | {"rounding": "floor"}}))
    with pytest.raises(UsageError, match="begun with another rounding"):
        run._check_identity(job)
    with run._alone(job.folder), pytest.raises(UsageError, match="another run labels"), run._alone(job.folder):
        pass


@pytest.mark.parametrize(
    ("address", "actors", "threads"), [(None, None, 6), ("local", 4, 1), ("ray://head:1", 1, None)]
)
def test_models_on_this_machine_share_its_threads(address, actors, threads, tmp_path, adapter, monkeypatch):
    """Ray gives a process one thread for each CPU that it asks for, and these ask for one."""
    write_manifest([str(write_images(tmp_path / "images", 1))], tmp_path / "out", 1, 1)
    jobs: list[Job] = []
    monkeypatch.setattr(run, "_ray", lambda: None)
    monkeypatch.setattr(run, "_connected", lambda *_: nullcontext())
    monkeypatch.setattr(run, "_label", lambda ray, job, *_: jobs.append(job))
    monkeypatch.setattr(run.torch, "get_num_threads", lambda: 6)
    run.run(job_of(tmp_path / "out", adapter), address, actors)
    assert [job.threads for job in jobs] == [threads]


def test_parts_become_one_data_set(tmp_path, adapter, masp):
    write_manifest([str(write_images(tmp_path / "images", 7))], tmp_path / "out", 2, 4)
    job = job_of(tmp_path / "out", adapter)
    with pytest.raises(UsageError, match="4 chunks are not labelled yet"):
        run.merge(job.folder, str(tmp_path / "all"))
    label_all(job)
    code, _, err = masp("label", "merge", job.folder, tmp_path / "all")
    assert (code, "7 rows" in err) == (0, True)
    found = parquet.read_table(tmp_path / "all")
    assert found["id"].to_pylist() == list(range(7))
    assert len(list((tmp_path / "all").iterdir())) == 2
    with pytest.raises(UsageError, match="is not empty"):
        run.merge(job.folder, str(tmp_path / "all"))


def test_the_commands_plan_try_and_tell(tmp_path, adapter, masp):
    write_images(tmp_path / "images", 3)

    def label(*words: object) -> tuple[str, str]:
        code, out, err = masp("label", *words)
        assert code == 0, err
        return out, err

    folder = str(tmp_path / "out")
    assert "3 images in 1 files" in label("plan", tmp_path / "images", "--out", folder, "--chunk", "2")[1]
    model = ["--adapter", str(adapter), "--backbone", str(tiny.checkpoint()), "--dtype", "float32", "--device", "cpu"]
    said = label("run", folder, *model, "--dry-run")[1]
    assert "2 images: 2 ok" in said
    assert "all 3 would take" in said
    label_all(job_of(Path(folder), adapter))
    assert label("status", folder, "--price", "3")[0].startswith("3 of 3 images (2 of 2 chunks)\n3 ok\n")
    assert json.loads(label("status", folder, "--json")[0])["counts"]["ok"] == 3


@pytest.mark.long
def test_the_memory_of_a_manifest_does_not_grow(tmp_path):
    """1e5 and 1e6 images in a list; peak memory of a process that plans them. It loads no model library."""
    code = (
        "import re, sys\n"
        "from masp.labelling.manifest import read_chunk, write_manifest\n"
        "made = write_manifest([sys.argv[1]], sys.argv[2], 1000, 100_000)\n"
        "assert len(read_chunk(sys.argv[2], len(made.shards) - 1, 99)) == 1000\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"  # not what the parent had
    )
    peaks = []
    for count in (100_000, 1_000_000):
        (tmp_path / "list.txt").write_text("".join(f"/images/{number:09}.jpg\n" for number in range(count)))
        words = [sys.executable, "-c", code, str(tmp_path / "list.txt"), str(tmp_path / str(count))]
        peaks.append(int(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] <= 1.1 * peaks[0]
