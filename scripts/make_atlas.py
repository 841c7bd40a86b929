"""Render the sprites of the emoji scenes from Noto Color Emoji into the atlas that ships with the package.

Needs the font once (Debian: fonts-noto-color-emoji); nothing at run time does.

    python scripts/make_atlas.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from masp.data.emoji.render import ATLAS_FILE, COLUMNS, GLYPHS, TILE

FONT_SIZE = 109  # the only bitmap size in the font; its glyphs are 136 x 128


def render(codepoint: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One glyph, cropped to its ink and centred on a transparent TILE x TILE square (RGBA)."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((8, 8), chr(codepoint), font=font, embedded_color=True)
    ink = canvas.getbbox()
    if ink is None:
        raise SystemExit(f"the font has no glyph for U+{codepoint:X}")
    sprite = canvas.crop(ink)
    scale = TILE / max(sprite.size)
    sprite = sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), Image.Resampling.LANCZOS)
    tile = Image.new("RGBA", (TILE, TILE))
    tile.paste(sprite, ((TILE - sprite.width) // 2, (TILE - sprite.height) // 2))
    return tile


def main(font_file: str) -> None:
    """Write the atlas: one tile for each glyph, row by row."""
    font = ImageFont.truetype(font_file, FONT_SIZE)
    rows = -(-len(GLYPHS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * TILE, rows * TILE))
    for index, glyph in enumerate(GLYPHS):
        atlas.paste(render(glyph.codepoint, font), (index % COLUMNS * TILE, index // COLUMNS * TILE))
    atlas.save(Path(str(ATLAS_FILE)), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
