"""The numbers of the paper are those it prints."""

import pytest

from masp.reproduce.runner import paper_parameters
from masp.reproduce.specs import load_paper, zero_shot_row

PAPER = load_paper()


def test_tables_read_as_they_are_printed() -> None:
    first = PAPER.tables["table1"]
    assert first.number("MASP", "EmoSet") == 83.21
    assert first.number("MASP", "ArtPhoto") == 53.09
    assert first.number("Qwen2-VL-7B", "Abstract") == 17.39
    assert first.number("SEPM", "FI") is None
    assert first.number("EmoVIT", "Abstract") == 32.34
    assert first.number("MASP", "another data set") is None
    assert PAPER.tables["table2"].rows["V+A+rS"] == (41.47, 40.07)
    assert PAPER.tables["table3"].rows["128"] == (79.37, 71.88, 42.59)
    assert PAPER.tables["figure3"].number("brightness", "Abstract") == 39.13


def test_numbers_that_the_paper_prints_twice_agree() -> None:
    """V of Table 2 is Qwen2-VL-7B of Table 1; V+A+S is MASP, is length 32 of Table 3, is the end of Figure 3."""
    tables = PAPER.tables
    for dataset in ("FI", "Emotion6"):
        assert tables["table2"].number("V", dataset) == tables["table1"].number("Qwen2-VL-7B", dataset)
        assert tables["table2"].number("V+A+S", dataset) == tables["table1"].number("MASP", dataset)
        assert tables["table3"].number("32", dataset) == tables["table1"].number("MASP", dataset)
        assert tables["figure3"].number("MASP", dataset) == tables["table1"].number("MASP", dataset)
    assert tables["table3"].number("32", "ArtPhoto") == tables["table1"].number("MASP", "ArtPhoto")
    assert tables["figure3"].number("zero-shot", "Abstract") == tables["table1"].number("Qwen2-VL-7B", "Abstract")


def test_table_1_has_every_number() -> None:
    """Sums of the columns, added up from the printed table."""
    rows = PAPER.tables["table1"].rows
    sums = [sum(row[column] or 0 for row in rows.values()) for column in range(7)]
    assert sums == pytest.approx([608.24, 572.28, 571.95, 614.80, 655.64, 193.19, 346.14])


def test_table_4_follows_from_the_widths() -> None:
    """28 blocks, rank 8: query 3584 → 3584, value 3584 → 512; 32 vectors of 3584."""
    counted = paper_parameters()
    assert counted["lora"] == 28 * 8 * (3584 + 3584 + 3584 + 512)
    assert counted["lora"] == PAPER.parameters["Instruction tuning"]
    assert counted["prompt"] == PAPER.parameters["Soft prompt tuning"]
    assert counted["aspects paper"] == 6 * (3584 + 2 * 3584**2)


def test_a_backbone_finds_its_row() -> None:
    assert zero_shot_row("Qwen/Qwen2-VL-7B-Instruct") == "Qwen2-VL-7B"
    assert zero_shot_row("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen2.5-VL-7B"
    assert zero_shot_row("llava-hf/llava-v1.6-mistral-7b-hf") == "LLaVA-Next"
    assert zero_shot_row("embedded") is None
    assert zero_shot_row("Qwen/Qwen2-VL-2B-Instruct") is None
