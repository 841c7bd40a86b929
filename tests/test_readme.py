"""The documents show what the result files and the source say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import generated
import reproduced_tables
import update_readme
from reproduced_tables import NOTHING, reproduction
from update_readme import MEASUREMENTS, README, gained, results

PARTS = update_readme.parts()


def part(document: Path, name: str) -> str:
    """What stands between the marks of a generated part."""
    begin, end = generated.marks(name, update_readme.SCRIPT)
    return document.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


def outside(document: Path) -> str:
    """The document without its generated parts."""
    text = document.read_text(encoding="utf-8")
    for where, name in PARTS:
        if where == document:
            text = text.replace(part(document, name), "")
    return text


@pytest.mark.parametrize(("document", "name"), PARTS)
def test_generated_parts_are_current(document: Path, name: str) -> None:
    assert part(document, name) == PARTS[document, name], "run `make docs`"


def test_every_committed_result_is_shown() -> None:
    """A result that is not shown would be a number that nobody sees."""
    for path in update_readme.RESULTS.glob("*.json"):
        assert path.name in part(MEASUREMENTS, "results")


def test_a_changed_result_is_noticed(tmp_path: Path) -> None:
    content = {
        "title": "Table 2",
        "command": "masp demo",
        "table": {"head": ["row", "accuracy"], "rows": [["V", 41.7]]},
    }
    (tmp_path / "b.json").write_text(json.dumps(content))
    (tmp_path / "a.json").write_text(json.dumps({"raw": [1, 2]}))
    before = results(tmp_path)
    assert "| V | 41.7 |" in before
    assert "a.json" not in before
    (tmp_path / "b.json").write_text(json.dumps(content).replace("41.7", "47.1"))
    assert results(tmp_path) == before.replace("41.7", "47.1")


def made_up() -> dict[str, Any]:
    """The shape that the benchmark of the embedded default writes, with numbers that are told apart."""
    interval = {"value": 0.41, "low": 0.37, "high": 0.43}
    rows = [{"name": "V", "meaning": "zero-shot", "accuracy": interval}]
    differences = [{"name": "V+S - V", "paired": {"difference": 0.19, "low": 0.17, "high": 0.23}}]
    counts = {"aspects": {"pictures": 1009}, "explanations": {"pictures": 1013}}
    other = [{"name": "V", "meaning": "zero-shot", "accuracy": {"value": 0.47, "low": 0.4, "high": 0.5}}]
    return {
        "command": "python benchmarks/embedded.py RUNS",
        "seeds": [
            {"seed": 0, "table2": {"images": 2003, "rows": rows, "differences": differences}, **counts},
            {"seed": 5, "table2": {"images": 2003, "rows": other, "differences": differences}, **counts},
        ],
        "mean": {
            "accuracy": {"V": 0.44},
            "majority": 0.13,
            "ceiling": 0.71,
            "shifted_accuracy": 0.53,
            "aspect_exact": {"facial_expression": 0.83},
            "aspect_exact_backbone": {"facial_expression": 0.61},
            "object_f1": 0.73,
            "object_f1_backbone": 0.59,
            "cause": 0.67,
            "cause_by_guess": 0.29,
            "pointing": {"scene": 0.97},
        },
        "linear_probe": {"test": 0.89},
    }


def test_the_embedded_result_shows_every_number(tmp_path: Path) -> None:
    (tmp_path / "embedded.json").write_text(json.dumps(made_up()))
    shown = results(tmp_path)
    for number in ("2,003", "0, 5", "44.0 %", "41.0 · 47.0", "[37.0, 43.0]", "13.0 %", "71.0 %", "53.0 %", "+19.0"):
        assert number in shown
    assert "exactly right answer (1,009 images)" in shown
    assert "explanations and the truth (1,013 images)" in shown
    for number in ("83.0 % | 61.0 %", "73.0 % | 59.0 %", "67.0 %", "29.0 %", "97.0 %", "89.0 %"):
        assert number in shown
    assert shown.endswith("[benchmarks/results/embedded.json](../benchmarks/results/embedded.json).")


def test_the_result_of_real_width_shows_time_and_memory(tmp_path: Path) -> None:
    steps = {"train all": {"seconds": 31.7, "peak_gb": 2.31}, "predict": {"seconds": 7.9, "peak_gb": 1.27}}
    backbone = {"parameters": 349_000_000, "dim": 896, "layers": 12, "weights": "random"}
    content = {"command": "python benchmarks/real_width.py W", "backbone": backbone, "steps": steps}
    (tmp_path / "real_width.json").write_text(json.dumps(content))
    shown = results(tmp_path)
    for found in ("349 M", "d = 896", "random", "| train all | 31.7 | 2.3 |", "| predict | 7.9 | 1.3 |"):
        assert found in shown


def test_the_result_of_full_size_shows_the_step_beside_the_whole_command(tmp_path: Path) -> None:
    steps = {"stage 1": {"seconds": 131.7, "peak_gb": 7.31, "inside": 23.0}}
    backbone = {"shape": "a/b", "parameters": 2_347_000_000, "dtype": "bfloat16", "weights_bytes": 4_694_000_000}
    pictures = {"visual_tokens": 61, "read_before_training": 13}
    content = {"command": "c", "backbone": backbone, "pictures": pictures, "machine": {"cores": 3}, "steps": steps}
    (tmp_path / "full_size.json").write_text(json.dumps(content))
    shown = results(tmp_path)
    for found in (
        "a/b",
        "2.35 B",
        "4.4 GiB",
        "3 cores",
        "61 visual",
        "13 images",
        "| stage 1 | 23.0 | 131.7 | 7.3 |",
    ):
        assert found in shown


def test_the_benchmark_shows_ratios_goals_and_the_baseline(tmp_path: Path) -> None:
    machine = {"processor": "Made Up 9", "threads": 2, "dtype": "float32", "gemm_tflops": 0.173, "bandwidth_gb_s": 19.0}
    backbone = {"parameters": 557_000_000, "dim": 896, "layers": 24}
    line = {"visual": 256, "median_s": 0.29, "met": True, "at_least": True, "more": {"share_of_gemm_peak": 0.61}}
    fast = line | {"name": "stage 2, prefix kept", "ratio": 21.37, "goal": 18.0, "meaning": "times faster"}
    dear = line | {"name": "score", "ratio": 1.31, "goal": 1.25, "meaning": "times one pass", "at_least": False}
    dear |= {"met": False, "more": {}}
    plain = line | {"name": "baseline of stage 2", "ratio": None, "goal": None, "met": None, "median_s": 6.43}
    plain |= {"more": {"optimizer_share": 0.083, "vision_share": 0.127}}
    content = {"command": "masp bench --json FILE", "machine": machine, "backbone": backbone, "repeats": 7}
    content |= {"baselines": "batch 1, plainly", "results": [fast, dear, plain]}
    steps = {"of": "visual tokens", "at": 67, "visual": 67, "batch": 3, "seconds": 0.614, "spread": 0.1}
    jobs = {"of": "images", "at": 24, "visual": 67, "batch": 3, "seconds": 57.0, "building_s": 43.2, "epoch_s": 13.8}
    plan = {"name": "stage 2, prefix kept", "visual": 256, "estimated": 0.31, "measured": 0.29, "ratio": 1.069}
    content |= {"growth": [steps, jobs], "plan": [plan | {"unit": "s"}, plan | {"unit": "GB", "ratio": None}]}
    (tmp_path / "bench.json").write_text(json.dumps(content))
    shown = results(tmp_path)
    assert "| stage 2, prefix kept | 256 | 21.37 times faster | ≥ 18 | yes | 61 % |" in shown
    assert "| score | 256 | 1.31 times one pass | ≤ 1.25 | no |  |" in shown
    assert "| baseline of stage 2 | 256 | 6.43 | 8.3 % | 12.7 % |" in shown
    assert gained(tmp_path).endswith("| score | 256 | 1.31 times one pass | ≤ 1.25 | no |")
    assert "| visual tokens | 67 | 67 | 3 | 0.614 |" in shown
    assert "| 24 | 67 | 43.2 | 13.8 |" in shown
    assert "| stage 2, prefix kept | 256 | 0.31 s | 0.29 s | 1.07 |" in shown
    assert "| stage 2, prefix kept | 256 | 0.31 GB | 0.29 GB |  |" in shown
    for word in ("Made Up 9", "float32", "173 GFLOP/s", "19 GB/s", "557 M", "batch 1, plainly", "median of 7"):
        assert word in shown


def test_no_result_is_said_openly(tmp_path: Path) -> None:
    assert results(tmp_path) == gained(tmp_path) == update_readme.NOTHING


def test_no_measured_number_is_written_by_hand() -> None:
    """Percentages with a decimal are results; promises ("at least 90 %") are whole numbers."""
    for document in (README, MEASUREMENTS):
        assert not re.findall(r"\d+\.\d+ ?(?:%|points|examples/s|images/s)", outside(document))


def test_a_part_without_its_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="expected the lines"):
        generated.replaced("# A page without marks", "rooms", update_readme.SCRIPT, "text")


def test_replacing_a_part_keeps_the_rest() -> None:
    begin, end = generated.marks("rooms", "s.py")
    document = f"before\n{begin}\nold\n{end}\nafter"
    assert generated.replaced(document, "rooms", "s.py", "new") == f"before\n{begin}\nnew\n{end}\nafter"


@pytest.mark.parametrize(("full", "gain", "met"), [("61.5", "-2.7", "no"), ("68.3", "+4.1", "yes")])
def test_a_reproduction_says_which_goals_it_missed(tmp_path: Path, full: str, gain: str, met: str) -> None:
    head = ["system", "accuracy, %", "ECE, scaled"]
    rows = [["V", "40.1", "0.2"], ["V+S", "64.2", "0.07"], ["V+A+S", full, "0.031"]]
    note = f"{reproduced_tables.UNLIKE} Lengths: 7."
    tables = [
        {"name": "table1", "title": "Table 1", "head": head, "rows": rows, "notes": ["of no use", note]},
        {"name": "table2", "title": "Table 2", "head": head, "rows": rows},
    ]
    facts = {"images": 1000, "guess": 0.125, "majority": {"value": 0.2}, "ceiling": {"expected": 0.75}}
    content = {"command": "c", "seeds": [0], "datasets": {"scenes": facts}, "tables": tables, "failed": {}}
    (tmp_path / "reproduce.json").write_text(json.dumps(content))
    shown = reproduction(tmp_path)
    assert "| soft prompt over zero-shot | +24.1 points | ≥ +18 | yes |" in shown
    assert f"| aspects on top of the soft prompt | {gain} points | ≥ +3 | {met} |" in shown
    assert f"| MASP, share of the ceiling | {float(full) / 0.75:.0f} % | ≥ 95 % | no |" in shown
    assert "| calibration error of MASP after scaling | 0.031 | ≤ 0.03 | no |" in shown
    assert note in shown
    assert "of no use" not in shown


def test_a_reproduction_is_shown_without_empty_rows(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    assert reproduction(folder) == NOTHING
    folder.mkdir()
    head = ["system", "accuracy, %"]
    rows = [["V", "41.7"], ["zero-shot (another)", "–"]]
    facts = {"images": 1000, "guess": 0.125, "majority": {"value": 0.2}, "ceiling": {"expected": 0.764}}
    content = {
        "command": "masp reproduce all",
        "seeds": [0, 1],
        "datasets": {"scenes": facts},
        "tables": [
            {"name": "table2", "title": "Table 2", "head": head, "rows": rows, "command": "masp reproduce table2"},
            {"name": "figure4", "title": "Figure 4", "head": ["aspect"], "rows": [["scene"]]},
        ],
        "failed": {"a/b/seed0": "no memory"},
    }
    (folder / "reproduce.json").write_text(json.dumps(content))
    for name in ("figure3.png", "figure4.png"):
        (folder / name).write_bytes(b"")
    shown = reproduction(folder)
    assert "1,000 test images of scenes, training seeds 0, 1; a guess 12.5 %, the most frequent label 20.0 %" in shown
    assert "the best that anyone could reach 76.4 %." in shown
    assert "| V | 41.7 |" in shown
    assert "another" not in shown
    assert "(../results/figure4.png)" in shown
    assert "figure3.png" not in shown, "its table is not there, so the image is of another run"
    assert "Failed: a/b/seed0 (no memory)." in shown
    assert "Written by `masp reproduce table2`, `masp reproduce all`; all of it" in shown
