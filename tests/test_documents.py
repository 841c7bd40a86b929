"""The documents are true: generated tables are current, links lead somewhere, named files and commands exist."""

import json
import re
from pathlib import Path

import pytest

import generated
import site_hooks
import update_adapter_schema as adapters
import update_backbones_doc as backbones
import update_commands_doc as commands
import update_configuration_doc as configuration
from masp.adapters import AdapterInfo
from masp.backbones.loading import FAMILIES
from masp.core.config import load_config
from masp.data.images import FORMATS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MAKEFILE = (ROOT / "Makefile").read_text()


def links(document: str) -> list[str]:
    """Targets of Markdown links that are files here."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document)
    return [target for target in targets if not target.startswith(("http", "mailto:"))]


def paths_in(document: str) -> set[str]:
    """Files of the repository that a document names in code marks, such as `src/masp/model/masp_model.py`."""
    return set(re.findall(r"`((?:src|tests|docs|scripts|configs|benchmarks|results|\.ci)/[\w./-]+)`", document))


@pytest.mark.parametrize(
    ("name", "content"), [("variants", configuration.variants()), ("settings", configuration.content())]
)
def test_configuration_tables_are_current(name: str, content: str) -> None:
    document = configuration.DOCUMENT.read_text(encoding="utf-8")
    assert generated.replaced(document, name, configuration.SCRIPT, content) == document, "run `make docs`"


def test_the_formats_of_pictures_are_named_as_the_package_names_them() -> None:
    document = " ".join((ROOT / "docs" / "how-to" / "own-images.md").read_text(encoding="utf-8").split())
    sentence = next(part for part in document.split(". ") if "Images are JPEG" in part)
    assert [name for name in FORMATS if name.casefold() not in sentence.casefold()] == []


def test_the_adapter_format_is_current() -> None:
    assert adapters.SCHEMA.read_text(encoding="utf-8") == adapters.text(), "run `make docs`"
    document = adapters.DOCUMENT.read_text(encoding="utf-8")
    assert generated.replaced(document, "fields", adapters.SCRIPT, adapters.fields()) == document, "run `make docs`"
    assert adapters.schema()["properties"].keys() == AdapterInfo.model_fields.keys()


def test_the_reference_of_the_commands_is_current() -> None:
    document = commands.DOCUMENT.read_text(encoding="utf-8")
    assert generated.replaced(document, "commands", commands.SCRIPT, commands.content()) == document, "run `make docs`"
    data = ("check", "annotate", "split", "import", "vecbench", "lmms-eval", "make")
    groups = {"data": data, "label": ("plan", "run", "status", "merge")}
    assert re.findall(r"^### `(.+)`$", document, re.MULTILINE) == [
        f"masp {group} {name}" for group, names in groups.items() for name in names
    ]
    assert "| `--labels A,B,C\\|NAME` |" in document


def test_the_table_of_families_is_current_and_whole() -> None:
    results = json.loads(backbones.RESULTS.read_text(encoding="utf-8"))
    document = backbones.DOCUMENT.read_text(encoding="utf-8")
    assert generated.replaced(document, "families", backbones.SCRIPT, backbones.content(results)) == document, (
        "run `make docs`"
    )
    assert set(backbones.NAMES) == set(results["families"]) == set(FAMILIES)


def test_the_example_of_an_override_is_accepted() -> None:
    (line,) = re.findall(r"--out runs/a (.+)", configuration.DOCUMENT.read_text())
    assert load_config(None, line.split()).prompt.seed == 3


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    broken = [target for target in links(document.read_text()) if not (document.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_named_files_exist(name: str) -> None:
    missing = [path for path in sorted(paths_in((ROOT / name).read_text())) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_named_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"`make ((?:[a-z-]+ ?)+)`", (ROOT / name).read_text()))
    named = {word for words in targets for word in words.split()}
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("source", "written", "shown"),
    [
        ("README.md", "[a](docs/how-to/share.md#x)", "[a](how-to/share.md#x)"),
        ("README.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/log.md", "[a](../results/README.md)", "[a](results/README.md)"),
        ("docs/how-to/share.md", "![a](../../results/figure3.png)", "![a](../results/figure3.png)"),
        ("docs/how-to/share.md", "[a](serve.md) [b](https://x.y/z.md)", "[a](serve.md) [b](https://x.y/z.md)"),
        ("docs/log.md", "[a](../LICENSE)", "a"),
        ("docs/log.md", "[a](../nowhere.md)", "[a](nowhere.md)"),  # no file of the site: the build ends
    ],
)
def test_a_link_is_rewritten_for_the_site(source: str, written: str, shown: str) -> None:
    known = {"README.md", "how-to/share.md", "results/README.md", "results/figure3.png"}
    assert site_hooks.LINK.sub(lambda link: site_hooks.rewritten(link, source, known), written) == shown


def test_the_picture_of_the_readme_follows_the_site() -> None:
    shown = site_hooks.PICTURE.sub(site_hooks.themed, (ROOT / "README.md").read_text(encoding="utf-8"))
    sources = re.findall(r'<img alt="[^"]+" src="([^"]+)">', shown)
    assert sources == ["architecture-light.svg#only-light", "architecture-dark.svg#only-dark"]
    assert (
        site_hooks.CELL.sub(lambda code: code[0].replace("\\|", "|"), "| `a\\|b` | c \\| d |") == "| `a|b` | c \\| d |"
    )


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_card_of_the_adapter_for_photographs_ends_with_its_sources() -> None:
    card = (ROOT / "src" / "masp" / "backbones" / "photo_adapter" / "README.md").read_text(encoding="utf-8")
    assert card.endswith((ROOT / "scripts" / "photo" / "adapter_card.md").read_text(encoding="utf-8"))
