"""Any file becomes an upright RGB image or an `ImageError`."""

import io
import os
import random
import struct
import tracemalloc
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from fixtures.pictures import encoded, heic, noise
from masp.core.errors import ImageError
from masp.data import images
from masp.data.images import (
    decode_image,
    open_image,
    shrink,
    to_rgb,
)

WHITE = (255, 255, 255)
ORIENTATION = 0x0112


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and np.array_equal(np.asarray(image), np.asarray(other))


# --- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("WEBP", {"lossless": True, "exact": True})],
)
def test_lossless_formats_give_back_every_pixel(kind: str, options: dict[str, object]) -> None:
    image = noise()
    assert same(decode_image(encoded(image, kind, **options), "x"), image)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})]
)
def test_lossy_formats_give_nearly_the_same(kind: str, options: dict[str, object]) -> None:
    image = Image.linear_gradient("L").resize((23, 17)).convert("RGB")
    got = decode_image(encoded(image, kind, **options), "x")
    assert (got.mode, got.size) == ("RGB", (23, 17))
    assert np.abs(np.asarray(got).astype(int) - np.asarray(image).astype(int)).max() < 24


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    red, blue = Image.new("RGB", (7, 5), (255, 0, 0)), Image.new("RGB", (7, 5), (0, 0, 255))
    got = decode_image(encoded(red, kind, save_all=True, append_images=[blue]), "x")
    assert got.getpixel((3, 2))[0] > 240  # pyright: ignore[reportOptionalSubscript, reportIndexIssue]


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(noise(), "PNG"))
    assert same(open_image(file), noise())
    assert same(open_image(str(file)), noise())


def test_no_file_handle_or_metadata_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    noise().save(file, dpi=(72, 72))
    image = open_image(file)
    file.unlink()
    assert type(image) is Image.Image
    assert image.info == {}


# --- modes ---------------------------------------------------------------------------------------------------------


def test_16_bit_greys_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 257, 25700, 32768], [40000, 65000, 65535, 1, 129]], dtype=np.uint16)
    got = np.asarray(decode_image(encoded(Image.fromarray(values)), "x"))
    assert np.array_equal(got[:, :, 0], [[0, 0, 1, 100, 128], [156, 253, 255, 0, 1]])
    assert np.array_equal(got[:, :, 0], got[:, :, 2])


def test_greys_of_32_bits_are_taken_by_their_range() -> None:
    small = Image.fromarray(np.array([[0, 77, 255]], dtype=np.int32))
    large = Image.fromarray(np.array([[0, 25700, 65535], [-5, 70000, 257]], dtype=np.int32))
    assert np.asarray(to_rgb(small))[0, :, 1].tolist() == [0, 77, 255]
    assert np.asarray(to_rgb(large))[:, :, 1].tolist() == [[0, 100, 255], [0, 255, 1]]


def test_big_endian_greys_are_read_alike() -> None:
    little = Image.fromarray(np.array([[0, 25700, 65535]], dtype="<u2"))
    big = Image.frombytes("I;16B", (3, 1), np.array([[0, 25700, 65535]], dtype=">u2").tobytes())
    assert same(to_rgb(little), to_rgb(big))


def test_every_grey_of_a_large_picture_is_scaled_with_little_memory() -> None:
    """50 million greys once took several tables of eight bytes each, in every thread that reads."""
    ramp = np.tile(np.arange(65536, dtype=np.uint16), 61).reshape(-1, 4096)
    page = Image.fromarray(ramp)
    tracemalloc.start()
    try:
        got = to_rgb(page)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * ramp.size
    expected = [(grey * 255 + 32767) // 65535 for grey in range(65536)]
    assert np.array_equal(np.asarray(got)[:, :, 1].ravel(), np.tile(np.array(expected, dtype=np.uint8), 61))
    wide = Image.fromarray(ramp.astype(np.int32))
    assert same(to_rgb(wide), got)


def test_a_transparent_16_bit_grey_becomes_white() -> None:
    rows = b"".join(b"\x00" + struct.pack(">3H", 0, 25700, 40000) for _ in range(2))
    got = decode_image(png(3, 2, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 25700))), "x")
    assert np.asarray(got)[0, :, 0].tolist() == [0, 255, 156]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    layer = Image.new("RGBA", (5, 3), (0, 0, 0, 0))
    layer.putpixel((1, 1), (0, 0, 0, 255))
    layer.putpixel((2, 1), (0, 0, 0, 128))
    image = layer.convert("LA").convert(mode) if mode == "La" else layer.convert(mode)
    got = to_rgb(image)
    assert got.mode == "RGB"
    assert got.getpixel((0, 0)) == WHITE
    assert got.getpixel((1, 1)) == (0, 0, 0)
    assert got.getpixel((2, 1)) in {(127, 127, 127), (126, 126, 126), (128, 128, 128)}


def test_a_palettes_transparent_colour_becomes_white() -> None:
    image = Image.new("P", (5, 3), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 1), 0)
    got = decode_image(encoded(image, "PNG", transparency=0), "x")
    assert got.getpixel((1, 1)) == WHITE
    assert got.getpixel((0, 0)) == (200, 0, 0)
    assert decode_image(encoded(image, "GIF", transparency=0), "x").getpixel((1, 1)) == WHITE


@pytest.mark.parametrize(("mode", "colour"), [("L", 77), ("RGB", (1, 2, 3)), ("1", 0)])
def test_a_transparent_colour_without_alpha_becomes_white(mode: str, colour: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (5, 3), 255 if mode != "RGB" else (9, 9, 9))
    image.putpixel((1, 1), colour)
    got = decode_image(encoded(image, "PNG", transparency=colour), "x")
    assert got.getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "F", "I", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    got = to_rgb(noise().convert(mode))
    assert (got.mode, got.size) == ("RGB", (7, 5))


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10))
    got = decode_image(encoded(red.convert("CMYK"), "JPEG", quality=95), "x")
    assert np.abs(np.asarray(got).astype(int) - np.asarray(red).astype(int)).max() < 12


# --- orientation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, kind: str) -> None:
    image, exif = noise(), Image.Exif()
    exif[ORIENTATION] = orientation
    stored = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    marked = image.copy()
    marked.getexif()[ORIENTATION] = orientation
    assert same(decode_image(stored, "x"), ImageOps.exif_transpose(marked))
    assert decode_image(stored, "x").size == ((5, 7) if orientation >= 5 else (7, 5))


def test_turning_keeps_transparency() -> None:
    image, exif = Image.new("P", (5, 3), 1), Image.Exif()
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((0, 0), 0)
    exif[ORIENTATION] = 6
    got = decode_image(encoded(image, "PNG", exif=exif, transparency=0), "x")
    assert got.size == (3, 5)
    assert got.getpixel((2, 0)) == WHITE


@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00", b"x"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_unreadable_metadata_does_not_cost_the_picture(exif: bytes) -> None:
    assert decode_image(encoded(Image.new("RGB", (7, 5)), "JPEG", exif=exif), "x").size == (7, 5)


def test_metadata_of_the_wrong_kind_does_not_cost_the_picture() -> None:
    image = noise()
    image.info["exif"] = 3
    assert same(to_rgb(image), noise())


def test_to_rgb_turns_only_once() -> None:
    image, exif = noise(), Image.Exif()
    exif[ORIENTATION] = 6
    once = to_rgb(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))))
    assert once.size == (5, 7)
    assert same(to_rgb(once), once)


# --- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((40, 20), 10, (10, 5)),
        ((20, 41), 10, (5, 10)),
        ((7, 5), 10, (7, 5)),
        ((7, 5), None, (7, 5)),
        ((900, 1), 9, (9, 1)),
    ],
)
def test_the_longer_side_is_limited(size: tuple[int, int], longest: int | None, expected: tuple[int, int]) -> None:
    assert shrink(Image.new("RGB", size), longest).size == expected
    assert decode_image(encoded(Image.new("RGB", size)), "x", longest).size == expected


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (1, 50_000_001), (12_000, 12_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_that_claims_many_pixels_is_refused_before_decoding(width: int, height: int) -> None:
    content = png(width, height, 1, 0, b"\x00" * 100)
    assert len(content) < 10_000
    with pytest.raises(ImageError, match=r"pixels, at most 50,000,000 are read\. Make the image smaller"):
        decode_image(content, "bomb.png")


def test_the_cap_is_on_pixels_not_sides() -> None:
    with pytest.raises(ImageError, match="9000 × 9000 pixels"):
        decode_image(png(9000, 9000, 1, 0, b""), "x")
    with pytest.raises(ImageError, match="damaged"):  # 50 million are allowed; this one only lacks its rows
        decode_image(png(10_000, 5000, 1, 0, b""), "x")


@pytest.mark.parametrize(
    "header",
    [
        b"VP8X" + struct.pack("<I", 10) + bytes(4) + (9999).to_bytes(3, "little") * 2,
        b"VP8L" + struct.pack("<I", 10) + b"\x2f" + (9999 | 9999 << 14).to_bytes(4, "little") + bytes(5),
        b"VP8 " + struct.pack("<I", 10) + b"\x10\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 10_000, 10_000),
    ],
)
def test_a_webp_that_claims_many_pixels_is_refused_from_its_header(header: bytes) -> None:
    content = b"RIFF" + struct.pack("<I", len(header) + 4) + b"WEBP" + header
    with pytest.raises(ImageError, match="10000 × 10000 pixels"):
        decode_image(content, "x.webp")


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(path: Path | str) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.todo
    return caught.value.reason


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    assert refused(file) == "cannot be read (No such file or directory)"
    file.write_bytes(b"")
    assert refused(file) == "the file is empty"
    file.write_bytes(b"<html>image removed</html>")
    assert refused(file) == "not a JPEG, PNG, WEBP, GIF, BMP, AVIF or HEIC file"
    assert refused(tmp_path) == "not a file"
    assert refused("a\0b.png") == "cannot be read (embedded null byte)"
    assert refused("x" * 3000).startswith("cannot be read (File name too long")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refused(tmp_path / "pipe.png") == "not a file"


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.bmp").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert refused(tmp_path / "huge.bmp") == "has 268,435,457 bytes, at most 268,435,456 are read"


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "DIB", "SGI", "TIFF"])
def test_formats_off_the_list_are_refused(kind: str) -> None:
    reason = "TIFF .*which is not read.*known flaws" if kind == "TIFF" else "not a JPEG, PNG, WEBP, GIF, BMP, AVIF or"
    with pytest.raises(ImageError, match=rf"{reason}.*\. Save the image again"):
        decode_image(encoded(noise(), kind), "x")


def test_films_in_the_same_container_are_no_pictures() -> None:
    film = struct.pack(">I", 24) + b"ftypisom" + bytes(4) + b"isommp42"
    with pytest.raises(ImageError, match="not a JPEG"):
        decode_image(film + bytes(100), "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    content = encoded(noise(37, 29), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            decode_image(content[: int(len(content) * share)], "x")


def test_a_damaged_png_is_refused_with_the_decoders_reason() -> None:
    content = bytearray(encoded(noise(37, 29)))
    content[60] ^= 0xFF
    with pytest.raises(ImageError, match=r"image x: damaged \(.+\)\. Copy it again from its source, or remove it"):
        decode_image(bytes(content), "x")


def test_running_out_of_memory_is_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", exhausted)
    with pytest.raises(ImageError, match="too large for the memory of this machine") as caught:
        decode_image(encoded(noise()), "x")
    assert caught.value.passing


def test_what_the_system_refuses_may_pass_and_damage_does_not(tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(encoded(noise())[:60])
    found = {}
    for name in ("missing.png", "damaged.png"):
        with pytest.raises(ImageError) as caught:
            open_image(tmp_path / name)
        found[name] = caught.value.passing
    assert found == {"missing.png": True, "damaged.png": False}


# --- fuzzing -------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    image, exif = noise(19, 13), Image.Exif()
    exif[ORIENTATION] = 6
    greys = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1871)
    moving = {"save_all": True, "append_images": [image.rotate(90)]}
    return [
        encoded(image, "JPEG", exif=exif),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "PNG", exif=exif),
        encoded(image.convert("P"), "PNG", transparency=3),
        encoded(image.convert("LA"), "PNG"),
        encoded(greys, "PNG"),
        encoded(image, "PNG", **moving),
        encoded(image, "WEBP", exif=exif),
        encoded(image.convert("RGBA"), "WEBP", lossless=True),
        encoded(image, "WEBP", **moving),
        encoded(image, "GIF", **moving),
        encoded(image, "BMP"),
        encoded(image.convert("P"), "BMP"),
        encoded(image, "AVIF", exif=exif),
        encoded(image.convert("RGBA"), "AVIF"),
        encoded(image, "AVIF", **moving),
        *(heics() if find_spec("pillow_heif") else ()),
    ]


def heics() -> list[bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    tiled = heic(noise(80, 70), grid_tile_size=64)
    return [
        heic(noise(19, 13), exif=exif),
        heic(noise(19, 13).convert("RGBA")),
        heic(noise(19, 13).convert("L"), noise(9, 9)),
        tiled,
    ]


def mutated(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    choice = dice.random()
    if choice < 0.15:
        return bytes(data[: dice.randrange(len(data))])
    if choice < 0.25:
        start, stop = dice.randrange(len(data)), dice.randrange(len(data))
        return bytes(data[:start] + data[stop:])
    for _ in range(dice.choice((1, 2, 8, 40))):
        place = dice.randrange(min(len(data), dice.choice((40, len(data)))))
        data[place] = dice.choice((0, 0x7F, 0xFF, dice.randrange(256)))
    return bytes(data)


def read_or_refused(content: bytes) -> bool:
    try:
        image = decode_image(content, "mutant")
    except ImageError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    assert image.mode == "RGB"
    assert image.width * image.height <= images.MAX_PIXELS
    return True


def fuzz(count: int, seed: int) -> None:
    dice, originals = random.Random(seed), seeds()
    outcomes = [read_or_refused(mutated(dice.choice(originals), dice)) for _ in range(count)]
    assert 0.02 < sum(outcomes) / count < 0.9  # both ways are taken


@pytest.mark.parametrize(("count", "seed"), [(600, 1), pytest.param(12_000, 2, marks=pytest.mark.slow)])
def test_damaged_pictures_are_read_or_refused(count: int, seed: int) -> None:
    fuzz(count, seed)


@given(
    st.sampled_from(
        [
            b"",
            b"\0\0\0\x18ftypheic",
            b"\0\0\0\x18ftypavif",
            b"\xff\xd8\xff\xe0",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x00\x01\x00\x00WEBPVP8X",
            b"GIF89a",
            b"BM",
        ]
    ),
    st.binary(),
)
def test_any_bytes_are_read_or_refused(start: bytes, rest: bytes) -> None:
    read_or_refused(start + rest)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1601, 1199), (801, 800)])
def test_a_jpeg_decoded_smaller_has_the_size_and_the_look_of_one_decoded_whole(
    size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    waves = 128 + 100 * np.sin(columns / 30)[..., None] * np.cos(rows[..., None] / np.array([20, 35, 50]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(buffer, "JPEG", quality=90, exif=exif)
    decoded: list[tuple[int, int]] = []
    load = JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda image: (decoded.append(image.size), load(image))[1])

    smaller = decode_image(buffer.getvalue(), "x", 250)
    assert 1.5 * 250 <= max(decoded[0]) <= max(size) // 2 + 1
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        whole = shrink(to_rgb(image), 250)
    assert smaller.size == whole.size
    assert np.abs(np.asarray(smaller, dtype=int) - np.asarray(whole, dtype=int)).max() <= 4


def test_a_jpeg_that_need_not_shrink_is_decoded_whole() -> None:
    content = encoded(Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50).convert("RGB"), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        whole = np.asarray(image)
    assert (np.asarray(decode_image(content, "x", 300)) == whole).all()
