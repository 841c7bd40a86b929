"""What a user would pick instead: PEFT's trainable tokens with the Hugging Face trainer, on the same backbone.

The same random weights as in `masp bench`, images of the same size, the same question and answer; 32 trained vectors
stand behind the image in both, on PEFT's side as the last 32 tokens of the vocabulary. PEFT's side runs transformers'
own forward and backward pass for every example of every epoch. Ours is measured from the pixels (nothing kept), with
visual tokens kept, and with the prefix kept. The first step of each is left out.

    pip install 'masp[peft]'
    python benchmarks/against_peft.py
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_setting import Setting, machine_of, once, setting
from torch.utils.data import Dataset

from masp.adapters.info import library_versions
from masp.backbones.loading import choose_device, choose_dtype
from masp.core.types import IGNORED, CachedPrefix, ImageInput
from masp.model.masp_model import ActiveParts

HOME = Path(__file__).parent
ANSWER = "awe"
VECTORS = 32
NOTE = (
    "Seconds of a training step, divided by its examples. This backbone's head is its embedding matrix, so PEFT trains "
    "the 32 rows as outputs too: a step copies the whole matrix and forms a gradient for it, once for each of the two."
)


class Rows(Dataset):
    """The same example again and again, as the trainer wants it: in main memory, whatever the device."""

    def __init__(self, here: Setting, count: int, length: int) -> None:
        pixels, backbone = here.pixels(count), here.backbone
        turn = backbone.template(here.question(), backbone.visual_tokens(pixels).layouts[0])
        prompt = [*turn.ids[: turn.vision_close], *trained(here), *turn.ids[turn.vision_close :]]
        ids = torch.tensor([*prompt, *backbone.answer_ids(ANSWER, end=True)])
        labels = torch.full_like(ids, IGNORED)
        labels[len(prompt) :] = ids[len(prompt) :]
        self.length = length
        self.example = {
            "input_ids": ids,
            "labels": labels,
            "mm_token_type_ids": (ids == here.made.plain.config.image_token_id).int(),
            "pixel_values": pixels.values.cpu(),
            "image_grid_thw": pixels.grid.cpu(),
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.example


def trained(here: Setting) -> list[int]:
    """The tokens that stand for the soft prompt: the last of the vocabulary, which no text has."""
    return list(range(here.shape.vocabulary - VECTORS, here.shape.vocabulary))


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Token rows stacked, patches one after the other."""
    stacked = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels", "mm_token_type_ids")}
    return stacked | {name: torch.cat([row[name] for row in rows]) for name in ("pixel_values", "image_grid_thw")}


def wrapped(here: Setting) -> Any:
    """Transformers' model with PEFT's layers around its embeddings and its head; `unload` takes them off again."""
    peft = import_module("peft")
    config = peft.TrainableTokensConfig(token_indices=trained(here), target_modules=["embed_tokens"])
    return peft.get_peft_model(here.made.plain, config)


def peft_seconds(here: Setting, count: int, batch: int, steps: int) -> list[float]:
    """Seconds per example of the trainer's steps, the first left out."""
    transformers = import_module("transformers")
    model, stamps = wrapped(here), []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            once(lambda: None)  # waits for the GPU
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="masp-peft-") as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
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
        data = Rows(here, count, batch * (steps + 1))
        transformers.Trainer(model, arguments, data_collator=collate, train_dataset=data, callbacks=[Clock()]).train()
    model.unload()
    here.made.plain.eval()  # the trainer's mode is not left to what comes next
    return [(after - before) / batch for before, after in pairwise(stamps)]


def our_seconds(here: Setting, count: int, batch: int, steps: int, store: str) -> list[float]:
    """Seconds per example of our steps on the same sequence (no aspects), the first left out."""
    model, asked, use = here.model("paper"), [here.question()] * batch, ActiveParts(())
    assert model.prompt is not None
    optimizer = torch.optim.AdamW(model.prompt.parameters(), lr=1e-9, fused=True)
    pixels = here.pixels(count, batch)
    visual = here.backbone.visual_tokens(pixels)
    rows = model.prefix(visual, asked, use).rows()
    look: dict[str, Callable[[], ImageInput]] = {
        "none": lambda: here.backbone.visual_tokens(pixels),
        "features": lambda: visual,
        "prefix": lambda: CachedPrefix.stack(rows),
    }

    def step() -> None:
        model.prompt_loss(look[store](), asked, [ANSWER] * batch, use).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return [once(step) / batch for _ in range(steps + 1)][1:]


def measure(quick: bool, batch: int, steps: int, out: Path) -> None:
    """Both sides at every number of visual tokens; write the result file."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    here = setting(quick, steps, dtype, device)
    rows = []
    for count in here.counts:
        theirs = peft_seconds(here, count, batch, steps)
        for store in ("none", "features", "prefix"):
            ours = our_seconds(here, count, batch, steps, store)
            rows.append(_row(count, store, theirs, ours))
            print(f"N = {count}, {store}: PEFT {rows[-1]['peft_s']:.3f} s, ours {rows[-1]['ours_s']:.3f} s", flush=True)
    quickly = " --quick" if quick else ""
    content = {
        "command": f"python benchmarks/against_peft.py{quickly} --batch {batch} --steps {steps}",
        "title": "Against PEFT's trainable tokens with the Hugging Face trainer",
        "note": NOTE,
        "table": {
            "head": ["N", "kept", "PEFT, s per example", "ours", "times faster"],
            "rows": [
                [row["visual"], row["store"], f"{row['peft_s']:.2f}", f"{row['ours_s']:.3f}", f"{row['ratio']:.1f}"]
                for row in rows
            ],
        },
        "machine": machine_of(dtype, device, quick),
        "versions": library_versions() | {"peft": metadata.version("peft")},
        "results": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")


def _row(count: int, store: str, theirs: list[float], ours: list[float]) -> dict[str, Any]:
    found = {"visual": count, "store": store, "peft_s": median(theirs), "ours_s": median(ours)}
    return found | {"ratio": found["peft_s"] / found["ours_s"], "peft_seconds": theirs, "our_seconds": ours}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--batch", type=int, default=2, help="examples per step; memory grows with it")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HOME / "results" / "against_peft.json")
    args = parser.parse_args()
    measure(args.quick, args.batch, args.steps, args.out)
