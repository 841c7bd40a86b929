"""The promises about structure, held over the whole package; and a bad example that each check has to catch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import architecture as house
from architecture import EACH_FILE, ROOT, Source

PACKAGE = house.read_sources(ROOT / "src" / "masp", "masp")
SCRIPTS = house.read_sources(ROOT / "scripts", "scripts")
HEAVY = {"accelerate", "jinja2", "matplotlib", "torch", "transformers"}


@pytest.mark.parametrize("check", EACH_FILE)
def test_every_file_keeps_the_rule(check: str) -> None:
    problems = [problem for source in PACKAGE for problem in EACH_FILE[check](source)]
    assert not problems, "\n".join(problems)


def test_scripts_are_short() -> None:
    problems = [problem for source in SCRIPTS for problem in house.too_long(source)]
    assert not problems, "\n".join(problems)


def test_imports_go_downwards() -> None:
    problems = [*house.upward_imports(PACKAGE), *house.stale_exceptions(PACKAGE), *house.cycles(PACKAGE)]
    assert not problems, "\n".join(problems)


def test_no_text_names_a_place_on_one_machine() -> None:
    problems = [p for path, text in house.texts(ROOT) for p in house.machine_paths(str(path.relative_to(ROOT)), text)]
    assert not problems, "\n".join(problems)


def test_tests_lie_where_the_code_they_test_lies() -> None:
    rooms, folders = (
        {path.parent.name for path in home.glob("*/*.py")} for home in (ROOT / "src" / "masp", ROOT / "tests")
    )
    assert folders - rooms == {"contract", "fixtures", "parity"}


def test_the_checks_read_the_package() -> None:
    modules = {source.module for source in PACKAGE}
    assert {"masp", "masp.core.errors", "masp.data.emoji.label_model", "masp.evaluation.metrics"} <= modules
    assert sum(len(targets) for targets in house.edges(PACKAGE).values()) > 100


# --- imports, measured ---------------------------------------------------------------------------------------------

PROBE = """
import json, sys
import {module}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def probe(module: str) -> set[str]:
    """Every package that is loaded once a fresh interpreter has imported a module."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_is_quick() -> None:
    """It loads nothing but itself and the standard library; seconds would measure who else uses the machine."""
    assert probe("masp") - probe("json") - sys.stdlib_module_names == {"masp"}


@pytest.mark.parametrize(
    "module",
    [
        *(
            "masp.cli",
            "masp.core.errors",
            "masp.core.aspects",
            "masp.core.labels",
            "masp.core.prompts",
            "masp.core.config",
            "masp.core.runtime",
        ),
        *("masp.data.readers.open_dataset", "masp.data.validation.check"),
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not probe(module) & HEAVY


def test_the_probe_sees_heavy_packages() -> None:
    assert probe("jinja2") & HEAVY == {"jinja2"}


def test_public_names_are_lazy_and_complete() -> None:
    import masp

    assert set(dir(masp)) == set(masp.__all__)
    assert masp.Masp.__module__ == "masp.predictor"
    with pytest.raises(AttributeError, match=r"'nonsense'; it offers .*Masp"):
        masp.nonsense  # noqa: B018


# --- the checks themselves -----------------------------------------------------------------------------------------

GOOD = '''
"""A file that keeps every rule."""

import logging
from dataclasses import dataclass

import torch
from torch import nn

from masp.core.errors import MaspError


@dataclass(frozen=True)
class Place:
    """Where something lies."""

    row: int


class Head(nn.Module):
    """A layer."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What comes out."""
        return tokens


class Wrong(MaspError):
    """A mistake."""


def load(name: str, *, trust: bool = False) -> Place:
    """A place by its name.

    Args:
        name: of the place: what it is called.
        trust: whether it is
            trusted: by anybody.
    """
    logging.getLogger(__name__).info("loading %s", name)
    return _load(name, trust_remote_code=False)


def _load(name, **kwargs):
    return Place(len(name))
'''

BAD = [
    ("too_long", "x = 1\n" * 501, "has 501 lines"),
    ("too_long", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    ("foreign_owners", "import yaml", "imports yaml, which only masp.core.config may"),
    ("foreign_owners", "def f():\n    from matplotlib import pyplot", "imports matplotlib"),
    ("foreign_owners", "if TYPE_CHECKING:\n    from transformers import Qwen2VLModel", "imports transformers"),
    ("foreign_owners", "import typer.testing", "imports typer"),
    ("foreign_owners", "import pickle", "which only nobody may"),
    ("relative_imports", "from .errors import MaspError", "imports .errors.MaspError relatively"),
    ("unsafe_or_noisy", "torch.load('x')", "calls torch.load"),
    ("unsafe_or_noisy", "def f():\n    print('hello')", "calls print"),
    ("unsafe_or_noisy", "if hasattr(model, 'visual'): pass", "calls hasattr"),
    ("unsafe_or_noisy", "load('x', trust_remote_code=True)", "may trust remote code"),
    ("unsafe_or_noisy", "load('x', trust_remote_code=wanted)", "may trust remote code"),
    ("loose_signatures", "class A:\n    def forward(self, x, **kwargs): pass", "forward takes **kwargs"),
    ("loose_signatures", "from __future__ import annotations\nfrom jaxtyping import Float", "into strings"),
    ("undocumented", "x = 1", "has no docstring"),
    ("undocumented", '"""Module."""\ndef f() -> None: pass', "f has no docstring"),
    ("undocumented", '"""Module."""\nclass A:\n    """A."""\n    def f(self) -> None: pass', "A:f has no docstring"),
    ("undocumented", '"""Module."""\ndef f(a, *, b: int) -> None:\n    """F."""', "does not annotate a"),
    ("undocumented", '"""Module."""\ndef f(a: int):\n    """F."""', "does not annotate its result"),
    ("strange_names", 'def f(a):\n    """F.\n\n    Args:\n        b: what.\n    """', "f documents b under Args"),
    ("strange_names", 'class A:\n    """A.\n\n    Attributes:\n        b: what.\n    """', "A documents b under Attr"),
    ("inheritance", "class A(Trainer): pass", "A inherits from Trainer"),
    ("inheritance", "class A(base.Backbone[int]): pass", "A inherits from Backbone"),
    ("shared_state", "def f():\n    global cache\n    cache = 1", "assigns a global"),
    ("shared_state", "@dataclass\nclass A: pass", "A is a dataclass that is not frozen"),
    ("shared_state", "@dataclasses.dataclass(slots=True)\nclass A: pass", "A is a dataclass that is not frozen"),
    ("device_traps", "x = scores.double()", "double precision before it is on the CPU"),
    ("device_traps", "x = y.new_zeros(3).index_add(0, rows, y)", "index_add, whose order is left to chance"),
    ("device_traps", "x = table.index_select(0, rows)", "index_select, whose gradient's order is left to chance"),
]


@pytest.mark.parametrize("check", EACH_FILE)
def test_a_good_file_passes(check: str) -> None:
    assert EACH_FILE[check](Source("masp.data.good", GOOD)) == []


@pytest.mark.parametrize(("check", "text", "complaint"), BAD)
def test_a_bad_file_is_caught(check: str, text: str, complaint: str) -> None:
    problems = EACH_FILE[check](Source("masp.data.bad", text))
    assert len(problems) == 1
    assert complaint in problems[0]


def test_every_check_has_a_bad_example() -> None:
    assert {check for check, _, _ in BAD} == set(EACH_FILE)


def test_owners_may_import_what_they_own() -> None:
    assert house.foreign_owners(Source("masp.core.config", "import yaml")) == []
    assert house.foreign_owners(Source("masp.cli.app", "import typer")) == []
    assert house.foreign_owners(Source("masp.clinic", "import typer")) != []
    assert house.unsafe_or_noisy(Source("masp.cli.console", "print(1)")) == []


def test_torch_load_has_one_place_and_one_way() -> None:
    def found(module: str, text: str) -> list[str]:
        return house.unsafe_or_noisy(Source(module, text))

    for place in house.UNPICKLES:
        assert found(place, "torch.load(path, weights_only=True, mmap=True)") == []
    assert found("masp.adapters.store", "torch.load(path, weights_only=True)") == [
        "masp.adapters.store:1 calls torch.load"
    ]
    for text in ("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)"):
        assert [len(found(place, text)) for place in house.UNPICKLES] == [1, 1]


def small_house(**texts: str) -> list[Source]:
    """Sources of `masp.NAME` (dots written as two underscores), beside an empty module for each row's first entry."""
    written = {f"masp.{name.replace('__', '.')}": text for name, text in texts.items()}
    empty = {entry: "" for row in house.ROWS for entry in row}
    return [Source(name, text) for name, text in {"masp": "", **empty, **written}.items()]


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (
            {"core__labels": "from masp.data.records import Record", "data__records": ""},
            "masp.core.labels imports masp.data.records, which lies below",
        ),
        (
            {"model__scoring": "def f():\n    from masp.training.trainer import run", "training__trainer": ""},
            "masp.training.trainer, which",
        ),
        ({"model__sequence_builder": "from masp import cli"}, "masp.model.sequence_builder imports masp.cli"),
        (
            {"backbones__base": 'FAMILIES = {"a": "masp.backbones.qwen:Qwen"}', "backbones__qwen": ""},
            "masp.backbones.qwen",
        ),
        ({"evaluation": "if TYPE_CHECKING:\n    from masp.report import R"}, "masp.evaluation imports masp.report"),
        ({"data__readers": "from masp.model.masp_model import MaspModel"}, "know nothing of any model"),
        ({"cellar": ""}, "masp.cellar has no place in the table"),
    ],
)
def test_an_upward_import_is_caught(texts: dict[str, str], complaint: str) -> None:
    problems = house.upward_imports(small_house(**texts))
    assert len(problems) == 1
    assert complaint in problems[0]


def test_downward_imports_pass() -> None:
    texts = {
        "core__config": "from masp.core.errors import ConfigError\nfrom masp import __version__",
        "core__errors": "",
        "model__scoring": "from masp.model.masp_model import MaspModel\nfrom masp.backbones import base",
        "data__readers": "from masp.data.records import Record\nimport masp.core.config",
        "data__records": "from masp.core.labels import parse",
        "cli__app": "from masp.demo import run",
    }
    assert house.upward_imports(small_house(**texts)) == []
    assert house.cycles(small_house(**texts)) == []


def test_a_cycle_is_caught() -> None:
    texts = {"data__a": "from masp.data import b", "data__b": "def f():\n    import masp.data.a"}
    (problem,) = house.cycles(small_house(**texts))
    assert "masp.data.a -> masp.data.b" in problem or "masp.data.b -> masp.data.a" in problem


def test_an_exception_that_nobody_needs_is_caught() -> None:
    assert len(house.stale_exceptions(small_house())) == len(house.UPWARDS)


@pytest.mark.parametrize("place", ["/" + "work/", "file:" + "///", "/" + "home/a"])
def test_a_machine_path_is_caught(place: str) -> None:
    assert house.machine_paths("docs/x.md", f"fine\nsee {place}da for more") == [f"docs/x.md:2 names {place}"]
    assert house.machine_paths("docs/x.md", "homework/ and network/ are fine") == []


def test_every_text_of_the_repository_is_read_and_nothing_of_a_tool(tmp_path: Path) -> None:
    (tmp_path / "docs" / "__pycache__").mkdir(parents=True)
    read = {"README.md", ".gitignore", "docs/.git.md"}
    for name in (*read, ".git", ".coverage.1", "picture.png", "docs/__pycache__/a.py"):
        (tmp_path / name).write_text(name)
    found = {path.relative_to(tmp_path).as_posix(): text for path, text in house.texts(tmp_path)}
    assert found == {name: name for name in read}
