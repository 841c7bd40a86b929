"""The variant `released` beside what the authors' code computed on a tiny random backbone.

`MASP_ORACLE` names the folder of another oracle in the same format. The checkpoints are imported, and everything is
computed by what `Masp.from_pretrained` gives; `benchmarks/parity.py` holds how it is measured.
"""

import ast
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks import parity
from benchmarks.parity import Difference, Oracle
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from masp.core.config import MethodConfig
from masp.core.labels import RELEASED_LABELS, render_labels
from masp.core.types import ModelInputs
from masp.model.masp_model import MaspModel

FOLDER = Path(os.environ.get("MASP_ORACLE") or parity.SHIPPED)
COUNTS = {
    part: range(len(examples))
    for part, examples in json.loads((FOLDER / "expected.json").read_text()).items()
    if isinstance(examples, list)
}
STAGES = [(stage, number) for stage in ("stage1", "stage2") for number in COUNTS[stage]]
EXAMPLES = pytest.mark.parametrize(("stage", "number"), STAGES)

LOGITS, LOSS, GRADIENT = 1e-5, 1e-6, 1e-6
GRADIENT_RELATIVE = 1e-5  # gradients are small numbers: within GRADIENT alone, those of the queries could be 1 % off


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return parity.load_oracle(FOLDER, tmp_path_factory.mktemp("imported"))


def measured(oracle: Oracle, stage: str, number: int) -> dict[str, Difference]:
    found = list((parity.stage1 if stage == "stage1" else parity.stage2)(oracle, number))
    return {one.what: one for one in found}


def test_there_is_something_to_compare(oracle: Oracle) -> None:
    assert all(len(COUNTS[part]) for part in ("stage1", "stage2", "generate"))
    assert {one.what for one in parity.visual_and_aspects(oracle)} >= {"visual features", "aspect tokens"}
    assert oracle.model.method == MethodConfig(variant="released", prompt_length=oracle.model.prompt.length).resolved()


def test_visual_features_aspect_tokens_and_attention(oracle: Oracle) -> None:
    found = list(parity.visual_and_aspects(oracle))
    assert len(found) >= 1 + 2 * len(oracle.model.aspects.aspects)
    for one in found:
        assert one.relative <= LOGITS, one


@EXAMPLES
def test_logits_loss_and_gradients(oracle: Oracle, stage: str, number: int) -> None:
    found = measured(oracle, stage, number)
    assert found["logits"].relative <= LOGITS
    assert found["loss"].relative <= LOSS
    gradients = [one for name, one in found.items() if name.startswith("gradient")]
    assert len(gradients) == (2 if stage == "stage1" else 1)
    for one in gradients:
        assert one.absolute <= GRADIENT, one
        assert one.relative <= GRADIENT_RELATIVE, one


@EXAMPLES
def test_every_place_that_was_saved_is_compared(oracle: Oracle, stage: str, number: int) -> None:
    """The last places are the end of the turn and a newline, which our own sequences leave out."""
    saved = oracle.tensors[f"{stage}.{number}.logits"]
    assert measured(oracle, stage, number)["logits"].numbers == saved.numel()
    assert saved.shape[-2] > len(parity.tail(oracle, oracle.expected[stage][number]))


@EXAMPLES
def test_token_ids_and_text_of_the_sequence(oracle: Oracle, stage: str, number: int) -> None:
    example = oracle.expected[stage][number]
    config = json.loads((FOLDER / "vlm" / "config.json").read_text())
    image = config["image_token_id"]
    assembled = (parity.assembled1 if stage == "stage1" else parity.assembled2)(oracle, number)
    found = ids_fed(oracle, assembled, image) + parity.tail(oracle, example)
    expected = example["input_ids"]
    if stage == "stage1":  # the aspect's tokens took the place of the image
        assert expected.count(image) == oracle.visual(example["image"]).counts[0]
        assert int(assembled.aspect_columns.sum()) == oracle.model.method.queries
        expected = [word for word in expected if word != image]
    places = [column for column, word in enumerate(found) if word < 0]
    reserved = {found[column]: expected[column] for column in places}
    assert len(set(reserved.values())) == len(reserved) == (0 if stage == "stage1" else oracle.model.prompt.length)
    assert [reserved.get(word, word) for word in found] == expected
    text = "".join(words(found, image))
    assert text == example["prompt_text"].replace("<|image_pad|>", "" if stage == "stage1" else "<|image_pad|>")


def ids_fed(oracle: Oracle, assembled: ModelInputs, image_token: int) -> list[int]:
    """Token ids that a row's vectors are: text by its row of the embedding matrix, visual tokens as `image_token`.

    Aspect tokens are left out (they have none); vector k of the soft prompt is -1-k.
    """
    assert oracle.model.prompt is not None
    vectors, prompt = assembled.inputs_embeds[0].detach(), oracle.model.prompt.vectors.detach()
    ids: list[int] = []
    for column, vector in enumerate(vectors):
        if assembled.visual_columns[0, column]:
            ids.append(image_token)
        elif assembled.prompt_columns[0, column]:
            ids.append(-1 - row_of(prompt, vector))
        elif not assembled.aspect_columns[0, column]:
            ids.append(row_of(oracle.rows, vector))
    return ids


def row_of(table: Tensor, vector: Tensor) -> int:
    """The number of the one row that is this vector."""
    (place,) = (table == vector).all(1).nonzero()[:, 0].tolist()
    return place


def words(ids: list[int], image: int) -> Iterator[str]:
    """The text of ids in which the image is one mark and vector k of the soft prompt is -1-k."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "vlm")
    for kind, run in itertools.groupby(
        ids, key=lambda word: "image" if word == image else word if word < 0 else "text"
    ):
        if isinstance(kind, int):
            yield f"<|reserved_special_token_{-1 - kind}|>"
        else:
            yield "<|image_pad|>" if kind == "image" else tokenizer.decode(list(run), skip_special_tokens=False)


@pytest.mark.parametrize("number", COUNTS["generate"])
def test_greedy_token_ids(oracle: Oracle, number: int) -> None:
    found, expected = parity.greedy(oracle, number)
    assert found == expected


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """An oracle in the same format whose first image generates a token of the prompt: another row of the output head.

    What it should say is computed by transformers' own model, from the whole sequence again for every token, with the
    soft prompt as rows of the embedding matrix, where the authors' code trains it.
    """
    folder = Path(shutil.copytree(parity.SHIPPED, tmp_path_factory.mktemp("speaking") / "oracle"))
    expected = json.loads((folder / "expected.json").read_text())
    first = expected["generate"][0]["token_ids"][0]
    weights = load_file(folder / "vlm" / "model.safetensors")
    weights["lm_head.weight"][PROMPT_ID] = 1.5 * weights["lm_head.weight"][first]
    save_file(weights, folder / "vlm" / "model.safetensors", {"format": "pt"})
    made = parity.load_oracle(folder, tmp_path_factory.mktemp("imported"))
    for number, example in enumerate(expected["generate"]):
        example["token_ids"] = by_transformers(made, number)
    return dataclasses.replace(made, expected=expected)


PROMPT_ID = 467
"""The oracle's tokenizer has 467 tokens, so that the authors' code gives the next ids to those of the prompt."""


@torch.no_grad()
def by_transformers(oracle: Oracle, number: int) -> list[int]:
    example, rows = oracle.expected["generate"][number], oracle.model.prompt.vectors
    model = Qwen2VLForConditionalGeneration.from_pretrained(oracle.folder / "vlm", dtype=torch.float32)
    model.model.language_model.embed_tokens.weight[PROMPT_ID : PROMPT_ID + len(rows)] = rows
    vectors = oracle.model.build_inputs(oracle.visual(example["image"]), [example["text"]]).inputs_embeds
    said: list[int] = []
    for _ in range(len(example["token_ids"])):
        places = torch.arange(vectors.shape[1]).expand(3, 1, -1)
        hidden = model.model.language_model(inputs_embeds=vectors, position_ids=places).last_hidden_state
        said.append(int(model.lm_head(hidden[0, -1]).argmax()))
        word = model.model.language_model.embed_tokens(torch.tensor([[said[-1]]]))
        vectors = torch.cat([vectors, word], dim=1)
    return said


@pytest.mark.parametrize("number", range(4))
def test_a_generated_token_of_the_prompt_enters_as_the_trained_vector(speaking: Oracle, number: int) -> None:
    found, expected = parity.greedy(speaking, number)
    assert found == expected
    if number == 0:
        assert expected[0] == PROMPT_ID


def test_the_backbones_old_row_would_say_something_else(speaking: Oracle) -> None:
    """So would the variant `paper`, whose prompt has no ids: there this token is the backbone's own."""
    model = speaking.model
    method = model.method.model_copy(update={"variant": "paper"})
    other = dataclasses.replace(speaking, model=MaspModel(model.backbone, method, model.aspects, model.prompt))
    found, expected = parity.greedy(other, 0)
    assert found[0] == expected[0] == PROMPT_ID
    assert found != expected


@pytest.mark.parametrize("number", COUNTS["stage2"])
def test_the_category_list_is_printed_as_the_authors_code_does(oracle: Oracle, number: int) -> None:
    example = oracle.expected["stage2"][number]
    text = example["text"]
    printed = text[text.index("[") : text.index("]") + 1]
    assert render_labels(ast.literal_eval(printed), oracle.model.method.label_list) == printed
    assert example["label"] in RELEASED_LABELS["emotion6"]


@pytest.mark.parametrize("number", COUNTS["stage1"])
def test_what_is_left_of_the_queries_gradients_is_rounding(oracle: Oracle, number: int) -> None:
    """Ours are nearer to double precision than the limit, so what differs from the oracle is not the formula."""
    ours, theirs = parity.rounding(oracle, number)
    assert ours.relative <= 2e-6
    assert theirs.relative <= GRADIENT_RELATIVE


# --- the comparisons can fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("positions", "native"), ("prompt_places", "after_image"), ("supervised", "answer_end")]
)
def test_a_setting_of_the_paper_is_noticed(oracle: Oracle, setting: str, value: str) -> None:
    model = oracle.model
    method = model.method.model_copy(update={setting: value})
    other = dataclasses.replace(oracle, model=MaspModel(model.backbone, method, model.aspects, model.prompt))
    example = other.expected["stage2"][0]
    loss = other.model.prompt_loss(other.visual(example["image"]), [example["text"]], [example["label"]])
    assert abs(float(loss.detach()) / example["loss"] - 1) > 100 * LOSS
    if setting != "supervised":  # which changes nothing but what is supervised
        found = measured(other, "stage2", 0)
        assert found["logits"].relative > 100 * LOGITS
        assert found["gradient of the soft prompt"].relative > 100 * GRADIENT_RELATIVE


def test_another_value_is_noticed() -> None:
    one = parity.differ("logits", "here", torch.tensor([1.0, -4.0]), torch.tensor([1.0, -5.0]))
    assert (one.relative, one.absolute, one.numbers) == (0.2, 1.0, 2)
