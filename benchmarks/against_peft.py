"""What a user would pick instead: PEFT's trainable tokens with the Hugging Face trainer, on the same backbone.

The same random weights as in `masp bench`, the same pictures, question and answer; 32 trained vectors stand as tokens
behind the image in both. PEFT's side runs transformers' own forward pass for every example of every epoch. Ours is
measured from the pixels (nothing kept), with visual tokens kept, and with the prefix kept.

    pip install peft
    python benchmarks/against_peft.py
"""

import argparse
import json
import time
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import Dataset

from masp.adapters.info import library_versions
from masp.backbones.loading import choose_device, choose_dtype
from masp.bench.clock import machine
from masp.bench.setting import LABELS, Setting, setting
from masp.model import Use
from masp.types import IGNORED

HOME = Path(__file__).parent


class Rows(Dataset):
    """The same example again and again, as the trainer wants it."""

    def __init__(self, here: Setting, count: int, length: int, trained: list[int]) -> None:
        pixels, question = here.pixels(count), here.question()
        backbone = here.backbone
        layout = backbone.visual_tokens(pixels).layouts[0]
        turn = backbone.template(question, layout)
        answer = backbone.answer_ids("awe", end=True)
        prompt = [*turn.ids[: turn.vision_close], *trained, *turn.ids[turn.vision_close :]]
        ids = torch.tensor([*prompt, *answer])
        labels = torch.full_like(ids, IGNORED)
        labels[len(prompt) :] = ids[len(prompt) :]
        kinds = (ids == here.made.plain.config.image_token_id).int()
        self.length = length
        self.example = {
            "input_ids": ids,
            "labels": labels,
            "mm_token_type_ids": kinds,
            "pixel_values": pixels.values,
            "image_grid_thw": pixels.grid,
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.example


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Token rows stacked, patches one after the other."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels", "mm_token_type_ids")}
    return stacked | {name: torch.cat([row[name] for row in rows]) for name in ("pixel_values", "image_grid_thw")}


def peft_seconds(here: Setting, count: int, batch: int, steps: int) -> list[float]:
    """Seconds per example of the trainer's steps, the first left out."""
    peft, transformers = import_module("peft"), import_module("transformers")
    rows = here.shape.vocabulary
    trained = list(range(rows - 32, rows))
    config = peft.TrainableTokensConfig(token_indices=trained, target_modules=["embed_tokens"])
    model = peft.get_peft_model(here.made.plain, config)
    stamps: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    arguments = transformers.TrainingArguments(
        output_dir=str(HOME / "results" / ".peft"),
        per_device_train_batch_size=batch,
        max_steps=steps + 1,
        learning_rate=1e-9,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=here.backbone.device.type == "cpu",
        remove_unused_columns=False,
    )
    data = Rows(here, count, batch * (steps + 1), trained)
    transformers.Trainer(model, arguments, data_collator=collate, train_dataset=data, callbacks=[Clock()]).train()
    model.unload()
    return [(after - before) / batch for before, after in pairwise(stamps)]


def our_seconds(here: Setting, count: int, batch: int, steps: int, store: str) -> list[float]:
    """Seconds per example of our steps on the same sequence (no aspects), the first left out."""
    model, question, use = here.model("paper"), here.question(), Use(())
    assert model.prompt is not None
    optimizer = torch.optim.AdamW(model.prompt.parameters(), lr=1e-9, fused=True)
    pixels = here.pixels(count, batch)
    visual = here.backbone.visual_tokens(pixels)
    prefix = model.prefix(visual, [question] * batch, use)
    found = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        seen = {"none": visual, "features": visual, "prefix": prefix}[store]
        if store == "none":
            seen = here.backbone.visual_tokens(pixels)
        answers = [LABELS[row % len(LABELS)] for row in range(batch)]
        model.prompt_loss(seen, [question] * batch, answers, use).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append((time.perf_counter() - started) / batch)
    return found[1:]


def measure(quick: bool, batch: int, steps: int, out: Path) -> None:
    """Both sides at every number of visual tokens; write the result file."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    here = setting(quick, steps, dtype, device)
    rows = []
    for count in here.counts:
        theirs = median(peft_seconds(here, count, batch, steps))
        for store in ("none", "features", "prefix"):
            ours = median(our_seconds(here, count, batch, steps, store))
            rows.append({"visual": count, "store": store, "peft_s": theirs, "ours_s": ours, "ratio": theirs / ours})
    content = {
        "command": f"python benchmarks/against_peft.py --batch {batch} --steps {steps}",
        "title": "Against PEFT's trainable tokens with the Hugging Face trainer",
        "table": {
            "head": ["N", "kept", "PEFT, s per example", "ours", "times faster"],
            "rows": [
                [row["visual"], row["store"], f"{row['peft_s']:.2f}", f"{row['ours_s']:.3f}", f"{row['ratio']:.1f}"]
                for row in rows
            ],
        },
        "machine": machine(dtype, device, quick),
        "versions": library_versions() | {"peft": metadata.version("peft")},
        "results": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HOME / "results" / "against_peft.json")
    args = parser.parse_args()
    measure(args.quick, args.batch, args.steps, args.out)
