"""Opening untrusted images: every file becomes an RGB image or an `ImageError`, nothing else."""

import io
import os
import re
import stat
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError, features

from masp.core.errors import ImageError, reason_of

_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "AVIF": (".avif", ".avifs"),
    "HEIC": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}

FORMATS = tuple(_SUFFIXES_OF)
"""What is read, told by the content of a file; of an animation or a collection, the first or the primary image."""

FORMAT_NAMES = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
"""The formats as messages name them."""

SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES_OF.values() for suffix in suffixes)
"""Names under which images are looked for in folders."""

UNREAD_SUFFIXES = frozenset({".tif", ".tiff"})
"""Names of images that are not read: a folder of them is not an empty one."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BRANDS = {  # of the codecs that HEIF files hold; "mif1" and "msf1" alone do not tell which
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
}
_LONGEST_BEGINNING = 512
_MOST_BOXES = 1000
_EXTENT = re.compile(rb"ispe.{4}(.{4})(.{4})", re.DOTALL)

SPARE = 1.5
"""How much larger than its final size a JPEG is decoded at least, where it is decoded smaller than it is."""

Rounding = Literal["nearest", "down"]
"""How the shorter side of a shrunk image becomes a whole number of pixels."""

MAX_PIXELS = 50_000_000
"""Of a decoded image, and of a file in any format but JPEG."""

MAX_JPEG_PIXELS = 300_000_000
"""Of a JPEG, which is decoded row by row at a fraction of its size where it has more than `MAX_PIXELS`."""

MAX_PROGRESSIVE_PIXELS = 100_000_000
"""Of a JPEG whose parts come in several scans: its decoder keeps all of it, 6 bytes a pixel, at whatever fraction."""

MAX_BYTES = 268_435_456

_MARKER = re.compile(rb"\xff+([^\x00\xff])")  # of a JPEG's segment
_START_OF_SCAN = 0xDA
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_BARE = (0x01, *range(0xD0, 0xD9))  # markers without a segment

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
_SAVE_AGAIN = "Save the image again as JPEG or PNG."
_TOGETHER = 262_144  # greys that are scaled at a time: 2 MB for each step of the arithmetic, whatever the image's size


def open_image(
    path: str | os.PathLike[str], longest_side: int | None = None, rounding: Rounding = "nearest"
) -> Image.Image:
    """The image in a file: upright, RGB uint8, without metadata.

    Transparent parts become white; 16-bit greys are scaled to 8 bits.

    Args:
        path: a file in one of `FORMATS`, whatever its suffix, of at most `MAX_PIXELS`; a JPEG may have
            `MAX_JPEG_PIXELS`, or `MAX_PROGRESSIVE_PIXELS`, and then comes out with at most `MAX_PIXELS`.
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
        with Path(path).open("rb") as file:
            kind = format_of(file.read(_LONGEST_BEGINNING))
            file.seek(0)
            with _opened(file, kind or "") as image:
                return image.size
    except Exception:  # whatever is wrong with it, `open_image` will say
        return None


def image_area(path: str | os.PathLike[str], longest_side: int | None = None, rounding: Rounding = "nearest") -> int:
    """Pixels of the image in a file once it is shrunk, from its header alone; 0 where that cannot be read."""
    size = image_size(path)
    if size is None:
        return 0
    width, height = _final_size(size, longest_side, rounding)
    return width * height


def decode_image(
    content: bytes,
    name: str | os.PathLike[str],
    longest_side: int | None = None,
    rounding: Rounding = "nearest",
) -> Image.Image:
    """As `open_image`, for a file that is already in memory; `name` is for the messages."""
    kind = _readable(content, name)
    _check_pixels(name, _webp_size(content), MAX_PIXELS)
    try:
        for size in _heic_sizes(content) if kind == "HEIC" else ():
            _check_pixels(name, size, MAX_PIXELS)
        with _opened(io.BytesIO(content), kind) as image:
            _check_pixels(name, image.size, _most_pixels(kind, content))
            return shrink(to_rgb(_loaded(image, longest_side, rounding)), longest_side, rounding)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _damaged(name, "its header cannot be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(name, "far more than the allowed number of", MAX_PIXELS) from None
    except MemoryError:
        raise _too_large(name) from None
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, IndexError …
        raise _damaged(name, reason_of(error, 120)) from None


def _readable(content: bytes, name: str | os.PathLike[str]) -> str:
    """The format of a file's content, one of `FORMATS` that can be read here.

    Raises:
        ImageError: it is none, or what reads it is not installed.
    """
    kind = format_of(content)
    if kind is None and content.startswith(_TIFF):
        reason = (
            "TIFF (or a camera's raw file), which is not read: its many encodings are decoders with many known flaws"
        )
        raise ImageError(name, reason, _SAVE_AGAIN)
    if kind is None:
        raise ImageError(name, f"not a {FORMAT_NAMES} file", _SAVE_AGAIN)
    if kind == "HEIC" and find_spec("pillow_heif") is None:
        reason = "HEIC, and pillow-heif is not installed (pip install 'masp[heic]')"
        raise ImageError(name, reason, "Install it, or save the image again as JPEG.", passing=True)
    if kind == "AVIF" and not features.check("avif"):
        reason = "AVIF, which this build of Pillow cannot read (pip install --force-reinstall pillow)"
        raise ImageError(name, reason, "Install Pillow's own wheel, or save the image again as JPEG.", passing=True)
    return kind


def _opened(file: io.BytesIO | io.BufferedReader, kind: str) -> Image.Image:
    """An image whose header is read. Not by `Image.open` where that refuses what is read here, or knows nothing of it.

    HEIC: the primary image, turned as the file says; Pillow's list of formats, which others use too, stays as it is.
    """
    if kind == "JPEG":
        return JpegImagePlugin.jpeg_factory(file)
    if kind == "HEIC":
        from pillow_heif import HeifImageFile  # an extra

        return HeifImageFile(file)
    return Image.open(file, formats=[kind])


def _most_pixels(kind: str, content: bytes) -> int:
    """How many pixels a file may have by its header."""
    if kind != "JPEG":
        return MAX_PIXELS
    return MAX_PROGRESSIVE_PIXELS if _in_scans(content) else MAX_JPEG_PIXELS


def _in_scans(content: bytes) -> bool:
    """Whether a JPEG is progressive or its colours come one after the other, so that its decoder keeps all of it."""
    offset, colours, progressive = 2, 0, False
    while result := _MARKER.search(content, offset):
        marker, offset = result[1][0], result.end()
        if marker == _START_OF_SCAN:
            return progressive or int.from_bytes(content[offset + 2 : offset + 3]) < colours
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            colours = int.from_bytes(content[offset + 7 : offset + 8])
        if marker not in _BARE:
            offset += int.from_bytes(content[offset : offset + 2])
    return progressive


def _loaded(image: Image.Image, longest_side: int | None, rounding: Rounding) -> Image.Image:
    """The decoded image; a JPEG that is much larger than `longest_side` is already shrunk to it.

    A JPEG can be decoded at a half, a quarter or an eighth of its size, where the decoder averages blocks of pixels,
    which is several times faster than decoding all of them. `SPARE` times the final size is left, so that the filter
    still decides what the image looks like, but never more than `MAX_PIXELS`.
    """
    size = _final_size(image.size, longest_side, rounding)
    drafted = None
    if size != image.size and isinstance(image, JpegImagePlugin.JpegImageFile):
        # Other formats have drafts too: HEIC a thumbnail, which may be another image.
        width, height = _halved(image.size)
        drafted = image.draft(None, (min(round(SPARE * size[0]), width), min(round(SPARE * size[1]), height)))
    image.load()
    # The box is the image in the pixels of the smaller one; its last row and column may reach beyond it.
    return image if drafted is None else image.resize(size, Image.Resampling.LANCZOS, box=drafted[1])


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """A size of at most `MAX_PIXELS`: this one, or the half, the quarter or the eighth of its sides."""
    while size[0] * size[1] > MAX_PIXELS:
        size = size[0] // 2, size[1] // 2
    return size


def _final_size(size: tuple[int, int], longest_side: int | None, rounding: Rounding) -> tuple[int, int]:
    """Width and height that an image of this size comes out with."""
    largest = max(_halved(size))
    return shrunk_size(size, largest if longest_side is None else min(longest_side, largest), rounding)


def format_of(content: bytes) -> str | None:
    """The format that the first bytes of a file tell: one of `FORMATS`, or None."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        return _format_of_brands(content[8 : min(int.from_bytes(content[:4]), _LONGEST_BEGINNING)])
    return next((name for beginning, name in _BEGINNINGS if content.startswith(beginning)), None)


def _format_of_brands(brands: bytes) -> str | None:
    """AVIF or HEIC, from the major brand of a file and those it is compatible with; None for films and others."""
    major, compatible = brands[:4], [brands[offset : offset + 4] for offset in range(8, len(brands), 4)]
    if major in (b"mif1", b"msf1"):
        return next((_BRANDS[brand] for brand in compatible if brand in _BRANDS), None)
    return _BRANDS.get(major)


def suffix_of(content: bytes) -> str | None:
    """The usual suffix for a file's content, or None where it is no image."""
    kind = format_of(content)
    return _SUFFIXES_OF[kind][0] if kind is not None else None


def suffix_fits(suffix: str, kind: str) -> bool:
    """Whether a file of a format may have a suffix."""
    return suffix.lower() in _SUFFIXES_OF[kind]


def read_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image's file.

    Raises:
        ImageError: it is no file, cannot be read, is empty or has more than `MAX_BYTES`.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "not a file", "Name an image.")
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


def _check_pixels(name: str | os.PathLike[str], size: tuple[int, int] | None, most: int) -> None:
    if size is not None and size[0] * size[1] > most:
        raise _too_many_pixels(name, f"{size[0]} × {size[1]}", most)


def _too_many_pixels(name: str | os.PathLike[str], amount: str, most: int) -> ImageError:
    kind = " of a progressive JPEG" if most == MAX_PROGRESSIVE_PIXELS else ""
    return ImageError(name, f"{amount} pixels, at most {most:,}{kind} are read", "Make the image smaller.")


def _damaged(name: str | os.PathLike[str], how: str) -> ImageError:
    return ImageError(name, f"damaged ({how})", "Copy it again from its source, or remove it.")


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


def _heic_sizes(content: bytes) -> list[tuple[int, int]]:
    """Width and height of everything that is described in a HEIC file, before it is cut to what is shown.

    Raises:
        ValueError: the box of descriptions is not among the first.
    """
    offset = 0
    for _ in range(_MOST_BOXES):
        length, kind = int.from_bytes(content[offset : offset + 4]), content[offset + 4 : offset + 8]
        if length == 1:
            length = int.from_bytes(content[offset + 8 : offset + 16])
        if kind == b"meta":
            sizes = _EXTENT.findall(content, offset, offset + length if length else len(content))
            return [(int.from_bytes(width), int.from_bytes(height)) for width, height in sizes]
        if length < 8:
            break
        offset += length
    raise ValueError("nothing in it says what it holds")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright RGB uint8: transparency on white, 16-bit greys scaled, metadata left out."""
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
    except Exception:  # metadata that cannot be read says nothing about the image
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
    """The image, no longer than `longest_side` pixels on its longer side (Lanczos, as the authors' code does)."""
    size = shrunk_size(image.size, longest_side, rounding)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def shrunk_size(size: tuple[int, int], longest_side: int | None, rounding: Rounding = "nearest") -> tuple[int, int]:
    """Width and height of an image of this size once its longer side has at most `longest_side` pixels.

    Args:
        size: width and height.
        longest_side: of the result; None: the image keeps its size.
        rounding: of the shorter side: to the nearest pixel, or down, as the authors' code does. No side becomes 0.
    """
    width, height = size
    if longest_side is None or max(size) <= longest_side:
        return size
    if rounding == "down":
        return max(1, width * longest_side // max(size)), max(1, height * longest_side // max(size))
    scale = longest_side / max(size)
    return max(1, round(width * scale)), max(1, round(height * scale))
