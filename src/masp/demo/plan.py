"""How much the demo does, and the settings it trains with."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from masp.core.config import RunConfig, load_config


@dataclass(frozen=True)
class Plan:
    """Numbers of pictures; together with the training steps in `configs/demo.yaml` they decide how long it takes.

    Attributes:
        train: pictures to learn from.
        val: pictures to choose the best state on.
        test: pictures that Table 2 is measured on.
        read: test pictures whose aspects are put into words.
        explained: test pictures whose explanations are compared with the truth.
        photographs: whether it begins with photographs, where their backbone is installed.
        seed: of the pictures, of the untrained soft prompt and of the bootstrap.
    """

    train: int = 2000
    val: int = 150
    test: int = 800
    read: int = 200
    explained: int = 300
    photographs: bool = True
    seed: int = 1  # other pictures than those of the committed figures, which use 0

    def splits(self) -> dict[str, int]:
        """Pictures by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


def demo_config() -> RunConfig:
    """The settings of the demo, which come with the package.

    Raises:
        ConfigError: the file is damaged.
    """
    return load_config(Path(str(resources.files("masp").joinpath("configs", "demo.yaml"))))
