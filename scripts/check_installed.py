"""Use the package as someone who installed the wheel does: run by `make wheel-test` in an environment without src/."""

import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

MASP = Path(sys.executable).with_name("masp")


def run(*arguments: str | Path) -> str:
    done = subprocess.run([MASP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"masp {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    import masp

    home = Path(masp.__file__).parent
    if "site-packages" not in home.parts:
        sys.exit(f"expected the installed package; imported {home}")
    if "predict" not in run("--help"):
        sys.exit("masp --help does not name `predict`")
    with tempfile.TemporaryDirectory() as folder:
        run("data", "make", folder, "--images", "10")
        pictures = sorted((Path(folder) / "image").rglob("*.*"))[:2]
        lines = run("predict", *pictures, "--json").splitlines()
    for line in lines:
        answer = json.loads(line)
        print(f"{Path(answer['image']).name}: {answer['label']} ({max(answer['probabilities'].values()):.0%})")
    print(f"masp {masp.__version__} works from {files('masp')}")


if __name__ == "__main__":
    main()
