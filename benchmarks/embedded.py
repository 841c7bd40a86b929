"""The figures of the embedded default: what the vision tower knows, Table 2, explanations; several training seeds.

Everything is measured on the test split of one drawn data set (3,000 images, seed 0) with the settings in
`configs/embedded.yaml`; only the training seeds differ. A seed whose runs are finished is not trained again.

    python benchmarks/embedded.py RUNS --seeds 0 1 2

Seeds that were measured apart, on one core each perhaps, are put together from their files:

    python benchmarks/embedded.py RUNS --join seed0.json seed1.json seed2.json

Another backbone for this world, with settings and numbers of pictures of its own:

    python benchmarks/embedded.py RUNS --backbone FOLDER --config FILE --val 1000 --test 3000 --out FILE.json
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from machine import machine
from rich.console import Console
from torch import Tensor, nn

from masp.adapters.info import library_versions
from masp.backbones.base import Backbone
from masp.backbones.loading import load_backbone
from masp.core.config import load_config
from masp.core.runtime import Bar
from masp.data.emoji.dataset import scenes, write_dataset
from masp.data.readers.open_dataset import open_dataset
from masp.demo.pictures import Plan
from masp.demo.run import run_demo
from masp.evaluation.runner import evaluate
from masp.predictor import Masp

HOME = Path(__file__).parent
PLAN = Plan(train=12000, val=1000, test=3000, read=600, explained=600, seed=0)
SHIFTED = {"shifted": 1000}


def tokens_and_glyphs(backbone: Backbone, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Visual tokens that a glyph covers and which one it is: (cells, dim), (cells,)."""
    tokens, glyphs, batch = [], [], []
    for made in scenes(split, 0, count):
        batch.append(made.drawing)
        if len(batch) == 50:
            visual = backbone.visual_tokens(backbone.preprocess([drawing.image for drawing in batch]))
            cells = torch.stack([torch.from_numpy(drawing.cells).flatten() for drawing in batch])
            tokens.append(visual.tokens.float()[cells >= 0])
            glyphs.append(cells[cells >= 0])
            batch = []
    return torch.cat(tokens), torch.cat(glyphs)


def linear_probe(backbone: Backbone, split: str) -> float:
    """Share of covered cells whose glyph a linear read-out of the single visual token names (trained on `train`)."""
    tokens, glyphs = tokens_and_glyphs(backbone, "train", 1500)
    torch.manual_seed(0)
    probe = nn.Linear(tokens.shape[1], int(glyphs.max()) + 1)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=0.01)
    for _ in range(40):
        for rows in torch.randperm(len(tokens)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(probe(tokens[rows]), glyphs[rows].long()).backward()
            optimizer.step()
    tokens, glyphs = tokens_and_glyphs(backbone, split, 500)
    return (probe(tokens).argmax(-1) == glyphs).float().mean().item()


@dataclass(frozen=True)
class Setting:
    """What is measured: numbers of pictures, the settings' file and the backbone."""

    plan: Plan = PLAN
    config: Path = HOME.parent / "configs" / "embedded.yaml"
    backbone: str = "embedded"


def one_seed(runs: Path, seed: int, setting: Setting) -> dict[str, Any]:
    """Both stages with this training seed, measured as the demo measures; accuracy on the shifted test as well."""
    home, data = runs / f"seed{seed}", runs / "data"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "data").exists():
        (home / "data").symlink_to(data.resolve(), target_is_directory=True)
    changes = [f"aspects.seed={seed}", f"prompt.seed={seed}", f"backbone.id={setting.backbone}"]
    run_demo(home, Console(), setting.plan, load_config(setting.config, changes))
    found = json.loads((home / "results.json").read_text())
    found["provenance"]["adapter"]["name"] = f"seed{seed}/prompt/adapter"  # not where RUNS lies on this machine
    masp = Masp.from_pretrained(home / "prompt" / "adapter", setting.backbone)
    shifted = evaluate(masp, open_dataset(runs / "shifted"), "shifted")
    return {"seed": seed, "shifted_accuracy": shifted.accuracy.value, **found}


def averages(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of the figures that have goals."""
    rows = [{row["name"]: row["accuracy"]["value"] for row in one["table2"]["rows"]} for one in found]
    quality = [{item["aspect"]: item for item in one["aspects"]["quality"]} for one in found]
    explanations = [one["explanations"] for one in found]
    worded = [one["concepts"] for one in found if one.get("concepts")]
    return {
        "accuracy": {name: mean(row[name] for row in rows) for name in rows[0]},
        "majority": found[0]["table2"]["majority"]["value"],
        "ceiling": found[0]["ceiling"]["expected"],
        "shifted_accuracy": mean(one["shifted_accuracy"] for one in found),
        "aspect_exact": _means(quality, "exact"),
        "aspect_exact_backbone": _means(quality, "backbone_exact"),
        "object_f1": mean(item["object"]["things"]["f1"] for item in quality),
        "object_f1_backbone": mean(item["object"]["backbone_things"]["f1"] for item in quality),
        "cause": mean(one["cause"]["value"] for one in explanations),
        "cause_by_guess": mean(one["cause_by_guess"] for one in explanations),
        **(
            {
                "concept_cause": mean(one["cause"]["value"] for one in worded),
                "concept_cause_by_guess": mean(one["cause_by_guess"] for one in worded),
            }
            if worded
            else {}
        ),
        "pointing": {
            name: mean(one["pointing"][name]["value"] for one in explanations) for name in explanations[0]["pointing"]
        },
    }


def _means(quality: list[dict[str, Any]], key: str) -> dict[str, float]:
    return {aspect: mean(item[aspect][key]["value"] for item in quality) for aspect in quality[0]}


def measure(runs: Path, seeds: Iterable[int], out: Path, setting: Setting) -> None:
    """Draw the data once, run every seed, write the result file."""
    for folder, sizes in (("data", setting.plan.splits()), ("shifted", SHIFTED)):
        if not (runs / folder).exists():
            with Bar("drawing", sum(sizes.values())) as bar:
                write_dataset(runs / folder, sizes, setting.plan.seed, bar.advance)
    backbone = load_backbone(setting.backbone)
    probe = {split: linear_probe(backbone, split) for split in ("test", "shifted")}
    found = [one_seed(runs, seed, setting) for seed in seeds]
    ran_on = machine(threads=torch.get_num_threads(), dtype=str(backbone.dtype).removeprefix("torch."))
    asked = "--seeds " + " ".join(str(one["seed"]) for one in found)
    write(out, asked, found, {"machine": ran_on, "versions": library_versions(), "linear_probe": probe})


def join(files: Sequence[Path], out: Path) -> None:
    """Write one result file from those of single seeds; machine, versions and probe are those of the last file.

    Raises:
        SystemExit: a seed occurs twice, or the files are not of the same images and the same backbone.
    """
    contents = [json.loads(file.read_text()) for file in files]
    found = sorted((one for content in contents for one in content["seeds"]), key=lambda one: one["seed"])
    seeds = [one["seed"] for one in found]
    measured = {
        (
            one["provenance"]["backbone"]["fingerprint"],
            one["provenance"]["data"]["fingerprint"],
            one["table2"]["images"],
        )
        for one in found
    }
    if len(set(seeds)) < len(seeds) or len(measured) > 1:
        raise SystemExit(f"the seeds {seeds} of {len(measured)} backbones and data sets do not go together")
    asked = "--join " + " ".join(f"seed{seed}.json" for seed in seeds)
    write(out, asked, found, {key: contents[-1][key] for key in ("machine", "versions", "linear_probe")})


def write(out: Path, asked: str, found: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """The result file of these seeds; `asked` is how they were asked for."""
    content = {
        "command": f"python benchmarks/embedded.py RUNS {asked}",
        **about,
        "mean": averages(found),
        "seeds": [{key: value for key, value in one.items() if key != "predictions"} for one in found],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="result files to put together instead")
    parser.add_argument("--out", type=Path, default=HOME / "results" / "embedded.json")
    parser.add_argument("--backbone", default=Setting.backbone)
    parser.add_argument("--config", type=Path, default=Setting.config, help="settings of both stages")
    parser.add_argument("--val", type=int, default=PLAN.val, help="pictures")
    parser.add_argument("--test", type=int, default=PLAN.test, help="pictures")
    args = parser.parse_args()
    if args.join:
        join(args.join, args.out)
    else:
        chosen = Setting(replace(PLAN, val=args.val, test=args.test), args.config, args.backbone)
        measure(args.runs, args.seeds, args.out, chosen)
