"""How much the demo does, the data set it draws, and the six scenes that come with the package."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.core.aspects import ASPECTS, answer_text
from masp.core.atomic_io import remove_leftovers, write_file, write_folder
from masp.core.config import RunConfig, load_config
from masp.core.errors import UsageError
from masp.data.emoji.dataset import WORLD_VERSION, write_dataset
from masp.data.records import read_json


@dataclass(frozen=True)
class Plan:
    """Numbers of images; together with the training steps in `configs/demo.yaml` they decide how long it takes.

    Attributes:
        train: images to learn from.
        val: images to choose the best state on.
        test: images that Table 2 is measured on.
        read: test images whose aspects are put into words.
        explained: test images whose explanations are compared with the truth.
        photographs: whether it begins with photographs, where their backbone is installed.
        seed: of the images, of the untrained soft prompt and of the bootstrap.
    """

    train: int = 2000
    val: int = 150
    test: int = 800
    read: int = 200
    explained: int = 300
    photographs: bool = True
    seed: int = 1  # other images than those of the committed figures, which use 0

    def splits(self) -> dict[str, int]:
        """Images by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


def demo_config() -> RunConfig:
    """The settings of the demo, which come with the package.

    Raises:
        ConfigError: the file is damaged.
    """
    return load_config(Path(str(resources.files("masp").joinpath("configs", "demo.yaml"))))


TRUTH = "truth.json"


@dataclass(frozen=True)
class DemoPicture:
    """One shipped scene with everything that is true of it.

    Attributes:
        path: the file.
        label: the emotion that was drawn for it.
        annotations: for each aspect that it shows, the right answer.
        probabilities: the true chance of each label.
        cause: the aspect that did most for the label.
    """

    path: Path
    label: str
    annotations: Mapping[str, str]
    probabilities: Mapping[str, float]
    cause: str


def is_drawn(folder: Path, plan: Plan) -> bool:
    """Whether the data set of this plan is there already.

    Raises:
        UsageError: the folder holds something else.
    """
    if not folder.exists():
        return False
    wanted = {"world": WORLD_VERSION, "seed": plan.seed, "splits": plan.splits()}
    info = folder / "info.json"
    content = read_json(info) if info.is_file() else {}
    made = content.get("emoji_scenes", {}) if isinstance(content, dict) else {}
    if {key: made.get(key) for key in wanted} != wanted:
        raise UsageError(f"{folder} holds other images than the demo draws", "an unused folder", "Name another --out.")
    return True


def draw_dataset(folder: Path, plan: Plan, progress: Callable[[int], None]) -> None:
    """Draws the plan's images; the folder appears when all of them are there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    write_folder(folder, lambda partial: write_dataset(partial, plan.splits(), plan.seed, progress))


def demo_pictures(folder: Path) -> tuple[DemoPicture, ...]:
    """The six shipped scenes, copied into `folder`, so that they can be looked at and predicted again."""
    home = resources.files("masp").joinpath("demo_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, content in json.loads(home.joinpath(TRUTH).read_text(encoding="utf-8")).items():
        write_file(folder / name, home.joinpath(name).read_bytes())
        known = content["emoji"]
        answers = {aspect: answer_text(aspect, content[aspect]) for aspect in ASPECTS if aspect in content}
        found.append(DemoPicture(folder / name, content["emotion"], answers, known["probabilities"], known["cause"]))
    return tuple(found)
