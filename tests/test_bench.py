"""The benchmark: its baseline has the losses that ours has, its arithmetic meets numbers by hand, its file a shape."""

import json
import threading
from types import SimpleNamespace

import bench
import bench_setting
import pytest
import torch
from bench import (
    Options,
    as_released,
    costs,
    faster,
    main,
    reaches,
    run_bench,
)
from bench_setting import TINY, Timing, in_turn, memory_of, setting
from plain_steps import PlainSteps, bare_forward, plain_attention
from random_weights import make

from masp.cli.app import app
from masp.core.aspects import ASPECTS
from masp.core.errors import UsageError
from masp.core.flops import QWEN2_VL_7B
from masp.model.masp_model import ActiveParts


@pytest.fixture(scope="module")
def small():
    return setting(True, 1, torch.float32, torch.device("cpu"))


def put_prompt(plain: PlainSteps) -> None:
    """Write the model's soft prompt into the rows of the embedding matrix that stand for it, to compare losses."""
    assert plain.model.prompt is not None
    with torch.no_grad():
        vectors = plain.model.prompt.vectors.to(plain._rows)
        plain._rows[len(plain._rows) - 1 - torch.arange(len(vectors))] = vectors


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_baseline_computes_the_same_losses(small, variant):
    model = small.model(variant)
    with torch.no_grad():
        for parameter in model.aspect_module().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pixels, question = small.pixels(35), small.question(variant=variant)
    visual = small.backbone.visual_tokens(pixels)
    plain = PlainSteps(small.made, model)
    put_prompt(plain)
    found = plain.stage2(pixels, question, "awe")
    assert float(found) == pytest.approx(float(model.prompt_loss(visual, [question], ["awe"]).detach()), rel=1e-5)
    for number, name in enumerate(ASPECTS):
        asked = small.aspect_question(name)
        wanted = model.aspect_loss(visual, torch.tensor([number]), [asked], ["beach"])
        assert float(plain.stage1(pixels, name, asked, "beach")) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_a_baseline_step_reaches_the_whole_embedding_matrix(small):
    model = small.model("released")
    plain, pixels = PlainSteps(small.made, model), small.pixels(16)
    plain.stage2(pixels, small.question(), "awe")
    (optimizer,) = plain._optimizers.values()
    ((rows, state),) = optimizer.state.items()
    assert rows.shape == state["exp_avg"].shape == (small.shape.vocabulary, small.shape.dim)
    assert len(plain.spent.vision) == len(plain.spent.optimizer) == 1
    assert not any(one.requires_grad for one in small.made.plain.parameters())


def test_the_code_as_released_computes_with_the_weights_of_the_seed():
    cpu = torch.device("cpu")
    really = as_released(setting(True, 1, torch.bfloat16, cpu, seed=3))
    wide, other = make(TINY, torch.float32, cpu, 3).plain, make(TINY, torch.float32, cpu, 0).plain
    found = really.made.plain.state_dict()
    for name, value in wide.state_dict().items():
        assert torch.equal(found[name], value), name
    head = "lm_head.weight"
    assert not torch.equal(found[head], other.state_dict()[head])


def test_plain_attention_is_the_folded_one(small):
    visual = small.backbone.visual_tokens(small.pixels(35))
    for variant in ("paper", "released"):
        modules = small.model(variant).aspect_module()
        wanted = modules(visual, ["scene"]).tokens[:, 0]
        assert (plain_attention(modules.module("scene"), visual) - wanted).abs().max() < 1e-5


def test_the_bare_forward_is_our_model_with_everything_off(small):
    pixels, question = small.pixels(35), small.question()
    visual = small.backbone.visual_tokens(pixels)
    assembled = small.model("paper").build_inputs(visual, [question], use=ActiveParts((), prompt=False))
    hidden = small.backbone.forward(assembled.inputs_embeds, assembled.position_ids, assembled.attention_mask).hidden[
        :, -1
    ]
    found = bare_forward(small.made, pixels, question, visual.layouts)
    assert (found - small.backbone.logits(hidden)).abs().max() < 1e-5


def test_the_arithmetic_of_the_7b_is_that_of_its_description():
    sizes = QWEN2_VL_7B
    assert sizes.kept_bytes(1) == 57_344
    assert sizes.forward_flops(1) / 1e9 == pytest.approx(13.05, rel=1e-3)
    assert sizes.head_flops(1) / 1e9 == pytest.approx(1.09, rel=1e-2)
    assert sizes.step_flops(90, 260, 3) / 1e12 == pytest.approx(2.4, rel=0.03)  # prefix kept, any N
    by_hand = 2 * sizes.language * 10 + 4 * 28 * 3584 * (10 * 100 + 10 * 10 / 2)
    assert sizes.forward_flops(10, 100) == by_hand


def test_times_are_per_example_without_the_warm_up():
    calls = []
    found = in_turn({"a": (lambda: calls.append("a"), 4), "b": (lambda: calls.append("b"), 1)}, 3)
    assert calls == ["a", "b"] * 4
    assert len(found["a"].seconds) == 3
    timing = Timing((2.0, 1.0, 4.0))
    assert (timing.median, timing.spread) == (2.0, 1.5)


def test_memory_that_earlier_works_freed_hides_nothing(monkeypatch):
    """A made-up process whose earlier works left 64 pages that are free and still resident; this one needs 40."""
    pages, looked, calls = {"used": 100, "free": 64}, threading.Event(), []

    def resident():
        looked.set()
        return sum(pages.values())

    def work():
        calls.append(dict(pages))
        pages["free"] = max(pages["free"] - 40, 0)
        pages["used"] += 40
        if len(calls) == 2:  # in the first call nobody looks
            looked.clear()
            assert looked.wait(600)
        pages["used"] -= 40
        pages["free"] += 40

    monkeypatch.setattr(bench_setting, "resident", resident)
    monkeypatch.setattr(bench_setting, "_give_back", lambda: pages.update(free=0))
    assert memory_of(work) == 40
    assert len(calls) == 2


def test_memory_of_a_step_is_told_beside_the_baselines(small, monkeypatch):
    """With and without the frozen weights, for each way to train and each number of visual tokens."""
    sizes = iter([30, 20, 10, 100] * len(small.counts))
    monkeypatch.setattr(bench, "memory_of", lambda work: next(sizes))
    lines = list(bench.memory(small, {}, lambda text: None))
    assert len(lines) == 3 * len(small.counts)
    weights = lines[0]["more"]["weights_bytes"]
    assert weights == sum(one.numel() * one.element_size() for one in small.made.plain.parameters())
    assert [(one["ratio"], one["met"]) for one in lines[:3]] == [(0.3, True), (0.2, True), (0.1, True)]
    assert lines[0]["more"]["with_weights"] == pytest.approx((30 + weights) / (100 + weights))


def test_ratios_and_goals():
    ours, baseline = Timing((0.5, 0.25, 1.0)), Timing((6.0, 5.0, 7.0))
    found = faster("stage 2", ours, baseline, 12.0, 256, 4, flops=3.0)
    assert (found["ratio"], found["met"], found["more"]) == (12.0, True, {"flops": 3.0})
    assert (found["goal"], found["at_least"], found["repeats"]) == (12.0, True, 3)
    assert costs("score", baseline, ours, "times", 11.9, 256)["met"] is False
    rate = reaches("pictures", Timing((0.02,)), 40.0, "images/s")
    assert (rate["ratio"], rate["met"], rate["more"]["value"]) == (pytest.approx(1.25), True, pytest.approx(50))
    assert costs("x", ours, ours, "", None, 1)["met"] is None


def test_every_group_runs_and_the_file_says_what_was_measured(small):
    heard, shown = [], []
    found = run_bench(Options(quick=True, repeats=1, threads=1), heard.append, shown.append)
    content = json.loads(json.dumps(found))
    assert content["machine"]["dtype"] in ("float32", "bfloat16")
    assert content["machine"]["gemm_tflops"] > 0
    assert len(content["results"]) == len(shown) > 25
    for line in content["results"]:
        assert {"name", "ratio", "goal", "met", "median_s", "spread"} <= line.keys()
        assert line["ratio"] is None or line["ratio"] > 0, line["name"]
    names = {line["name"] for line in content["results"]}
    for wanted in ("released layout", "prefix recomputed", "prefix kept", "image-major", "features kept", "4 tasks"):
        assert any(wanted in name for name in names), wanted
    assert content["command"] == "python benchmarks/bench.py --quick --repeats 1 --threads 1 --json FILE"
    heard.clear()
    kept: list[dict] = []
    again = run_bench(Options(quick=True, repeats=1, threads=1), heard.append, shown.append, content, kept.append)
    assert heard == ["the machine's own peaks, and random weights"]  # nothing is left to measure
    assert (kept, again["results"]) == ([], content["results"])


def test_an_unknown_name_and_too_few_repeats_are_refused():
    with pytest.raises(UsageError, match=r"by the name 'stage3'.*Did you mean"):
        Options("stage3")
    with pytest.raises(UsageError, match="at least five"):
        Options(repeats=3)


def test_it_prints_every_line_and_writes_the_file(tmp_path, capsys):
    out = tmp_path / "deep" / "bench.json"
    main(["--quick", "--only", "tasks", "--repeats", "1", "--json", str(out)])
    assert "2 tasks on one image  N = 16  " in (shown := capsys.readouterr().out)
    assert "(goal ≤ 1.6, met: " in shown
    assert [line["name"] for line in json.loads(out.read_text())["results"]][:2] == [
        "2 tasks on one image",
        "4 tasks on one image",
    ]


def test_the_command_leads_to_the_benchmark(monkeypatch):
    from typer.testing import CliRunner

    called = []
    monkeypatch.setattr("subprocess.run", lambda words, check: called.append(words) or SimpleNamespace(returncode=0))
    done = CliRunner().invoke(app, ["bench", "--quick", "--only", "tasks"])
    assert done.exit_code == 0, done.output
    assert called[0][1].endswith("benchmarks/bench.py")
    assert called[0][2:] == ["--quick", "--only", "tasks"]
    monkeypatch.setattr("masp.__file__", "/nowhere/site-packages/masp/__init__.py")
    assert "not part of the installed package" in str(CliRunner().invoke(app, ["bench"]).exception)
