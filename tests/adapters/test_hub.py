"""Adapters on a hub, held against a stand-in on loopback: what is pushed, what is fetched, and every refusal."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fixtures import hub_server as stand_in_hub
from fixtures import tiny
from fixtures.adapters import write_adapter
from fixtures.hub_server import TOKEN, Hub
from masp.adapters import find_adapter, publish, read_info
from masp.core.errors import AdapterError, UsageError
from masp.predictor import Masp

ID = "someone/emotions"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub that the client of this process talks to, with an empty cache and someone logged in."""
    with stand_in_hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("a") / "adapter")


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("p") / "a.png"
    tiny.picture(112, 84).save(path)
    return path


def test_what_is_pushed_is_loaded_by_its_id(hub, adapter, picture, tmp_path):
    masp = Masp.from_pretrained(adapter, dtype="float32")
    address = masp.push_to_hub(ID, private=True, license="cc-by-4.0", message="First")
    assert address == f"{hub.address}/{ID}/commit/{hub.branches[ID]['main']}"
    assert hub.private[ID]
    assert hub.messages == ["First"]
    files = hub.commits[ID][hub.branches[ID]["main"]]
    assert files.keys() == {".gitattributes", "adapter.json", "weights.safetensors", "README.md"}
    assert files["README.md"].startswith(b'---\nlicense: "cc-by-4.0"\n')
    for name, content in files.items():
        assert str(tiny.checkpoint()).encode() not in content, name
    again = Masp.from_pretrained(ID, str(tiny.checkpoint()), dtype="float32")
    assert again.adapter == ID
    assert again.predict(picture).probabilities == masp.predict(picture).probabilities
    assert again.info == masp.parts.info.model_copy(update={"license": "cc-by-4.0", "backbone": again.info.backbone})


def test_only_the_three_files_are_fetched(hub, adapter, tmp_path):
    content = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub.put(ID, {**content, "model.bin": b"pickle", "run.py": b"code", "deep.safetensors": b"large"})
    found = find_adapter(ID)
    assert {path.name for path in found.iterdir()} == {"adapter.json", "weights.safetensors", "README.md"}
    assert hub.fetched() == {"adapter.json", "weights.safetensors", "README.md"}
    asked = len(hub.asked)
    assert find_adapter(ID) == found
    assert not [line for line in hub.asked[asked:] if "/resolve/" in line]  # the second time it comes from the cache


def test_a_revision_is_a_branch_or_a_commit(hub, adapter, tmp_path):
    publish(adapter, ID)
    first = hub.branches[ID]["main"]
    publish(adapter, ID, revision="licensed", license="mit")
    assert hub.branches[ID]["main"] == first
    assert read_info(adapter).license is None  # the folder stays as it was
    assert read_info(find_adapter(ID, "licensed")).license == "mit"
    assert read_info(find_adapter(ID, first)).license is None
    publish(adapter, ID, license="mit")
    assert read_info(find_adapter(ID, first)).license is None
    assert read_info(find_adapter(ID)).license == "mit"
    with pytest.raises(AdapterError, match="no such revision"):
        find_adapter(ID, "gone")
    with pytest.raises(AdapterError, match="has no revisions"):
        find_adapter(adapter, "main")


def test_a_folder_that_is_here_comes_first(hub, adapter, tmp_path, monkeypatch):
    hub.put(ID, {"adapter.json": b"{}"})
    write_adapter(tmp_path / ID)
    monkeypatch.chdir(tmp_path)
    assert find_adapter(ID) == Path(ID)
    assert hub.asked == []


def test_aspects_may_come_from_the_hub_too(hub, picture, tmp_path):
    whole = write_adapter(tmp_path / "whole")
    light = write_adapter(tmp_path / "light", include_aspects=False)
    publish(whole, "someone/aspects")
    found = Masp.from_pretrained(light, tiny.backbone(), aspects="someone/aspects")
    assert found.predict(picture).label == Masp.from_pretrained(whole, tiny.backbone()).predict(picture).label
    assert Path(found.save_pretrained(tmp_path / "again")) == tmp_path / "again"
    assert read_info(tmp_path / "again").parts == ("prompt",)  # aspects that were only named stay named


# --- refusals -------------------------------------------------------------------------------------------------------


def test_an_unknown_id_says_that_it_is_neither_here_nor_there(hub):
    with pytest.raises(AdapterError, match=r"no folder some/where here.*not found, or not open to you.*hf auth login"):
        find_adapter("some/where")


def test_offline_with_nothing_cached(hub, adapter, monkeypatch):
    publish(adapter, ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match=r"not reachable, and nothing of it is cached.*hf download"):
        find_adapter(ID)
    with pytest.raises(AdapterError, match=r"cannot be pushed.*not reachable"):
        publish(adapter, ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = find_adapter(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_adapter(ID) == found


@pytest.mark.parametrize("files", [{"config.json": b"{}"}, {"adapter.json": b"{}"}, {"README.md": b""}, {}])
def test_a_repository_that_is_no_adapter(hub, files):
    hub.put(ID, files)
    with pytest.raises(AdapterError, match=r"is no adapter of masp: it has no .*weights\.safetensors"):
        find_adapter(ID)


def test_a_hub_that_is_not_there(adapter, tmp_path, monkeypatch):
    with stand_in_hub.running() as hub:
        gone = hub.address
    monkeypatch.setattr(constants, "ENDPOINT", gone)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AdapterError, match="not reachable"):
        find_adapter(ID)
    with pytest.raises(AdapterError, match=r"cannot be pushed.*Check the network"):
        publish(adapter, ID)


def test_pushing_needs_a_login_an_id_and_an_adapter(hub, adapter, tmp_path, monkeypatch):
    with pytest.raises(AdapterError, match="'emotions' is no place on the hub"):
        publish(adapter, "emotions")
    with pytest.raises(AdapterError, match="does not exist"):
        publish(tmp_path / "nowhere", ID)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter.json").write_bytes((adapter / "adapter.json").read_bytes())
    with pytest.raises(AdapterError, match=r"has no weights\.safetensors"):
        publish(tmp_path / "half", ID)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(AdapterError, match=r"cannot be pushed.*hf auth login"):
        publish(adapter, ID)
    assert hub.branches == {}


def test_saving_replaces_an_adapter_and_nothing_else(adapter, tmp_path):
    masp = Masp.from_pretrained(adapter)
    masp.save_pretrained(tmp_path / "new", license="mit")
    masp.save_pretrained(tmp_path / "new")
    assert read_info(tmp_path / "new").license is None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place, message in (("mine", "holds thesis.txt"), ("mine/thesis.txt", "is a file")):
        with pytest.raises(AdapterError, match=message):
            masp.save_pretrained(tmp_path / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="no description"):
        Masp(masp.model, masp.task, "bare").save_pretrained(tmp_path / "bare")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_commands_push_and_predict_by_id(adapter, picture, tmp_path):
    """In processes of their own, with HF_ENDPOINT as a user would set it."""
    with stand_in_hub.running() as hub:
        own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "TRANSFORMERS_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}

        def masp(*words: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "masp", *map(str, words)]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        pushed = masp("push", adapter, ID, "--license", "mit", "--revision", "v1")
        assert (pushed.returncode, pushed.stdout) == (0, f"{hub.address}/{ID}/commit/{hub.branches[ID]['v1']}\n"), (
            pushed
        )
        words = ("predict", picture, "--adapter", ID, "--adapter-revision", "v1", "--json", "--no-explain")
        done = masp(*words, "--backbone", tiny.checkpoint())
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["adapter"] == ID
