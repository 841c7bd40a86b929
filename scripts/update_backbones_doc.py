"""Write the table of docs/reference/backbones.md from what the contract's tests found last (`make families`)."""

import json
from typing import Any

from generated import ROOT, table, update

DOCUMENT = ROOT / "docs" / "reference" / "backbones.md"
RESULTS = ROOT / "docs" / "backbones.json"
SCRIPT = "scripts/update_backbones_doc.py"
NAMES = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT (1.6)",
    "instructblip": "InstructBLIP (Vicuna)",
    "qwen3_vl": "Qwen3-VL",
    "internvl": "InternVL (-hf)",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "gemma3": "Gemma 3",
    "llava_onevision": "LLaVA-OneVision",
    "photo": "photo (ours)",
}
COLUMNS = (
    "contract",
    "score",
    "generate",
    "prefix reuse",
    "native positions",
    "attention",
    "official processor",
    "4-bit",
)


def content(results: dict[str, Any]) -> str:
    """One row per family; how many tests passed, or what went wrong."""
    families = results["families"]
    rows = [
        (name, *(_cell(families[family].get(column, {})) for column in COLUMNS))
        for family, name in NAMES.items()
        if family in families
    ]
    about = f"Tests of the last recorded run, with transformers {results['transformers']} and torch {results['torch']}."
    return table(("family", *COLUMNS), rows) + f"\n\n{about}"


def _cell(outcomes: dict[str, int]) -> str:
    """✓ and the number of tests; ✗ with the number that failed; – where none ran."""
    failed, passed = outcomes.get("failed", 0), outcomes.get("passed", 0)
    if failed:
        return f"✗ {failed} of {failed + passed}"
    return f"✓ {passed}" if passed else "–"


if __name__ == "__main__":
    changed = update(DOCUMENT, "families", SCRIPT, content(json.loads(RESULTS.read_text(encoding="utf-8"))))
    print("docs/reference/backbones.md", "written" if changed else "was current")
