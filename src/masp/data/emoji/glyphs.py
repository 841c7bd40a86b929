"""The inventory of emoji scenes: which glyph stands for which cue value.

A glyph is one sprite of the atlas. Scenes, objects and human actions have one glyph for each value; a facial
expression has two, so that reading an expression is more than matching one drawing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

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
