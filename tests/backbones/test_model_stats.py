"""Facts of a backbone without its weights, by hand, against loaded models and published totals; and `masp info`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fixtures import tiny
from masp.backbones.decoder import Decoder
from masp.backbones.known_models import Description, describe, published
from masp.backbones.loading import choose_device, load_backbone
from masp.backbones.model_stats import PARTS, count, memory_of
from masp.core.errors import BackboneError
from masp.model.cost_estimate import trained_size

SEVEN = "Qwen/Qwen2-VL-7B-Instruct"
D, KEYS, INNER, LAYERS, VOCABULARY = 3584, 512, 18944, 28, 152064
ONE_OF_EACH = (
    "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen3-VL-2B-Instruct",
    "llava-hf/llava-1.5-7b-hf",
    "OpenGVLab/InternVL3-1B-hf",
    "HuggingFaceTB/SmolVLM-256M-Instruct",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "google/gemma-3-4b-it",
)


def described(config, preprocessor=None):
    return Description("made up", "folder", config, preprocessor)


# --- parameters ----------------------------------------------------------------------------------------------------


def test_the_7b_by_hand():
    found = count(describe(SEVEN))
    assert found.total == 8_291_375_616
    assert (found.dim, found.layers, found.tied, found.served) == (D, LAYERS, False, True)
    block = D * D + D + 2 * (D * KEYS + KEYS) + D * D + 3 * D * INNER + 2 * D
    assert found.parameters["language model layers"] == LAYERS * block + D
    assert found.parameters["embeddings"] == found.parameters["output head"] == VOCABULARY * D
    assert found.parameters["projector"] == 2 * 1280 + 5120 * 5120 + 5120 + 5120 * D + D
    assert found.parameters["other"] == 0
    assert found.lora == LAYERS * 8 * ((D + D) + (D + KEYS)) == 2_523_136


def test_memory_of_the_7b_by_hand():
    """Every linear layer but the output head takes 4.5 bits a weight; the patch embedding is no linear layer."""
    vision = 32 * (1280 * 3840 + 1280 * 1280 + 2 * 1280 * 5120) + 5120 * 5120 + 5120 * D
    linear = vision + LAYERS * (2 * D * D + 2 * D * KEYS + 3 * D * INNER)
    found = count(describe(SEVEN))
    assert found.memory["float32"] == 4 * 8_291_375_616
    assert found.memory["bfloat16"] == found.memory["float16"] == 2 * 8_291_375_616
    assert found.memory["nf4"] == 2 * (8_291_375_616 - linear) + linear // 2 + 4 * linear // 64


def test_a_block_that_is_not_full_has_a_scale_too():
    found = memory_of(100, [64, 11], [11])
    assert found["nf4"] == 2 * 25 + (32 + 4) + (6 + 4)
    assert found["nf4_cpu"] == 2 * 89 + (6 + 4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_published_backbone_has_its_published_size(name):
    found = count(describe(name))
    assert found.total == published()[name]["parameters"]
    assert (found.source, found.served) == ("table", True)
    assert found.parameters["other"] == 0
    assert all(found.parameters[part] for part in PARTS[:4])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(published()) - set(ONE_OF_EACH)))
def test_every_published_backbone_has_its_published_size(name):
    found = count(describe(name))
    assert found.total == published()[name].get("parameters", found.total)
    assert found.parameters["other"] == 0


MERGER = ("model.visual.merger.",)
LLAVA = ("model.multi_modal_projector.",)
PROJECTORS = {
    "qwen2_vl": MERGER,
    "qwen2_5_vl": MERGER,
    "qwen3_vl": (*MERGER, "model.visual.deepstack_merger_list."),
    "llava": LLAVA,
    "llava_next": (*LLAVA, "model.image_newline"),
    "llava_onevision": (*LLAVA, "model.image_newline"),
    "gemma3": LLAVA,
    "internvl": LLAVA,
    "smolvlm": ("model.connector.",),
    "idefics3": ("model.connector.",),
    "photo": LLAVA,
    "instructblip": ("qformer.", "query_tokens", "language_projection."),
}
"""How the names of all parameters between vision tower and language model begin."""


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_needs_no_weights_and_counts_as_the_loaded_model(family, tmp_path):
    shutil.copy(tiny.checkpoint(family) / "config.json", tmp_path)
    found = count(describe(str(tmp_path)))
    assert (found.source, found.served) == ("folder", True)
    parts = tiny.backbone(family)._parts  # pyright: ignore[reportAttributeAccessIssue]
    sizes = {name: parameter.numel() for name, parameter in parts.model.named_parameters()}
    assert found.total == sum(sizes.values())
    embeddings = parts.language.embed_tokens.weight
    language = sum(parameter.numel() for parameter in parts.language.parameters()) - embeddings.numel()
    projector = sum(size for name, size in sizes.items() if name.startswith(PROJECTORS[family]))
    head = 0 if found.tied else embeddings.numel()
    assert found.tied == (parts.head.weight is embeddings)
    assert dict(found.parameters) == {
        "vision tower": sum(sizes.values()) - projector - language - embeddings.numel() - head,
        "projector": projector,
        "language model layers": language,
        "embeddings": embeddings.numel(),
        "output head": head,
        "other": 0,
    }
    assert (found.dim, found.layers) == (tiny.DIM, len(parts.language.layers))
    queries = [layer.self_attn.q_proj.weight.shape for layer in parts.language.layers]
    values = [layer.self_attn.v_proj.weight.shape for layer in parts.language.layers]
    assert found.lora == 8 * sum(rows + columns for rows, columns in queries + values)


def instructblip(language):
    text = {
        "model_type": language,
        "vocab_size": 97,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    if language == "t5":
        text = {
            "model_type": "t5",
            "vocab_size": 97,
            "d_model": 8,
            "d_kv": 4,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
        }
    small = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "model_type": "instructblip",
        "text_config": text,
        "vision_config": small | {"image_size": 28, "patch_size": 14},
        "qformer_config": small | {"encoder_hidden_size": 12, "vocab_size": 31},
        "num_query_tokens": 5,
        "image_token_index": 7,
    }


def test_a_language_model_without_such_projections_has_no_low_rank_pairs():
    assert count(described(instructblip("t5"))).lora is None


SMALL = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}


def of_kind(kind, vision, language):
    text, seen = SMALL | {"model_type": language}, SMALL | {"model_type": vision, "image_size": 28, "patch_size": 14}
    return {"model_type": kind, "text_config": text, "vision_config": seen, "image_token_index": 7}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (instructblip("t5"), "Flan-T5"),
        (instructblip("llama") | {"image_token_index": None}, "names no image token"),
        (of_kind("llava", "pixtral", "mistral"), "has the vision tower 'pixtral'"),
        (of_kind("paligemma", "siglip_vision_model", "gemma"), "of the family 'paligemma'"),
    ],
)
def test_what_a_family_refuses_is_not_served(config, message, tmp_path):
    assert not count(described(config)).served
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(tmp_path), device="cpu")


def test_a_language_model_that_cannot_be_walked_is_not_served():
    config = of_kind("llava", "clip_vision_model", "gemma2")
    assert not count(described(config)).served
    with pytest.raises(BackboneError, match="of the kind 'gemma2'"):
        Decoder(SimpleNamespace(config=SimpleNamespace(model_type="gemma2"), layers=[]))


# --- trained parts -------------------------------------------------------------------------------------------------


def test_trained_parts_by_hand():
    paper, released = trained_size("paper", D), trained_size("released", D)
    assert paper.aspects == 6 * (D + 2 * D**2) == 154_162_176
    assert released.aspects == 6 * (5 * D + 4 * D**2 + 4 * D)
    assert paper.prompt == released.prompt == 32 * D == 114_688
    assert (paper.added, released.added) == (6 + 32, 30 + 2 * 32)
    assert trained_size("paper", 10, queries=3, prompt_length=7).aspects == 6 * (3 * 10 + 2 * 100)
    assert trained_size("paper", 10, queries=3, prompt_length=0).added == 18


# --- where a configuration comes from ------------------------------------------------------------------------------


def test_an_unknown_id_names_the_nearest_known_one():
    with pytest.raises(BackboneError, match=r"hub is not reachable.*Did you mean 'Qwen/Qwen2-VL-7B-Instruct'\?"):
        describe("Qwen/Qwen2-VL-7B-Instuct")
    with pytest.raises(BackboneError, match="neither a folder nor the id"):
        describe("not/an/id")


def test_the_table_says_nothing_about_a_revision():
    with pytest.raises(BackboneError, match="not reachable"):
        describe(SEVEN, "0123abcd")


def test_a_cached_configuration_comes_before_the_table(tmp_path, monkeypatch):
    folder = tmp_path / f"models--{SEVEN.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    shutil.copy(tiny.checkpoint() / "config.json", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "0123abcd"):
        found = describe(SEVEN, revision)
        assert found.source == "cache"
        assert count(found).dim == tiny.DIM
        assert found.preprocessor is None


@pytest.mark.parametrize("files", [("config", "preprocessor_config"), ("config",), ()])
def test_of_another_id_only_two_small_files_are_fetched(monkeypatch, tmp_path, files):
    asked = []

    def fetch(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        for file in files:
            shutil.copy(tiny.checkpoint() / f"{file}.json", tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    if files:
        found = describe("somebody/something", "0123abcd")
        assert (found.source, found.preprocessor is not None, count(found).dim) == ("hub", len(files) == 2, tiny.DIM)
    else:
        with pytest.raises(BackboneError, match=r"somebody/something has no config\.json"):
            describe("somebody/something", "0123abcd")
    assert asked == [("somebody/something", "0123abcd", ["config.json", "preprocessor_config.json"])]


def test_what_the_hub_refuses_is_told_with_its_reason(monkeypatch):
    def refuse(name, revision, allow_patterns):
        raise OSError("the licence has to be\naccepted first")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BackboneError, match=r"configuration of 'google/gemma-3-4b-pt': the licence has to be accepted"):
        describe("google/gemma-3-4b-pt")


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(BackboneError, match=r"has no config\.json"):
        describe(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "does not read images; expected a vision-language model"),
        ({"model_type": "qwen2_vll"}, "unknown kind 'qwen2_vll'.*Did you mean 'qwen2_vl'"),
        ({"model_type": None}, "unknown kind 'None'"),
        ({"model_type": ["qwen2_vl"]}, "unknown kind"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000; expected at most 1000"),
        ({"vision_config": {"depth": "deep"}}, "depth deep"),
        ({"vision_config": {"depth": 1, "embed_dim": 12, "num_heads": 0}}, "no model can be built"),
        ({"hidden_size": "wide"}, "no model can be built"),
        ({"hidden_size": -4}, "no model can be built"),
        ({"num_attention_heads": 0}, "no model can be built"),
        ({"vision_config": 3}, "no model can be built"),
    ],
)
def test_broken_configurations_are_named(changes, message):
    with pytest.raises(BackboneError, match=message):
        count(described(dict(describe("Qwen/Qwen2-VL-2B-Instruct").config) | changes))


def test_code_and_quantisation_of_a_checkpoint_are_left_alone():
    content = dict(describe("Qwen/Qwen2-VL-2B-Instruct").config)
    strange = {
        "auto_map": {"AutoConfig": "evil.Config"},
        "quantization_config": {"quant_method": "awq", "bits": 4},
        "_attn_implementation": "flash_attention_2",
    }
    assert count(described(content | strange)) == count(described(content))


# --- the command ---------------------------------------------------------------------------------------------------


def test_json_is_one_object(masp):
    code, out, _ = masp("info", SEVEN, "--json", "--size", "56x84")
    found = json.loads(out)
    assert code == 0
    assert found["parameters"]["total"] == 8_291_375_616
    assert found["trained"]["paper"]["prompt"] == 114_688
    assert found["trained"]["paper"]["prompt_bytes"] == 458_752
    assert found["qlora"] == {"rank": 8, "parameters": 2_523_136, "bytes": 10_092_544}
    assert found["visual_tokens"] == {"56x84": 6}
    assert (found["source"], found["served"], found["tied_output_head"]) == ("table", True, False)


@pytest.mark.parametrize(("units", "seven"), [("0", "float32"), ("1", "bfloat16")])
def test_what_auto_means_here_is_said(masp, units, seven, monkeypatch):
    monkeypatch.setenv("MASP_BFLOAT16_UNITS", units)
    for name, dtype in ((SEVEN, seven), ("embedded", "float32")):
        auto = json.loads(masp("info", name, "--json")[1])["auto"]
        assert auto == {"dtype": dtype, "device": str(choose_device("auto"))}
        assert f"{dtype} on {auto['device']}" in masp("info", name)[1]


def test_the_example_of_the_documents_is_what_the_command_prints(masp, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    document = (Path(__file__).parents[2] / "docs" / "how-to" / "own-backbone.md").read_text(encoding="utf-8")
    example = document.partition(f"$ masp info {SEVEN}\n")[2].partition("\n```")[0]
    monkeypatch.setenv("MASP_BFLOAT16_UNITS", "1")  # as on the machine of the example, which also has no GPU
    out = masp("info", SEVEN)[1].replace(f"bfloat16 on {choose_device('auto')}", "bfloat16 on cpu")
    assert example.splitlines() == [line.rstrip() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("embedded", "--size", "big"), 2, "--size big"),
        (("embedded", "--size", "0x10"), 2, "0x10"),
        (("embedded", "--queries", "0"), 2, "queries"),
        (("embedded", "--prompt-length", "-1"), 2, "prompt-length"),
        (("somebody/something",), 1, "nothing is known here of the backbone 'somebody/something'"),
    ],
)
def test_mistakes_are_one_line(masp, words, code, message):
    found, out, err = masp("info", *words)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
