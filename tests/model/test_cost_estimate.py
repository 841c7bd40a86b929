"""The plan: its arithmetic by hand, its limits, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_setting import ANSWERS, LABELS, setting
from typer.testing import CliRunner

from fixtures import tiny
from fixtures import training as small_training
from masp.backbones.model_stats import sizes_of
from masp.cli.app import app
from masp.cli.console import guarded
from masp.cli.research import train_line
from masp.core.aspects import ASPECTS
from masp.core.config import load_config
from masp.core.errors import UsageError
from masp.core.flops import QWEN2_VL_7B, Sizes
from masp.model.cost_estimate import (
    AROUND,
    PAIR,
    SUFFIX,
    CostJob,
    Device,
    activation_bytes,
    checkpoint_bytes,
    chosen_store,
    estimate,
    measured_efficiency,
    measured_peaks,
    store_gb,
)
from masp.training import stage1 as stage1_aspects
from masp.training import stage2 as stage2_prompt

SIZES = Sizes(10, 2, 4, 6000, 100, 700, 8, 3)
FAST = Device(tflops=1e-6, bandwidth=1e9, memory=1.0, efficiency=0.5)  # a million operations per second, half reached
JOB = CostJob(images=20, visual=6, epochs1=2, epochs2=3, aspects=3, prompt=5, store="none", batch=2)


def parts(job, device=FAST, reading=1e9):
    return {part.name: part for part in estimate(SIZES, job, device, reading)}


def test_validation_by_hand():
    job = replace(JOB, val=7, eval_batch=4)
    found, before = parts(job), SIZES.vision_flops(6) + SIZES.forward_flops(25)
    assert (found["validation 1"].examples, found["validation 2"].examples) == (7 * 2, 7 * 3)
    scored = SIZES.forward_flops(45 + 16, 25) + SIZES.head_flops(16) + before
    assert found["validation 2"].seconds == pytest.approx(21 * scored / 0.5e6)
    said = 3 * (SIZES.forward_flops(45 + 16) + SIZES.head_flops(16)) + SIZES.vision_flops(6)
    assert found["validation 1"].seconds == pytest.approx(14 * said / 0.5e6)
    layer = activation_bytes(SIZES, 2) // SIZES.layers
    memory = found["validation 2"].memory - found["validation 2"].weights
    assert memory == pytest.approx(4 * ((45 + 16 + 25) * layer + SIZES.kept_bytes(25 + 45)) / 1e9, rel=1e-3)
    many = replace(job, images=9000, val=3000)
    assert (parts(many)["validation 1"].examples, parts(many)["validation 2"].examples) == (256 * 2, 3000 * 3)


def test_measuring_takes_no_more_memory_than_the_step_it_stands_beside():
    """The rule by which images are measured at once where nobody says how many, on a 7B and in every layout."""
    for change in ({}, {"released": True}, {"store": "prefix", "disk": 1e9}, {"micro_batch": 2}, {"visual": 1400}):
        job = replace(CostJob(images=1000, visual=700, val=100, store="features"), **change)
        found = {part.name: part for part in estimate(QWEN2_VL_7B, job, FAST)}
        assert found["validation 2"].memory < found["stage 2"].memory, change
        assert found["validation 1"].memory < found["stage 1"].memory * 1.05, change


def test_a_step_in_pieces_and_layers_computed_again_take_less():
    usual, pieces, again = (
        parts(replace(JOB, batch=8, **change)) for change in ({}, {"micro_batch": 2}, {"checkpointing": True})
    )
    for name in ("stage 1", "stage 2"):
        beyond = [found[name].memory - found[name].weights for found in (usual, pieces, again)]
        assert beyond[1] == pytest.approx(beyond[0] / 4)
        assert beyond[2] < beyond[0]
        behind = {"stage 1": SIZES.forward_flops(45), "stage 2": SIZES.forward_flops(45, 25)}[name]
        more = again[name].seconds - usual[name].seconds
        assert more == pytest.approx(usual[name].examples * behind / 0.5e6)
    seven = {"images": 8, "visual": 256, "released": True}
    (whole, less) = (
        {part.name: part for part in estimate(QWEN2_VL_7B, CostJob(**seven, checkpointing=again), FAST)}
        for again in (False, True)
    )
    assert less["stage 2"].memory - less["stage 2"].weights < 0.15 * (
        whole["stage 2"].memory - whole["stage 2"].weights
    )


def test_checkpoints_are_counted_by_time():
    """A run of an hour and a half leaves one every ten minutes, and one behind the last step."""
    hours = parts(replace(JOB, images=2000, epochs1=0), replace(FAST, tflops=1e-6 * parts(JOB)["stage 2"].seconds / 54))
    assert hours["stage 2"].seconds == pytest.approx(5400, rel=0.01)
    assert hours["checkpoints 2"].examples == 1 + 5400 // 600
    every = parts(replace(JOB, checkpoint_minutes=0.0))
    assert (every["checkpoints 1"].examples, every["checkpoints 2"].examples) == (2 * 20, 3 * 10)
    seven = CostJob(images=94_481, visual=256, val=100)
    assert checkpoint_bytes(QWEN2_VL_7B, replace(seven, val=0), 1) == pytest.approx(1.85e9, rel=0.01)
    assert checkpoint_bytes(QWEN2_VL_7B, seven, 2) == 4 * 4 * 32 * 3584


def test_the_counts_are_those_of_a_real_run(tmp_path, monkeypatch):
    """Steps, images measured, checkpoints and their size, of both stages on drawn images with every aspect."""
    data = small_training.write_dataset(tmp_path / "data", train=13, val=5)
    known = dict.fromkeys(ASPECTS, "low")
    full = {name: tuple(replace(one, annotations=known) for one in records) for name, records in data.splits.items()}
    data, backbone = replace(data, splits=full), tiny.backbone()
    sizes = replace(SIZES, dim=backbone.dim)
    counted = {"describe_aspects": 0, "score": 0}
    for module, name in ((stage1_aspects, "describe_aspects"), (stage2_prompt, "score")):
        asked = getattr(module, name)

        def counts(model, visual, *given, name=name, asked=asked, **options):
            counted[name] += len(visual)
            return asked(model, visual, *given, **options)

        monkeypatch.setattr(module, name, counts)
    for batch in (5, 10):
        counted.update(describe_aspects=0, score=0)
        job = CostJob(13, 6, epochs1=2, epochs2=3, prompt=3, store="none", batch=batch, val=5, checkpoint_minutes=0.0)
        found = {part.name: part for part in estimate(sizes, job, FAST)}
        changes = [
            f"{stage}.{line}" for stage in ("aspects", "prompt") for line in (f"batch_size={batch}", "store=none")
        ]
        changes += [
            "aspects.epochs=2",
            "prompt.epochs=3",
            "aspects.checkpoint_minutes=0",
            "prompt.checkpoint_minutes=0",
        ]
        config = small_training.config(*changes, "aspects.keep_checkpoints=99", "prompt.keep_checkpoints=99")
        runs = tmp_path / str(batch)
        first = stage1_aspects.train_aspects(config, data, backbone, runs / "aspects")
        second = stage2_prompt.train_prompt(config, data, backbone, first.adapter, runs / "prompt")
        assert (first.steps, second.steps) == (found["stage 1"].steps, found["stage 2"].steps)
        assert counted["describe_aspects"] == found["validation 1"].examples
        assert counted["score"] == found["validation 2"].examples
        for number, stage in enumerate(("aspects", "prompt"), start=1):
            files = list((runs / stage / "checkpoints").glob("step-*/tensors.safetensors"))
            assert len(files) == found[f"checkpoints {number}"].examples
            size = max(file.stat().st_size for file in files)
            assert 0 < size - checkpoint_bytes(sizes, job, number) < 20_000  # its header, counts, random numbers


def test_operations_by_hand():
    assert SIZES.vision_flops(6) == 2 * 700 * 24 + 4 * 24**2 * 8 * 3
    assert SIZES.forward_flops(5, 7) == 2 * 6000 * 5 + 4 * 2 * 10 * 5 * (7 + 2.5)
    assert SIZES.step_flops(5, 7, 3) == 2 * (SIZES.forward_flops(5, 7) + 2 * 10 * 100 * 3)
    assert SIZES.kept_bytes(7, 2) == 2 * 2 * 4 * 7 * 2


def test_times_are_operations_over_what_is_reached():
    found = parts(JOB)
    vision = SIZES.vision_flops(6)
    pair = SIZES.step_flops(45, 0, 3) + vision / 3
    assert found["stage 1"].examples == 20 * 3 * 2
    assert found["stage 1"].seconds == pytest.approx(120 * pair / 0.5e6)
    prefix, graph = 16 + 3 + 6, 5 + 40
    example = vision + SIZES.forward_flops(prefix) + SIZES.step_flops(graph, prefix, 3)
    assert found["stage 2"].seconds == pytest.approx(60 * example / 0.5e6)
    assert found["stage 2"].bound == "arithmetic"
    assert found.keys() == {"stage 1", "checkpoints 1", "stage 2", "checkpoints 2"}
    kept = parts(replace(JOB, store="prefix"))
    assert kept.keys() == {"features", "stage 1", "checkpoints 1", "prefixes", "stage 2", "checkpoints 2"}
    assert kept["stage 2"].seconds == pytest.approx(60 * SIZES.step_flops(graph, prefix, 3) / 0.5e6)
    assert kept["features"].disk == pytest.approx(20 * 6 * 10 * 2 / 1e9)
    assert kept["prefixes"].disk == pytest.approx(20 * SIZES.kept_bytes(prefix) / 1e9)


def test_devices_price_and_the_slower_of_reading_and_computing():
    alone, four = parts(JOB)["stage 2"], parts(JOB, replace(FAST, number=4, price=7.0))["stage 2"]
    assert four.seconds == pytest.approx(alone.seconds / 4)
    assert four.cost == pytest.approx(alone.seconds / 3600 * 7.0)
    slow = parts(JOB, replace(FAST, cores=2), reading=0.001)["stage 2"]
    assert (slow.bound, slow.seconds) == ("reading images", pytest.approx(60 / 0.002))
    pairs = parts(JOB, replace(FAST, cores=2), reading=0.001)["stage 1"]
    assert pairs.seconds == pytest.approx(2 * 20 / 0.002)  # twice each image, not once for each of its pairs
    narrow = parts(replace(JOB, store="prefix"), replace(FAST, bandwidth=1e-9))["stage 2"]
    weights = (6000 + 700 + 1000) * 2
    assert narrow.bound == "memory bandwidth"
    assert narrow.seconds == pytest.approx(60 * (weights * 2 / 2 + SIZES.kept_bytes(25)))
    assert narrow.weights == pytest.approx((weights + 10 * 100 * 2) / 1e9)  # the head is not the embedding matrix
    step = 2 * (45 * activation_bytes(SIZES, 2) + SIZES.kept_bytes(25 + 45))
    assert narrow.memory - narrow.weights == pytest.approx(step / 1e9)


def test_the_columns_that_are_assumed_are_those_of_the_own_questions():
    """Counted with the embedded tokenizer; that of Qwen2-VL needs a few tokens more for rare words."""
    here = setting(True, 1, torch.float32, torch.device("cpu"))
    model, one = here.model("paper"), here.backbone.visual_tokens(here.pixels(16))
    row = model.build_inputs(one, [here.question()], ["awe"])
    assert pytest.approx(row.prefix_end - 16 - len(ASPECTS), abs=4) == AROUND
    assert pytest.approx(row.attention_mask.shape[1] - row.prefix_end - model.prompt.length, abs=8) == SUFFIX
    index, asked = torch.arange(len(ASPECTS)), [here.aspect_question(name) for name in ASPECTS]
    tokens = model.aspect_module().per_pair(one, [0] * len(ASPECTS), index.tolist())
    pairs = model.sequence_builder(asked, [ANSWERS[name] for name in ASPECTS], aspects=tokens[:, None])
    assert pytest.approx(float(pairs.attention_mask.sum(1).float().mean()), abs=8) == PAIR
    assert len(LABELS) == 8


def test_auto_keeps_the_largest_that_fits():
    one = SIZES.feature_bytes(6) * 20 / 1e9
    prefix = one + SIZES.kept_bytes(25) * 20 / 1e9
    for disk, wanted in ((prefix, "prefix"), (prefix * 0.99, "features"), (one * 0.99, "none")):
        assert chosen_store(SIZES, replace(JOB, store="auto", disk=disk)) == wanted
    assert chosen_store(SIZES, replace(JOB, store="auto", epochs2=1)) == "features"  # nothing is seen again
    assert chosen_store(SIZES, replace(JOB, store="auto", released=True)) == "features"
    assert [store_gb(SIZES, JOB, kept) for kept in ("none", "features", "prefix")] == pytest.approx([0, one, prefix])
    with pytest.raises(UsageError, match="the store prefix takes"):
        chosen_store(SIZES, replace(JOB, store="prefix", disk=one))


def test_the_7b_is_near_its_description():
    """design figures: labelling 7.3 TFLOP at N = 256; 8.29e9 parameters of 2 bytes."""
    job, device = CostJob(images=0, visual=256, label=1, batch=1), Device(1.0, 1e9, 80.0, 1.0)
    (found,) = estimate(QWEN2_VL_7B, job, device, 1e9)
    assert found.seconds == pytest.approx(7.3, rel=0.15)
    assert found.memory == pytest.approx(16.6, rel=0.01)  # both matrices of the vocabulary are in it
    (packed,) = estimate(QWEN2_VL_7B, replace(job, packed=True), device, 1e9)
    assert found.memory - packed.memory == pytest.approx(7.2e9 * (2 - 4.5 / 8) / 1e9, rel=0.01)
    assert packed.seconds == found.seconds
    assert activation_bytes(QWEN2_VL_7B, 2) == pytest.approx(28 * (10 * 3584 + 4 * 18944) * 2, rel=0.01)


@pytest.mark.parametrize(
    ("whole", "change", "words"),
    [
        (JOB, {"images": -1}, "images: -1"),
        (JOB, {"images": 0}, "there are no images"),
        (JOB, {"visual": 0}, "visual tokens: 0"),
        (JOB, {"released": True, "store": "prefix"}, "no prefix can be kept"),
        (JOB, {"disk": float("nan")}, "the disk has nan GB"),
        (FAST, {"tflops": 0.0}, "the peak is 0"),
        (FAST, {"bandwidth": -1.0}, "the bandwidth is -1"),
        (FAST, {"efficiency": 1.5}, "the efficiency is 1.5"),
        (FAST, {"number": 0}, "fewer than one device"),
        (FAST, {"price": float("nan")}, "a price below 0"),
    ],
)
def test_a_job_or_a_device_that_cannot_be_is_refused(whole, change, words):
    with pytest.raises(UsageError, match=words):
        replace(whole, **change)


def lines():
    shares = (0.5, 0.2, 0.4)
    return [
        {
            "name": str(share),
            "visual": 256,
            "median_s": 2.0,
            "more": {"flops": 2 * 2e12 * share, "tflops": 2 * share, "share_of_gemm_peak": 0.9},
        }
        for share in shares
    ] + [{"name": "memory", "visual": 1, "median_s": 0.0, "more": {}}]


def test_the_efficiency_is_the_median_of_what_was_reached():
    machine = {"gemm_tflops": 1.0, "bandwidth_gb_s": 20.0}
    slow, fast = {"gemm_tflops": 0.5, "bandwidth_gb_s": 30.0}, {"gemm_tflops": 2.0, "bandwidth_gb_s": 10.0}
    found = {"machine": machine, "groups": {"a": slow, "b": fast, "c": {}}, "results": lines()}
    assert measured_peaks(found) == (2.0, 30.0)  # the highest: a machine is never faster than it is
    assert measured_efficiency(found) == pytest.approx(0.4)
    assert measured_efficiency(found | {"groups": {}, "machine": slow}) == 1.0
    with pytest.raises(UsageError, match="no line of training"):
        measured_efficiency({"results": []})


def test_sizes_are_read_from_a_configuration():
    sizes = sizes_of("embedded")
    assert (sizes.dim, sizes.layers, sizes.kv_dim, sizes.vocabulary, sizes.patches) == (256, 4, 128, 768, 4)
    layer = 256 * (256 + 2 * 128) + 512 + 256 * 256 + 3 * 256 * 512 + 2 * 256
    assert sizes.language == 4 * layer
    assert sizes.tied


def test_sizes_of_published_backbones_need_no_file(monkeypatch):
    """The configuration is in this package; weights are never fetched, nor looked for."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    assert sizes_of("Qwen/Qwen2-VL-7B-Instruct") == QWEN2_VL_7B
    assert json.loads(run("--label", "1", "--json", *DEVICE).stdout)["backbone"]["language"] == QWEN2_VL_7B.language
    behind = {
        "HuggingFaceTB/SmolVLM-256M-Instruct": 4**2,  # pixel shuffle by 4
        "OpenGVLab/InternVL3-1B-hf": 2**2,
        "google/gemma-3-4b-it": (896 // 14) ** 2 // 256,
        "llava-hf/llava-1.5-7b-hf": 1,
    }
    for name, patches in behind.items():
        assert sizes_of(name).patches == patches, name


def run(*arguments):
    return CliRunner().invoke(app, ["plan", *arguments])


DEVICE = ("--peak", "100", "--bandwidth", "1000")


def test_the_command_prints_a_table_or_json(tmp_path):
    shown = run("--images", "1000", "--label", "10", *DEVICE)
    assert shown.exit_code == 0, shown.output
    for word in ("stage 1", "stage 2", "labelling", "together"):
        assert word in shown.stdout
    assert "to train like this: masp train all --data DATA" in shown.output
    content = json.loads(run("--images", "1000", "--json", *DEVICE).stdout)
    assert "prompt.store=prefix prompt.store_dir=STORE prompt.store_disk_gb=" in content["train"]
    names = ["features", "stage 1", "validation 1", "checkpoints 1", "prefixes", "stage 2", "validation 2"]
    assert [part["name"] for part in content["parts"]] == [*names, "checkpoints 2"]
    assert content["job"]["val"] == 1000 // 16
    machine = {"gemm_tflops": 1.5, "bandwidth_gb_s": 20.0, "dtype": "float32"}
    groups = {"stage2": {"gemm_tflops": 2.0, "bandwidth_gb_s": 10.0}}
    (tmp_path / "bench.json").write_text(json.dumps({"machine": machine, "groups": groups, "results": lines()}))
    measured = json.loads(run("--label", "10", "--bench", str(tmp_path / "bench.json"), "--json").stdout)
    assert (measured["device"]["tflops"], measured["device"]["bandwidth"]) == (2.0, 20.0)
    assert measured["device"]["efficiency"] == pytest.approx(0.4)
    assert measured["job"]["itemsize"] == 4
    embedded = json.loads(run("--label", "10", "--backbone", "embedded", "--json", *DEVICE).stdout)
    assert (content["job"]["itemsize"], embedded["job"]["itemsize"]) == (2, 4), "bfloat16, but for the embedded one"
    packed = run("--label", "10", "--dtype", "nf4", *DEVICE)
    assert packed.exit_code == 0, packed.output
    assert "unpacking" in packed.output


def changes(line):
    """The settings that a line gives, after the reader of settings has taken them."""
    words = line.split(" ")
    return load_config(None, [word for word in words if "=" in word]), words


def test_the_line_that_trains_as_planned():
    line = train_line("a/b", "bfloat16", SIZES, replace(JOB, store="prefix", batch=16, epochs1=3))
    settings, words = changes(line)
    assert words[:9] == ["masp", "train", "all", "--data", "DATA", "--backbone", "a/b", "--out", "RUN"]
    assert (settings.aspects.store, settings.prompt.store) == ("features", "prefix")
    assert settings.aspects.store_dir == settings.prompt.store_dir == Path("STORE")
    assert settings.prompt.store_disk_gb == 1
    assert (settings.aspects.epochs, settings.prompt.epochs) == (3, 3)
    assert (settings.aspects.batch_size, settings.prompt.batch_size) == (16, 16)
    assert (settings.method.variant, settings.backbone.dtype) == ("paper", "bfloat16")
    assert "prompt.epochs=3" in words  # without it, a run is as long as the number of images asks for


def test_the_line_names_what_saves_memory():
    job = replace(JOB, micro_batch=1, checkpointing=True, eval_batch=3, checkpoint_minutes=2.5, epochs1=3)
    settings, _ = changes(train_line("a/b", "bfloat16", SIZES, job))
    for stage in (settings.aspects, settings.prompt):
        assert (stage.micro_batch_size, stage.gradient_checkpointing) == (1, True)
        assert (stage.eval_batch_size, stage.checkpoint_minutes) == (3, 2.5)


def test_the_line_has_room_for_all_that_is_kept():
    """80,000 images of 700 visual tokens on the 7B: 5 MB of visual tokens and 41 MB of keys and values each."""
    job = CostJob(images=80_000, visual=700, store="prefix", disk=5000.0)
    settings, _ = changes(train_line("a/b", "nf4", QWEN2_VL_7B, job, devices=4))
    needed = 80_000 * (700 * 3584 * 2 + 57_344 * (16 + 6 + 700)) / 1024**3
    assert 1.05 * needed < settings.prompt.store_disk_gb == settings.aspects.store_disk_gb < 1.15 * needed
    assert settings.backbone.dtype == "nf4"
    line = train_line("a/b", "nf4", QWEN2_VL_7B, job, devices=4)
    assert line.startswith("accelerate launch --multi_gpu --num_processes 4 -m masp train all ")


def test_the_line_leaves_out_what_is_not_planned():
    settings, words = changes(train_line("a/b", "float32", SIZES, replace(JOB, epochs1=0, released=True)))
    assert words[2] == "prompt"
    assert words[words.index("--aspects") + 1] == "ASPECTS"
    assert (settings.method.variant, settings.prompt.store, settings.prompt.store_dir) == ("released", "none", None)
    assert changes(train_line("a/b", "float32", SIZES, replace(JOB, epochs2=0)))[1][2] == "aspects"
    assert "--aspects" not in str(train_line("a/b", "float32", SIZES, replace(JOB, aspects=0)))
    assert "'a b'" in str(train_line("a b", "float32", SIZES, JOB))
    assert train_line("a/b", "float32", SIZES, replace(JOB, images=0, label=3)) is None


@pytest.mark.parametrize(
    ("machine", "results"),
    [
        ({"gemm_tflops": "x", "bandwidth_gb_s": 20.0}, []),
        ({}, []),
        ({"gemm_tflops": 1.0, "bandwidth_gb_s": 20.0}, [1]),
        ({"gemm_tflops": 1.0, "bandwidth_gb_s": 20.0}, [{"more": {"tflops": "half"}}]),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path, capsys, machine, results):
    from typer.main import get_command

    (tmp_path / "bench.json").write_text(json.dumps({"machine": machine, "results": results}))
    arguments = ["plan", "--label", "10", "--bench", str(tmp_path / "bench.json")]
    assert guarded(lambda: get_command(app)(args=arguments, prog_name="masp"), False) == 2
    assert "`masp bench --json` wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--images", "10"),
        (*DEVICE,),
        ("--images", "10", "--store", "prefixes", *DEVICE),
        ("--images", "10", "--bench", "missing.json"),
        ("--images", "10", "--efficiency", "0", *DEVICE),
        ("--images", "10", "--peak", "0", "--bandwidth", "1000"),
        ("--images", "10", "--dtype", "nf5", *DEVICE),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, capsys):
    from typer.main import get_command

    code = guarded(lambda: get_command(app)(args=["plan", *arguments], prog_name="masp"), False)
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
