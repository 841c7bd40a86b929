"""How a backbone reads images and texts: processor settings, chat template and tokenizer in every identity."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures import tiny
from fixtures.adapters import write_adapter
from masp.adapters import combine, load_adapter, read_info
from masp.backbones.files import READING, find
from masp.backbones.loading import load_backbone
from masp.core.config import BackboneConfig, load_config
from masp.core.errors import AdapterError, UsageError
from masp.predictor import Masp
from masp.training.feature_cache import origin_of
from masp.training.run_dir import alike, compare, hash_of, reading

SYSTEM = "{{ '<|im_start|>system\nYou are afraid of everything.<|im_end|>\n' }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny backbone."""
    return Path(shutil.copytree(tiny.checkpoint(), tmp_path / "backbone"))


def edited(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def smaller_images(folder: Path) -> None:
    edited(
        folder,
        "preprocessor_config.json",
        max_pixels=json.loads((folder / "preprocessor_config.json").read_text())["max_pixels"] // 2,
    )


def afraid(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(SYSTEM + template.read_text())


def another_normalizer(folder: Path) -> None:
    edited(folder, "tokenizer.json", normalizer={"type": "Lowercase"})


CHANGES: dict[str, Callable[[Path], None]] = {
    "processor": smaller_images,
    "template": afraid,
    "tokenizer": another_normalizer,
}


@pytest.mark.parametrize("name", READING)
def test_a_backbone_that_reads_otherwise_is_refused_and_can_be_accepted(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """`max_pixels` and a system prompt were in no identity, and moved "fear" from 0.887 to 0.492."""
    adapter = write_adapter(tmp_path / "adapter")
    CHANGES[name](folder)
    changed = load_backbone(str(folder), dtype="float32", device="cpu")
    assert changed.fingerprint() == tiny.backbone().fingerprint()
    with pytest.raises(AdapterError, match=rf"another {READING[name]} .*expected .*--accept {name}\b"):
        Masp.from_pretrained(adapter, changed)
    others = [one for one in READING if one != name]
    with pytest.raises(AdapterError, match=READING[name]):
        Masp.from_pretrained(adapter, changed, accept=others)
    assert Masp.from_pretrained(adapter, changed, accept=[name]).labels == Masp.from_pretrained(adapter).labels
    accepting = load_backbone(BackboneConfig(id=str(folder), dtype="float32", device="cpu", accept=(name,)))  # pyright: ignore[reportArgumentType]
    assert load_adapter(adapter, accepting).info == read_info(adapter)


@pytest.mark.parametrize("name", READING)
def test_a_run_is_not_gone_on_with_where_it_would_read_otherwise(name: str, folder: Path, tmp_path: Path) -> None:
    CHANGES[name](folder)
    changed = load_backbone(str(folder), dtype="float32", device="cpu")
    before, now = ({"seed": 1, **reading(one)} for one in (tiny.backbone(), changed))
    with pytest.raises(UsageError, match=rf"backbone\.{name}: .* there, .* now.*backbone\.accept=\[{name}\]"):
        compare(before, now, tmp_path)
    accepting = load_backbone(str(folder), dtype="float32", device="cpu", accept=[name])
    compare(before, {"seed": 1, **reading(accepting)}, tmp_path)
    compare({"seed": 1}, now, tmp_path)  # a run of an earlier version does not say
    assert not alike({"seed": 2}, now)
    assert hash_of(before) == hash_of(now) == hash_of({"seed": 1})
    kept = [origin_of(one, None, "nearest") for one in (tiny.backbone(), changed)]
    assert (kept[0] == kept[1]) == (name != "processor")


def test_other_spellings_of_the_same_files_have_the_same_hashes(folder: Path) -> None:
    expected = find(str(tiny.checkpoint())).hashes
    assert set(expected) == set(READING)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    kind = settings["image_processor_type"]
    spelled = dict(reversed(settings.items())) | {"image_processor_type": f"{kind}Fast", "do_pad": None}
    spelled |= {"processor_class": "Another", "transformers_version": "0.0.0", "_name_or_path": "elsewhere"}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": spelled}))
    (folder / "preprocessor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edited(folder, "tokenizer_config.json", chat_template=template.replace("\n", "\r\n"), name_or_path="elsewhere")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokenizer |= {"truncation": {"max_length": 5}, "version": "2.0"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3, ensure_ascii=False))
    assert find(str(folder)).hashes == expected
    edited(folder, "tokenizer_config.json", chat_template=None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template + "\n"}))
    assert find(str(folder)).hashes == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_template_that_is_hashed_is_the_one_that_is_used(family: str, tmp_path: Path) -> None:
    backbone: Any = tiny.backbone(family)
    used = "" if family == "instructblip" else str(backbone._tokenizer.chat_template)
    files = find(str(tiny.checkpoint(family)))
    other = Path(shutil.copytree(tiny.checkpoint(family), tmp_path / "copy"))
    (other / "chat_template.jinja").write_text(used)
    assert find(str(other)).hashes == files.hashes == backbone.hashes()


def test_a_vocabulary_without_a_tokenizer_file_counts_too(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    first = find(str(folder)).hashes
    (folder / "vocab.json").write_text(json.dumps({"a": 1, "b": 0}))
    assert find(str(folder)).hashes["tokenizer"] != first["tokenizer"]


def forget(adapter: Path, *names: str) -> None:
    """Make an adapter of a version that did not record these."""
    file = adapter / "adapter.json"
    content = json.loads(file.read_text())
    for name in names:
        del content["backbone"]["hashes"][name]
    file.write_text(json.dumps(content | {"format_version": 2}))


def test_an_adapter_that_does_not_say_loads_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING, "masp"):
        load_adapter(adapter, tiny.backbone())
        assert not caplog.records
        forget(adapter, *READING)
        load_adapter(adapter, tiny.backbone())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert all(words in caplog.text for words in READING.values())


def test_combined_adapters_read_alike_and_claim_what_all_of_them_know(tmp_path: Path) -> None:
    first, second = (write_adapter(tmp_path / name) for name in ("first", "second"))
    forget(second, "template")
    info = combine(tmp_path / "both", [f"a={first}", f"b={second}"])
    assert info.backbone.hashes.keys() == {"processor", "tokenizer"}
    content = json.loads((second / "adapter.json").read_text())
    content["backbone"]["hashes"]["processor"] = "0" * 64
    (second / "adapter.json").write_text(json.dumps(content))
    with pytest.raises(AdapterError, match="another processor settings"):
        combine(tmp_path / "again", [f"a={first}", f"b={second}"])


def test_only_what_is_checked_can_be_accepted(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match="Did you mean 'template'"):
        Masp.from_pretrained(adapter, tiny.backbone(), accept=["templates"])


def test_settings_and_commands_accept_by_name(folder: Path, tmp_path: Path, masp: Any) -> None:
    assert load_config(None, ["backbone.accept=[template,tokenizer]"]).backbone.accept == ("template", "tokenizer")
    adapter, picture = write_adapter(tmp_path / "adapter"), tmp_path / "picture.png"
    tiny.picture(90, 62).save(picture)
    afraid(folder)
    words = ("predict", picture, "--adapter", adapter, "--backbone", folder, "--no-explain", "--json")
    code, _, said = masp(*words)
    assert (code, "--accept template" in " ".join(said.split())) == (1, True)
    code, found, _ = masp(*words, "--accept", "template")
    assert (code, json.loads(found)["label"] in ("joy", "fear", "awe")) == (0, True)


def test_the_shipped_adapter_knows_how_its_backbone_reads() -> None:
    from masp.adapters.shipped import shipped_adapter

    assert read_info(shipped_adapter()).backbone.hashes == find("embedded").hashes
