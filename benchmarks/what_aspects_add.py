"""What aspects add on the embedded default, and what they could: controls that each change one thing.

Every row is a soft prompt of 32 vectors trained alike, with other things beside it in the sequence: nothing, what the
shipped aspect modules read, the true cues in words where the aspect tokens stand (aspect modules without an error), or
these without the image. Further rows change how V+A+S is trained. Then linear heads: what the true cues, the aspects'
tokens and the scores of the soft prompt alone tell without a language model, and together.

All images are drawn for this file (seed 8), so the shipped test split takes no part. Accuracy is the mean true
probability of the named label, which is what accuracy tends to and has far less noise than 1,000 drawn labels.

    python benchmarks/what_aspects_add.py --out benchmarks/results/what_aspects_add.json
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from machine import machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from masp.adapters import library_versions, load_adapter
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.baselines.base import Example
from masp.baselines.distilled import mean_token
from masp.baselines.probe import logits
from masp.baselines.word_regression import present, read_words, vocabulary
from masp.core.aspects import ASPECTS, level
from masp.core.config import MethodConfig, PromptInit
from masp.core.labels import render_labels
from masp.core.prompts import load_questions
from masp.core.types import ModelInputs, VisualTokens
from masp.data.emoji.dataset import annotation, scenes
from masp.data.emoji.label_model import EMOTIONS
from masp.model.masp_model import MaspModel, init_soft_prompt
from masp.model.scoring import score_rows

HOME = Path(__file__).parent
SEED = 8  # of the images; strengths below were chosen on those of seed 7
TOGETHER = 64
TEXT = "By the face, the things, the place, the action, the light and the colors:"


@dataclass(frozen=True)
class Pictures:
    """Images as the model sees them, and the truth about them.

    Attributes:
        visual: visual tokens of all of them.
        words: each image's cues, the answers of the six aspects as EmoSet annotates them; "" where there is none.
        labels: the drawn emotions, as numbers.
        chances: true probabilities of the emotions, one row per image.
    """

    visual: VisualTokens
    words: list[dict[str, str]]
    labels: list[int]
    chances: np.ndarray

    def accuracy(self, predicted: np.ndarray) -> float:
        """Mean true probability of what was predicted."""
        return float(self.chances[np.arange(len(predicted)), predicted].mean())


@dataclass(frozen=True)
class Row:
    """One trained soft prompt.

    Attributes:
        name: how the result calls it.
        image: whether the image's visual tokens stand in the sequence.
        beside: what stands where aspect tokens do: "" (nothing), "aspects", or "words".
        rate, steps: of the training.
        init: where the soft prompt starts.
    """

    name: str
    image: bool = True
    beside: str = ""
    rate: float = 0.02
    steps: int = 110
    init: PromptInit = PromptInit()  # noqa: RUF009


FULL = Row("V+A+S", beside="aspects")
ROWS = (
    Row("V+S"),
    FULL,
    Row("V+true words+S", beside="words"),
    Row("A+S, no image", image=False, beside="aspects"),
    Row("true words+S, no image", image=False, beside="words"),
)
TRAININGS = (
    replace(FULL, name="V+A+S, rate halved", rate=0.01),
    replace(FULL, name="V+A+S, rate doubled", rate=0.04),
    replace(FULL, name="V+A+S, three times the steps", steps=330),
    Row("V+S, three times the steps", steps=330),
    replace(FULL, name="V+A+S, started from a text", init=PromptInit(kind="text", text=TEXT)),
)

HEADS = {
    ("true cues",): 0.1,
    ("aspect tokens",): 0.003,
    ("words of the aspect tokens",): 0.1,
    ("words of the mean visual token",): 0.1,
    ("scores of V+S",): 0.1,
    ("scores of V+S", "aspect tokens"): 0.003,
    ("scores of V+S", "words of the aspect tokens"): 0.1,
    ("scores of V+S", "words of the mean visual token"): 0.1,
    ("scores of V+S", "true cues"): 0.1,
}
"""What a linear head reads → inverse strength of its regularisation. Words: probabilities of the true cues' words, by
the first layer of the concept bottleneck (`masp.baselines.concept_bottleneck`) on the training images."""

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the words; the training images decide."""


def draw(backbone: Backbone, split: str, count: int) -> Pictures:
    """Draw images and turn them into visual tokens."""
    parts, words, labels, chances, batch = [], [], [], [], []
    for number, made in enumerate(scenes(split, SEED, count)):
        content = annotation(made, "")
        told = {name: content.get(name, "") for name in ASPECTS}
        words.append({name: _spoken(name, value) for name, value in told.items()})
        labels.append(EMOTIONS.index(made.label))
        chances.append([content["emoji"]["probabilities"][emotion] for emotion in EMOTIONS])
        batch.append(made.drawing.image)
        if len(batch) == TOGETHER or number == count - 1:
            with torch.no_grad():
                parts.append(backbone.visual_tokens(backbone.preprocess(batch)))
            batch = []
    return Pictures(VisualTokens.stack(parts), words, labels, np.array(chances))


def _spoken(aspect: str, value: object) -> str:
    if aspect in ("brightness", "colorfulness") and value != "":
        return level(float(value))  # pyright: ignore[reportArgumentType]
    return ", ".join(value) if isinstance(value, list) else str(value).replace("_", " ").lower()


class Bench:
    """One backbone with the shipped aspects; trains a soft prompt for a row and measures it."""

    def __init__(self, backbone: Backbone, train: Pictures, test: Pictures) -> None:
        self.backbone, self.train, self.test = backbone, train, test
        adapter = load_adapter(Path(HOME.parent / "src/masp/backbones/embedded_adapter"), backbone)
        assert adapter.aspects is not None
        self.aspects = adapter.aspects.requires_grad_(False)
        self.labels = EMOTIONS
        self.question = load_questions().ask_emotion(render_labels(self.labels, "comma"))
        told = [word for pictures in (train, test) for row in pictures.words for word in row.values()]
        self.length = max(len(backbone.tokenize(word)) for word in set(told) if word)

    def _words(self, rows: Sequence[Mapping[str, str]]) -> Tensor:
        """Embeddings of the true words of every cue, again and again up to one length: (b, 6, n, d)."""
        ids = [[self._ids(row[name]) for name in ASPECTS] for row in rows]
        return self.backbone.embed(torch.tensor(ids))

    def _ids(self, word: str) -> list[int]:
        found = self.backbone.tokenize(word or "none")
        return (found * self.length)[: self.length]

    def rows(self, row: Row, model: MaspModel, pictures: Pictures, chosen: Sequence[int], told: bool) -> ModelInputs:
        """The sequences of some images; with the label behind them if `told`."""
        assert model.prompt is not None
        visual = pictures.visual.select(chosen)
        beside = None
        if row.beside == "aspects":
            beside = self.aspects(visual).tokens
        elif row.beside == "words":
            beside = self._words([pictures.words[number] for number in chosen])
        answers = [self.labels[pictures.labels[number]] for number in chosen] if told else None
        questions = [self.question] * len(chosen)
        return model.sequence_builder(questions, answers, visual if row.image else None, beside, model.prompt())

    def trained(self, row: Row, seed: int) -> MaspModel:
        """A soft prompt trained for a row: AdamW, batches of 64, images in a random order."""
        generator = torch.Generator().manual_seed(seed)
        prompt = init_soft_prompt(row.init, 32, self.backbone, generator)
        model = MaspModel(self.backbone, MethodConfig(queries=5, prompt_length=32), None, prompt)
        optimizer = torch.optim.AdamW(prompt.parameters(), lr=row.rate, weight_decay=0.0)
        warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        count, order = len(self.train.labels), []
        for _ in range(row.steps):
            if len(order) < TOGETHER:
                order = torch.randperm(count, generator=generator).tolist()
            chosen, order = order[:TOGETHER], order[TOGETHER:]
            optimizer.zero_grad()
            model.loss(self.rows(row, model, self.train, chosen, told=True)).mean().backward()
            optimizer.step()
            warm.step()
        return model

    @torch.no_grad()
    def scores(self, row: Row, model: MaspModel, pictures: Pictures) -> np.ndarray:
        """Log-probabilities of the labels of all images."""
        count = len(pictures.labels)
        groups = [range(start, min(start + TOGETHER, count)) for start in range(0, count, TOGETHER)]
        found = [
            score_rows(model, self.rows(row, model, pictures, list(group), told=False), self.labels) for group in groups
        ]
        return torch.cat(found).numpy()

    @torch.no_grad()
    def read(self, pictures: Pictures) -> np.ndarray:
        """The aspects' tokens of all images, one long row each."""
        count = len(pictures.labels)
        groups = [range(start, min(start + 500, count)) for start in range(0, count, 500)]
        return torch.cat([self.aspects(pictures.visual.select(list(one))).tokens.flatten(1) for one in groups]).numpy()


def cues(*all_pictures: Pictures) -> list[np.ndarray]:
    """The true cues as numbers 0 and 1: one column for each word of each aspect, the same for all sets of images."""
    rows = [[_named(row) for row in pictures.words] for pictures in all_pictures]
    known = sorted({one for part in rows for row in part for one in row})
    return [np.array([[float(one in row) for one in known] for row in part]) for part in rows]


def _named(row: Mapping[str, str]) -> set[str]:
    return {f"{name}: {word}" for name, told in row.items() for word in told.split(", ")}


def pooled(pictures: Pictures) -> np.ndarray:
    """The mean visual token of all images."""
    return mean_token(pictures.visual).numpy()


def words_of(bench: Bench, inputs: Sequence[np.ndarray], own: bool) -> list[np.ndarray]:
    """Probability of each word of the true cues, learned on the training images, each of which is left out in turn.

    Args:
        bench: knows the images.
        inputs: what it is read from, for training and test images.
        own: whether each aspect has a sixth of the columns for itself.
    """
    lessons = [Example(number, "", row) for number, row in enumerate(bench.train.words)]
    found: list[list[Tensor]] = [[], []]
    for place, (aspect, words) in enumerate(vocabulary(lessons, ASPECTS, 20).items()):
        if not words:
            continue  # too few images
        sixths = [np.split(part, len(ASPECTS), axis=1)[place] if own else part for part in inputs]
        columns = [torch.from_numpy(part).float() for part in sixths]
        layer, left_out, _ = read_words(columns[0], present(lessons, aspect, words), PENALTIES)
        found[0].append(left_out)
        found[1].append(logits(layer, columns[1]).sigmoid())
    return [torch.cat(part, dim=1).numpy() for part in found]


def head(learn: np.ndarray, labels: Sequence[int], held: np.ndarray, strength: float) -> np.ndarray:
    """What a logistic regression on these columns predicts."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    return model.fit(learn, labels).predict(held)


def heads(bench: Bench, alone: MaspModel) -> dict[str, float]:
    """Accuracy of linear heads without a language model, and behind the scores of V+S."""
    train, test = bench.train, bench.test
    tokens, means = ([read(pictures) for pictures in (train, test)] for read in (bench.read, pooled))
    known = {
        "true cues": cues(train, test),
        "aspect tokens": tokens,
        "words of the aspect tokens": words_of(bench, tokens, own=True),
        "words of the mean visual token": words_of(bench, means, own=False),
        "scores of V+S": [bench.scores(ROWS[0], alone, pictures) for pictures in (train, test)],
    }
    found = {}
    for names, strength in HEADS.items():
        learn, held = (np.concatenate([known[name][part] for name in names], axis=1) for part in (0, 1))
        found[" and ".join(names)] = test.accuracy(head(learn, train.labels, held, strength))
    return found


def together(scores: Mapping[str, np.ndarray], test: Pictures) -> dict[str, float]:
    """V+S and V+A+S as one: the mean of their scores, and whichever is right, which no gate can exceed."""
    alone, full = scores[ROWS[0].name], scores[FULL.name]
    chances = [test.chances[np.arange(len(one)), one.argmax(1)] for one in (alone, full)]
    return {
        "mean of both scores": test.accuracy((alone + full).argmax(1)),
        "a gate that always takes the better one": float(np.maximum(*chances).mean()),
    }


def measure(sizes: tuple[int, int], seeds: Sequence[int], steps: int | None, rows: Sequence[Row], out: Path) -> None:
    """Every row with every seed, linear heads beside the first row, both prompts together; write the result file."""
    backbone, started = load_backbone("embedded"), time.perf_counter()
    bench = Bench(backbone, draw(backbone, "train", sizes[0]), draw(backbone, "val", sizes[1]))
    test = bench.test
    found: dict[str, list[float]] = {}
    gates: list[dict[str, float]] = []
    linear: list[dict[str, float]] = []
    asked = f"--train {sizes[0]} --test {sizes[1]} --seeds {' '.join(map(str, seeds))} --rows {len(rows)}"
    for seed in seeds:
        scores = {}
        for row in rows:
            model = bench.trained(row if steps is None else replace(row, steps=steps), seed)
            scores[row.name] = bench.scores(row, model, test)
            found.setdefault(row.name, []).append(test.accuracy(scores[row.name].argmax(1)))
            print(f"seed {seed}  {row.name:30} {100 * found[row.name][-1]:.1f} %", flush=True)
            if row is ROWS[0]:
                linear.append(heads(bench, model))
                print(linear[-1], flush=True)
            if row is FULL:
                gates.append(together(scores, test))
                print(gates[-1], flush=True)
            told = {**found, **_by_name(gates), **_by_name(linear)}  # written at once, whatever happens to the rest
            write(out, asked, told, test, time.perf_counter() - started)


def _by_name(group: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """One list of values over the seeds for each name."""
    return {name: [one[name] for one in group] for name in (group[0] if group else ())}


def write(out: Path, asked: str, found: Mapping[str, list[float]], test: Pictures, took: float) -> None:
    """The result file, with a table for people."""
    best = float(test.chances.max(1).mean())
    rows = [[name, f"{100 * mean(values):.1f}", _each(values)] for name, values in found.items()]
    rows.append(["ceiling: always the truly most probable label", f"{100 * best:.1f}", ""])
    content = {
        "command": f"python benchmarks/what_aspects_add.py {asked}",
        "title": "What aspects could add on the embedded default",
        "note": "Images were drawn for this table; accuracy is the mean true probability of the named label.",
        "table": {"head": ["system", "accuracy, %", "each seed"], "rows": rows},
        "accuracy": dict(found),
        "ceiling": best,
        "machine": machine(threads=torch.get_num_threads()),
        "versions": library_versions(),
        "seconds": round(took),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


def _each(values: Sequence[float]) -> str:
    return " · ".join(f"{100 * value:.1f}" for value in values) if len(values) > 1 else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    every = ROWS + TRAININGS
    names = ", ".join(row.name for row in every)
    parser.add_argument("--rows", type=int, default=len(ROWS), help=f"only so many of the rows: {names}")
    parser.add_argument("--steps", type=int, help="steps of every training, to see that it runs")
    parser.add_argument("--out", type=Path, default=HOME / "results" / "what_aspects_add.json")
    args = parser.parse_args()
    measure((args.train, args.test), args.seeds, args.steps, every[: args.rows], args.out)
