"""LoRA over a frozen backbone: exact, resumable, and gone without a trace."""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from random_weights import Shape, make
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from fixtures import tiny
from fixtures.colour_lessons import LABELS, Held, lessons, tokens
from fixtures.models import QUESTIONS, kept_bytes, own_inputs, tokens_of
from fixtures.toy_stage import gradients
from masp.backbones.loading import load_backbone
from masp.baselines import lora_finetune as tuning
from masp.baselines.base import System
from masp.baselines.lora_finetune import PLAIN, TuningStage, classifications, lora_system, tuning_loss
from masp.baselines.lora_layers import LoraLayers, LoraSettings
from masp.core.config import MethodConfig
from masp.core.errors import CheckpointError, DataError, UsageError
from masp.model.masp_model import MaspModel
from masp.model.scoring import score
from masp.training.signals import Interrupted
from masp.training.trainer import StepBatch

peft = pytest.importorskip("peft")

FAMILIES = ("qwen2_vl", "llava", "gemma3", "qwen3_vl", "instructblip")
ANSWERS = ("joy", "very high", "fear")
FEW = LoraSettings(learning_rate=0.01, epochs=3, batch_size=3, checkpoint_every=2, dropout=0.2)


def plain(backbone):
    return MaspModel(backbone, MethodConfig(prompt_length=0))


def shaken(backbone, settings=FEW):
    """Layers that do something: B is not zero."""
    layers = LoraLayers(backbone, settings)
    layers.start(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layers.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return layers


def log_p(backbone, visual):
    return score(plain(backbone), visual, QUESTIONS[0], LABELS, PLAIN)


def learned(system):
    return {name: value.detach().clone() for name, value in system.layers.parameters().items()}


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own wrapper
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_transformers_and_peft(family):
    """The reference is transformers' own model under PEFT's own wrapper, one whole row at a time."""
    backbone = tiny.backbone(family)
    layers = shaken(backbone, replace(FEW, dropout=0.0))
    ours = tuning_loss(plain(backbone), layers, tokens_of(family, "float32", [0, 1, 2]), QUESTIONS, ANSWERS)
    ours.sum().backward()

    whole = AutoModelForImageTextToText.from_pretrained(tiny.checkpoint(family), dtype=torch.float32).eval()
    targets = r".*language_model.*\.(q_proj|v_proj)"
    wrapped = peft.get_peft_model(whole, peft.LoraConfig(r=8, lora_alpha=8, target_modules=targets))
    theirs = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            block = name.partition(".layers.")[2].partition(".")[0]
            theirs[f"{block}.{'.'.join(name.split('.')[-4:-2])}"] = parameter
    assert theirs.keys() == layers.parameters().keys()
    with torch.no_grad():
        for name, parameter in layers.parameters().items():
            theirs[name].copy_(parameter)
    for row, answer in enumerate(ANSWERS):
        tail = backbone.answer_ids(answer, end=True)
        logits = wrapped(**own_inputs(family, "float32", [row], tail=tail)).logits[0]
        loss = functional.cross_entropy(logits[-len(tail) - 1 : -1], torch.tensor(tail))
        assert float(loss.detach()) == pytest.approx(float(ours[row].detach()), rel=1e-5)
        loss.backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.values())
    assert largest > 1e-3
    for name, parameter in layers.parameters().items():
        assert (parameter.grad - theirs[name].grad).abs().max() <= 1e-5 * largest, name


def test_table_4_counts_the_trained_values_of_qwen2_vl_7b():
    shape = Shape(3584, 28, 28, 4, 18_944, 152_064, False, 1280, 32, 16)
    backbone = make(shape, torch.bfloat16, torch.device("meta")).backbone
    assert LoraLayers(backbone, LoraSettings()).count == 2_523_136 == 28 * 8 * (3584 + 3584 + 3584 + 512)


def test_a_fresh_start_changes_nothing_and_a_trained_one_does():
    backbone = tiny.backbone()
    visual = tokens(backbone, 3)
    layers = LoraLayers(backbone, FEW)
    layers.start(0)
    bare = log_p(backbone, visual)
    with layers.inside():
        assert torch.equal(log_p(backbone, visual), bare)
    with shaken(backbone).inside():
        assert (log_p(backbone, visual) - bare).abs().max() > 1e-2


def test_the_start_is_a_function_of_the_seed():
    found = []
    for seed in (0, 0, 1):
        layers = LoraLayers(tiny.backbone(), FEW)
        layers.start(seed)
        found.append(torch.cat([parameter.detach().flatten() for parameter in layers.parameters().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_dropout_is_on_in_training_alone():
    backbone = tiny.backbone()
    layers, visual = shaken(backbone, replace(FEW, dropout=0.5)), tokens(backbone, 2)
    first, second = (
        tuning_loss(plain(backbone), layers, visual, QUESTIONS[:2], ANSWERS[:2]).detach() for _ in range(2)
    )
    assert not torch.equal(first, second)
    with layers.inside():
        assert torch.equal(log_p(backbone, visual), log_p(backbone, visual))


# --- what the backbone is left as ------------------------------------------------------------------------------------


def state(backbone):
    """All there is to see of the language model's blocks: every module, its mode, every value."""
    modules = [
        (name, id(module), module.training) for block in backbone.layers() for name, module in block.named_modules()
    ]
    values = [value.clone() for block in backbone.layers() for value in block.state_dict().values()]
    trains = [value.requires_grad for block in backbone.layers() for value in block.parameters()]
    return modules, values, trains, [sorted(vars(block)) for block in backbone.layers()]


def test_the_backbone_is_left_as_it_was(tmp_path):
    backbone = tiny.backbone()
    visual = tokens(backbone, 4)
    before, bare = state(backbone), log_p(backbone, visual)
    system = lora_system(backbone, LABELS, FEW)
    system.fit(lessons(backbone, tmp_path))
    said = system.predict(visual)
    assert max(abs(one.log_probabilities["joy"] - float(bare[row, 0])) for row, one in enumerate(said)) > 1e-2
    after = state(backbone)
    assert torch.equal(log_p(backbone, visual), bare)
    assert after[0] == before[0]
    assert all(map(torch.equal, after[1], before[1]))
    assert (after[2], after[3]) == (before[2], before[3])
    assert not any(after[2])


def test_the_backbone_is_left_as_it_was_after_an_error():
    backbone = tiny.backbone()
    visual = tokens(backbone, 2)
    bare, layers = log_p(backbone, visual), shaken(backbone)
    with pytest.raises(RuntimeError, match="stumbled"), layers.inside():
        raise RuntimeError("stumbled")
    assert torch.equal(log_p(backbone, visual), bare)


def test_two_systems_on_one_backbone_do_not_meet(tmp_path):
    backbone = tiny.backbone()
    visual = tokens(backbone, 4)
    first, second = (lora_system(backbone, LABELS, replace(FEW, rank=rank)) for rank in (2, 4))
    first.fit(lessons(backbone, tmp_path / "first"))
    said = first.predict(visual)
    second.fit(lessons(backbone, tmp_path / "second"))
    assert first.predict(visual) == said != second.predict(visual)


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm"])
def test_it_learns_and_answers_on_every_kind_of_family(tmp_path, family):
    backbone = tiny.backbone(family)
    system: System = lora_system(backbone, LABELS, replace(FEW, epochs=1))
    system.fit(lessons(backbone, tmp_path))
    visual = tokens(backbone, 3)
    batch = system.predict(visual)
    for row, one in enumerate(batch):
        assert one.predicted == max(one.log_probabilities, key=one.log_probabilities.get)
        assert sum(torch.tensor(list(one.log_probabilities.values())).exp()) == pytest.approx(1, abs=1e-5)
        (alone,) = system.predict(visual.select([row]))
        assert alone.log_probabilities == pytest.approx(one.log_probabilities, abs=1e-4)


# --- learning --------------------------------------------------------------------------------------------------------


def test_a_separable_task_is_learned(tmp_path):
    backbone = tiny.backbone()
    settings = LoraSettings(learning_rate=0.02, schedule="cosine", epochs=25, batch_size=8, alpha=32)
    system = lora_system(backbone, LABELS, settings)
    fresh = tokens(backbone, 12, first=100)
    truth = [LABELS[number % 2] for number in range(12)]
    system.fit(lessons(backbone, tmp_path, train=16, val=8))
    assert [one.predicted for one in system.predict(fresh)] == truth
    bare = [LABELS[best] for best in log_p(backbone, fresh).argmax(1).tolist()]
    assert bare != truth
    assert system.config()["learned"]["validation"]["accuracy"] == 1.0


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    backbone = tiny.backbone()
    whole = lora_system(backbone, LABELS, FEW)
    whole.fit(lessons(backbone, tmp_path / "whole"))

    def stop(call: int) -> None:
        if call in (3, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    for at_call in (stop, stop):
        with pytest.raises(Interrupted):
            lora_system(backbone, LABELS, FEW).fit(lessons(backbone, tmp_path / "cut", at_call=at_call))
    again = lora_system(backbone, LABELS, FEW)
    again.fit(lessons(backbone, tmp_path / "cut"))
    expected = learned(whole)
    assert all(torch.equal(value, expected[name]) for name, value in learned(again).items())
    assert (tmp_path / "cut" / "metrics.jsonl").read_text().count('"step"') > 3
    assert again.config() == whole.config()


def test_a_finished_run_is_only_loaded(tmp_path):
    backbone = tiny.backbone()
    first = lora_system(backbone, LABELS, FEW)
    given = lessons(backbone, tmp_path)
    first.fit(given)
    second, unseen = lora_system(backbone, LABELS, FEW), Held(tokens(backbone, 12))
    second.fit(replace(given, images=unseen))
    assert unseen.calls == 0
    visual = tokens(backbone, 3)
    assert second.predict(visual) == first.predict(visual)
    assert second.config() == first.config()
    (file,) = (tmp_path / "learned").rglob("*.safetensors")
    assert sum(value.numel() for value in load_file(file).values()) == first.config()["trained"]


def test_other_values_are_described_otherwise(tmp_path):
    """So that an interrupted evaluation never takes up what other values said."""
    system = lora_system(tiny.backbone(), LABELS, FEW)
    assert system.config()["seed"] is None
    system.fit(lessons(tiny.backbone(), tmp_path))
    told = system.config()
    assert told["seed"] == 3
    with torch.no_grad():
        next(iter(system.layers.parameters().values())).add_(1e-3)
    assert system.config()["tensors_sha256"] != told["tensors_sha256"]


def test_a_folder_of_another_run_is_refused(tmp_path):
    backbone = tiny.backbone()
    given = lessons(backbone, tmp_path)
    lora_system(backbone, LABELS, FEW).fit(given)
    for other in (replace(given, seed=4), replace(given, train=given.train[1:]), replace(given, fingerprint="other")):
        with pytest.raises(UsageError, match="another configuration"):
            lora_system(backbone, LABELS, FEW).fit(other)
    with pytest.raises(UsageError, match="rank: 8 there, 4 now"):
        lora_system(backbone, LABELS, replace(FEW, rank=4)).fit(given)


def test_what_was_learned_must_fit():
    layers = LoraLayers(tiny.backbone(), FEW)
    with pytest.raises(CheckpointError, match="does not fit"):
        layers.load({name: value[:1] for name, value in layers.parameters().items()})


def test_the_caller_s_random_numbers_go_on_as_they_were(tmp_path):
    backbone = tiny.backbone()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    lora_system(backbone, LABELS, FEW).fit(lessons(backbone, tmp_path))
    assert torch.equal(torch.rand(3), expected)


# --- number formats --------------------------------------------------------------------------------------------------


def test_in_bfloat16_what_is_trained_is_float32(tmp_path):
    backbone = tiny.backbone(dtype="bfloat16")
    system = lora_system(backbone, LABELS, FEW)
    before = learned(system)
    assert {value.dtype for value in before.values()} == {torch.float32}
    system.fit(lessons(backbone, tmp_path))
    assert all(value.isfinite().all() for value in learned(system).values())
    told = system.config()
    assert (told["system"], told["weights"], told["dtype"]) == ("lora", "bfloat16", "bfloat16")
    assert len(system.predict(tokens(backbone, 3))) == 3


def four_bit(bits, own):
    """A linear layer packed as NF4."""
    layer = bits.nn.Linear4bit(own.in_features, own.out_features, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(own.state_dict())
    layer.support_avx512bf16_for_cpu = False  # such a CPU would pack once more, into a form without gradients
    return layer.requires_grad_(False).to("cpu")


def test_over_4_bit_weights_it_is_qlora():
    """Losses and gradients equal those over the same weights written out."""
    bits = pytest.importorskip("bitsandbytes")
    found = {}
    for kind in ("nf4", "float32"):
        backbone = load_backbone(str(tiny.checkpoint()), dtype="float32", device="cpu")
        for block in backbone.layers():
            for name in ("q_proj", "v_proj"):
                own = getattr(block.self_attn, name)
                layer = four_bit(bits, own)
                if kind == "nf4":
                    setattr(block.self_attn, name, layer)
                else:
                    own.weight.data = bits.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        layers = shaken(backbone, replace(FEW, dropout=0.0))
        losses = tuning_loss(plain(backbone), layers, tokens(backbone, 2), QUESTIONS[:2], ANSWERS[:2])
        losses.sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in layers.parameters().values()])
        found[kind] = losses.detach(), gradients
        assert (layers.weights, layers.quantised) == (kind, kind == "nf4")
        assert type(layers._places[0].wrapped).__name__ == ("Linear4bit" if kind == "nf4" else "Linear")
        assert lora_system(backbone, LABELS).config()["system"] == ("qlora" if kind == "nf4" else "lora")
    for ours, expected in zip(found["nf4"], found["float32"], strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


# --- memory ----------------------------------------------------------------------------------------------------------

AGAIN = replace(FEW, gradient_checkpointing=True)


def stage_of(backbone, settings):
    """Eight questions about eight images, on layers that do something."""
    system = lora_system(backbone, LABELS, settings)
    system.layers = layers = shaken(backbone, settings)
    given = lessons(backbone, Path("unused"))
    turns = classifications(system.questions, LABELS, given.train)
    again = partial(layers.inside, training=True) if settings.gradient_checkpointing else None
    model = MaspModel(backbone, MethodConfig(prompt_length=0), again=again)
    return TuningStage(model, layers, given.images, turns, given.val, system.question, LABELS, 1)


@pytest.mark.parametrize("micro", [1, 3])
def test_the_gradient_of_a_step_in_pieces_is_that_of_the_whole_batch(tmp_path, micro):
    backbone, plainly = tiny.backbone(), replace(FEW, dropout=0.0)
    wanted = gradients(tmp_path, stage_of(backbone, plainly), range(8), None)
    found = gradients(tmp_path, stage_of(backbone, plainly), range(8), micro)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 1e-4
    for name, gradient in found.items():
        assert (gradient - wanted[name]).abs().max() <= 2e-5 * largest, name


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_computed_again_have_their_layers_and_their_dropout(tmp_path, family):
    """The backward pass begins when the layers have been taken out of the backbone."""
    backbone, found = tiny.backbone(family), []
    for settings in (FEW, AGAIN):
        stage = stage_of(backbone, settings)
        torch.manual_seed(5)
        found.append(gradients(tmp_path, stage, range(8), 3))
    assert found[0].keys() == found[1].keys() == stage.parameters().keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
    assert all("lora" not in name for block in backbone.layers() for name, _ in block.named_modules())


def test_blocks_that_are_computed_again_keep_their_input_alone():
    backbone, sizes = load_backbone("embedded", dtype="float32", device="cpu"), []
    for settings in (FEW, AGAIN):
        stage = stage_of(backbone, settings)
        share = next(iter(stage.load([StepBatch(0, 0, tuple(range(8)), 8)])))
        sizes.append(kept_bytes(partial(stage.losses, share), backbone))
    assert sizes[1] < 0.4 * sizes[0]


def test_a_run_goes_on_with_blocks_computed_again_to_the_same_bits(tmp_path):
    """It changes no result, so a run that did not fit goes on with it; settings that do are refused."""
    backbone = tiny.backbone()
    whole = lora_system(backbone, LABELS, FEW)
    whole.fit(lessons(backbone, tmp_path / "whole"))

    def stop(call: int) -> None:
        if call == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        lora_system(backbone, LABELS, FEW).fit(lessons(backbone, tmp_path / "cut", at_call=stop))
    again = lora_system(backbone, LABELS, AGAIN)
    again.fit(lessons(backbone, tmp_path / "cut"))
    expected = learned(whole)
    assert all(torch.equal(value, expected[name]) for name, value in learned(again).items())
    for change in ({"micro_batch_size": 2}, {"max_grad_norm": 1.0}, {"eval_batch_size": 2}):
        with pytest.raises(UsageError, match="another configuration"):
            lora_system(backbone, LABELS, replace(FEW, **change)).fit(lessons(backbone, tmp_path / "cut"))


def test_settings_of_memory_reach_training_and_validation(tmp_path, monkeypatch):
    backbone, passed, measured = tiny.backbone(), [], []
    loss = tuning.tuning_loss
    monkeypatch.setattr(tuning, "score", lambda *given: (measured.append(len(given[1])), score(*given))[1])
    monkeypatch.setattr(tuning, "tuning_loss", lambda *given: (passed.append(len(given[2])), loss(*given))[1])
    settings = replace(AGAIN, epochs=1, batch_size=5, micro_batch_size=2, eval_batch_size=3, max_grad_norm=1.0)
    lora_system(backbone, LABELS, settings).fit(lessons(backbone, tmp_path))
    assert passed == [2, 2, 1, 2, 1]
    assert measured == [3, 1]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_without_peft_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'masp\[peft\]'"):
        lora_system(tiny.backbone(), LABELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0; expected 1 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"targets": ()}, "targets is"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"evaluate_every": -1}, "evaluate_every is -1"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        LoraSettings(**change)


def test_other_projections_can_be_named_and_unknown_ones_not():
    some = LoraLayers(tiny.backbone(), replace(FEW, targets=("q_proj", "gate_proj")))
    assert {name.split(".")[1] for name in some.parameters()} == {"q_proj", "gate_proj"}
    with pytest.raises(UsageError, match=r"no linear layer qkv; expected some of q_proj"):
        LoraLayers(tiny.backbone(), replace(FEW, targets=("q_proj", "qkv")))


def test_lessons_must_teach_the_labels(tmp_path):
    backbone = tiny.backbone()
    system, given = lora_system(backbone, LABELS, FEW), lessons(backbone, tmp_path)
    with pytest.raises(UsageError, match="Call fit first"):
        system.predict(tokens(backbone, 1))
    with pytest.raises(DataError, match="no labelled image to learn from"):
        system.fit(replace(given, train=()))
    with pytest.raises(DataError, match=r"the label 'Joy'.*Did you mean 'joy'"):
        system.fit(replace(given, val=(replace(given.val[0], label="Joy"),)))
