"""Reading answers against plain loops: each label by passes of its own, each word by a pass over all before it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from fixtures import tiny
from fixtures.models import QUESTIONS, full_model, parts, visual_tokens
from masp.backbones.loading import load_backbone
from masp.core.aspects import ASPECTS
from masp.core.errors import UsageError
from masp.core.labels import parse
from masp.core.prompts import load_questions
from masp.core.types import ModelInputs
from masp.model.explain import read_aspects
from masp.model.masp_model import ActiveParts, MaspModel
from masp.model.scoring import (
    Answer,
    answer_of,
    aspect_answers,
    aspect_log_probabilities,
    describe_aspects,
    generate,
    generate_ids,
    score,
)

LABELS = ["sad", "sadness", "amusement", "awe", "a long label of many words"]
VARIANTS = pytest.mark.parametrize("variant", ["paper", "released"])


@torch.no_grad()
def next_log_p(model: MaspModel, assembled: ModelInputs, row: int, words: list[int]) -> Tensor:
    """Log-probabilities of the next word after a row's prompt and `words`, by one plain pass without padding."""
    real = assembled.attention_mask[row]
    vectors = torch.cat(
        [assembled.inputs_embeds[row, real], model.backbone.embed(torch.tensor(words, dtype=torch.long))]
    )
    known = assembled.position_ids[:, row, real]
    rest = known[:, -1:] + torch.arange(1, len(words) + 1)
    positions = torch.cat([known, rest], dim=1)[:, None]
    hidden = model.backbone.forward(vectors[None], positions, torch.ones(1, len(vectors)).bool()).hidden
    return model.backbone.logits(hidden[0, -1]).float().log_softmax(-1)


def plain_score(model: MaspModel, assembled: ModelInputs, row: int, labels: list[str]) -> Tensor:
    sums = []
    for label in labels:
        ids = model.backbone.answer_ids(label, end=True)
        sums.append(sum(next_log_p(model, assembled, row, ids[:place])[ids[place]] for place in range(len(ids))))
    return torch.tensor(sums).log_softmax(-1)


def plain_greedy(model: MaspModel, assembled: ModelInputs, row: int, limit: int) -> list[int]:
    words: list[int] = []
    while len(words) < limit:
        words.append(int(next_log_p(model, assembled, row, words).argmax()))
        if words[-1] == model.backbone.end_of_turn:
            break
    return words


@VARIANTS
@pytest.mark.parametrize("family", tiny.QWEN)
def test_score_equals_one_pass_per_label(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = visual_tokens(model)
    found = score(model, visual, QUESTIONS[0], LABELS)
    assembled = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    for row in range(3):
        assert (found[row] - plain_score(model, assembled, row, LABELS)).abs().max() <= 1e-4
    assert torch.allclose(found.exp().sum(1), torch.ones(3))
    assert found.std() > 0.1


def test_score_does_not_depend_on_the_batch_or_on_the_order_of_labels() -> None:
    model = full_model()
    visual = visual_tokens(model)
    found = score(model, visual, QUESTIONS[0], LABELS)
    for rows in ([0], [2, 1], [1, 0, 2, 2]):
        again = score(model, visual.select(rows), QUESTIONS[0], LABELS)
        assert (again - found[rows]).abs().max() <= 1e-4
        assert torch.equal(again.argmax(1), found[rows].argmax(1))
    order = [3, 0, 4, 2, 1]
    turned = score(model, visual, QUESTIONS[0], [LABELS[place] for place in order])
    assert (turned - found[:, order]).abs().max() <= 1e-4


def test_rows_that_share_their_first_columns_score_as_alone() -> None:
    model = full_model()
    visual = visual_tokens(model, [(90, 62), (62, 90), (90, 62)]).select([0, 2])
    assert model.build_inputs(visual, [QUESTIONS[0]] * 2).common > 0
    found = score(model, visual, QUESTIONS[0], LABELS)
    alone = [score(model, visual.select([row]), QUESTIONS[0], LABELS) for row in (0, 1)]
    assert (found - torch.cat(alone)).abs().max() <= 1e-4
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_score_of_labels_of_one_token() -> None:
    model = full_model()
    visual = visual_tokens(model)
    labels = [word for word in ("fear", "joy", "e", "a", "s") if len(model.backbone.tokenize(word)) == 1]
    assert len(labels) >= 3
    found = score(model, visual, QUESTIONS[1], labels)
    assembled = model.build_inputs(visual, [QUESTIONS[1]] * 3)
    assert (found[1] - plain_score(model, assembled, 1, labels)).abs().max() <= 1e-4


def test_one_label_is_certain() -> None:
    model = full_model()
    assert torch.equal(score(model, visual_tokens(model), QUESTIONS[0], ["awe"]), torch.zeros(3, 1))


@pytest.mark.parametrize("labels", [[], ["awe", "joy", "awe"]])
def test_no_labels_or_a_label_twice_are_refused(labels: list[str]) -> None:
    model = full_model()
    with pytest.raises(UsageError, match="at least one label"):
        score(model, visual_tokens(model), QUESTIONS[0], labels)


def test_parts_that_are_off_change_the_score() -> None:
    model = full_model()
    visual = visual_tokens(model)
    scores = [
        score(model, visual, QUESTIONS[0], LABELS, use)
        for use in (ActiveParts(), ActiveParts(ASPECTS[1:]), ActiveParts((), False))
    ]
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    assert (scores[0] - scores[2]).abs().max() > 1e-3


@VARIANTS
@pytest.mark.parametrize("family", tiny.QWEN)
def test_generate_equals_a_loop_without_cache(family: str, variant: str) -> None:
    model = full_model(family, variant=variant)
    visual = visual_tokens(model)
    found = generate(model, visual, QUESTIONS[2], max_new_tokens=5)
    assembled = model.build_inputs(visual, [QUESTIONS[2]] * 3)
    assert found == [model.backbone.decode(plain_greedy(model, assembled, row, 5)) for row in range(3)]
    assert len(set(found)) > 1


def test_generation_stops_at_the_end_of_the_turn_row_by_row() -> None:
    """Another word is declared the end of the turn: one that not all rows say, or not at the same time."""
    model = full_model.__wrapped__()
    visual = visual_tokens(model)
    assembled = model.build_inputs(visual, [QUESTIONS[2]] * 3)
    said = [plain_greedy(model, assembled, row, 5) for row in range(3)]
    end = next(
        word
        for word in said[0]
        if [ids.index(word) if word in ids else -1 for ids in said] != [said[0].index(word)] * 3
    )

    class Ends:
        """The backbone with another end of turn."""

        end_of_turn = end
        stop_tokens = (end,)

        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

    original, model.backbone = model.backbone, Ends()  # pyright: ignore[reportAttributeAccessIssue]
    kept = [ids[: ids.index(end)] if end in ids else ids for ids in said]
    assert len({len(ids) for ids in kept}) > 1
    assert generate(model, visual, QUESTIONS[2], max_new_tokens=5) == [original.decode(ids) for ids in kept]
    whole = [ids[: len(rest) + 1] for ids, rest in zip(said, kept, strict=True)]  # with the end, where it was reached
    assert generate_ids(model, visual, QUESTIONS[2], max_new_tokens=5) == whole


@pytest.mark.parametrize("settings", ["one", "several", "tokenizer"])
def test_generation_stops_where_the_checkpoint_says(settings: str, tmp_path: Path) -> None:
    """A word that the backbone says becomes a stop token of its generation settings, or its tokenizer's own end."""
    model = full_model()
    visual = visual_tokens(model)
    (said, *_) = generate_ids(model, visual, QUESTIONS[2], max_new_tokens=5)
    assert len(set(said[:3])) == 3
    folder = Path(shutil.copytree(tiny.checkpoint(), tmp_path / "checkpoint"))
    if settings == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[2])
        tokenizer.save_pretrained(folder)
    else:
        file = folder / "generation_config.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"eos_token_id": said[2] if settings == "one" else [said[2], said[4]]}))
    backbone = load_backbone(str(folder), dtype="float32", device="cpu")
    assert backbone.end_of_turn == model.backbone.end_of_turn, "what ends the answers that are trained"
    assert {model.backbone.end_of_turn, said[2]} <= set(backbone.stop_tokens)
    again = MaspModel(backbone, model.method, model.aspects, model.prompt)
    assert generate_ids(again, visual, QUESTIONS[2], max_new_tokens=5)[0] == said[:3]
    assert generate(again, visual, QUESTIONS[2], max_new_tokens=5)[0] == backbone.decode(said[:2])


def test_many_labels_are_scored_with_few_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = full_model()
    visual, asked = visual_tokens(model), []
    labels = [f"{first} {second}" for first in ("calm", "wild", "sad") for second in ("joy", "fear", "awe and dread")]
    whole = score(model, visual, QUESTIONS[0], labels)
    original = model.backbone.logits

    def logits(hidden: Tensor) -> Tensor:
        asked.append(original(hidden))
        return asked[-1]

    limit = 2 * 3 * len(model.backbone.embedding_rows())
    monkeypatch.setattr(model.backbone, "logits", logits)
    monkeypatch.setattr("masp.model.scoring.LOGITS", limit)
    assert (score(model, visual, QUESTIONS[0], labels) - whole).abs().max() <= 1e-5
    assert len(asked) > 5
    assert all(one.numel() <= limit for one in asked)


def test_an_answer_that_was_cut_is_marked() -> None:
    model = full_model()
    visual, questions = visual_tokens(model), load_questions()
    texts = describe_aspects(model, visual, questions, 3)
    answers = aspect_answers(model, visual, questions, 3)
    assert [{name: answer.text for name, answer in one.items()} for one in answers] == texts
    assert all(answer.cut for one in answers for answer in one.values()), "random weights do not come to an end"
    end = model.backbone.end_of_turn
    assert answer_of(model.backbone, [*model.backbone.tokenize("a cat"), end]) == Answer("a cat", cut=False)
    assert answer_of(model.backbone, model.backbone.tokenize("a cat")) == Answer("a cat", cut=True)
    reading = read_aspects(model, visual, questions, ActiveParts(), torch.zeros(3, len(ASPECTS)))[0]["scene"]
    assert reading.cut
    assert reading.answer == aspect_answers(model, visual, questions)[0]["scene"].text + "…"


def test_only_the_aspects_that_are_wanted_are_asked() -> None:
    model = full_model()
    visual, questions = visual_tokens(model), load_questions()
    every = describe_aspects(model, visual, questions, 3)
    wanted = [("scene",), (), ("human_action", "object")]
    assert describe_aspects(model, visual, questions, 3, wanted) == [
        {name: whole[name] for name in ASPECTS if name in names} for whole, names in zip(every, wanted, strict=True)
    ]
    assert describe_aspects(model, visual, questions, 3, [()] * 3) == [{}, {}, {}]


def test_descriptions_come_from_the_aspect_tokens_alone() -> None:
    model = full_model()
    visual, questions = visual_tokens(model), load_questions()
    found = describe_aspects(model, visual, questions, max_new_tokens=3)
    assert [tuple(row) for row in found] == [ASPECTS] * 3
    for name in ("scene", "brightness"):
        tokens = parts(model)[0](visual, [name]).tokens
        assembled = model.sequence_builder([questions.aspect(name)[0]] * 3, aspects=tokens)
        said = [plain_greedy(model, assembled, row, 3) for row in range(3)]
        assert [row[name] for row in found] == [model.backbone.decode(words) for words in said]


def test_score_of_an_aspect_reads_its_tokens_alone() -> None:
    model = full_model()
    visual = visual_tokens(model)
    labels = ["very low", "low", "high"]
    found = aspect_log_probabilities(model, visual, "brightness", "How bright is it?", labels).log_softmax(-1)
    assembled = model.sequence_builder(
        ["How bright is it?"] * 3, aspects=parts(model)[0](visual, ["brightness"]).tokens
    )
    for row in range(3):
        assert (found[row] - plain_score(model, assembled, row, labels)).abs().max() <= 1e-4


@pytest.mark.parametrize("number", [2, 100])
def test_small_and_large_label_sets_score_as_label_by_label(number: int) -> None:
    """Labels that begin like others are among them: "joy 1", "joy 10", "joy 100" …"""
    model = full_model()
    labels = [f"joy {place}" for place in range(1, number + 1)]
    visual = visual_tokens(model)
    found = score(model, visual, QUESTIONS[0], labels)
    assert found.shape == (3, number)
    assembled = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    assert (found[1] - plain_score(model, assembled, 1, labels)).abs().max() <= 1e-4
    assert found.exp().sum(1).allclose(torch.ones(3))


def test_labels_that_begin_alike_score_as_label_by_label_and_are_read_apart() -> None:
    model = full_model()
    labels = ["sad", "sadness", "sad and sadness"]
    visual = visual_tokens(model)
    found = score(model, visual, QUESTIONS[0], labels)
    assembled = model.build_inputs(visual, [QUESTIONS[0]] * 3)
    for row in range(3):
        assert (found[row] - plain_score(model, assembled, row, labels)).abs().max() <= 1e-4
    assert [parse(label, labels) for label in labels] == labels
