"""The benchmark: its baseline has the losses that ours has, its arithmetic meets numbers by hand, its file a shape."""

import json
import threading

import pytest
import torch

from masp.backbones.random_init import make
from masp.bench import clock
from masp.bench.baseline import PlainSteps, bare_forward, plain_attention
from masp.bench.clock import Timing, in_turn, memory_of
from masp.bench.planned import LINES
from masp.bench.result import Goal, costs, faster, reaches
from masp.bench.run import GROUPS, NAMES, Options, run_bench
from masp.bench.setting import ANSWERS, GRIDS, TINY, setting
from masp.bench.training import as_released
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
    found = faster("stage 2", ours, baseline, Goal(12.0), 256, 4, flops=3.0)
    assert (found.ratio, found.met, found.more) == (12.0, True, {"flops": 3.0})
    assert costs("score", baseline, ours, "times", Goal(11.9, at_least=False), 256).met is False
    rate = reaches("pictures", Timing((0.02,)), 40.0, "images/s")
    assert (rate.ratio, rate.met, rate.more["value"]) == (pytest.approx(1.25), True, pytest.approx(50))
    line = found.to_json()
    assert (line["goal"], line["at_least"], line["met"], line["repeats"]) == (12.0, True, True, 3)
    assert costs("x", ours, ours, "", None, 1).to_json()["met"] is None


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
    grown = content["growth"]
    assert {line["of"] for line in grown} == {"visual tokens", "batch size", "images"}
    jobs = [line for line in grown if line["of"] == "images"]
    assert [line["at"] for line in jobs] == [2, 4, 8]
    for line in jobs:
        assert line["seconds"] == pytest.approx(line["building_s"] + line["epoch_s"])
        assert min(line["building_s"], line["epoch_s"]) > 0
    assert content["command"] == "masp bench --quick --repeats 1 --threads 1 --json FILE"

    planned = [row["name"] for row in content["plan"]]
    assert {name for name in planned if not name.startswith("peak memory")} == LINES.keys()
    assert len({name for name in planned if name.startswith("peak memory")}) == 3
    heard.clear()
    kept, stale = [], {**content, "plan": [{"name": "old"}]}
    again = run_bench(Options(quick=True, repeats=1, threads=1), heard.append, shown.append, stale, kept.append)
    assert heard == ["the machine's own peaks, and random weights"]  # nothing is left to measure
    assert kept == [again]
    assert again["plan"] == content["plan"]


def test_an_unknown_name_and_too_few_repeats_are_refused():
    with pytest.raises(UsageError, match=r"by the name 'stage3'.*Did you mean"):
        Options("stage3")
    with pytest.raises(UsageError, match="at least five"):
        Options(repeats=3)
    assert set(GROUPS) < set(NAMES)


def test_the_command_prints_a_table_and_writes_the_file(tmp_path):
    from typer.testing import CliRunner

    out = tmp_path / "deep" / "bench.json"
    done = CliRunner().invoke(app, ["bench", "--quick", "--only", "tasks", "--repeats", "1", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "2 tasks" in done.stdout
    assert "≤ 1.6" in done.stdout
    assert [line["name"] for line in json.loads(out.read_text())["results"]][:2] == [
        "2 tasks on one image",
        "4 tasks on one image",
    ]


def test_the_command_prints_where_the_baselines_time_goes_and_the_bound_of_batches():
    from rich.console import Console

    from masp.cli.bench import _growth, _planned, _table

    line = {"visual": 256, "batch": 1, "goal": None, "met": None, "median_s": 7.0, "spread": 0.1, "ratio": None}
    more, job = {"gain_over_generating": 1.31, "bound": 1.37}, {"building_s": 43.2, "epoch_s": 13.8, "seconds": 57.0}
    rows = [
        line | {"name": "baseline", "meaning": "", "more": {"optimizer_share": 0.021, "vision_share": 0.114}},
        line | {"name": "batched", "ratio": 0.96, "meaning": "of the largest gain", "more": more},
    ]
    console = Console(width=200, record=True)
    console.print(_table(rows))
    console.print(_growth([{"of": "images", "at": 24, "visual": 67, "batch": 3, **job}]))
    plan = {"name": "kept", "visual": 67, "estimated": 0.31, "measured": 0.29, "ratio": 1.069, "unit": "s"}
    console.print(_planned([plan, plan | {"ratio": None, "unit": "GB"}]))
    shown = console.export_text()
    assert "of its time: AdamW 2.1%, the vision tower 11.4%" in shown
    assert "of the largest gain: 1.31 of at most 1.37 times" in shown
    assert "43.20 once, 13.80 an epoch" in shown
    assert "1.07" in shown


def test_the_operations_of_the_plain_pairs_are_counted_by_their_own_lengths(small):
    """Every aspect's pair by itself; the baseline takes three of them."""
    from masp.bench.training import PLAIN, pair_columns, stage1

    model = small.model("released")
    alone = {
        name: model.sequence_builder([small.aspect_question(name)], [ANSWERS[name]], aspects=torch.zeros(1, 1, 5, 64))
        for name in ASPECTS
    }
    lengths = {name: one.attention_mask.shape[1] for name, one in alone.items()}
    assert pair_columns(small, ASPECTS) == list(lengths.values())
    assert pair_columns(small, PLAIN) == [lengths[name] for name in PLAIN]
    assert set(PLAIN) < set(ASPECTS)
    found = next(line for line in stage1(small, {"gemm_tflops": 1.0}, lambda name: None) if line.ratio is not None)
    sizes, count = small.sizes(), small.counts[0]
    plain = sum(sizes.plain_flops(count, lengths[name]) for name in PLAIN) / 3
    ours = sum(sizes.step_flops(length, 0, 4) for length in lengths.values()) / 6 + sizes.vision_flops(count) / 6
    assert found.more["flops"] == pytest.approx(ours)
    assert found.more["ratio_by_arithmetic"] == pytest.approx(plain / ours)


def run(*arguments: str):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["bench", "--quick", "--repeats", "1", *arguments])


def test_groups_measured_one_by_one_stand_in_one_file(tmp_path):
    file = tmp_path / "bench.json"
    for group in ("tasks", "stage1", "tasks"):
        done = run("--only", group, "--add", "--json", str(file))
        assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    assert list(content["groups"]) == ["tasks", "stage1"]
    groups = [line["group"] for line in content["results"]]
    assert groups == sorted(groups, key=NAMES.index)
    assert groups.count("tasks") == len([line for line in content["results"] if "tasks on one image" in line["name"]])
    assert len(content["plan"]) == 4
    assert {row["name"] for row in content["plan"]} == {"stage 1, image-major", "stage 1, features kept"}
    assert content["command"] == "masp bench --quick --json FILE"


def test_what_is_there_is_not_measured_again_and_what_does_not_fit_is_refused(tmp_path):
    options, told = Options(quick=True, repeats=1), []
    measured = {name: {} for name in NAMES if name != "tasks"}
    first = run_bench(Options("tasks", quick=True, repeats=1), told.append, told.append)
    again = run_bench(options, told.append, told.append, {**first, "groups": {**first["groups"], **measured}})
    assert again["results"] == first["results"]
    other = {**first, "repeats": 7, "machine": {**first["machine"], "threads": 99}}
    with pytest.raises(UsageError, match="measured with other repeats, threads"):
        run_bench(options, told.append, told.append, other)
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    assert "--add without --json" in str(run("--add").exception)
    assert "not what masp bench wrote" in str(run("--add", "--json", str(odd)).exception)
