"""How much the demo does, and the settings it trains with."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.core.config import RunConfig, load_config


@dataclass(frozen=True)
class Plan:
    """Numbers of images; together with the training steps in `configs/demo.yaml` they decide how long it takes.

    Attributes:
        train: images to learn from.
        val: images to choose the best state on.
        test: images that Table 2 is measured on.
        read: test images whose aspects are put into words.
        explained: test images whose explanations are compared with the truth.
        seed: of the images, of the untrained soft prompt and of the bootstrap.
    """

    train: int = 2000
    val: int = 150
    test: int = 800
    read: int = 200
    explained: int = 300
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
