"""The benchmark: its baseline has the losses that ours has, its arithmetic meets numbers by hand, its file a shape."""

import json
import threading
from types import SimpleNamespace

import bench_setting as clock
import pytest
import torch
from bench import (
    GROUPS,
    PLAIN,
    Options,
    as_released,
    costs,
    faster,
    line_of,
    main,
    pair_columns,
    reaches,
    run_bench,
    stage1,
)
from bench_setting import ANSWERS, GRIDS, TINY, Timing, in_turn, memory_of, setting
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


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_baseline_computes_the_same_losses(small, variant):
    model = small.model(variant)
    with torch.no_grad():
        for parameter in model.aspect_module().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pixels, question = small.pixels(35), small.question(variant=variant)
    visual = small.backbone.visual_tokens(pixels)
    plain = PlainSteps(small.made, model)
    plain.put_prompt()
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
    assert really is not None
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


def test_pictures_have_the_number_of_visual_tokens_that_they_are_named_by(small):
    for count in GRIDS:
        assert small.pixels(count).grid.prod() == 4 * count


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

    monkeypatch.setattr(clock, "resident", resident)
    monkeypatch.setattr(clock, "_give_back", lambda: pages.update(free=0))
    assert memory_of(work) == 40
    assert len(calls) == 2


@pytest.mark.slow  # another process that takes the processor while the peak lasts makes it fail
def test_freed_memory_is_given_back_to_the_system():
    """Blocks below glibc's mapping threshold stay with the process when they are freed."""
    pieces = [torch.ones(2**14) for _ in range(1024)]  # 64 MiB in pieces of 64 KiB
    tail = torch.ones(2**12)  # keeps the heap from shrinking by itself
    del pieces
    found = memory_of(lambda: sum(piece.sum() for piece in [torch.ones(2**14) for _ in range(640)]))
    assert 35 * 2**20 < found < 60 * 2**20  # 40 MiB
    del tail


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


def test_a_line_says_where_the_baselines_time_goes_and_the_bound_of_batches():
    line = {"visual": 256, "batch": 1, "goal": None, "met": None, "median_s": 7.0, "spread": 0.1, "ratio": None}
    more = {"gain_over_generating": 1.31, "bound": 1.37}
    shares = {"optimizer_share": 0.021, "vision_share": 0.114}
    assert "of its time: AdamW 2.1%, the vision tower 11.4%" in line_of(
        line | {"name": "baseline", "meaning": "", "more": shares}
    )
    said = line_of(line | {"name": "batched", "ratio": 0.96, "meaning": "of the largest gain", "more": more})
    assert "of the largest gain: 1.31 of at most 1.37 times" in said


def test_the_operations_of_the_plain_pairs_are_counted_by_their_own_lengths(small):
    """Every aspect's pair by itself; the baseline takes three of them."""
    model = small.model("released")
    alone = {
        name: model.sequence_builder([small.aspect_question(name)], [ANSWERS[name]], aspects=torch.zeros(1, 1, 5, 64))
        for name in ASPECTS
    }
    lengths = {name: one.attention_mask.shape[1] for name, one in alone.items()}
    assert pair_columns(small, ASPECTS) == list(lengths.values())
    assert pair_columns(small, PLAIN) == [lengths[name] for name in PLAIN]
    assert set(PLAIN) < set(ASPECTS)
    found = next(line for line in stage1(small, {"gemm_tflops": 1.0}, lambda name: None) if line["ratio"] is not None)
    sizes, count = small.sizes(), small.counts[0]
    plain = sum(sizes.plain_flops(count, lengths[name]) for name in PLAIN) / 3
    ours = sum(sizes.step_flops(length, 0, 4) for length in lengths.values()) / 6 + sizes.vision_flops(count) / 6
    assert found["more"]["flops"] == pytest.approx(ours)
    assert found["more"]["ratio_by_arithmetic"] == pytest.approx(plain / ours)


def test_groups_measured_one_by_one_stand_in_one_file(tmp_path):
    file = tmp_path / "bench.json"
    for group in ("tasks", "stage1", "tasks"):
        main(["--quick", "--repeats", "1", "--only", group, "--add", "--json", str(file)])
    content = json.loads(file.read_text())
    assert list(content["groups"]) == ["tasks", "stage1"]
    groups = [line["group"] for line in content["results"]]
    assert groups == sorted(groups, key=list(GROUPS).index)
    assert groups.count("tasks") == len([line for line in content["results"] if "tasks on one image" in line["name"]])
    assert content["command"] == "python benchmarks/bench.py --quick --repeats 1 --json FILE"


def test_what_is_there_is_not_measured_again_and_what_does_not_fit_is_refused(tmp_path):
    options, told = Options(quick=True, repeats=1), []
    measured = {name: {} for name in GROUPS if name != "tasks"}
    first = run_bench(Options("tasks", quick=True, repeats=1), told.append, told.append)
    again = run_bench(options, told.append, told.append, {**first, "groups": {**first["groups"], **measured}})
    assert again["results"] == first["results"]
    other = {**first, "repeats": 7, "machine": {**first["machine"], "threads": 99}}
    with pytest.raises(UsageError, match="measured with other repeats, threads"):
        run_bench(options, told.append, told.append, other)
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    with pytest.raises(UsageError, match="--add without --json"):
        main(["--quick", "--add"])
    with pytest.raises(UsageError, match="not what this benchmark wrote"):
        main(["--quick", "--add", "--json", str(odd)])
