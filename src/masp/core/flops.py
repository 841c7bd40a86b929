"""What the method costs by arithmetic: floating-point operations, bytes of keys and values, for any size of backbone.

Operations are counted as two per multiplication and addition of a matrix product; norms and softmaxes are left out.
"""

from dataclasses import dataclass

SMALL, MANY = 512, 64
"""Up to this width of a language model, so many images go through it together: they take little memory there."""

VALIDATED = 256
"""Images of the split val, at most, whose aspects are put into words at each validation of stage 1."""

STEP = 8
"""Examples of a training step by default."""


def images_at_once(width: int, step: int = STEP) -> int:
    """Images that go through a language model together where nothing is trained and no number is given.

    As many as a training step has examples: without a graph each takes a fraction of what it takes there, so that they
    fit wherever the step does. A small model takes more of them, since a few would leave the machine idle.

    Args:
        width: of the language model.
        step: examples that are trained at once.
    """
    return max(step, MANY) if width <= SMALL else step


@dataclass(frozen=True)
class Sizes:
    """A backbone as the arithmetic sees it.

    Attributes:
        dim: width of the language model.
        layers: its layers.
        kv_dim: width of the keys of one layer (key/value heads times their width).
        language: parameters of its layers.
        vocabulary: rows of the output head.
        vision: parameters of the vision tower.
        vision_width: width of the vision tower.
        vision_layers: its layers.
        patches: patches of the vision tower behind one visual token.
        tied: whether the output head is the embedding matrix.
    """

    dim: int
    layers: int
    kv_dim: int
    language: int
    vocabulary: int
    vision: int
    vision_width: int
    vision_layers: int
    patches: int = 4
    tied: bool = False

    def vision_flops(self, visual: int) -> float:
        """One image through the vision tower."""
        count = visual * self.patches
        return 2.0 * self.vision * count + 4.0 * count**2 * self.vision_width * self.vision_layers

    def forward_flops(self, new: int, past: int = 0) -> float:
        """New columns through the language model, behind `past` columns; causal, so that half of the square counts."""
        return 2.0 * self.language * new + 4.0 * self.layers * self.dim * new * (past + new / 2)

    def head_flops(self, columns: int) -> float:
        """The output head for so many columns."""
        return 2.0 * self.dim * self.vocabulary * columns

    def step_flops(self, graph: int, past: int, supervised: int) -> float:
        """Forward and backward over the columns with a graph; frozen weights need one product each way."""
        return 2 * (self.forward_flops(graph, past) + self.head_flops(supervised))

    def plain_flops(self, visual: int, columns: int) -> float:
        """A plain step from the pixels: forward, once more for checkpointing, backward; the head for every column."""
        return self.vision_flops(visual) + 3 * self.forward_flops(columns) + 2 * self.head_flops(columns)

    def kept_bytes(self, columns: int, itemsize: int = 2) -> int:
        """Keys and values of so many columns."""
        return 2 * self.layers * self.kv_dim * columns * itemsize

    def feature_bytes(self, visual: int, itemsize: int = 2) -> int:
        """Visual tokens of one image."""
        return visual * self.dim * itemsize


QWEN2_VL_7B = Sizes(
    dim=3584,
    layers=28,
    kv_dim=512,
    language=6_525_618_176,
    vocabulary=152_064,
    vision=675_759_104,
    vision_width=1280,
    vision_layers=32,
)
"""Qwen2-VL-7B; 57,344 bytes of keys and values per column in bf16, 13.05 GFLOP per column."""
