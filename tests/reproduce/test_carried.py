"""Tables of several calls in one folder: each says what wrote it, and only what belongs together stands together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.reproduction import small_config
from masp.evaluation.result import PREDICTIONS, LabelledPrediction, write_predictions
from masp.reproduce import writers as writing
from masp.reproduce.dag import ExperimentResult, plan_cells
from masp.reproduce.render import differences, paired
from masp.reproduce.specs import PLAIN, SOFT, TABLE2, all_specs, load_paper
from masp.reproduce.tables import Results
from masp.reproduce.writers import write_all

PAPER = load_paper()
FACTS = {
    "images": 4,
    "splits": {"test": 4},
    "split_by": "published",
    "majority": {"value": 0.5},
    "guess": 0.5,
}
FIGURES = {"accuracy": {"value": 0.5}, "images": 4}


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than everything else here."""
    monkeypatch.setattr(writing, "_charts", lambda *_: {})


def results(
    out: Path,
    *experiments: str,
    seeds: int = 2,
    changes: tuple[str, ...] = (),
    data: str = "d",
    accuracy: float = 0.5,
    correct: str = "",
) -> Results:
    """Results of cells that nobody ran; `correct` is what all of them say about their answers."""
    config = small_config(out, *experiments, seeds=seeds, changes=changes)
    figures: dict[str, Any] = {**FIGURES, "accuracy": {"value": accuracy}}
    found = {
        cell.name: ExperimentResult(
            cell.name,
            "done",
            FACTS if cell.spec.kind == "data" else figures,
            {"data": data},
            {},
            correct="" if cell.spec.kind == "data" else correct,
            targets_hash="of four images",
        )
        for cell in plan_cells(config, PAPER, all_specs()).cells
        if cell.spec.kind != "parameters"
    }
    return Results(config, PAPER, found, ())


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "reproduce.json").read_text(encoding="utf-8"))


def names(out: Path) -> list[str]:
    return [table["name"] for table in summary(out)["tables"]]


def say(out: Path, cell: str, predicted: str) -> None:
    """What a cell answered to four images whose label is "a"."""
    folder = out / "scratch" / "results" / cell
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(
        folder / PREDICTIONS, [LabelledPrediction(str(n), "a", one, None, None) for n, one in enumerate(predicted)]
    )


def test_each_table_says_which_command_wrote_it(tmp_path: Path) -> None:
    write_all(results(tmp_path, "table3"), "masp reproduce table3")
    write_all(results(tmp_path, "table2"), "masp reproduce table2")
    assert {table["name"]: table["command"] for table in summary(tmp_path)["tables"]} == {
        "table2": "masp reproduce table2",
        "table3": "masp reproduce table3",
    }
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    places = [page.index(f"Written by `masp reproduce {name}`.") for name in ("table2", "table3")]
    assert places[0] < page.index("## Table 3") < places[1]
    write_all(results(tmp_path, "table4"), "masp reproduce table4")
    assert names(tmp_path) == ["table2", "table3", "table4"]
    assert summary(tmp_path)["datasets"]["emoji-scenes"] == FACTS, "Table 4 looks at no data"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"seeds": 1}, "other seeds"),
        ({"changes": ("prompt.learning_rate=0.5",)}, "other settings"),
        ({"data": "e"}, "other data"),
        ({"changes": ("data.longest_side=84",)}, "other questions or image sizes"),
    ],
)
def test_a_table_that_was_made_otherwise_is_left_out(tmp_path: Path, other: dict[str, Any], why: str) -> None:
    write_all(results(tmp_path, "table3", **other), "masp reproduce table3 otherwise")
    write_all(results(tmp_path, "table2"), "masp reproduce table2")
    assert names(tmp_path) == ["table2"]
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"- table3, written by `masp reproduce table3 otherwise`: it was made with {why}." in page


@pytest.mark.parametrize(("learning_rate", "kept"), [("0.02", ["table2", "table3"]), ("0.5", ["table2"])])
def test_tables_of_an_older_summary_count_as_its_one_command(
    tmp_path: Path, learning_rate: str, kept: list[str]
) -> None:
    write_all(
        results(tmp_path, "table3", changes=(f"prompt.learning_rate={learning_rate}",)), "masp reproduce table3 of old"
    )
    content = summary(tmp_path)
    content["tables"] = [
        {key: table[key] for key in ("name", "title", "head", "rows", "notes", "lines")} for table in content["tables"]
    ]
    del content["left_out"]
    (tmp_path / "reproduce.json").write_text(json.dumps(content), encoding="utf-8")
    write_all(results(tmp_path, "table2"), "masp reproduce table2")
    assert names(tmp_path) == kept
    commands = {table["name"]: table["command"] for table in summary(tmp_path)["tables"]}
    assert commands.get("table3", "masp reproduce table3 of old") == "masp reproduce table3 of old"


def test_an_interval_belongs_to_the_mean_of_all_seeds(tmp_path: Path) -> None:
    """V gets none right, V+A one of four with seed 0 and three with seed 1: half of the images on average."""
    found = results(tmp_path, "table2")
    say(tmp_path, "emoji-scenes/V/seed0", "bbbb")
    say(tmp_path, "emoji-scenes/V+A/seed0", "abbb")
    say(tmp_path, "emoji-scenes/V+A/seed1", "aaab")
    one = paired(found, "emoji-scenes", TABLE2[0], TABLE2[1])
    assert [seed.difference for seed in one.each] == [0.25, 0.75]
    assert one.whole.difference == 0.5
    assert one.whole.low <= 0.5 <= one.whole.high
    # gains 2, 1, 1, 0 of two seeds: all signs alike in 2 of 2³ cases
    assert one.whole.p_value == pytest.approx(0.25)
    rendered, _ = differences(found, "table2")
    assert rendered.head[5] == "95 % interval over images, all seeds"
    assert rendered.rows[0][1:5] == ("V+A − V", "+50.0", "35.4", "+25.0 · +75.0")
    assert [line["seed"] for line in rendered.lines] == ["all", 0, 1]


def test_table_1_sets_the_soft_prompt_and_masp_beside_other_systems(tmp_path: Path) -> None:
    found = results(tmp_path, "table1", seeds=1)
    for spec, predicted in {"V": "bbbb", "qlora": "abbb", "V+S": "aabb", "V+A+S": "aaab", "concepts": "aaaa"}.items():
        say(tmp_path, f"emoji-scenes/{spec}/seed0", predicted)
    rendered, _ = differences(found, "table1")
    assert [row[1:3] for row in rendered.rows] == [
        ("V+S − V", "+50.0"),
        ("V+S − qlora", "+25.0"),
        ("V+A+S − V", "+75.0"),
        ("V+A+S − qlora", "+50.0"),
        ("V+A+S − V+S", "+25.0"),
        ("concepts − V+S", "+50.0"),
        ("concepts − V+A+S", "+25.0"),
    ]


def answered_by_all(out: Path) -> None:
    for spec in ("V", "V+A", "V+S", "V+A+rS", "V+A+S"):
        for seed in (0, 1):
            say(out, f"emoji-scenes/{spec}/seed{seed}", "bbbb" if spec == "V" else "abbb")


def test_differences_outlive_the_answers_they_were_made_of(tmp_path: Path) -> None:
    answered_by_all(tmp_path)
    write_all(results(tmp_path, "table2"), "first")
    assert names(tmp_path) == ["table2", "table2-differences"]
    before = summary(tmp_path)["tables"][1]
    assert {row[1]: row[2] for row in before["rows"]}["V+S − V"] == "+25.0"
    shutil.rmtree(tmp_path / "scratch")
    write_all(results(tmp_path, "table2"), "second")
    after = summary(tmp_path)["tables"][1]
    assert {**after, "command": "first"} == before
    content = summary(tmp_path)
    del content["tables"][1]["cells"]["emoji-scenes/V+S/seed1"]
    (tmp_path / "reproduce.json").write_text(json.dumps(content), encoding="utf-8")
    write_all(results(tmp_path, "table2"), "third")
    first, table = summary(tmp_path)["tables"]
    assert table["rows"] == [row for row in before["rows"] if "V+S " not in f"{row[1]} "]
    assert {(line["system"], line["minus"]) for line in table["lines"]} == {
        (spec, "V") for spec in ("V+A", "V+A+rS", "V+A+S")
    }
    assert "Paired differences leave out V, V+A+S, V+A+rS, V+S: which images" in first["notes"][-1]


@pytest.mark.parametrize("other", [{"seeds": 1}, {"seeds": 3}, {"accuracy": 0.25}])
def test_old_differences_are_dropped_where_their_seeds_or_cells_are_others(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    answered_by_all(tmp_path)
    write_all(results(tmp_path, "table2"), "first")
    shutil.rmtree(tmp_path / "scratch")
    write_all(results(tmp_path, "table2", **other), "second")
    (table,) = summary(tmp_path)["tables"]
    assert "Paired differences leave out V, V+A, V+A+S, V+A+rS, V+S: which images" in table["notes"][-1]


def test_old_rows_stand_beside_new_ones(tmp_path: Path) -> None:
    """Two systems were run again; the answers of the others are gone, and what is known of them stays."""
    answered_by_all(tmp_path)
    write_all(results(tmp_path, "table2"), "first")
    before = {row[1]: row for row in summary(tmp_path)["tables"][1]["rows"]}
    shutil.rmtree(tmp_path / "scratch")
    for spec in ("V", "V+S"):
        for seed in (0, 1):
            say(tmp_path, f"emoji-scenes/{spec}/seed{seed}", "bbbb" if spec == "V" else "aaaa")
    write_all(results(tmp_path, "table2"), "second")
    after = {row[1]: row for row in summary(tmp_path)["tables"][1]["rows"]}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"V+S − V"}
    assert after["V+S − V"][2] == "+100.0"


def test_a_seed_without_answers_leaves_its_row_out(tmp_path: Path) -> None:
    answered_by_all(tmp_path)
    shutil.rmtree(tmp_path / "scratch" / "results" / "emoji-scenes" / "V+S" / "seed1")
    write_all(results(tmp_path, "table2"), "first")
    first, table = summary(tmp_path)["tables"]
    assert [row[1] for row in table["rows"]] == ["V+A − V", "V+A+rS − V", "V+A+S − V"]
    assert "Paired differences leave out V+S: which images" in first["notes"][-1]
    write_all(results(tmp_path, "table2"), "second")
    again, after = summary(tmp_path)["tables"]
    assert (again["notes"], after["rows"]) == (first["notes"], table["rows"]), "an earlier table that left it out"


def test_differences_are_made_of_what_each_cell_says_about_its_answers(tmp_path: Path) -> None:
    found = results(tmp_path, "table2", seeds=1, correct="0011")
    better = replace(found.outcomes["emoji-scenes/V+S/seed0"], correct="0111")
    found = replace(found, outcomes={**found.outcomes, better.cell: better})
    write_all(found, "without a work folder")
    rows = {row[1]: row[2] for row in summary(tmp_path)["tables"][1]["rows"]}
    assert rows == {
        "V+A − V": "+0.0",
        "V+A+rS − V": "+0.0",
        "V+S − V": "+25.0",
        "V+A+S − V": "+0.0",
        "V+A+rS − V+S": "-25.0",
        "V+A+S − V+S": "-25.0",
    }
    others = replace(better, targets_hash="of other images")
    assert paired(replace(found, outcomes={**found.outcomes, others.cell: others}), "emoji-scenes", PLAIN, SOFT) is None
