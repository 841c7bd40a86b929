"""Under a launcher only commands that divide their work run; the others would do all of it in every process."""

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from masp.cli import main
from masp.cli.app import DIVIDED, app


@pytest.fixture
def ended(capsys, monkeypatch):
    """Runs a command as the first of some processes: (exit code, stdout, stderr)."""

    def run(processes, *words):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(SystemExit) as end:
            main(list(words))
        return end.value.code, *capsys.readouterr()

    return run


def names():
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return sorted(group.commands)


@pytest.mark.parametrize("name", [name for name in names() if name not in DIVIDED])
def test_what_is_not_divided_is_refused(ended, name):
    code, out, err = ended(2, name, "anything")
    assert (code, out) == (2, "")
    assert err.startswith(f"masp: error: masp {name} was started as one of 2 processes (WORLD_SIZE=2); expected one")
    assert "only train and evaluate divide their work. Start it without accelerate launch" in err
    assert err.count("\n") == 1


def test_annotating_is_not_divided(ended, tmp_path):
    code, _, err = ended(2, "data", "annotate", str(tmp_path), "--backbone", "embedded")
    assert (code, "masp data was started as one of 2 processes" in err) == (2, True)


@pytest.mark.parametrize("name", DIVIDED)
def test_what_is_divided_is_not_refused_for_that(ended, name):
    code, _, err = ended(2, name, "--data", "nowhere")
    assert code != 0
    assert "one of 2 processes" not in err


def test_one_process_of_a_launcher_is_one_process(ended, tmp_path):
    code, _, err = ended(1, "predict", str(tmp_path / "none.jpg"), "--adapter", str(tmp_path / "nowhere"))
    assert code != 0
    assert "processes" not in err
