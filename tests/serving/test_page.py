"""The page of the service in a real browser: the machine's own Chromium, driven by Playwright; nothing is fetched."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fixtures import service as small_service
from fixtures import tiny
from fixtures.service import TASKS, png, running, small_app
from masp.predictor import Masp
from masp.report import sample_of, verdict

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 120_000  # milliseconds; a busy machine may need many
PHONE = {"viewport": {"width": 375, "height": 700}, "is_mobile": True, "has_touch": True}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def masp(tmp_path_factory) -> Masp:
    return Masp.from_pretrained(small_service.write_tasks(tmp_path_factory.mktemp("tasks")), tiny.backbone())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def url(masp) -> Iterator[str]:
    with running(small_app(masp)) as address:
        yield address


class Visit:
    """A page as a person has it before them, and what went wrong on it."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Chooses files by the button."""
        made = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
        self.page.set_input_files("#files", made)

    def wait(self, text: str) -> None:
        """Until the page says so."""
        self.page.get_by_text(text).first.wait_for()

    def problems(self) -> list[str]:
        """Rules of accessibility that the page breaks as it is now."""
        found = axe.Axe().run(self.page, options=RULES).response["violations"]
        return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    def sideways(self) -> int:
        """Pixels that reach beyond the right edge."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def close(self) -> None:
        self.context.close()


def test_images_are_chosen_answered_and_explained_by_keyboard(browser, url, masp, tmp_path):
    visit = Visit(browser, url, accept_downloads=True)
    page = visit.page
    page.locator("#task option").nth(2).wait_for(state="attached")
    page.select_option("#task", "third")
    visit.choose(("one.png", png(0)), ("two.png", png(1)))
    visit.wait("2 of 2 images answered")

    expected = masp.predict(small_service.image(png(0)), task="third")
    first = page.locator(".result").first
    heading = first.locator(".label").inner_text()
    assert heading == f"{expected.label} {100 * expected.probabilities[expected.label]:.1f} %"
    assert first.locator(".bars tbody tr").count() == len(TASKS["third"])
    assert first.locator(".verdict").inner_text() == verdict(sample_of(expected, small_service.image(png(0))))

    switches = first.locator(".aspects button")
    assert switches.count() == 6
    switches.nth(2).focus()
    page.keyboard.press("Enter")
    assert first.locator(".veil").is_visible()
    assert first.locator(".veil").get_attribute("alt").startswith("Heatmap of scene: strongest in row")
    assert switches.nth(2).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert [switches.nth(k).get_attribute("aria-pressed") for k in (2, 3)] == ["false", "true"]

    for box in page.locator(".chosen").all():
        box.check()
    page.click("#compare")
    assert page.locator(".compared tbody tr").count() == len(TASKS["third"])
    assert visit.problems() == []

    assert page.inner_text("#curl") == f"curl -F images=@photo.jpg -F task='third' -F explain=words {url}/v1/predict"
    with page.expect_download() as download:
        page.click("#save-json")
    download.value.save_as(tmp_path / "masp.json")
    saved = json.loads((tmp_path / "masp.json").read_text())
    assert [one["image"] for one in saved] == ["one.png", "two.png"]
    assert saved[0]["label"] == expected.label
    with page.expect_download() as download:
        page.click("#save-report")
    download.value.save_as(tmp_path / "masp.html")
    assert "Predicted emotions" in (tmp_path / "masp.html").read_text()

    assert visit.wrong == []
    outside = [asked for asked in visit.asked if not asked.startswith((url, "blob:", "data:"))]
    assert outside == []
    visit.close()


def test_what_the_whole_image_did_stands_beside_the_aspects(browser, url):
    visit = Visit(browser, url)

    def with_whole(route: Any) -> None:
        answer = route.fetch().json()
        answer["predictions"][0] |= {"attribution": "concept_bottleneck", "image_effect": 9.5, "deciding_cue": "image"}
        route.fulfill(json=answer)

    visit.page.route("**/v1/predict", with_whole)
    visit.choose(("one.png", png(0)))
    visit.wait("1 of 1 images answered")
    shown = visit.page.locator(".result").first
    assert shown.locator(".verdict").inner_text().startswith("The image as a whole did most for the label (+9.50 nats)")
    assert shown.locator(".whole.decided").inner_text().split("\n")[-2:] == ["effect +9.50", "decided"]
    assert shown.locator(".aspects button.decided").count() == 0
    assert visit.problems() == []
    assert visit.wrong == []
    visit.close()


@pytest.mark.long
def test_what_goes_wrong_is_said_where_it_happened(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    page.locator("#task option").nth(2).wait_for(state="attached")
    refused = []

    def busy(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=429, headers={"Retry-After": "1"}, body="{}")

    page.route("**/v1/predict", busy)
    page.select_option("#task", "first")
    visit.choose(("good.png", png(0)), ("broken <b>x</b>.png", b"no image"))
    visit.wait("2 of 2 images answered, 1 failed")
    assert len(refused) == 1
    failed = page.locator(".result.failed")
    assert failed.count() == 1
    assert "not a JPEG" in failed.inner_text()
    assert failed.locator("figcaption").inner_text() == "broken <b>x</b>.png"
    page.unroute("**/v1/predict")
    page.route("**/v1/predict", lambda route: route.abort())
    visit.choose(("late.png", png(2)))
    visit.wait("The server cannot be reached.")
    page.click("#clear")
    assert page.locator(".result").count() == 0
    assert visit.problems() == []
    visit.close()


@pytest.mark.long
@pytest.mark.parametrize("how", [{"color_scheme": "dark"}, PHONE, PHONE | {"color_scheme": "dark"}])
def test_dark_and_on_a_phone(browser, url, how):
    visit = Visit(browser, url, **how)
    visit.page.locator("#task option").nth(2).wait_for(state="attached")
    visit.page.select_option("#task", "first")
    assert visit.problems() == []
    visit.choose(*((f"a rather long name of an image, number {number}.png", png(number)) for number in range(12)))
    visit.wait("12 of 12 images answered")
    visit.page.locator(".aspects button").first.click()
    assert visit.problems() == []
    assert visit.sideways() <= 0
    assert visit.wrong == []
    visit.close()


@pytest.mark.long
def test_a_pasted_image_and_a_dropped_one(browser, url):
    visit = Visit(browser, url)
    page = visit.page
    page.locator("#task option").nth(2).wait_for(state="attached")
    page.select_option("#task", "first")
    given = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
        const name = kind === "paste" ? {clipboardData: data} : {dataTransfer: data};
        const type = kind === "paste" ? ClipboardEvent : DragEvent;
        document.body.dispatchEvent(new type(kind, {bubbles: true, cancelable: true, ...name}));
    }"""
    for number, kind in enumerate(("paste", "drop"), start=1):
        page.evaluate(given, [kind, list(png(number))])
        visit.wait(f"{number} of {number} images answered")
    assert page.get_attribute("#camera", "capture") == "environment"
    visit.close()


@pytest.mark.long
def test_a_token_is_asked_for_and_not_kept(browser, masp):
    with running(small_app(masp, tokens=("correct-horse",))) as url:
        visit = Visit(browser, url)
        page = visit.page
        visit.wait("This server asks for a token.")
        page.fill("#token", "correct-horse")
        page.keyboard.press("Tab")
        page.locator("#task option").nth(2).wait_for(state="attached")
        page.select_option("#task", "first")
        visit.choose(("one.png", png(0)))
        visit.wait("1 of 1 images answered")
        assert "correct-horse" not in page.inner_text("body")
        assert page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
        visit.close()


@pytest.mark.long
def test_the_rules_of_accessibility_are_looked_at(browser, url):
    """The check finds what is made wrong on purpose."""
    visit = Visit(browser, url)
    visit.page.evaluate(
        "document.querySelector('label[for=labels]').remove(); document.querySelector('#labels').placeholder = ''"
    )
    assert any(problem.startswith("label:") for problem in visit.problems())
    visit.close()
