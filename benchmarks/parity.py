"""How far the variant `released` is from what the authors' code computed, on an oracle in the test suite's format.

An oracle is a folder: a backbone (`vlm/`), images, the two checkpoints, `expected.json` and `expected.safetensors`
(docs/how-to/released.md says what is in them). The checkpoints go through `masp import-released`'s own code and all
is computed by the model that `Masp.from_pretrained` gives. `tests/parity/test_released.py` asserts what this measures.

    python benchmarks/parity.py [ORACLE]
"""

import argparse
import functools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from masp import Masp
from masp.adapters import library_versions
from masp.adapters.import_released import import_released
from masp.core.types import ModelInputs, VisualTokens
from masp.data.images import open_image
from masp.model.masp_model import MaspModel
from masp.model.scoring import generate_ids
from masp.predictor import Task

SHIPPED = Path(__file__).resolve().parents[1] / "tests" / "parity" / "oracle"
RESULT = Path(__file__).parent / "results" / "parity.json"
ASPECTS_FILE, PROMPT_FILE = "aspect.pth", "soft_prompt.pt"


@dataclass(frozen=True)
class Difference:
    """One comparison: largest difference over the largest expected magnitude, and the largest difference itself."""

    what: str
    where: str
    relative: float
    absolute: float
    numbers: int


@dataclass(frozen=True)
class Oracle:
    """What the authors' code computed, and the model of ours that is held against it."""

    folder: Path
    expected: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    model: MaspModel
    task: Task

    @functools.cached_property
    def rows(self) -> Tensor:
        """The embedding matrix, for telling which token a column holds."""
        return self.model.backbone.embedding_rows()

    def visual(self, image: str) -> VisualTokens:
        """Visual tokens of one of the oracle's images, opened as every image is."""
        opened = open_image(self.folder / image, self.task.longest_side)
        return self.model.backbone.visual_tokens(self.model.backbone.preprocess([opened]))

    def named(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Expected tensors below a name, with the rest of their names."""
        return ((name.removeprefix(prefix), value) for name, value in self.tensors.items() if name.startswith(prefix))


def load_oracle(folder: Path, work: Path) -> Oracle:
    """The oracle's folder with a model of ours from its checkpoints, imported into `work`; fp32 on the CPU."""
    adapter = work / "adapter"
    import_released(adapter, str(folder / "vlm"), folder / ASPECTS_FILE, folder / PROMPT_FILE)
    masp = Masp.from_pretrained(adapter, str(folder / "vlm"), dtype="float32", device="cpu")
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return Oracle(folder, expected, load_file(folder / "expected.safetensors"), masp.model, masp.task)


def differ(what: str, where: str, found: Tensor, expected: Tensor) -> Difference:
    """A comparison of two tensors of one shape."""
    assert found.shape == expected.shape, f"{what} of {where}: {tuple(found.shape)} and {tuple(expected.shape)}"
    absolute = float((found - expected).detach().abs().max())
    return Difference(what, where, absolute / float(expected.abs().max()), absolute, expected.numel())


def visual_and_aspects(oracle: Oracle) -> Iterator[Difference]:
    """Visual features, aspect tokens and aspect attention of every image that the oracle has them for."""
    for image, features in oracle.named("visual_features."):
        visual = oracle.visual(f"{image}.png")
        yield differ("visual features", image, visual.tokens[0], features)
        read = oracle.model.aspect_module()(visual)
        for number, aspect in enumerate(read.aspects):
            place = f"{image}.{aspect}"
            yield differ("aspect tokens", place, read.tokens[0, number], oracle.tensors[f"aspect_tokens.{place}"])
            weights = oracle.tensors[f"aspect_attention.{place}"]
            yield differ("aspect attention", place, read.weights[0, number], weights)


def stage1(oracle: Oracle, number: int) -> Iterator[Difference]:
    """Loss, gradients and logits of one example of stage 1."""
    example, model, where = oracle.expected["stage1"][number], oracle.model, f"stage1.{number}"
    visual, modules = oracle.visual(example["image"]), oracle.model.aspect_module()
    index = torch.tensor([modules.aspects.index(example["aspect"])])
    model.zero_grad()
    loss = model.aspect_loss(visual, index, [example["text"]], [example["label"]])
    loss.sum().backward()
    module = modules.module(example["aspect"])
    yield differ("loss", where, loss, torch.tensor([example["loss"]]))
    for what, name, parameter in (
        ("gradient of the queries", "grad_q", module.get_parameter("queries")),
        ("gradient of the in-projection", "grad_in_proj", module.get_parameter("in_proj_weight")),
    ):
        yield differ(what, where, _gradient(parameter), oracle.tensors[f"{where}.{name}"])
    yield _logits(oracle, where, assembled1(oracle, number), example)


def stage2(oracle: Oracle, number: int) -> Iterator[Difference]:
    """Loss, gradient and logits of one example of stage 2."""
    example, model, where = oracle.expected["stage2"][number], oracle.model, f"stage2.{number}"
    assert model.prompt is not None
    model.zero_grad()
    loss = model.prompt_loss(oracle.visual(example["image"]), [example["text"]], [example["label"]])
    loss.sum().backward()
    yield differ("loss", where, loss, torch.tensor([example["loss"]]))
    expected = oracle.tensors[f"{where}.grad_soft_prompt"]
    yield differ("gradient of the soft prompt", where, _gradient(model.prompt.vectors), expected)
    yield _logits(oracle, where, assembled2(oracle, number), example)


def assembled1(oracle: Oracle, number: int) -> ModelInputs:
    """The sequence of an example of stage 1: one aspect's tokens in the place of the image."""
    example, model = oracle.expected["stage1"][number], oracle.model
    tokens = model.aspect_module()(oracle.visual(example["image"]), [example["aspect"]]).tokens
    return model.sequence_builder([example["text"]], [example["label"]], aspects=tokens)


def assembled2(oracle: Oracle, number: int) -> ModelInputs:
    """The sequence of an example of stage 2."""
    example = oracle.expected["stage2"][number]
    return oracle.model.build_inputs(oracle.visual(example["image"]), [example["text"]], [example["label"]])


def tail(oracle: Oracle, example: Mapping[str, Any]) -> list[int]:
    """What the authors' sequence still holds after the answer: the end of the turn and a newline.

    Neither is supervised, and nothing before them sees them, so our sequences end with the answer.
    """
    backbone = oracle.model.backbone
    ids = [backbone.end_of_turn, *backbone.tokenize("\n")]
    assert example["input_ids"][-len(ids) :] == ids, "the oracle's sequence ends in another way"
    return ids


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


@torch.no_grad()
def _logits(oracle: Oracle, where: str, assembled: ModelInputs, example: Mapping[str, Any]) -> Difference:
    """Logits of all places that the oracle kept: the last ones of the sequence with its tail."""
    backbone, ids = oracle.model.backbone, torch.tensor([tail(oracle, example)])
    after = assembled.position_ids[:, :, -1:] + torch.arange(1, ids.shape[1] + 1)
    hidden = backbone.forward(
        torch.cat([assembled.inputs_embeds, backbone.embed(ids)], dim=1),
        torch.cat([assembled.position_ids, after], dim=2),
        torch.cat([assembled.attention_mask, torch.ones_like(ids).bool()], dim=1),
    ).hidden
    expected = oracle.tensors[f"{where}.logits"].flatten(0, -2)
    return differ("logits", where, backbone.logits(hidden[0, -len(expected) :]), expected)


def greedy(oracle: Oracle, number: int) -> tuple[list[int], list[int]]:
    """Token ids of one greedy answer: ours, and the authors' code's."""
    example = oracle.expected["generate"][number]
    expected: list[int] = example["token_ids"]
    limit = len(expected)
    (found,) = generate_ids(oracle.model, oracle.visual(example["image"]), example["text"], max_new_tokens=limit)
    return found, expected


def rounding(oracle: Oracle, number: int) -> Iterator[Difference]:
    """What the gradients of the queries, the smallest numbers, lose to fp32: ours and the oracle's beside more digits.

    The gradient of the loss by the aspect tokens is taken as it is; the attention is torch's own in double precision.
    """
    example, model, where = oracle.expected["stage1"][number], oracle.model, f"stage1.{number}"
    visual, modules = oracle.visual(example["image"]), oracle.model.aspect_module()
    module = modules.module(example["aspect"])
    model.zero_grad()
    read = modules(visual, [example["aspect"]]).tokens
    read.retain_grad()
    model.loss(model.sequence_builder([example["text"]], [example["label"]], aspects=read)).sum().backward()
    exact = torch.nn.MultiheadAttention(modules.dim, 1, batch_first=True, dtype=torch.float64)
    exact.load_state_dict({name: value.double() for name, value in module.state_dict().items() if name != "queries"})
    queries = module.queries.detach().double()[None].requires_grad_()
    features = visual.tokens.double()
    exact(queries, features, features)[0].backward(_gradient(read)[0].double())
    wanted = _gradient(queries)[0]
    yield differ("gradient of the queries, ours beside double precision", where, _gradient(module.queries), wanted)
    theirs = oracle.tensors[f"{where}.grad_q"]
    yield differ("gradient of the queries, theirs beside double precision", where, theirs, wanted)


def differences(oracle: Oracle) -> list[Difference]:
    """Every comparison of numbers."""
    found = list(visual_and_aspects(oracle))
    for number in range(len(oracle.expected["stage1"])):
        found += stage1(oracle, number)
    for number in range(len(oracle.expected["stage2"])):
        found += stage2(oracle, number)
    return found


def summary(oracle: Oracle) -> dict[str, Any]:
    """The result file: the worst comparison of each kind, and how many greedy answers are the same."""
    found = differences(oracle)
    for number in range(len(oracle.expected["stage1"])):
        found += rounding(oracle, number)
    worst: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(one.what for one in found):
        own = [one for one in found if one.what == kind]
        worst[kind] = {
            "comparisons": len(own),
            "numbers": sum(one.numbers for one in own),
            "largest_relative": max(one.relative for one in own),
            "largest_absolute": max(one.absolute for one in own),
        }
    answers = [greedy(oracle, number) for number in range(len(oracle.expected["generate"]))]
    same = sum(ours == theirs for ours, theirs in answers)
    rows = [
        [kind, f"{one['comparisons']}", f"{one['numbers']:,}", f"{one['largest_relative']:.1e}"]
        for kind, one in worst.items()
    ]
    return {
        "title": "The variant `released` beside what the authors' code computed",
        "note": f"Tiny random Qwen2-VL, fp32; greedy answers with the same token ids: {same} of {len(answers)}.",
        "table": {"head": ["", "comparisons", "numbers", "largest difference ÷ largest value"], "rows": rows},
        "differences": worst,
        "greedy_same": same,
        "greedy": len(answers),
        "oracle_versions": oracle.expected["versions"],
        "versions": library_versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        content = {"command": "python benchmarks/parity.py", **summary(load_oracle(args.oracle, Path(scratch)))}
    args.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
