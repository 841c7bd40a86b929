"""The sprite atlas: every glyph once, as RGBA tiles of one size."""

from functools import cache
from importlib.resources import files

from PIL import Image

from masp.data.emoji.glyphs import GLYPHS

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
