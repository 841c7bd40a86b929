"""The benchmarks without released weights: their checkpoints are real ones, and the full-size script runs through."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import annotations
import defaults
import embedded
import engines
import full_size
import out_of_domain
import pytest
import real_width
import torch
from random_backbone import timed, write_checkpoint
from safetensors.torch import load_file

import result_tables
from fixtures import tiny
from masp.backbones.known_models import Description, describe
from masp.backbones.loading import load_backbone
from masp.backbones.model_stats import count
from masp.core.config import load_config
from masp.predictor import Masp

ROOT = Path(__file__).resolve().parents[1]


def test_the_shapes_are_what_their_results_say():
    """2,208,985,600 is the published size of Qwen2-VL-2B; the other stands in the committed result."""
    assert count(Description("2B", "folder", full_size.full(), None)).total == 2_208_985_600
    committed = json.loads((ROOT / "benchmarks" / "results" / "real_width.json").read_text())
    found = count(Description("width", "folder", real_width.shape(), None))
    assert (found.total, found.dim, found.layers) == (committed["backbone"]["parameters"], 896, 12)


def test_a_random_checkpoint_is_an_ordinary_one(tmp_path):
    total = write_checkpoint(tmp_path, full_size.tiny(), pixels=full_size.SIDE**2, shard=60_000)
    weights = sorted(tmp_path.glob("*.safetensors"))
    assert len(weights) > 2
    stored = {name: tensor for path in weights for name, tensor in load_file(path).items()}
    assert sum(tensor.numel() for tensor in stored.values()) == total == count(describe(str(tmp_path))).total
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    backbone = load_backbone(str(tmp_path), dtype="bfloat16", device="cpu")
    assert torch.equal(backbone.embedding_rows(), stored["model.language_model.embed_tokens.weight"])
    assert backbone.embedding_rows().float().std().item() == pytest.approx(0.02, rel=0.05)
    visual = backbone.visual_tokens(backbone.preprocess([tiny.picture(90, 90), tiny.picture(500, 500)]))
    assert visual.mask.sum(1).tolist() == [64, 64]
    assert torch.isfinite(visual.tokens.float()).all()


def test_the_adapter_of_photographs_is_learned_as_its_figures_were():
    """Both are scripts, so each says its settings."""
    files = ("scripts/photo/adapter.py", "benchmarks/photographs.py")
    script, bench = (runpy.run_path(str(ROOT / file)) for file in files)
    for name in ("SETTINGS", "VALIDATION"):
        assert script[name] == bench[name]


def test_a_timed_command_gives_its_lines_and_memory():
    done = timed("--version")
    assert [line.split()[0] for _, line in done.lines] == ["masp"]
    assert 0 < done.lines[0][0] <= done.seconds
    assert 0.005 < done.peak_gb < 5
    with pytest.raises(SystemExit, match="masp predict nowhere --adapter nothing failed"):
        timed("predict", "nowhere", "--adapter", "nothing")


@pytest.mark.slow
def test_the_full_size_script_runs_through(tmp_path):
    script = str(ROOT / "benchmarks" / "full_size.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, script, str(tmp_path), "--shape", "tiny"], check=True, env=environment)
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["pictures"] == {"side": 224, "visual_tokens": 64, "read_before_training": 7}
    assert len(found["steps"]) == 3
    for step in found["steps"].values():
        assert 0 <= step["inside"] <= step["seconds"]
        assert step["peak_gb"] > 0.1


def test_the_annotations_benchmark_counts_what_it_wrote(tmp_path, monkeypatch, capsys):
    out = tmp_path / "annotations.json"
    monkeypatch.setattr(sys, "argv", ["annotations.py", "--files", "40", "--out", str(out)])
    annotations.main()
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["files"], found["errors"], found["goal_s"]) == (40, 0, 60.0)
    assert found["seconds"] == pytest.approx(found["reading_s"] + found["checking_s"], abs=0.002)
    assert found["command"] == "python benchmarks/annotations.py --files 40"
    assert "| yes |" in result_tables.annotations(found)
    assert "| no |" in result_tables.annotations(found | {"seconds": 60.1})


def of_seed(folder: Path, seed: int, accuracy: float, fingerprint: str = "") -> Path:
    """The committed result with one training seed, another accuracy of V+A+S and perhaps another backbone."""
    content = json.loads((ROOT / "benchmarks" / "results" / "embedded.json").read_text())
    one = content["seeds"][0] | {"seed": seed}
    next(row for row in one["table2"]["rows"] if row["name"] == "V+A+S")["accuracy"]["value"] = accuracy
    one["provenance"]["backbone"]["fingerprint"] += fingerprint
    file = folder / f"{seed}{fingerprint}.json"
    file.write_text(json.dumps(content | {"seeds": [one]}))
    return file


@pytest.mark.parametrize("other", [(0, 0.5, ""), (1, 0.5, "0")])
def test_what_does_not_belong_together_is_not_joined(tmp_path, other):
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit, match="do not go together"):
        embedded.join([of_seed(tmp_path, 0, 0.5), of_seed(tmp_path / "other", *other)], tmp_path / "all.json")
    assert not (tmp_path / "all.json").exists()


def swept(**accuracies: float) -> list[dict[str, object]]:
    """Cells of a sweep in two sizes and with two seeds, which do not differ."""
    return [
        {"images": size, "row": row, "seed": seed, "accuracy": value, "expected": value / 2, "settings": {}}
        for row, value in accuracies.items()
        for size in defaults.SIZES
        for seed in (0, 1)
    ]


def test_the_sweep_says_how_far_the_defaults_are_behind_the_best_row():
    cells = swept(**{"defaults": 0.5, "rate / 3": 0.25, "rate × 3": 0.75})
    content = defaults.result(cells, defaults.FINAL, "")
    behind = content["behind_best"]["V+S"]
    assert behind == {str(size): {"accuracy": 0.25, "expected": 0.125} for size in defaults.SIZES}
    assert [row[0] for row in content["table"]["rows"]] == ["defaults", "rate / 3", "rate × 3"]
    both = defaults.result([*cells, *swept(**{"V+A+S, defaults": 0.5, "V+A+S, rate / 3": 0.625})], defaults.FINAL, "")
    assert both["behind_best"]["V+S"] == behind
    assert {one["accuracy"] for one in both["behind_best"]["V+A+S"].values()} == {0.125}
    unfinished = defaults.result(cells[:-1], defaults.FINAL, "")  # a seed is missing in the last row
    assert [row[0] for row in unfinished["table"]["rows"]] == ["defaults", "rate / 3"]
    assert all(one["accuracy"] == 0 for one in unfinished["behind_best"]["V+S"].values())


def test_every_row_of_the_sweep_is_a_setting_of_stage_2_and_differs_from_the_defaults():
    plain = load_config().prompt
    for row, changes in defaults.ROWS.items():
        found = load_config(None, [f"prompt.{change}" for change in changes]).prompt
        assert (found == plain) == row.endswith(defaults.DEFAULTS), row


def test_engines_agree_by_label_and_by_every_log_probability():
    ours = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]]).log()
    assert engines.compared(ours, ours.clone()) == {"same_label": 2, "largest_difference": 0.0, "met": True}
    near, far = ours.clone(), ours.clone()
    near[0, 0] += 5e-5
    far[0, 0] += 2e-4  # the same label, and not the same number
    assert engines.compared(ours, near)["met"]
    assert not engines.compared(ours, far)["met"]
    other = engines.compared(ours, ours[:, [0, 2, 1]])
    assert (other["same_label"], other["met"]) == (1, False)


def test_what_is_compared_with_an_engine_is_what_masp_says(tmp_path):
    """The embedded labels are one token each, so their first tokens' probabilities are those of `Masp.predict`."""
    masp = Masp.from_pretrained(backbone="embedded", labels=["joy", "fear"], dtype="float32", device="cpu")
    file = tmp_path / "one.png"
    tiny.picture(168, 168).save(file)
    (own,) = masp.predict([file], explain=False)
    (row,) = engines.reference(masp, [file]).exp().tolist()
    assert row == pytest.approx([own.probabilities[label] for label in masp.labels], abs=2e-3)


def test_the_committed_figures_of_the_detector_meet_their_goals():
    """Of the detector that ships: an image of noise is marked by it, and a scene is not."""
    committed = json.loads((ROOT / "benchmarks" / "results" / "out_of_domain.json").read_text())
    for dtype in out_of_domain.FORMATS:
        caught, scenes = committed["photographs_caught"], committed["scenes_marked"]["emoji_scenes"]
        assert caught["images"] >= 1500
        assert caught[dtype]["value"] >= committed["goals"]["photographs_caught"] == 0.99
        assert scenes[dtype]["value"] <= committed["goals"]["emoji_scenes_marked"] == 0.01
    backbone = load_backbone("embedded", dtype="float32", device="cpu")
    scene = next(out_of_domain.drawn("test", 1, lambda image: image))
    assert out_of_domain.outside([backbone], [out_of_domain.odd_images()["noise"], scene]) == [(True,), (False,)]
