"""Write the embedded backbone as an ordinary Qwen2-VL checkpoint folder in bfloat16, with its training logs.

`--vision` is what `language.py` was given: the folder of `vision.py`, or an exported backbone whose tower was kept.

    python scripts/pretrain/export.py --vision FOLDER --language FOLDER --out src/masp/backbones/embedded
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from texts import corpus
from tokenizer import build
from transformers import Qwen2VLForConditionalGeneration

from architecture import VOCABULARY, backbone_config
from masp.data.emoji.render import SIDE

VISION_LOG = "training-log-vision.jsonl"
PREPROCESSING = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 140 * 140,
    "max_pixels": SIDE * SIDE,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def export(vision: Path, language: Path, out: Path) -> None:
    """Write config, weights, tokenizer, image settings and logs into `out`."""
    model = Qwen2VLForConditionalGeneration(backbone_config())
    missing, unexpected = model.load_state_dict(load_file(language / "language.safetensors"), strict=False)
    if unexpected or missing != ["lm_head.weight"]:
        raise SystemExit(f"these weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    build(corpus(), VOCABULARY).save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=1) + "\n")
    (out / "generation_config.json").unlink(missing_ok=True)
    logs = [vision / name for name in ("vision-log.jsonl", VISION_LOG)]
    shutil.copy(next(log for log in logs if log.exists()), out / VISION_LOG)
    shutil.copy(language / "language-log.jsonl", out / "training-log-language.jsonl")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", type=Path, required=True)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    export(args.vision, args.language, args.out)
