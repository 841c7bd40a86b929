"""`--revision`, `--dtype` and `--device` of the commands that load a backbone for an adapter."""

import json
from typing import get_args

import pytest

from fixtures import tiny
from fixtures.adapters import LABELS, write_adapter
from masp.backbones.loading import load_backbone
from masp.cli.options import Dtype
from masp.core.settings import BackboneConfig
from masp.predictor import Masp


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """For each command the words that make it work on a small adapter."""
    folder = tmp_path_factory.mktemp("loading")
    write_adapter(folder / "adapter")
    for number, label in enumerate(LABELS):
        (folder / "data" / "test" / label).mkdir(parents=True)
        tiny.picture(84, 112, seed=number).save(folder / "data" / "test" / label / f"{number}.png")
    picture = next((folder / "data").rglob("*.png"))
    return {
        "predict": ("predict", picture, "--adapter", folder / "adapter", "--json", "--no-explain"),
        "evaluate": ("evaluate", "--adapter", folder / "adapter", "--data", folder / "data"),
    }


def test_the_command_knows_the_formats_of_the_settings():
    assert tuple(Dtype) == get_args(BackboneConfig.model_fields["dtype"].annotation)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_backbone_is_loaded_as_asked(masp, words, command, monkeypatch):
    loaded = []

    def noted(*arguments):
        loaded.append(load_backbone(*arguments))
        return loaded[0]

    monkeypatch.setattr("masp.adapters.shipped.load_backbone", noted)
    code, _, err = masp(*words[command], "--dtype", "float16", "--device", "cpu")
    assert code == 0, err
    assert (str(loaded[0].dtype), loaded[0].device.type) == ("torch.float16", "cpu")


def test_another_format_moves_the_last_digits_only(masp, words):
    found = []
    for dtype in ("float32", "bfloat16"):
        _, out, _ = masp(*words["predict"], "--dtype", dtype)
        found.append(json.loads(out)["probabilities"])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], abs=0.1)


def test_predict_works_in_four_bits(masp, words):
    """Other numbers than in full precision, and those of the library."""
    pytest.importorskip("bitsandbytes")
    found = []
    for dtype in ("float32", "nf4"):
        code, out, err = masp(*words["predict"], "--dtype", dtype)
        assert code == 0, err
        found.append(json.loads(out)["probabilities"])
    loaded = Masp.from_pretrained(words["predict"][3], dtype="nf4")
    assert loaded.model.backbone.weight_dtype.startswith("nf4/")
    assert dict(loaded.predict(words["predict"][1]).probabilities) == pytest.approx(found[1], abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_predict_works_on_a_spread_backbone(masp, words):
    found = []
    for device in ("cpu", "spread"):
        code, out, err = masp(*words["predict"], "--device", device, "--dtype", "float32")
        assert code == 0, err
        found.append(json.loads(out)["probabilities"])
    assert found[0] == found[1]


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_revision_is_asked_of_the_hub(masp, words, command):
    code, _, err = masp(*words[command], "--backbone", "somebody/something", "--revision", "0123abcd")
    assert code == 1
    assert "hf download somebody/something --revision 0123abcd" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("where", ["as recorded", "named", "embedded"])
def test_a_folder_has_no_revisions(masp, words, command, where):
    named = {"as recorded": (), "named": ("--backbone", tiny.checkpoint()), "embedded": ("--backbone", "embedded")}
    code, out, err = masp(*words[command], *named[where], "--revision", "0123abcd")
    assert (code, out) == (2, "")
    assert "the revision 0123abcd was given for the backbone" in err
    assert "Leave the revision out." in err
    assert "Traceback" not in err


def test_training_and_info_refuse_a_revision_of_a_folder(masp, words, tmp_path):
    data, folder = words["evaluate"][4], tiny.checkpoint()
    train = ("train", "prompt", "--data", data, "--backbone", folder, "--out", tmp_path / "run")
    for asked in (("info", folder, "--revision", "main"), (*train, "backbone.revision=main")):
        code, _, err = masp(*asked)
        assert code == 2
        assert "which is a folder and has none" in err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("option", "value", "code", "message"),
    [("--dtype", "float8", 2, "float8"), ("--device", "gpu", 1, "the device 'gpu' cannot be used")],
)
def test_a_wrong_value_is_named(masp, words, command, option, value, code, message):
    found, out, err = masp(*words[command], option, value)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
