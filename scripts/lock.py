"""Write constraints.txt: the exact versions of everything in the environment this script runs in.

Run by `make lock`, which resolves pyproject.toml's ranges afresh in an empty environment. Local version parts
("+cpu") are cut off, because no index resolves them; the project itself is left out.
"""

from importlib.metadata import distributions
from pathlib import Path

HEAD = """\
# Every package that `make setup` may install, at the version that the tests were last run with.
# Written by `make lock`; users of the wheel never meet this file.
"""
NOT_PINNED = {"masp", "pip"}
ROOT = Path(__file__).resolve().parents[1]


def pins() -> list[str]:
    found = {d.metadata["Name"]: d.version.partition("+")[0] for d in distributions()}
    return [f"{name}=={found[name]}" for name in sorted(found, key=str.lower) if name.lower() not in NOT_PINNED]


if __name__ == "__main__":
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins()) + "\n")
