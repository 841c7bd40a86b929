"""The benchmark that waits for a GPU: its shape is the published 7B's, and every part of it runs."""

import json

import gpu
import pytest
import torch
from random_weights import _config

from masp.backbones.files import find
from masp.backbones.known_models import describe
from masp.backbones.model_stats import count

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and the trainer warn of each other; nothing of it is ours


def test_the_shape_is_the_published_one():
    from transformers import Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(_config(gpu.SEVEN_B, find("embedded")))
    total = sum(one.numel() for one in model.parameters())
    assert total == count(describe("Qwen/Qwen2-VL-7B-Instruct")).total == 8_291_375_616


def test_every_part_runs_at_tiny_size_and_says_what_it_measured(tmp_path):
    # PEFT's part has tests of its own, and the part "tests" runs minutes of these tests.
    parts = tuple(name for name in gpu.PARTS if name not in ("peft", "tests"))
    found = gpu.measure(5, True, tmp_path / "gpu.json", parts)
    assert found["left_out"] == {}
    rows = {row["name"]: row for row in found["results"]}
    for name in ("recomputed", "prefix kept", "plain baseline"):
        row = rows[f"stage 2, N = 35, {name}"]
        assert row["value"] == pytest.approx(1 / sorted(row["seconds"])[len(row["seconds"]) // 2])
    assert 0 < rows["stage 2, N = 35, recomputed"]["share_of_peak"] < 1
    assert rows["FSDP, one process, one score"]["largest_difference"] < 1e-4
    memory = rows["stage 2 in NF4, N = 35, peak at batch 1"]
    assert memory["weights"] < rows["stage 2, N = 35, peak at batch 1"]["weights"]
    assert {"score, N = 16, batched", "one image, N = 16, p50", "stage 1, N = 16, image-major"} <= rows.keys()
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert len(written["table"]["rows"]) == len(rows)
    assert written["machine"]["device"] == "cpu"


@pytest.mark.slow
def test_the_parts_that_call_others_run(tmp_path):
    pytest.importorskip("peft")
    found = gpu.measure(20, True, tmp_path / "gpu.json", ("peft", "tests"))
    assert found["left_out"] == {}
    rows = {row["name"]: row for row in found["results"]}
    assert rows["stage 2, N = 35, PEFT"]["value"] > 0
    assert rows["tests of dtypes and threads"]["value"] == 0


def test_what_fails_or_has_no_time_is_named(tmp_path, monkeypatch):
    def broken(run):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "PARTS", {"stage2": (broken, False), "scores": (gpu.scores, False)})
    found = gpu.measure(5, True, tmp_path / "gpu.json", ("stage2", "scores"))
    assert found["left_out"] == {"stage2": "RuntimeError: out of memory"}
    assert [row["unit"] for row in found["results"]] == ["images/s", "ms"]
    assert gpu.measure(-1, True, tmp_path / "none.json", ("scores",))["left_out"] == {"scores": "no time was left"}
