"""The page that compares systems: it stands alone, tells what it was given, and says what it does not know."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from fixtures.pages import LOADING, Page
from fixtures.results import answer, answers, result
from masp.core.errors import UsageError
from masp.evaluation.compute_metrics import ResultContext, measured
from masp.evaluation.metrics import BootstrapSamples, Interval
from masp.evaluation.result import Distribution, Evaluation, LabelledPrediction
from masp.report.comparison import comparison
from masp.report.error_analysis import ErrorPageOptions
from masp.report.load_results import ResultSource, Rows
from masp.report.schema import Ablation, AblationRow

HOSTILE = '<script>alert(1)</script>"\' onload="x'
WEAK, STRONG = answers("jjffffaj"), answers("jjjjffaf")


def sources(*found: Evaluation) -> list[ResultSource]:
    return [ResultSource("", f"runs/{number}", one) for number, one in enumerate(found)]


def page(*found: Evaluation, tables=(), title=None, **asked) -> Page:
    return Page(comparison(sources(*found), tables, ErrorPageOptions(**asked), title))


def distributed(system: str) -> Evaluation:
    share = Interval(0.643, 0.6, 0.7)
    found = Distribution(8, Interval(0.417, 0.4, 0.5), Interval(0.113, 0.1, 0.2), share)
    return replace(result(system, STRONG, temperature=True), distribution=found)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for one in STRONG:
        (folder / one.truth).mkdir(exist_ok=True)
        Image.effect_noise((90, 60), 90).convert("RGB").save(folder / one.image)
    return folder


@pytest.fixture(scope="module")
def html(data: Path) -> str:
    seeds = [result("seeded", said, provenance={"seed": n}) for n, said in enumerate((WEAK, STRONG))]
    bare = result("bare", answers("jjffffa-", None), mode="generate")
    rows = Ablation((AblationRow("V", "alone", Interval(0.413, 0.4, 0.43)),), 2003, majority=0.2)
    found = sources(result("weak", WEAK), distributed("strong"), *seeds, bare)
    return comparison(found, [Rows("table2.json", rows, {"seed": 1})], ErrorPageOptions(data=data))


@pytest.fixture(scope="module")
def whole(html: str) -> Page:
    return Page(html)


# --- it stands alone -----------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(whole: Page, html: str):
    addresses = [value for _, attributes in whole.tags for name, value in attributes.items() if name in LOADING]
    assert len(addresses) > 8
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[\w+/=]+", "", html))
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in whole.tags}
    (policy,) = (meta["content"] for meta in whole.of("meta") if "content-security-policy" in str(meta).lower())
    assert policy.startswith("default-src 'none'")


def test_references_lead_somewhere_and_ids_are_unique(whole: Page):
    ids = [attributes["id"] for _, attributes in whole.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for a in whole.of("a")}
    assert {"t1-systems", "t1-coverage", "t1-mistakes", "rows1", "not", "provenance"} <= targets <= set(ids)


def test_a_reader_without_eyes_finds_the_way(html: str, whole: Page):
    levels = [int(tag[1]) for tag, _ in whole.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attributes for attributes in whole.of("th"))
    assert html.count("<table") == html.count("<caption>")
    assert all(attributes["alt"] for attributes in whole.of("img"))
    drawn = [name for name, attributes in whole.tags if attributes.get("role") == "img" and attributes["aria-label"]]
    assert len(drawn) >= 5


def contrast(first: str, second: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_both_themes(html: str):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)][:2]
    assert len(themes) == 2
    for theme in themes:
        for name in ("ink", "muted", "accent", "against"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, name
        for name in ("blue", "violet", "olive"):
            assert contrast(theme[name], theme["paper"]) >= 3, name


# --- it tells what it was given ------------------------------------------------------------------------------------


def row(found: Page, first: str) -> list[str]:
    return next(cells for cells in found.rows if cells and cells[0].startswith(first))


def test_the_table_holds_every_system(whole: Page):
    assert row(whole, "System") == [
        *("System", "Images", "Accuracy, %", "Macro F1, %", "Top 2, %"),
        *("NLL", "Brier", "ECE, %", "ECE after, %", "Unparsed"),
    ]
    weak = row(whole, "weak")
    assert weak[1] == "8"
    assert weak[2].startswith("62.5")
    assert weak[8] == "–not known"
    assert row(whole, "strong")[2].startswith("87.5")
    assert row(whole, "seeded2 seeds (0, 1)")[2].startswith("75.0± 17.7")
    bare = row(whole, "bareanswers in free text")
    assert (bare[2][:4], bare[4:9], bare[9]) == ("62.5", 5 * ["–not known"], "1")
    assert row(whole, "majority")[2] == "50.0"
    assert "87.5 %" in whole.text


def test_scores_are_those_of_the_probabilities():
    sure = [answer(0, "joy", 0.9), answer(4, "joy", 0.6)]  # one right, one wrong with 0.2 for each other label
    found = page(result("one", sure))
    cells = row(found, "one")
    nll = (0.10536 + 1.60944) / 2
    brier = ((0.1**2 + 2 * 0.05**2) + (0.6**2 + 0.8**2 + 0.2**2)) / 2
    assert (cells[5][:5], cells[6][:5]) == (f"{nll:.3f}", f"{brier:.3f}")


def test_the_others_are_held_against_the_first(whole: Page):
    pair = next(cells for cells in whole.rows if cells[0] == "strong" and len(cells) == 5)
    assert pair[1].startswith("+25.0")
    assert pair[2:] == ["0.500", "2against 0", "8"]
    seeds = next(cells for cells in whole.rows if cells[0] == "seeded" and len(cells) == 5)
    assert (seeds[2], seeds[3], seeds[1][:5]) == ("–", "–", "+12.5")


def test_confusion_is_in_per_cent_of_the_row(whole: Page):
    found = page(result("weak", WEAK))
    assert ["joy", "50", "50", "·", "4", "66.7", "50.0"] in found.rows  # called joy: 2 rightly, 1 wrongly
    titles = [attributes["title"] for attributes in found.of("td") if "title" in attributes]
    assert titles[:3] == ["joy, called joy: 2 of 4", "joy, called fear: 2 of 4", "joy, called awe: 0 of 4"]
    assert "none of them" in whole.text


def test_declining_the_unsure_ones():
    sure = tuple(0.95 - number / 50 for number in range(8))
    found = page(result("one", answers("jjjjffjj", sure)))  # the two least sure are wrong
    (cells,) = (cells for cells in found.rows if cells[0] == "one" and len(cells) == 8)
    assert cells[1:4] == ["25.0", "16.4", "0.0"]  # at 90 % a fifth of the way from 1 of 7 to 2 of 8


def test_table_2_among_the_inputs(whole: Page):
    assert ["Valone", "41.3", "40.0 – 43.0"] in whole.rows
    assert "2\u202f003 test images" in whole.text


def test_where_everything_came_from(whole: Page):
    for text in ("runs/0", "weak on made, split test, 8 images", "table2.json"):
        assert text in whole.text
    assert ["data fingerprint", "f"] in whole.rows


def test_no_place_on_this_machine_is_told():
    found = comparison([ResultSource("", "/some/one/runs/a", result("weak", WEAK))], [], ErrorPageOptions())
    assert "runs/a" in found
    assert "/some/one" not in found


def test_several_data_sets_stand_apart():
    found = page(result("a", WEAK), result("b", STRONG, dataset="other"), against="first")
    headings = found.text
    assert "All systems: made, split test" in headings
    assert "All systems: other, split test" in headings
    assert not [cells for cells in found.rows if cells[0] == "b" and len(cells) == 5]


# --- mistakes ------------------------------------------------------------------------------------------------------


def test_the_surest_mistake_comes_first():
    shown = page(result("weak", WEAK), result("strong", STRONG), of="weak", mistakes=2)
    assert "Of the 3 wrong answers of weak among 8 images, the 2 that it was surest of." in shown.text
    first, second = re.findall(r"(joy/\d\.png|awe/\d\.png)", shown.text)[:2]
    assert (first, second) == ("joy/2.png", "joy/3.png")  # 0.7, and 0.6 before another 0.6
    assert "strong: joy" in shown.text


def test_missing_parts_are_said():
    text = page(result("bare", answers("jjffffa-", None), mode="generate")).text
    assert "bare: no probabilities in this file, so there is no reliability diagram" in text
    assert "it gave no probabilities, so nobody knows what it was surest of" in text
    assert "No data set was named (--data DIR)" in text
    assert "No adapter was named (--adapter DIR)" in text
    assert "What if it may decline?" not in text
    assert "no temperature was fitted" in page(result("weak", WEAK)).text


def test_a_result_without_predictions_is_shown_as_far_as_it_goes():
    found = page(replace(result("weak", WEAK), answers=()), result("strong", STRONG))
    assert "no image in common: nothing to compare" in found.text
    assert "weak: no predictions lie beside this result" in page(replace(result("weak", WEAK), answers=())).text


def test_pictures_outside_the_data_set_are_not_read(data: Path, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (data / "link.png").unlink(missing_ok=True)
    (data / "link.png").symlink_to(tmp_path / "secret.png")
    for name in (f"../{tmp_path.name}/secret.png", str(tmp_path / "secret.png"), "link.png", "nowhere.png", "a\0b"):
        wrong = LabelledPrediction(name, "joy", "fear", WEAK[0].log_probabilities)
        found = page(result("one", [wrong]), data=data)
        assert not found.of("img"), name
        assert "The data set has no such image." in found.text


def test_a_damaged_picture_is_said(tmp_path: Path):
    (tmp_path / "joy").mkdir()
    (tmp_path / "joy" / "2.png").write_bytes(b"no image")
    assert "could not be read when this page was written" in page(result("weak", WEAK), data=tmp_path, mistakes=1).text


# --- it cannot be broken by what it shows, or misused --------------------------------------------------------------


def test_names_are_escaped_everywhere():
    labels = (HOSTILE, "b", "c")
    wrong = LabelledPrediction(HOSTILE + ".png", HOSTILE, None, None, HOSTILE)
    right = LabelledPrediction("b.png", "b", HOSTILE, None, HOSTILE)
    about = ResultContext(HOSTILE, HOSTILE, HOSTILE, "generate", labels, {HOSTILE: {HOSTILE: HOSTILE}, "seed": HOSTILE})
    found = measured(about, [wrong, right], samples=BootstrapSamples(5, 0))
    rows = Ablation((AblationRow(HOSTILE, HOSTILE, Interval(0.4, 0.3, 0.5)),), 3)
    tables = [Rows(HOSTILE, rows, {HOSTILE: HOSTILE})]
    html = comparison(
        [ResultSource(HOSTILE, HOSTILE, found), ResultSource("x", "y", found)], tables, ErrorPageOptions()
    )
    shown = Page(html)
    assert "script" not in {tag for tag, _ in shown.tags}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert shown.text.count("<script>alert(1)</script>") >= 20


def test_names_that_nobody_has_are_refused():
    with pytest.raises(UsageError, match="no system of made is called 'b'"):
        page(result("a", WEAK), against="b")
    with pytest.raises(UsageError, match="no system of made is called 'b'"):
        page(result("a", WEAK), of="b")
    with pytest.raises(UsageError, match="no result was named"):
        page()
