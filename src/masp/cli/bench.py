"""`masp bench`: where the benchmark is, and runs it in a checkout."""

from typing import Annotated

import typer

from masp.core.errors import UsageError

EXAMPLES = """
The benchmark lies in the repository, not in the package. In a checkout:

`masp bench --quick` is `python benchmarks/bench.py --quick`; `--help` behind it shows all options.
"""


def bench(
    words: Annotated[list[str] | None, typer.Argument(metavar="OPTIONS", help="Those of the benchmark.")] = None,
) -> None:
    """Measure training and prediction on random weights, as ratios to a plain baseline; needs the repository."""
    import subprocess
    import sys
    from pathlib import Path

    import masp

    script = Path(masp.__file__).resolve().parents[2] / "benchmarks" / "bench.py"
    if not script.is_file():
        todo = "Clone the repository, and run: python benchmarks/bench.py --quick"
        raise UsageError("the benchmark is not part of the installed package", "a checkout of the repository", todo)
    code = subprocess.run([sys.executable, str(script), *(words or ())], check=False).returncode
    if code:
        raise typer.Exit(code)
