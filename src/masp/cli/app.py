"""The command `masp`: its subcommands, its log, and the handling of every exception."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from masp import __version__
from masp.cli import adapters, data, evaluate, predict, research, serve, train
from masp.cli.console import guarded
from masp.cli.label import label_app
from masp.core import runtime
from masp.core.errors import UsageError

DIVIDED = ("train", "evaluate")
"""Commands whose work several processes share; the others would do all of it in each, into the same place."""

app = typer.Typer(
    name="masp",
    help="Recognise the emotion an image evokes with a frozen vision-language model, and see which cues decided.",
    epilog="Start with: masp demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.data_app, name="data")
app.add_typer(label_app, name="label")
app.command()(research.demo)
app.command(no_args_is_help=True, epilog=train.EXAMPLES)(train.train)
app.command(no_args_is_help=True, epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(no_args_is_help=True, epilog=evaluate.COMPARE_EXAMPLES)(evaluate.compare)
app.command(no_args_is_help=True, epilog=research.BASELINE_EXAMPLES)(research.baseline)
app.command(no_args_is_help=True, epilog=predict.EXAMPLES)(predict.predict)
app.command(epilog=serve.SERVE_EXAMPLES)(serve.serve)
app.command("load-test", no_args_is_help=True, epilog=serve.LOAD_EXAMPLES)(serve.load_test)
app.command(no_args_is_help=True, epilog=evaluate.REPORT_EXAMPLES)(evaluate.report)
app.command(no_args_is_help=True, epilog=adapters.IMPORT_EXAMPLES)(adapters.import_released)
app.command(no_args_is_help=True, epilog=adapters.COMBINE_EXAMPLES)(adapters.combine)
app.command(no_args_is_help=True, epilog=adapters.EXPORT_EXAMPLES)(adapters.export)
app.command(no_args_is_help=True, epilog=adapters.PUSH_EXAMPLES)(adapters.push)
app.command(no_args_is_help=True, epilog=adapters.INFO_EXAMPLES)(adapters.info)
app.command(no_args_is_help=True, epilog=research.REPRODUCE_EXAMPLES)(research.reproduce)


@app.command(
    epilog="""
The benchmark lies in the repository, not in the package, and needs a checkout; --help behind it shows all options.

`masp bench --quick`
""",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
def bench(
    words: Annotated[list[str] | None, typer.Argument(metavar="OPTIONS", help="Those of the benchmark.")] = None,
) -> None:
    """Measure training and prediction on random weights, as ratios to a plain baseline; needs the repository."""
    import subprocess

    import masp

    script = Path(masp.__file__).resolve().parents[2] / "benchmarks" / "bench.py"
    if not script.is_file():
        todo = "Clone the repository, and run: python benchmarks/bench.py --quick"
        raise UsageError("the benchmark is not part of the installed package", "a checkout of the repository", todo)
    code = subprocess.run([sys.executable, str(script), *(words or ())], check=False).returncode
    if code:
        raise typer.Exit(code)


app.command(no_args_is_help=True, epilog=research.PLAN_EXAMPLES)(research.plan)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"masp {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show stack traces and the full log (also MASP_DEBUG=1).")
    ] = False,
) -> None:
    """Options that every command understands; `main` reads `--debug` itself, wherever it stands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(given)
    _set_up_log(debug)
    if not runtime.is_main_process():
        _hide_output(debug)
    sys.exit(guarded(lambda: _run(given), debug))


def _run(arguments: Sequence[str]) -> object:
    """Runs the command that the first word names; the options before it are flags.

    Raises:
        UsageError: one of several processes was asked for work that is not divided.
    """
    name = next((word for word in arguments if not word.startswith("-")), None)
    count = runtime.count()
    if count > 1 and name is not None and name not in DIVIDED:
        got = f"masp {name} was started as one of {count} processes (WORLD_SIZE={count})"
        todo = "Start it without accelerate launch or torchrun; where neither was used, unset WORLD_SIZE."
        raise UsageError(got, f"one process: only {' and '.join(DIVIDED)} divide their work", todo)
    return typer.main.get_command(app)(args=list(arguments), prog_name="masp")


def _hide_output(debug: bool) -> None:
    """For all processes but one, whose results are the same: print nothing, and log errors only."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (as long as the process lives)
    if not debug:
        logging.getLogger("masp").setLevel(logging.ERROR)


def _take_debug(arguments: list[str]) -> bool:
    """Removes `--debug` from the arguments before `--`; true where it was there or the environment asks for it."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    others = [word for word in arguments[:end] if word != "--debug"]
    given = len(others) < end
    arguments[:end] = others
    return given or os.environ.get("MASP_DEBUG", "") not in ("", "0")


def _set_up_log(debug: bool) -> None:
    """Our own log to stderr, short; that of the libraries only when debugging. stdout is for results."""
    shape = "%(name)s: %(message)s" if debug else "masp: %(message)s"
    logging.basicConfig(stream=sys.stderr, format=shape, level=logging.DEBUG if debug else logging.WARNING)
    logging.getLogger("masp").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
