"""The command as a process: full disks, closed pipes, signals, and what its help costs."""

import json
import os
import signal
import subprocess
import sys

import pytest

MAIN = "from masp.cli import main; main({arguments!r})"
GUARDED = "import sys, time; from masp.cli.console import guarded; sys.exit(guarded(lambda: {body}, False))"
HELP = """
import sys
from masp.cli import main
try:
    main({arguments!r})
except SystemExit:
    print(sorted({{name.partition(".")[0] for name in sys.modules}} & {heavy!r}), file=sys.stderr)
"""
HANGS = 900  # seconds without an end that are called a hang; a busy machine may need many for a help text
HEAVY = {"accelerate", "jinja2", "matplotlib", "numpy", "PIL", "torch", "transformers"}


def start(code, **options):
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    "code", [MAIN.format(arguments=["--help"]), GUARDED.format(body="print('x' * 100_000)")], ids=["help", "results"]
)
def test_output_to_a_full_disk_fails_with_one_line(code):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start(code, stdout=full)
        _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "the disk is full" in err


@pytest.mark.parametrize(
    "code", [MAIN.format(arguments=["--help"]), GUARDED.format(body="print('x' * 100_000)")], ids=["help", "results"]
)
def test_a_closed_pipe_is_quiet(code):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(code, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert err == ""


def test_ctrl_c_says_interrupted():
    process = start(GUARDED.format(body="(print('ready', flush=True), time.sleep(900))"), stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 130
    assert err == "masp: interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    process = start(HELP.format(arguments=arguments, heavy=HEAVY), stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=HANGS)
    assert "masp" in out
    assert err == "[]\n"


def test_predictions_of_another_system_are_measured_without_model_code(tmp_path):
    for number, label in enumerate(("joy", "fear") * 2):
        path = tmp_path / "data" / "test" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number + 1))  # nobody looks at it
    rows = [
        json.dumps({"image": f"test/{('joy', 'fear')[n % 2]}/{n}.png", "probabilities": {"joy": 0.75, "fear": 0.25}})
        for n in range(4)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    words = ["evaluate", "--predictions", str(tmp_path / "p.jsonl"), "--data", str(tmp_path / "data")]
    heavy = {"accelerate", "safetensors", "torch", "torchmetrics", "transformers"}
    process = start(HELP.format(arguments=[*words, "--out", str(tmp_path / "o")], heavy=heavy), stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=HANGS)
    assert "50.0 %" in out
    assert err.endswith("[]\n")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "masp", "predict"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: masp predict" in done.stdout + done.stderr
