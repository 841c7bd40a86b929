"""Drawing an emoji scene: 168 x 168 RGB, glyphs on a gradient, then light and colour brought to a target.

Brightness and colorfulness are *measured* on the final pixels; the targets only spread them over their range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance

from masp.data.emoji.label_model import Cues

SCENES: Mapping[str, int] = MappingProxyType(
    {
        "beach": 0x1F3D6,
        "mountain": 0x1F3D4,
        "city_by_night": 0x1F303,
        "volcano": 0x1F30B,
        "hospital": 0x1F3E5,
        "graveyard": 0x1FAA6,
        "forest": 0x1F332,
        "stadium": 0x1F3DF,
        "desert": 0x1F3DC,
        "amusement_park": 0x1F3A1,
        "garden": 0x1F3E1,
        "thunderstorm": 0x26C8,
    }
)

OBJECTS: Mapping[str, int] = MappingProxyType(
    {
        "Balloon": 0x1F388,
        "Birthday cake": 0x1F382,
        "Bomb": 0x1F4A3,
        "Bouquet": 0x1F490,
        "Broken heart": 0x1F494,
        "Butterfly": 0x1F98B,
        "Candle": 0x1F56F,
        "Cat": 0x1F431,
        "Cockroach": 0x1FAB3,
        "Coffin": 0x26B0,
        "Dog": 0x1F436,
        "Drum": 0x1F941,
        "Garbage": 0x1F5D1,
        "Gift": 0x1F381,
        "Guitar": 0x1F3B8,
        "Knife": 0x1F5E1,
        "Microbe": 0x1F9A0,
        "Rainbow": 0x1F308,
        "Rocket": 0x1F680,
        "Siren": 0x1F6A8,
        "Skull": 0x1F480,
        "Snake": 0x1F40D,
        "Spider": 0x1F577,
        "Tea": 0x1F375,
        "Trophy": 0x1F3C6,
        "Wilted flower": 0x1F940,
    }
)

EXPRESSIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "angry": (0x1F621, 0x1F92C),
        "disgust": (0x1F922, 0x1F92E),
        "fear": (0x1F631, 0x1F628),
        "happy": (0x1F604, 0x1F60A),
        "sad": (0x1F622, 0x1F62D),
        "surprise": (0x1F632, 0x1F92F),
    }
)

ACTIONS: Mapping[str, int] = MappingProxyType(
    {
        "bathing": 0x1F6C0,
        "climbing": 0x1F9D7,
        "cycling": 0x1F6B4,
        "dancing": 0x1F483,
        "facepalming": 0x1F926,
        "fencing": 0x1F93A,
        "juggling": 0x1F939,
        "kneeling": 0x1F9CE,
        "meditating": 0x1F9D8,
        "running": 0x1F3C3,
        "surfing": 0x1F3C4,
        "weightlifting": 0x1F3CB,
    }
)


@dataclass(frozen=True)
class Glyph:
    """One sprite: the aspect it belongs to, the value it stands for, and its Unicode code point."""

    aspect: str
    value: str
    codepoint: int


def _inventory() -> tuple[Glyph, ...]:
    """All glyphs in atlas order: scenes, objects, facial expressions, human actions."""
    return (
        *(Glyph("scene", name, code) for name, code in SCENES.items()),
        *(Glyph("object", name, code) for name, code in OBJECTS.items()),
        *(Glyph("facial_expression", name, code) for name, codes in EXPRESSIONS.items() for code in codes),
        *(Glyph("human_action", name, code) for name, code in ACTIONS.items()),
    )


GLYPHS: tuple[Glyph, ...] = _inventory()
"""Every glyph, in the order of the atlas; a glyph's index is its class in the dense pre-training labels."""


def glyph_indices(aspect: str, value: str) -> tuple[int, ...]:
    """Places in `GLYPHS` of the sprites that stand for `value` (one, or two for a facial expression)."""
    return tuple(i for i, glyph in enumerate(GLYPHS) if glyph.aspect == aspect and glyph.value == value)


TILE = 80
"""Side of one sprite in the atlas, in pixels."""
COLUMNS = 10
ATLAS_FILE = files("masp.data.emoji") / "assets" / "atlas.png"


@cache
def sprites() -> tuple[Image.Image, ...]:
    """The sprites in the order of `GLYPHS`: RGBA, TILE x TILE each, transparent around the glyph."""
    with ATLAS_FILE.open("rb") as file:
        atlas = Image.open(file).convert("RGBA")
    corners = ((i % COLUMNS * TILE, i // COLUMNS * TILE) for i in range(len(GLYPHS)))
    return tuple(atlas.crop((x, y, x + TILE, y + TILE)) for x, y in corners)


SIDE = 168
"""Side of an image in pixels: 12 x 12 patches of 14, 6 x 6 visual tokens of 28."""
CELL = 28
CELLS = SIDE // CELL
COVERED = 0.3
"""A glyph covers a cell when its ink fills at least this share of it."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
BRIGHTNESS_RANGE = (0.16, 0.80)
COLORFULNESS_RANGE = (0.03, 0.42)
LEVEL_CENTRES = (0.07, 0.25, 0.45, 0.65, 0.87)

PALETTES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "beach": ((140, 205, 245), (240, 215, 160)),
    "mountain": ((150, 195, 235), (150, 170, 150)),
    "city_by_night": ((45, 50, 110), (90, 80, 140)),
    "volcano": ((120, 70, 70), (200, 100, 60)),
    "hospital": ((225, 235, 240), (170, 195, 205)),
    "graveyard": ((120, 125, 140), (95, 115, 90)),
    "forest": ((150, 200, 170), (70, 120, 70)),
    "stadium": ((120, 180, 230), (90, 170, 80)),
    "desert": ((245, 215, 150), (220, 165, 95)),
    "amusement_park": ((240, 180, 210), (180, 150, 230)),
    "garden": ((170, 220, 245), (140, 200, 110)),
    "thunderstorm": ((90, 95, 120), (60, 70, 95)),
}
"""Sky and ground of each scene; each image shifts them at random."""


@dataclass(frozen=True)
class Style:
    """How freely images are laid out. The shifted test split uses other numbers than the rest.

    Attributes:
        sizes: the sides a glyph may have, in pixels (the first glyph, the scene's, is 14 larger).
        anchored: glyphs stand near the nine fields of a 3 x 3 grid; otherwise anywhere, and may overlap.
        jitter: largest distance from the field in steps of `step` pixels.
        step: lattice of the positions in pixels.
        own_palette: the scene has its own background; otherwise another scene's.
    """

    sizes: tuple[int, ...] = (49, 56)
    anchored: bool = True
    jitter: int = 1
    step: int = 7
    own_palette: bool = True


USUAL = Style()
SHIFTED = Style(sizes=tuple(range(42, 71)), anchored=False, step=1, own_palette=False)


@dataclass(frozen=True)
class Drawing:
    """One image with its truth.

    Attributes:
        image: RGB, 168 x 168.
        cues: what is in it; brightness and colorfulness as measured, on a grid of 0.1.
        cells: index into `GLYPHS` of the glyph that covers each 28-pixel cell, -1 for none; (6, 6) int.
    """

    image: Image.Image
    cues: Cues
    cells: np.ndarray


def draw(rng: np.random.Generator, style: Style = USUAL) -> Drawing:
    """Draw the cues and the image from `rng`."""
    scene = _pick(rng, SCENES)
    objects = tuple(sorted(rng.choice(sorted(OBJECTS), size=int(rng.integers(1, 3)), replace=False).tolist()))
    expression = _pick(rng, EXPRESSIONS) if rng.random() < 0.6 else None
    action = _pick(rng, ACTIONS) if rng.random() < 0.6 else None
    values = [("scene", scene), *(("object", name) for name in objects)]
    values += [("facial_expression", expression)] if expression else []
    values += [("human_action", action)] if action else []
    glyphs = [int(rng.choice(glyph_indices(*value))) for value in values]
    palette = scene if style.own_palette else _pick(rng, SCENES)
    image, cells = compose(rng, glyphs, palette, style)
    image = _tone(image, *(LEVEL_CENTRES[rng.integers(5)] + rng.uniform(-0.06, 0.06) for _ in range(2)))
    pixels = np.asarray(image)
    cues = Cues(scene, objects, expression, action, _grid(brightness(pixels)), _grid(colorfulness(pixels)))
    return Drawing(image, cues, cells)


def _pick(rng: np.random.Generator, names: object) -> str:
    options = sorted(names)  # type: ignore[call-overload]
    return options[int(rng.integers(len(options)))]


def _grid(value: float) -> float:
    return round(float(value), 1)


def compose(rng: np.random.Generator, glyphs: list[int], palette: str, style: Style) -> tuple[Image.Image, np.ndarray]:
    """Paste the glyphs, each in a field of its own, on the palette's gradient; (image RGB, cells (6, 6) int)."""
    image = _background(rng, palette)
    ink = np.zeros((len(glyphs), CELLS, CELLS))
    fields = rng.permutation(9)[: len(glyphs)]
    for index, (glyph, field) in enumerate(zip(glyphs, fields, strict=True)):
        side = int(rng.choice(style.sizes)) + (14 if index == 0 else 0)
        if style.anchored:
            shift = style.step * rng.integers(-style.jitter, style.jitter + 1, 2)
            corner = np.array([field % 3, field // 3]) * 56 + shift
        else:
            corner = rng.integers(0, SIDE - side + 1, 2)
        corner = np.clip(corner, 0, SIDE - side)
        sprite = sprites()[glyph].resize((side, side), Image.Resampling.BILINEAR)
        image.paste(sprite, (int(corner[0]), int(corner[1])), sprite)
        ink[index] = _coverage(sprite, corner)
        ink[:index] *= 1 - ink[index]  # what is pasted later hides what was there
    cells = np.where(ink.max(axis=0) >= COVERED, np.asarray(glyphs)[ink.argmax(axis=0)], -1)
    return image, cells


def _coverage(sprite: Image.Image, corner: np.ndarray) -> np.ndarray:
    """Share of each cell under the sprite's ink: (6, 6), from 0 to 1."""
    layer = np.zeros((SIDE, SIDE), dtype=np.float32)
    alpha = np.asarray(sprite.getchannel("A"), dtype=np.float32) / 255
    x, y = int(corner[0]), int(corner[1])
    layer[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha
    return layer.reshape(CELLS, CELL, CELLS, CELL).mean(axis=(1, 3))


def _background(rng: np.random.Generator, palette: str) -> Image.Image:
    top, bottom = (np.array(colour) + rng.integers(-22, 23, 3) for colour in PALETTES[palette])
    ramp = np.linspace(0, 1, SIDE)[:, None]
    rows = np.clip(top * (1 - ramp) + bottom * ramp, 0, 255)
    grain = rng.integers(-6, 7, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(rows[:, None] + grain, 0, 255).astype(np.uint8))


def brightness(pixels: np.ndarray) -> float:
    """Mean luma of RGB uint8 (H, W, 3), brought from its usual range to [0, 1]."""
    low, high = BRIGHTNESS_RANGE
    return float(np.clip(((pixels @ LUMA).mean() / 255 - low) / (high - low), 0, 1))


def colorfulness(pixels: np.ndarray) -> float:
    """Hasler and Suesstrunk's colorfulness (2003) of RGB uint8 (H, W, 3), brought from its usual range to [0, 1]."""
    red, green, blue = np.moveaxis(pixels.astype(np.float32) / 255, -1, 0)
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    low, high = COLORFULNESS_RANGE
    return float(np.clip((spread - low) / (high - low), 0, 1))


def _tone(image: Image.Image, bright: float, colourful: float) -> Image.Image:
    """Change exposure and saturation so that the measures come near their targets."""
    small = np.asarray(image.resize((28, 28), Image.Resampling.NEAREST), dtype=np.float32)
    saturation, gamma = 1.0, 1.0
    for _ in range(2):
        gamma = _bisect(lambda g, s=saturation: -brightness(_apply(small, s, g)), -bright, 0.15, 6.0)
        saturation = _bisect(lambda s, g=gamma: colorfulness(_apply(small, s, g)), colourful, 0.1, 3.5)
    table = [round(255 * (value / 255) ** gamma) for value in range(256)]
    return ImageEnhance.Color(image).enhance(saturation).point(table * 3)


def _apply(pixels: np.ndarray, saturation: float, gamma: float) -> np.ndarray:
    grey = (pixels @ LUMA)[..., None]
    return 255 * (np.clip(grey + saturation * (pixels - grey), 0, 255) / 255) ** gamma


def _bisect(rising: object, target: float, low: float, high: float) -> float:
    for _ in range(7):
        middle = (low * high) ** 0.5
        if rising(middle) < target:  # type: ignore[operator]
            low = middle
        else:
            high = middle
    return (low * high) ** 0.5


def draw_collage(rng: np.random.Generator) -> Drawing:
    """An image for pre-training the vision tower only: six to nine unrelated glyphs under a random exposure.

    It has more covered cells than a scene. Its cues carry no meaning beyond the measured brightness and colorfulness.
    """
    glyphs = rng.integers(0, len(GLYPHS), int(rng.integers(6, 10))).tolist()
    image, cells = compose(rng, glyphs, _pick(rng, SCENES), USUAL)
    gamma = float(np.exp(rng.uniform(-1.2, 1.2)))
    table = [round(255 * (value / 255) ** gamma) for value in range(256)]
    image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.1, 2.0))).point(table * 3)
    pixels = np.asarray(image)
    cues = Cues(None, (), None, None, _grid(brightness(pixels)), _grid(colorfulness(pixels)))
    return Drawing(image, cues, cells)
