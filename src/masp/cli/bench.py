"""`masp bench`: where the benchmark is, and runs it in a checkout."""

import typer

from masp.core.errors import UsageError

EXAMPLES = """
The benchmark lies in the repository, not in the package. In a checkout:

`masp bench --quick` is `python benchmarks/bench.py --quick`; `--help` behind it shows all options.
"""


def bench(context: typer.Context) -> None:
    """Measure training and prediction on random weights, as ratios to a plain baseline; needs the repository."""
    import subprocess
    import sys
    from pathlib import Path

    import masp

    script = Path(masp.__file__).resolve().parents[2] / "benchmarks" / "bench.py"
    if not script.is_file():
        todo = "Clone the repository, and run: python benchmarks/bench.py --quick"
        raise UsageError("the benchmark is not part of the installed package", "a checkout of the repository", todo)
    code = subprocess.run([sys.executable, str(script), *context.args], check=False).returncode
    if code:
        raise typer.Exit(code)
