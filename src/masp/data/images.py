"""Opening pictures that nobody vouches for: every file becomes an RGB image or an `ImageError`, nothing else."""

import io
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from masp.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is read, told by the content of a file; of an animation, the first frame."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})
"""Names under which pictures are looked for in folders."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
}

SPARE = 1.5
"""How much larger than its final size a JPEG is decoded at least, where it is decoded smaller than it is."""

Rounding = Literal["nearest", "down"]
"""How the shorter side of a shrunk picture becomes a whole number of pixels."""

MAX_PIXELS = 50_000_000
MAX_BYTES = 268_435_456

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
_SAVE_AGAIN = "Save the picture again as JPEG or PNG."
_TOGETHER = (
    262_144  # greys that are scaled at a time: 2 MB for each step of the arithmetic, whatever the picture's size
)


def open_image(
    path: str | os.PathLike[str], longest_side: int | None = None, rounding: Rounding = "nearest"
) -> Image.Image:
    """The picture in a file: upright, RGB uint8, without metadata.

    Transparent parts become white; 16-bit greys are scaled to 8 bits.

    Args:
        path: a JPEG, PNG, WebP, GIF or BMP file of at most 50 million pixels, whatever its suffix.
        longest_side: shrink (Lanczos) so that the longer side has at most this many pixels. A JPEG that is much larger
            is decoded at a fraction of its size, which changes a pixel by a few of 255 at most.
        rounding: of the shorter side, where it is shrunk.

    Raises:
        ImageError: anything at all is wrong with the file.
    """
    return decode_image(read_content(path), path, longest_side, rounding)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height as the header of a file says, not turned upright; None where that cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # whatever is wrong with it, `open_image` will say
        return None


def image_area(path: str | os.PathLike[str], longest_side: int | None = None, rounding: Rounding = "nearest") -> int:
    """Pixels of the picture in a file once it is shrunk, from its header alone; 0 where that cannot be read."""
    size = image_size(path)
    if size is None:
        return 0
    width, height = shrunk_size(size, longest_side, rounding)
    return width * height


def decode_image(
    content: bytes,
    name: str | os.PathLike[str],
    longest_side: int | None = None,
    rounding: Rounding = "nearest",
) -> Image.Image:
    """As `open_image`, for a file that is already in memory; `name` is for the messages."""
    _check_pixels(name, _webp_size(content))
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_pixels(name, image.size)
            return shrink(to_rgb(_loaded(image, longest_side, rounding)), longest_side, rounding)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name, f"not a {', '.join(FORMATS)} file", _SAVE_AGAIN) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name, "far more than the allowed number of") from None
    except MemoryError:
        raise _too_large(name) from None
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, IndexError …
        raise ImageError(name, f"damaged ({_short(error)})", "Copy it again from its source, or remove it.") from None


def _loaded(image: Image.Image, longest_side: int | None, rounding: Rounding) -> Image.Image:
    """The decoded picture; a JPEG that is much larger than `longest_side` is already shrunk to it.

    A JPEG can be decoded at a half, a quarter or an eighth of its size, where the decoder averages blocks of pixels,
    which is several times faster than decoding all of them. `SPARE` times the final size is left, so that the filter
    still decides what the picture looks like.
    """
    size = shrunk_size(image.size, longest_side, rounding)
    spare = (round(SPARE * size[0]), round(SPARE * size[1]))
    drafted = image.draft(None, spare) if size != image.size else None
    image.load()
    # The box is the picture in the pixels of the smaller one; its last row and column may reach beyond it.
    return image if drafted is None else image.resize(size, Image.Resampling.LANCZOS, box=drafted[1])


def format_of(content: bytes) -> str | None:
    """The format that the first bytes of a file tell: one of `FORMATS`, or None."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for beginning, name in _BEGINNINGS if content.startswith(beginning)), None)


def suffix_of(content: bytes) -> str | None:
    """The usual suffix for a file's content, or None where it is no picture."""
    kind = format_of(content)
    return _SUFFIXES_OF[kind][0] if kind is not None else None


def suffix_fits(suffix: str, kind: str) -> bool:
    """Whether a file of a format may have a suffix."""
    return suffix.lower() in _SUFFIXES_OF[kind]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def read_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture's file.

    Raises:
        ImageError: it is no file, cannot be read, is empty or has more than `MAX_BYTES`.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a file", "Name a picture.")
        if status.st_size > MAX_BYTES:
            reason = f"has {status.st_size:,} bytes, at most {MAX_BYTES:,} are read"
            raise ImageError(path, reason, "Save it with stronger compression.")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name no file can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        passing = isinstance(error, OSError)
        raise ImageError(path, f"cannot be read ({reason})", "Check the path and the rights.", passing) from None
    except MemoryError:
        raise _too_large(path) from None
    if not content:
        raise ImageError(path, "the file is empty", "Copy it again from its source, or remove it.")
    return content


def _check_pixels(name: str | os.PathLike[str], size: tuple[int, int] | None) -> None:
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise _too_many_pixels(name, f"{size[0]} × {size[1]}")


def _too_many_pixels(name: str | os.PathLike[str], amount: str) -> ImageError:
    return ImageError(name, f"{amount} pixels, at most {MAX_PIXELS:,} are read", "Make the picture smaller.")


def _too_large(name: str | os.PathLike[str]) -> ImageError:
    return ImageError(name, "too large for the memory of this machine", "Make it smaller.", passing=True)


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP header claims, read before its decoder sets the memory for them aside."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as upright RGB uint8: transparency on white, 16-bit greys scaled, metadata left out."""
    turned = _upright(image)
    if turned.mode.startswith("I"):
        return _grey_to_rgb(turned)
    if turned.mode in _ALPHA or "transparency" in turned.info:
        if turned.mode == "La":
            turned = turned.convert("LA")  # Pillow knows no other way out of this mode
        layer = turned.convert("RGBA")  # the transparent colour of modes without alpha becomes an alpha channel
        page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    plain = turned.convert("RGB")
    plain.info = {}
    return plain


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # metadata that cannot be read says nothing about the picture
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, 0…65535 to 0…255, rounded; a transparent grey becomes white.

    Mode I has 32 bits and no fixed range: where no value is above 255, the values are taken as they are.
    """
    greys = np.asarray(image)
    eight_bits = image.mode == "I" and greys.max() <= 255
    transparent = image.info.get("transparency")
    scaled = np.empty(greys.shape, dtype=np.uint8)
    source, target = greys.reshape(-1), scaled.reshape(-1)
    for start in range(0, source.size, _TOGETHER):
        part = source[start : start + _TOGETHER].astype(np.int64)
        here = target[start : start + _TOGETHER]
        here[:] = np.clip(part if eight_bits else (part * 255 + 32767) // 65535, 0, 255)
        if isinstance(transparent, int):
            here[part == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def shrink(image: Image.Image, longest_side: int | None, rounding: Rounding = "nearest") -> Image.Image:
    """The picture, no longer than `longest_side` pixels on its longer side (Lanczos, as the authors' code does)."""
    size = shrunk_size(image.size, longest_side, rounding)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def shrunk_size(size: tuple[int, int], longest_side: int | None, rounding: Rounding = "nearest") -> tuple[int, int]:
    """Width and height of a picture of this size once its longer side has at most `longest_side` pixels.

    Args:
        size: width and height.
        longest_side: of the result; None: the picture keeps its size.
        rounding: of the shorter side: to the nearest pixel, or down, as the authors' code does. No side becomes 0.
    """
    width, height = size
    if longest_side is None or max(size) <= longest_side:
        return size
    if rounding == "down":
        return max(1, width * longest_side // max(size)), max(1, height * longest_side // max(size))
    scale = longest_side / max(size)
    return max(1, round(width * scale)), max(1, round(height * scale))
