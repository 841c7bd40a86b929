"""Tables as text: hand-computed numbers, every cell in its column, LaTeX that closes what it opens."""

import csv
import io

import pytest
from matplotlib.figure import Figure

from masp.reproduce.render import RenderedTable, comma_separated, escaped, latex, markdown, render_table
from masp.reproduce.runner import paper_parameters
from masp.reproduce.specs import load_paper, zero_shot_row
from masp.reproduce.tables import ResultTable, TableCell, TableRow
from masp.reproduce.writers import bar_chart


def table(*datasets: str) -> ResultTable:
    measured = TableCell((0.5, 0.6, 0.7), 100, 74.75, calibration=0.0211)
    missing = TableCell(paper=57.81, reason="no data at ROOT/FI")
    rows = (
        TableRow("V+A+S", "all & everything", "V+A+S", dict.fromkeys(datasets, measured)),
        TableRow("EmoVIT_2", "", "EmoVIT", dict.fromkeys(datasets, missing)),
    )
    return ResultTable("table1", "Accuracy, 100 %", datasets, rows, {}, ("A note.",))


def test_mean_spread_interval_and_difference() -> None:
    entry = TableCell((0.5, 0.6, 0.7), 100, 74.75)
    assert entry.mean == pytest.approx(0.6)
    assert entry.spread == pytest.approx(0.1)
    assert entry.difference == pytest.approx(-14.75)
    interval = entry.interval
    # Wilson for 60 of 100: centre (60 + 1.9207) / 103.8415, half 1.96 · sqrt(24 + 0.9604) / 103.8415
    assert (interval.low, interval.high) == pytest.approx((0.5020, 0.6906), abs=1e-4)
    assert TableCell((0.5,), 100).spread is None
    assert TableCell(paper=3.0).over_seeds is None
    assert TableCell(paper=3.0).interval is None
    assert TableCell(paper=3.0).difference is None


def test_one_data_set_has_a_column_for_each_figure() -> None:
    text = markdown(render_table(table("Emotion6")))
    assert (
        "| V+A+S | all & everything | 60.0 | 10.0 | 50.0 · 60.0 · 70.0 | [50.2, 69.1] | 0.021 | 74.75 | −14.8 |" in text
    )
    assert "| EmoVIT_2 |  | – |  |  |  |  | 57.81 | – |" in text
    assert "- A note.\n- Not run: EmoVIT_2 (no data at ROOT/FI)." in text


def test_several_data_sets_have_a_column_each() -> None:
    rendered = render_table(table("FI", "Emotion6"))
    assert rendered.head == ("system", "FI", "Emotion6")
    assert rendered.rows[0][1] == "60.0 ± 10.0 [50.2, 69.1]; paper 74.75 (−14.8)"
    assert rendered.rows[1][2] == "–; paper 57.81"
    assert "EmoVIT_2 on FI, EmoVIT_2 on Emotion6" in rendered.notes[-1]


def test_the_axis_of_a_chart_names_the_marks_that_are_drawn() -> None:
    def label(cell: TableCell, paper: bool) -> str:
        rows = (TableRow("V+S", "", "V+S", {"FI": cell}),)
        axes = Figure().add_subplot()
        bar_chart(ResultTable("table2", "", ("FI",), rows, {}, ()), "FI", {"guess": 0.125}, paper).draw(axes)
        return axes.get_xlabel()

    assert label(TableCell((0.5,), 100, 74.75), paper=False) == "accuracy, %; lines: 95 % intervals"
    assert label(TableCell((0.5, 0.6), 100), paper=True).endswith("intervals; dots: seeds")
    assert label(TableCell((0.5, 0.6), 100, 74.75), paper=True).endswith("dots: seeds; diamonds: the paper")


def test_csv_holds_what_is_not_rounded() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(render_table(table("FI", "Emotion6"))))))
    assert len(rows) == 4
    assert rows[0]["accuracy"] == "60.0"
    assert rows[0]["difference"] == "-14.75"
    assert (rows[2]["accuracy"], rows[2]["paper"], rows[2]["reason"]) == ("", "57.81", "no data at ROOT/FI")
    plain = RenderedTable("a", "A", ("x", "y"), (("1", "2"),))
    assert comma_separated(plain) == "x,y\n1,2\n"


@pytest.mark.parametrize("datasets", [("Emotion6",), ("FI", "Emotion6")])
def test_latex_is_balanced(datasets: tuple[str, ...]) -> None:
    rendered = render_table(table(*datasets))
    text = latex(rendered)
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(rendered.rows)
    for line in lines:
        assert line.replace(r"\&", "").count("&") == len(rendered.head) - 1
        assert line.count("$") % 2 == 0
    assert r"EmoVIT\_2" in text
    assert text.isascii() or set(filter(lambda sign: not sign.isascii(), text)) <= {"–", "·"}


def test_signs_that_latex_reads_are_escaped() -> None:
    assert escaped("50 % & a_b {c} #1 $2") == r"50 \% \& a\_b \{c\} \#1 \$2"
    assert escaped("1 ± 2 − 3") == r"1 $\pm$ 2 $-$ 3"


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
