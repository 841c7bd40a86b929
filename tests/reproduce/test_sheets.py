"""Tables as text: hand-computed numbers, every cell in its column, LaTeX that closes what it opens."""

import csv
import io

import pytest

from masp.reproduce.sheets import Sheet, comma_separated, escaped, latex, markdown, sheet_of
from masp.reproduce.tables import ResultTable, TableCell, TableRow


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
    assert interval is not None
    # Wilson for 60 of 100: centre (60 + 1.9207) / 103.8415, half 1.96 · sqrt(24 + 0.9604) / 103.8415
    assert (interval.low, interval.high) == pytest.approx((0.5020, 0.6906), abs=1e-4)
    assert TableCell((0.5,), 100).spread is None
    assert TableCell(paper=3.0).over_seeds is None
    assert TableCell(paper=3.0).interval is None
    assert TableCell(paper=3.0).difference is None


def test_one_data_set_has_a_column_for_each_figure() -> None:
    text = markdown(sheet_of(table("Emotion6")))
    assert (
        "| V+A+S | all & everything | 60.0 | 10.0 | 50.0 · 60.0 · 70.0 | [50.2, 69.1] | 0.021 | 74.75 | −14.8 |" in text
    )
    assert "| EmoVIT_2 |  | – |  |  |  |  | 57.81 | – |" in text
    assert "- A note.\n- Not run: EmoVIT_2 (no data at ROOT/FI)." in text


def test_several_data_sets_have_a_column_each() -> None:
    sheet = sheet_of(table("FI", "Emotion6"))
    assert sheet.head == ("system", "FI", "Emotion6")
    assert sheet.rows[0][1] == "60.0 ± 10.0 [50.2, 69.1]; paper 74.75 (−14.8)"
    assert sheet.rows[1][2] == "–; paper 57.81"
    assert "EmoVIT_2 on FI, EmoVIT_2 on Emotion6" in sheet.notes[-1]


def test_csv_holds_what_is_not_rounded() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(sheet_of(table("FI", "Emotion6"))))))
    assert len(rows) == 4
    assert rows[0]["accuracy"] == "60.0"
    assert rows[0]["difference"] == "-14.75"
    assert (rows[2]["accuracy"], rows[2]["paper"], rows[2]["reason"]) == ("", "57.81", "no data at ROOT/FI")
    plain = Sheet("a", "A", ("x", "y"), (("1", "2"),))
    assert comma_separated(plain) == "x,y\n1,2\n"


@pytest.mark.parametrize("datasets", [("Emotion6",), ("FI", "Emotion6")])
def test_latex_is_balanced(datasets: tuple[str, ...]) -> None:
    sheet = sheet_of(table(*datasets))
    text = latex(sheet)
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(sheet.rows)
    for line in lines:
        assert line.replace(r"\&", "").count("&") == len(sheet.head) - 1
        assert line.count("$") % 2 == 0
    assert r"EmoVIT\_2" in text
    assert text.isascii() or set(filter(lambda sign: not sign.isascii(), text)) <= {"–", "·"}


def test_signs_that_latex_reads_are_escaped() -> None:
    assert escaped("50 % & a_b {c} #1 $2") == r"50 \% \& a\_b \{c\} \#1 \$2"
    assert escaped("1 ± 2 − 3") == r"1 $\pm$ 2 $-$ 3"
