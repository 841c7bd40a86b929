"""Adapters: the same content gives the same bytes, and whatever does not fit is refused with got, expected, to do."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fixtures import tiny
from masp.adapters import (
    AdapterInfo,
    BackboneRecord,
    DataRecord,
    ResultRecord,
    TrainingRecord,
    backbone_commit,
    load_adapter,
    portable,
    read_info,
    resolve,
    save_adapter,
)
from masp.adapters.shipped import shipped_adapter
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.errors import AdapterError
from masp.core.prompts import Questions, load_questions
from masp.model.aspect_attention import AspectModules
from masp.model.soft_prompt import SoftPrompt

NAMES = ("scene", "brightness")
LABELS = ("joy", "fear", "näïve | odd")
CONDITIONS = TrainingRecord(
    learning_rate=0.003,
    schedule="cosine",
    warmup=0.03,
    weight_decay=0.0,
    steps=3000,
    batch_size=8,
    class_weights="balanced",
    dtype="bfloat16",
    prompt_start=PromptInit(kind="text", text="calm | wild"),
)


@dataclass(frozen=True)
class Made:
    info: AdapterInfo
    aspects: AspectModules
    prompt: SoftPrompt


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny.backbone()


def made(backbone: Backbone, seed: int = 0) -> Made:
    generator = torch.Generator().manual_seed(seed)
    aspects = AspectModules(backbone.dim, NAMES, 3, "single", generator)
    prompt = SoftPrompt(5, backbone.dim, torch.randn(5, backbone.dim, generator=generator))
    questions = load_questions()
    texts = {name: questions.aspect(name)[0] for name in ASPECTS} | {"emotion": questions.emotion[0]}
    record = BackboneRecord.of(backbone).model_copy(update={"name": backbone.name})
    info = AdapterInfo(
        backbone=record,
        method=MethodConfig(queries=3).resolved(),
        aspects=NAMES,
        labels=LABELS,
        questions=texts,
        data={"prompt": DataRecord(name="noise", fingerprint="f" * 64, images={"train": 7})},
        seeds={"prompt": 11},
        metrics={"prompt/accuracy": 1 / 3},
    )
    return Made(info, aspects, prompt)


@pytest.fixture
def saved(tmp_path, backbone) -> Path:
    """The folder of an adapter with aspects and a soft prompt."""
    one = made(backbone)
    save_adapter(tmp_path / "a", one.info, one.aspects, one.prompt)
    return tmp_path / "a"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_is_loaded(tmp_path, backbone):
    one = made(backbone)
    saved = save_adapter(tmp_path / "both", one.info, one.aspects, one.prompt)
    found = load_adapter(tmp_path / "both", backbone)
    assert found.info == saved
    assert found.info.parts == ("aspects", "prompt")
    assert found.info.prompt_length == 5
    assert torch.equal(found.prompt.vectors, one.prompt.vectors)
    for name, value in one.aspects.state_dict().items():
        assert torch.equal(found.aspects.state_dict()[name], value)
        assert found.aspects.state_dict()[name].dtype == torch.float32
    assert isinstance(saved.asked(), Questions)
    assert saved.asked().aspect("scene") == load_questions().aspect("scene")[:1]


def test_the_released_attention_is_loaded_too(tmp_path, backbone):
    one = made(backbone)
    aspects = AspectModules(backbone.dim, NAMES, 2, "multihead")
    info = one.info.model_copy(update={"method": MethodConfig(variant="released", queries=2).resolved()})
    save_adapter(tmp_path / "a", info, aspects)
    found = load_adapter(tmp_path / "a", backbone)
    assert found.aspects.state_dict().keys() == aspects.state_dict().keys()
    assert found.prompt is None


def test_the_same_content_gives_the_same_bytes(tmp_path, backbone):
    for folder in ("one", "elsewhere/two"):
        one = made(backbone)
        save_adapter(tmp_path / folder, one.info, one.aspects, one.prompt)
    assert content(tmp_path / "one") == content(tmp_path / "elsewhere" / "two")
    assert content(tmp_path / "one").keys() == {"weights.safetensors", "adapter.json", "README.md"}
    other = made(backbone, seed=1)
    save_adapter(tmp_path / "three", other.info, other.aspects, other.prompt)
    assert content(tmp_path / "one")["weights.safetensors"] != content(tmp_path / "three")["weights.safetensors"]


def test_saving_again_replaces_the_whole_folder(tmp_path, backbone):
    one, two = made(backbone), made(backbone, seed=1)
    save_adapter(tmp_path / "a", one.info, one.aspects, one.prompt)
    (tmp_path / "a" / "stray").write_text("")
    save_adapter(tmp_path / "a", two.info, two.aspects, two.prompt)
    assert content(tmp_path / "a").keys() == {"weights.safetensors", "adapter.json", "README.md"}
    assert torch.equal(load_adapter(tmp_path / "a", backbone).prompt.vectors, two.prompt.vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_aspects_in_bf16_take_half_and_keep_their_hash_in_fp32(tmp_path, backbone):
    one = made(backbone)
    small = save_adapter(tmp_path / "small", one.info, one.aspects, aspects_dtype=torch.bfloat16)
    save_adapter(tmp_path / "large", one.info, one.aspects)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("small", "large")]
    assert sizes[0] < 0.6 * sizes[1]
    again = load_adapter(tmp_path / "small", backbone)
    copy = save_adapter(tmp_path / "copy", one.info, again.aspects)
    assert copy.aspects_sha256 == small.aspects_sha256


def test_a_prompt_finds_its_aspects_by_their_hash(tmp_path, backbone):
    one, other = made(backbone), made(backbone, seed=1)
    save_adapter(tmp_path / "aspects", one.info, one.aspects)
    save_adapter(tmp_path / "others", other.info, other.aspects)
    info = save_adapter(tmp_path / "prompt", one.info, one.aspects, one.prompt, include_aspects=False)
    assert info.parts == ("prompt",)
    assert (tmp_path / "prompt" / "weights.safetensors").stat().st_size < 5 * backbone.dim * 4 + 200
    found = load_adapter(tmp_path / "prompt", backbone, aspects=tmp_path / "aspects")
    assert found.aspects.aspects == NAMES
    with pytest.raises(AdapterError, match=r"aspect scene in .*others is not the one"):
        load_adapter(tmp_path / "prompt", backbone, aspects=tmp_path / "others")
    with pytest.raises(AdapterError, match=r"does not hold its aspects.*--aspects DIR"):
        load_adapter(tmp_path / "prompt", backbone)
    with pytest.raises(AdapterError, match="holds no aspect modules"):
        load_adapter(tmp_path / "prompt", backbone, aspects=_prompt_alone(tmp_path / "vs", one))


def _prompt_alone(folder: Path, one: Made) -> Path:
    save_adapter(folder, one.info.model_copy(update={"aspects": ()}), prompt=one.prompt)
    return folder


def test_a_prompt_takes_its_aspects_out_of_a_larger_adapter(tmp_path, backbone):
    one = made(backbone)
    save_adapter(tmp_path / "aspects", one.info, one.aspects)
    info = one.info.model_copy(update={"aspects": ("brightness",)})
    save_adapter(tmp_path / "prompt", info, one.aspects, one.prompt, include_aspects=False)
    found = load_adapter(tmp_path / "prompt", backbone, aspects=tmp_path / "aspects")
    assert found.aspects.aspects == ("brightness",)
    assert torch.equal(found.aspects.module("brightness").key, one.aspects.module("brightness").key)


def test_a_run_folder_stands_for_its_adapter(tmp_path, backbone):
    one = made(backbone)
    save_adapter(tmp_path / "run" / "adapter", one.info, one.aspects)
    save_adapter(tmp_path / "all" / "prompt" / "adapter", one.info, one.aspects, one.prompt)
    assert resolve(tmp_path / "run") == tmp_path / "run" / "adapter"
    assert resolve(tmp_path / "all") == tmp_path / "all" / "prompt" / "adapter"
    assert resolve(tmp_path / "run" / "adapter") == tmp_path / "run" / "adapter"


def test_nothing_to_save_is_an_error(tmp_path, backbone):
    with pytest.raises(AdapterError, match="nothing to save"):
        save_adapter(tmp_path / "a", made(backbone).info)


def test_values_that_are_not_finite_are_not_saved(tmp_path, backbone):
    one = made(backbone)
    with torch.no_grad():
        one.prompt.vectors[2, 3] = float("nan")
    with pytest.raises(AdapterError, match=r"prompt\.vectors holds values that are not finite"):
        save_adapter(tmp_path / "a", one.info, one.aspects, one.prompt)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_a_clear_error(tmp_path, backbone, monkeypatch):
    one = made(backbone)
    save_adapter(tmp_path / "a", one.info, one.aspects, one.prompt)
    before = content(tmp_path / "a")

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(AdapterError, match="No space left on device"):
        save_adapter(tmp_path / "a", one.info, made(backbone, 1).aspects, one.prompt)
    assert content(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_another_backbone_of_the_same_width_is_refused(saved, backbone):
    other = tiny.backbone(seed=1)
    assert other.dim == backbone.dim
    with pytest.raises(AdapterError) as caught:
        load_adapter(saved, other)
    text = str(caught.value)
    assert backbone.fingerprint()[:12] in text
    assert other.fingerprint()[:12] in text
    assert f"--backbone {Path(backbone.name).name}" in text


def test_the_same_backbone_under_another_name_is_accepted(tmp_path, backbone):
    one = made(backbone)
    record = one.info.backbone.model_copy(update={"name": "somewhere/else"})
    save_adapter(tmp_path / "a", one.info.model_copy(update={"backbone": record}), one.aspects, one.prompt)
    assert load_adapter(tmp_path / "a", backbone).info.backbone.name == "somewhere/else"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info | {"backbone": info["backbone"] | {"dim": 31}}, "hidden size 31 .*expected 30"),
        (lambda info: info | {"format_version": 5}, "format version 5; expected 1 to 4.* Install a newer masp"),
        (lambda info: info | {"format_version": 0}, "format version 0.* Train it again"),
        (lambda info: info | {"format_version": True}, "format version True"),
        (lambda info: info | {"format_version": "1"}, "format version '1'"),
        (lambda info: {k: v for k, v in info.items() if k != "format_version"}, "format version None"),
        (lambda info: {k: v for k, v in info.items() if k != "backbone"}, "backbone: Field required"),
        (lambda info: info | {"surprise": 1}, "surprise: Extra inputs"),
        (lambda info: info | {"labels": []}, "the label set is empty"),
        (lambda info: info | {"labels": "joy"}, "labels: "),
        (lambda info: info | {"parts": []}, "parts is empty"),
        (lambda info: info | {"parts": ["aspects", "magic"]}, "parts.1: "),
        (lambda info: info | {"aspects": ["scene", "smell"]}, "aspects is scene, smell"),
        (lambda info: info | {"aspects": ["scene", "scene"]}, "aspects is scene, scene"),
        (lambda info: info | {"aspects": ["scene"]}, "aspects_sha256 does not name the aspects"),
        (lambda info: info | {"aspects": ["brightness", "object"]}, "aspects_sha256 does not name the aspects"),
        (lambda info: info | {"prompt_length": 0}, "prompt_length is 0"),
        (lambda info: info | {"prompt_length": 7}, r"prompt.vectors has the shape \(5, 30\); expected \(7, 30\)"),
        (lambda info: info | {"questions": {}}, "questions is incomplete"),
        (lambda info: info | {"method": info["method"] | {"queries": 2}}, r"queries has the shape \(3, 30\)"),
        (
            lambda info: info | {"method": info["method"] | {"attention": "multihead"}},
            "lacks tensor aspects.brightness",
        ),
        (lambda info: info | {"parts": ["prompt"]}, r"has the unknown tensor aspects.brightness.key"),
        (lambda info: [info], "format version None"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved, backbone, change: Callable[[Any], Any], message):
    path = saved / "adapter.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "prompt.vectors"}, "lacks tensor prompt.vectors"),
        (lambda t: t | {"aspects.object.key": torch.zeros(2)}, "has the unknown tensor aspects.object.key"),
        (lambda t: t | {"prompt.vectors": torch.zeros(30, 5)}, r"has the shape \(30, 5\); expected \(5, 30\)"),
        (lambda t: t | {"prompt.vectors": t["prompt.vectors"].double()}, "is torch.float64; expected torch.float32"),
        (lambda t: t | {"prompt.vectors": t["prompt.vectors"].bfloat16()}, "is torch.bfloat16"),
        (lambda t: t | {"aspects.scene.key": t["aspects.scene.key"].half()}, "is torch.float16"),
        (lambda t: t | {"prompt.vectors": t["prompt.vectors"] / 0}, "not finite"),
        (lambda t: t | {"aspects.scene.key": t["aspects.scene.key"] + 1}, "aspect scene in the adapter .* itself"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, backbone, change: Callable[[Any], Any], message):
    path = saved / "weights.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, backbone)


# --- what travels ---------------------------------------------------------------------------------------------------


def front_matter(folder: Path) -> dict[str, Any]:
    """What a hub reads at the top of the card."""
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_folder_is_named_without_its_place(tmp_path, backbone):
    one = made(backbone)
    assert Path(one.info.backbone.name).is_absolute()
    saved = save_adapter(tmp_path / "a", one.info, one.aspects, one.prompt)
    assert saved.backbone.name == read_info(tmp_path / "a").backbone.name == Path(backbone.name).name
    for path in (tmp_path / "a").iterdir():
        assert backbone.name.encode() not in path.read_bytes(), path.name
    assert BackboneRecord.of(backbone) == saved.backbone


def test_names_that_are_no_places_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "large").mkdir(parents=True)
    names = ("Qwen/Qwen2-VL-7B-Instruct", "embedded", "models/large", "./models/large/", "/gone/large", ".")
    assert [portable(name) for name in names] == [*names[:2], "large", "large", "large", tmp_path.name]


def test_the_shipped_adapter_of_the_first_format_is_read_and_written_anew(tmp_path):
    old = json.loads((shipped_adapter() / "adapter.json").read_text())
    old = {key: value for key, value in old.items() if key not in {"training", "results", "license", "tasks"}}
    copy = tmp_path / "old"
    shutil.copytree(shipped_adapter(), copy)
    (copy / "adapter.json").write_text(json.dumps(old | {"format_version": 1}))
    embedded = load_backbone("embedded", dtype="float32")
    found = load_adapter(copy, embedded)
    assert (found.info.format_version, found.info.training, found.info.results) == (1, {}, ())
    again = save_adapter(tmp_path / "new", found.info, found.aspects, found.prompt, concepts=found.concepts)
    assert again == found.info.model_copy(update={"format_version": 4})
    assert torch.equal(load_adapter(tmp_path / "new", embedded).prompt.vectors, found.prompt.vectors)


def test_the_commit_of_the_backbone_is_asked_of_the_hub_only(tmp_path, monkeypatch, backbone):
    hub = made(backbone).info.backbone.model_copy(update={"name": "Some/Model", "revision": "c" * 40})
    info = made(backbone).info.model_copy(update={"backbone": hub})
    monkeypatch.chdir(tmp_path)
    assert (backbone_commit("Some/Model", info), backbone_commit("Other/Model", info)) == ("c" * 40, None)
    (tmp_path / "Some" / "Model").mkdir(parents=True)  # as a download puts it
    assert backbone_commit("Some/Model", info) is None


def test_the_card_tells_a_hub_what_it_is(tmp_path, backbone):
    one = made(backbone)
    hub = one.info.backbone.model_copy(update={"name": "Some/Model", "revision": "c" * 40})
    licensed = one.info.model_copy(update={"backbone": hub, "license": "cc-by-4.0"})
    save_adapter(tmp_path / "hub", licensed, one.aspects, one.prompt)
    found = front_matter(tmp_path / "hub")
    assert (found["license"], found["base_model"], found["library_name"]) == ("cc-by-4.0", "Some/Model", "masp")
    assert found["pipeline_tag"] == "image-classification"
    assert "soft-prompt" in found["tags"]
    save_adapter(tmp_path / "local", one.info, one.aspects)
    found = front_matter(tmp_path / "local")
    assert found["license"] == "unknown"
    assert "base_model" not in found  # a folder is nothing that a hub could link to
    assert "pipeline_tag" not in found


def test_the_card_gives_intervals_conditions_and_what_not_to_do(tmp_path, backbone):
    one = made(backbone)
    data = {"prompt": DataRecord(name="noise", fingerprint="f" * 64, images={"train": 7, "val": 30})}
    training = {"prompt": CONDITIONS}
    result = ResultRecord(
        dataset="no|ise",
        fingerprint="e" * 64,
        split="test",
        mode="score",
        images=40,
        accuracy=0.5,
        low=0.35,
        high=0.65,
        macro_f1=0.481,
    )
    update = {"data": data, "training": training, "results": (result,)}
    save_adapter(tmp_path / "a", one.info.model_copy(update=update), one.aspects, one.prompt)
    text = (tmp_path / "a" / "README.md").read_text()
    # Wilson's interval of 10 in 30, by hand: (1/3 + z²/60) / (1 + z²/30) ± z √(1/135 + z²/3600) / (1 + z²/30), z = 1.96
    assert "| prompt/accuracy | 0.3333, 95 % interval [0.1923, 0.5122] on 30 images |" in text
    assert "| no/ise | test | score | 50.0 % [35.0, 65.0] | 48.1 % | 40 |" in text
    conditions = "3,000 steps of 8, learning rate 0.003 (cosine, warm-up 0.03), weight decay 0, class weights balanced"
    assert f'{conditions}, backbone in bfloat16, prompt started from text "calm | wild"'.replace("|", "/") in text
    for word in ("Do not decide about people", "annotators", "AI Act", "Intended use"):
        assert word in text
    assert read_info(tmp_path / "a").training["prompt"] == CONDITIONS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.safetensors", b"", r"weights\.safetensors cannot be read"),
        ("weights.safetensors", b"no tensors at all", r"weights\.safetensors cannot be read"),
        ("weights.safetensors", None, r"weights\.safetensors cannot be read"),
        ("adapter.json", b"", "adapter.json"),
        ("adapter.json", b"{", "adapter.json"),
        ("adapter.json", b"null", "format version None"),
        ("adapter.json", b'{"format_version": ' + b"[" * 5000, "adapter.json"),
        ("adapter.json", b"\xff\xfe", "adapter.json"),
        ("adapter.json", None, "is no adapter"),
        (".", None, "does not exist"),
    ],
)
def test_a_damaged_or_missing_file_is_refused(saved, backbone, name, content, message):
    path = saved / name
    if content is not None:
        path.write_bytes(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(AdapterError, match=message):
        load_adapter(saved, backbone)
