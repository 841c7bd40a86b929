"""Use the package as someone who installed the wheel does: run by `make wheel-test` in an environment without src/."""

import json
import subprocess
import sys
import tempfile
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
        made = sorted((Path(folder) / "image").rglob("*.jpg"))
        shipped = sorted((home / "demo_pictures").glob("*.png"))
        if len(made) != 10 or not shipped:
            sys.exit(f"expected 10 images made and some shipped; found {len(made)} and {len(shipped)}")
        answers = [json.loads(line) for line in run("predict", made[0], *shipped[:2], "--json").splitlines()]
    if len(answers) != 3:
        sys.exit(f"expected 3 predictions; got {len(answers)}")
    for answer in answers:
        print(f"{Path(answer['image']).name}: {answer['label']} ({max(answer['probabilities'].values()):.0%})")
    print(f"masp {masp.__version__} works from {home}")


if __name__ == "__main__":
    main()
