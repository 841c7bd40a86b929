"""The page: it stands alone, tells the numbers it was given, and cannot be broken by what it shows."""

import base64
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fixtures import pages as made_up
from fixtures.pages import LOADING, Page
from masp.core.aspects import ASPECTS
from masp.core.errors import MaspError
from masp.model.explain import AspectReading, PromptAttention
from masp.predictor import Prediction
from masp.report import render, sample_of, verdict, write_report
from masp.report.html import WholeView, sample_view
from masp.report.schema import (
    AspectScore,
    AspectSight,
    Confusion,
    ReportData,
    Sample,
    width,
)

HOSTILE = '<script>alert(1)</script>"\' onload="x'


@pytest.fixture(scope="module")
def html() -> str:
    return render(made_up.study())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# --- it stands alone -----------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(page: Page, html: str) -> None:
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in LOADING]
    assert len(addresses) > 20
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[\w+/=]+", "", html))
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}


def test_a_policy_forbids_loading(page: Page) -> None:
    (policy,) = (meta["content"] for meta in page.of("meta") if "content-security-policy" in str(meta).lower())
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy


def test_references_inside_the_page_lead_somewhere(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, a in page.tags for name, value in a.items() if name == "href" and value[0] == "#"}
    assert len(targets) > 8
    assert targets <= set(ids)


# --- it tells what it was given ------------------------------------------------------------------------------------


def test_table_2_holds_the_numbers(page: Page) -> None:
    for row in made_up.ablation().rows:
        (cells,) = (cells for cells in page.rows if cells[0] == f"{row.name}{row.meaning}")
        low, value, high = (f"{100 * x:.1f}" for x in (row.accuracy.low, row.accuracy.value, row.accuracy.high))
        assert cells[1:] == [value, f"{low} – {high}", f"{100 * (row.macro_f1 or 0):.1f}"]
    assert [cells[1] for cells in page.rows if cells[0].startswith(("ceiling", "majority"))] == ["79.3", "19.7"]
    assert "+26.4 points, 95 % interval +23.9 to +28.9" in page.text
    assert "2\u202f003 test images" in page.text


def test_every_sample_has_its_picture_and_six_heatmaps(page: Page) -> None:
    assert page.labelled("The image ") == ["The image one.png", "The image two.png"]
    for aspect in ASPECTS:
        assert len(page.labelled(f"Heatmap of {aspect.replace('_', ' ')}:")) == 2
    assert page.labelled("Heatmap of object:")[0].endswith(
        "strongest in row 2 of 3, column 2 of 5, with 50.0 % of the attention"
    )
    pictures = [Image.open(io.BytesIO(base64.b64decode(a["href"].split(",")[1]))) for a in page.of("image")]
    assert [picture.size for picture in pictures] == 2 * [(40, 24), *6 * [(168, 101)]]
    assert [use["href"] for use in page.of("use") if "picture" in use["href"]] == 6 * ["#picture-1"] + 6 * [
        "#picture-2"
    ]


def test_probabilities_are_ranked_and_drawn(page: Page) -> None:
    rows = [cells for cells in page.rows if len(cells) == 3 and "(true:" in cells[2]][:3]
    assert [(cells[0], cells[2].replace(" ", "")) for cells in rows] == [
        ("fear", "70.1(true:35.3)"),
        ("joy", "17.6(true:3.0)"),
        ("awe", "12.3(true:61.7)"),
    ]
    fills = [a["style"] for a in page.of("span") if a.get("class") == "fill"]
    assert fills[:3] == ["width:70.10%", "width:17.60%", "width:12.30%"]


def test_aspects_tell_words_effects_and_truth(page: Page) -> None:
    for text in ("answer 1", "+1.37", "\u22120.43", "true: answer 0", "true label: awe", "True main cause: scene."):
        assert text in page.text
    assert "The object decided (“answer 1”): without it the label would be 3.9 times less probable." in page.text
    axes = [a for a in page.of("span") if a.get("class") in ("for", "against")][:5]
    assert axes[1] == {"class": "for", "style": "width:50.00%"}
    assert axes[2]["class"] == "against"
    assert "it answered “dread”" in page.text


def test_prompt_attention_raw_and_normalised(page: Page) -> None:
    assert ["object", "", "75.0", "3.0"] in page.rows
    assert ["scene", "", "25.0", "1.0"] in page.rows
    assert "Attention is not cause" in page.text


def test_stage_1_explanations_and_failures(page: Page) -> None:
    assert ["scene", "accuracy", "97.1", "88.3"] in page.rows
    assert ["object", "list F1", "71.9", "–"] in page.rows
    assert ["the scene heatmap peaks on the right thing", "98.7", "98.1 – 99.1", "–"] in page.rows
    assert ["64.3", "61.1 – 67.3", "31.7"] in [cells[1:] for cells in page.rows]
    assert ["broken.jpg", "it is truncated"] in page.rows
    assert "1\u202f234 more images" in page.text


def test_confusion_counts_and_unreadable_answers(page: Page) -> None:
    assert ["True label", "awe", "fear", "joy", "none of them"] in page.rows
    assert ["joy", "17", "19", "227", "29"] in page.rows
    assert ["awe", "211", "7", "3", "·"] in page.rows
    diagonal = [a["style"] for a in page.of("td") if a.get("class") == "hit"]
    assert diagonal == [f"--share:{n / total:.3f}" for n, total in ((211, 221), (223, 241), (227, 292))]


def test_provenance_and_time(page: Page) -> None:
    assert ["torch", "9.8.7"] in page.rows
    assert ["training", "500 steps", "1 min 23 s"] in page.rows
    assert ["together", "", "1 min 27 s"] in page.rows
    assert "masp demo --out here" in page.text


def test_predictions_alone_make_a_page() -> None:
    page = Page(render(ReportData("Two images", "Read by a model.", samples=(made_up.sample(),))))
    assert len(page.labelled("Heatmap of ")) == 6
    assert not page.of("nav")
    assert not [a for a in page.of("section") if a["id"] != "pictures"]


# --- it cannot be broken by what it shows --------------------------------------------------------------------------


def hostile_study() -> ReportData:
    sight = AspectSight("scene", HOSTILE, 0.3, made_up.heatmap(0, 0), HOSTILE + "!")
    sample = Sample(HOSTILE, Path(HOSTILE), HOSTILE, {HOSTILE: 1.0}, (sight,), HOSTILE, "x", {HOSTILE: 1.0}, HOSTILE)
    return ReportData(
        HOSTILE,
        HOSTILE,
        aspect_scores=(AspectScore(HOSTILE, HOSTILE, 0.5),),
        confusion=Confusion((HOSTILE, "b"), ((1, 2, 0), (3, 4, 0))),
        samples=(sample,),
        failures=((HOSTILE, HOSTILE),),
    )


def test_names_are_escaped_everywhere() -> None:
    html = render(hostile_study())
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert "The image could not be read" in page.text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -3.0, 7.0])
def test_odd_numbers_stay_inside_their_bars(number: float) -> None:
    assert re.fullmatch(r"(\d{1,2}(\.\d\d)?|100\.00)%", width(number))
    odd = Sample("a", Image.new("RGB", (8, 8)), "x", {"x": number}, (AspectSight("scene", "s", number),))
    Page(render(ReportData("t", "s", samples=(odd,))))


def test_names_that_are_no_unicode_are_written(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    write_report(tmp_path / "a.html", ReportData("t", "s", samples=(made_up.sample(name),)))
    assert "caf\\udce9.png" in (tmp_path / "a.html").read_text(encoding="utf-8")


# --- it is written whole or not at all -----------------------------------------------------------------------------


def test_written_into_a_new_folder_and_over_an_old_page(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    write_report(file, ReportData("first", "s"))
    write_report(file, made_up.study())
    assert file.read_text(encoding="utf-8") == render(made_up.study())
    assert list(file.parent.iterdir()) == [file]


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(MaspError, match=r"taken.*cannot be written"):
        write_report(tmp_path / "taken" / "page.html", ReportData("t", "s"))


# --- images ------------------------------------------------------------------------------------------------------


def embedded(picture: Path | Image.Image) -> tuple[str, Image.Image]:
    page = Page(render(ReportData("t", "s", samples=(Sample("p", picture, "x", {"x": 1.0}),))))
    head, content = page.of("image")[0]["href"].split(",")
    return head, Image.open(io.BytesIO(base64.b64decode(content)))


def test_small_pictures_are_embedded_without_loss_and_large_ones_reduced(tmp_path: Path) -> None:
    small = Image.effect_noise((61, 37), 90).convert("RGB")
    head, found = embedded(small)
    assert head == "data:image/png;base64"
    assert found.convert("RGB").tobytes() == small.tobytes()
    Image.effect_noise((1400, 700), 90).save(tmp_path / "large.png")
    head, found = embedded(tmp_path / "large.png")
    assert (head, found.size) == ("data:image/jpeg;base64", (560, 280))


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (0.1, "10 % less"),
        (math.log(2), "2.0 times less"),
        (math.log(7.3), "7.3 times less"),
        (9.0, "more than 100 times"),
    ],
)
def test_the_verdict_says_how_much(effect: float, words: str) -> None:
    sights = (AspectSight("scene", "beach", effect), AspectSight("facial_expression", "sad", effect - 0.01))
    sentence = verdict(Sample("a", Path("a"), "joy", {"joy": 1.0}, sights))
    assert sentence.startswith("The scene decided (“beach”)")
    assert words in sentence


def test_the_verdict_of_another_attribution_speaks_of_no_absence() -> None:
    sights = (AspectSight("scene", "beach", 2.0), AspectSight("object", "cat", 0.5))
    sentence = verdict(Sample("a", Path("a"), "joy", {"joy": 1.0}, sights, attribution="concept_bottleneck"))
    assert sentence == "The scene decided (“beach”): it did most for the label."


def test_the_verdict_says_when_the_image_did_more_than_any_cue() -> None:
    sights = (AspectSight("scene", "beach", 0.7), AspectSight("object", "cat", 0.2))
    sample = Sample("a", Path("a"), "joy", {"joy": 1.0}, sights, attribution="concept_bottleneck", image_effect=0.3)
    decided = "The scene decided (“beach”): it did most for the label, +0.70 nats beside +0.30 by the image as a whole."
    assert verdict(sample) == decided
    whole = verdict(replace(sample, image_effect=0.8))
    assert whole == "The image as a whole did most for the label (+0.80 nats), more than any single cue."
    assert verdict(replace(sample, sights=())) == ""
    faint = (AspectSight("scene", "beach", 0.01),)
    assert verdict(replace(sample, sights=faint, image_effect=-0.8)) == "No single cue decided."


def test_the_image_as_a_whole_is_drawn_beside_the_aspects() -> None:
    sights = (AspectSight("scene", "beach", 0.7), AspectSight("object", "cat", -0.2))
    sample = Sample(
        "a", Image.new("RGB", (84, 84)), "joy", {"joy": 1.0}, sights, attribution="concept_bottleneck", image_effect=1.4
    )
    view = sample_view(1, sample)
    assert view.whole == WholeView(1.4, True, 0.5)
    assert [(one.decided, one.reach) for one in view.sights] == [(False, 0.25), (False, pytest.approx(0.1 / 1.4))]
    assert sample_view(1, replace(sample, image_effect=None)).whole is None
    page = render(ReportData("t", "s", samples=(sample,)))
    drawn = page.partition('<figure class="sight whole decided">')[2].partition("</figure>")[0]
    assert '<h4>whole image<span class="badge">decided</span></h4>' in drawn
    assert "+1.40" in drawn
    without = replace(sample, sights=tuple(replace(one, effect=None) for one in sights))
    assert sample_view(1, without).whole is None


def test_the_verdict_admits_that_nothing_decided() -> None:
    sights = (AspectSight("scene", "beach", 0.04), AspectSight("object", "cat", -2.0))
    assert verdict(Sample("a", Path("a"), "joy", {"joy": 1.0}, sights)).startswith("No single cue decided")


def test_what_is_generated_cannot_reach_the_terminal() -> None:
    sights = (AspectSight("scene", "\x1b[31mred\n" + 99 * "a", 0.7),)
    sentence = verdict(Sample("a", Path("a"), "joy", {"joy": 1.0}, sights))
    assert sentence.isprintable()
    assert len(sentence) < 150
    assert "…" in sentence


def test_a_prediction_becomes_a_sample() -> None:
    reading = AspectReading("beach", made_up.heatmap(1, 2), 0.7)
    looks = PromptAttention({"scene": 0.02}, {"scene": 1.0})
    prediction = Prediction(
        "a.png", "joy", {"joy": 0.9, "awe": 0.1}, "joy", {"scene": reading}, looks, "adapter", "tiny"
    )
    sample = sample_of(prediction, Path("a.png"), truth="awe")
    assert sample.sights == (AspectSight("scene", "beach", 0.7, made_up.heatmap(1, 2)),)
    assert (sample.label, sample.truth, sample.prompt_attention) == ("joy", "awe", {"scene": 0.02})
    assert sample.probabilities == {"joy": 0.9, "awe": 0.1}
