"""What stands around the large backbone: reading images, and the embedded default."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter

from masp.backbones.loading import load_backbone
from masp.backbones.model_stats import sizes_of
from masp.bench import clock
from masp.bench.clock import Work, in_turn, resident
from masp.bench.result import BenchResult, Goal, reaches
from masp.bench.setting import LABELS, Setting
from masp.core.aspects import ASPECTS
from masp.core.config import MethodConfig, PromptInit
from masp.core.types import CachedPrefix
from masp.data.prefetch import prefetch
from masp.model.aspect_attention import AspectModules
from masp.model.masp_model import MaspModel, init_soft_prompt

Tell = Callable[[str], object]
PICTURES = 8  # files, read again and again
SMALL = 512  # pixels of the longer side, which make 252 visual tokens


def images(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """Decoding, shrinking and preprocessing JPEGs of 1600 × 1200, in one thread."""
    many, each = (24, 8) if setting.quick else (10_000, 40)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="masp-bench-") as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(PICTURES)]
        for number, path in enumerate(paths):
            _photograph(number).save(path, quality=90)

        def read(count: int, side: int = SMALL) -> list[int]:
            stream = (paths[number % PICTURES] for number in range(count))
            seen = []
            for number, _ in enumerate(prefetch(stream, setting.backbone.preprocess, 4, 0, side)):
                if number % 8 == 0:
                    seen.append(resident())
            return seen

        torch.set_num_threads(1)
        try:
            works: dict[str, tuple[Work, int]] = {
                "reading": (lambda: read(each), each),
                "as by default": (lambda: read(each, 1024), each),
                "decoding": (lambda: [_decoded(paths[number % PICTURES]) for number in range(each)], each),
                "and shrinking": (lambda: [_shrunk(paths[number % PICTURES]) for number in range(each)], each),
            }
            times = in_turn(works, setting.repeats, tell)
            tell(f"reading {many} images, for the memory")
            seen = read(many)
        finally:
            torch.set_num_threads(threads)
    floor = {"decode_s": times["decoding"].median, "decode_and_shrink_s": times["and shrinking"].median}
    unit = "images/s per core"
    yield reaches(f"read a 1600 × 1200 JPEG at {SMALL} pixels", times["reading"], 40.0, unit, 1, **floor)
    yield reaches("read a 1600 × 1200 JPEG at 1,024 pixels", times["as by default"], 40.0, unit)
    start, later = max(seen[: len(seen) // 10 + 1]), max(seen)
    yield BenchResult(
        "memory while reading",
        later / start,
        f"of what the first tenth of {many:,} images needed",
        Goal(1.05, at_least=False),
        0.0,
        None,
        0.0,
        more={"pictures": many, "start_bytes": start, "most_bytes": later},
    )


def embedded(setting: Setting, machine: dict[str, Any], tell: Tell) -> Iterator[BenchResult]:
    """The embedded default: steps of stage 2 with the prefix kept, as `masp demo` sets it up."""
    backbone = load_backbone("embedded")
    method = MethodConfig(queries=5, prompt_length=32)
    generator = torch.Generator().manual_seed(0)
    aspects = AspectModules(backbone.dim, ASPECTS, 5, "single", generator)
    prompt = init_soft_prompt(PromptInit(), 32, backbone, generator)
    model = MaspModel(backbone, method, aspects, prompt)
    batch, question = (8 if setting.quick else 64), setting.question()
    pictures = [_photograph(number).resize((168, 168)) for number in range(PICTURES)]
    visual = backbone.visual_tokens(backbone.preprocess(pictures))
    rows = model.prefix(visual, [question] * PICTURES).rows()
    optimizer = torch.optim.AdamW([prompt.vectors], lr=1e-9)
    answers = [LABELS[number % len(LABELS)] for number in range(batch)]

    def step() -> None:
        seen = CachedPrefix.stack([rows[number % PICTURES] for number in range(batch)])
        model.prompt_loss(seen, [question] * batch, answers).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    times = in_turn({"the embedded default": (step, batch)}, setting.repeats, tell)
    row = model.build_inputs(visual.select([0]), [question], [answers[0]])
    graph, supervised = row.attention_mask.shape[1] - row.prefix_end, int((row.labels >= 0).sum())
    flops = sizes_of("embedded").step_flops(graph, row.prefix_end, supervised)
    own = (
        machine
        if backbone.dtype == setting.backbone.dtype
        else clock.machine(backbone.dtype, backbone.device, setting.quick)
    )
    reached, peak = flops / times["the embedded default"].median / 1e12, own["gemm_tflops"]
    more = {"flops": flops, "tflops": reached, "share_of_gemm_peak": reached / peak, "at_peak": 1e12 * peak / flops}
    yield reaches(
        "embedded default, stage 2, prefix kept", times["the embedded default"], 500.0, "examples/s", batch, **more
    )


def _decoded(path: Path) -> None:
    """What Pillow's decoder alone takes."""
    with Image.open(path) as image:
        image.load()


def _shrunk(path: Path) -> None:
    """Decoding, and Pillow's one pass to the final size: less than this no reading with Pillow can take."""
    with Image.open(path) as image:
        image.resize((SMALL, SMALL * 3 // 4), Image.Resampling.BICUBIC)


def _photograph(seed: int) -> Image.Image:
    """An image of 1600 × 1200 with large shapes and fine grain, whose JPEG is as large as a photograph's."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (12, 16, 3), generator=generator, dtype=torch.uint8)
    smooth = Image.fromarray(small.numpy()).resize((1600, 1200), Image.Resampling.BICUBIC)
    grain = torch.randint(0, 256, (1200, 1600, 3), generator=generator, dtype=torch.uint8)
    return Image.blend(smooth, Image.fromarray(grain.numpy()).filter(ImageFilter.GaussianBlur(1)), 0.15)
