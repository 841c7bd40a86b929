"""What telephones and cameras write: AVIF, HEIC, and JPEGs of more pixels than are ever decoded."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fixtures.pictures import encoded, heic, long_jpeg
from masp.core.errors import ImageError
from masp.data import images
from masp.data.images import decode_image, format_of, image_area, open_image, suffix_of
from masp.data.validation.duplicates import look_at

ORIENTATION = 0x0112


def corners(width: int = 64, height: int = 48) -> Image.Image:
    """Four colours in the four corners: what turning and mirroring do is seen through any compression."""
    colours = np.array([[(250, 10, 10), (10, 200, 10)], [(10, 10, 250), (240, 240, 10)]], dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def near(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and np.abs(np.asarray(image, int) - np.asarray(other, int)).mean() < 8


def stored(kind: str, image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, "AVIF", exif=exif) if kind == "AVIF" else heic(image, exif=exif)


# --- AVIF and HEIC -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_pictures_are_turned_upright_once(kind: str, orientation: int) -> None:
    marked = corners()
    marked.getexif()[ORIENTATION] = orientation
    content = stored(kind, corners(), orientation)
    assert format_of(content) == kind
    got = decode_image(content, "x")
    assert (got.mode, got.info) == ("RGB", {})
    assert near(got, ImageOps.exif_transpose(marked))


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_what_is_transparent_becomes_white(kind: str) -> None:
    layer = corners().convert("RGBA")
    layer.paste((0, 0, 0, 0), (0, 0, 32, 48))
    content = encoded(layer, kind) if kind == "AVIF" else heic(layer)
    got = np.asarray(decode_image(content, "x"), int)
    assert got[10:38, 4:24].min() > 240
    assert got[10:20, 40:60, 0].max() < 60


def test_the_first_picture_of_an_animation_and_the_primary_one_of_a_collection_are_read() -> None:
    other = Image.new("RGB", (64, 48), (0, 0, 0))
    assert near(decode_image(encoded(corners(), "AVIF", save_all=True, append_images=[other]), "x"), corners())
    assert near(decode_image(heic(corners(), other), "x"), corners())
    assert near(decode_image(heic(other, corners(), primary_index=1), "x"), corners())


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_a_cameras_picture_is_shrunk_and_its_area_known_from_the_header(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"photo.{kind.lower()}"
    file.write_bytes(stored(kind, corners(), 6))
    assert open_image(file, 32).size == (24, 32)
    assert image_area(file, 32) == 24 * 32
    assert suffix_of(file.read_bytes()) == file.suffix
    assert look_at(file).kind == kind


def test_a_thumbnail_inside_a_file_is_never_taken_for_the_picture() -> None:
    """A programme may leave the thumbnail of what the image was before."""
    content = heic(corners(256, 192), thumbnails=[64])
    decoder = pytest.importorskip("pillow_heif").HeifImageFile(io.BytesIO(content))
    assert decoder.draft("RGB", (48, 36)) is not None  # there is one, and Pillow's own shrinking would take it
    loaded = images._loaded(images._opened(io.BytesIO(content), "HEIC"), 32, "nearest")
    assert loaded.size == (256, 192)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    content = stored(kind, corners(300, 200))
    with pytest.raises(ImageError, match=r"image x: damaged \(.+\)\. Copy it again") as caught:
        decode_image(content[: int(len(content) * share)], "x")
    assert "0x" not in caught.value.reason  # no object of Python's


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_the_cap_is_checked_before_anything_is_decoded(kind: str) -> None:
    claiming = claiming_size(stored(kind, corners(64, 64)), 9000)
    with pytest.raises(ImageError, match="9000 × 9000 pixels, at most 50,000,000 are read"):
        decode_image(claiming, "x")


def test_a_heic_that_shows_a_corner_of_a_huge_picture_is_refused() -> None:
    """The decoder unpacks all of it; the size that is shown says nothing about that."""
    content = heic(corners(60, 44))  # coded as 64 × 64, and cut
    assert b"clap" in content
    assert decode_image(content, "x").size == (60, 44)
    with pytest.raises(ImageError, match="9000 × 9000 pixels"):
        decode_image(claiming_size(content, 9000), "x")


def claiming_size(content: bytes, side: int) -> bytes:
    changed = bytearray(content)
    for found in re.finditer(b"ispe", content):
        changed[found.end() + 4 : found.end() + 12] = side.to_bytes(4) * 2
    return bytes(changed)


def test_without_the_extra_the_error_names_the_line_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    header = (24).to_bytes(4) + b"ftypheic" + bytes(4) + b"mif1heic"
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(
        ImageError, match=r"HEIC, and pillow-heif is not installed \(pip install 'masp\[heic\]'\)"
    ) as it:
        decode_image(header, "x")
    assert it.value.passing  # nothing is wrong with the file


def test_a_pillow_that_was_built_without_avif_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.features, "check", lambda name: False)
    with pytest.raises(ImageError, match="AVIF, which this build of Pillow cannot read") as caught:
        decode_image(encoded(corners(), "AVIF"), "x")
    assert caught.value.passing


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"mif1....mif1miafavif", "AVIF"),
        (b"mif1....mif1heic", "HEIC"),
        (b"msf1....hevcmsf1", "HEIC"),
        (b"mif1....mif1", None),
        (b"crx ....crx isom", None),
        (b"qt  ....qt  ", None),
    ],
)
def test_brands_tell_the_format(brands: bytes, kind: str | None) -> None:
    assert format_of((8 + len(brands)).to_bytes(4) + b"ftyp" + brands + b"\0\0\0\x08heic") == kind


# --- JPEGs of more pixels than are ever decoded --------------------------------------------------------------------


def test_a_jpeg_of_60_million_pixels_is_read_at_a_fraction(tmp_path: Path) -> None:
    file = tmp_path / "wide.jpg"
    file.write_bytes(long_jpeg(10_000, 6_000, corners(40, 16)))
    assert open_image(file, 100).size == (100, 60)
    assert image_area(file, 100) == 6_000
    whole = open_image(file)  # a data set may be read without shrinking; no image of more than 50 million leaves
    assert whole.size == (5_000, 3_000)
    assert image_area(file) == 15_000_000
    assert look_at(file).problem is None


def test_a_large_jpeg_looks_as_it_would_in_one_piece() -> None:
    large = decode_image(long_jpeg(10_000, 6_000, corners(40, 16)), "x", 100)
    small = decode_image(long_jpeg(1_000, 600, corners(40, 16)), "x", 100)
    left, right = np.asarray(large, int)[:, :48].mean((0, 1)), np.asarray(large, int)[:, 52:].mean((0, 1))
    assert np.abs(left - np.asarray(small, int)[:, :48].mean((0, 1))).max() < 3
    assert np.abs(right - np.asarray(small, int)[:, 52:].mean((0, 1))).max() < 3


def test_the_caps_of_jpegs_are_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(long_jpeg(20_000, 16))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 7] = (15_001).to_bytes(2)
    with pytest.raises(ImageError, match="20000 × 15001 pixels, at most 300,000,000 are read"):
        decode_image(bytes(content), "x", 100)
    progressive = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True))
    frame = progressive.index(b"\xff\xc2")
    progressive[frame + 5 : frame + 9] = (10_001).to_bytes(2) * 2
    with pytest.raises(ImageError, match="at most 100,000,000 of a progressive JPEG are read"):
        decode_image(bytes(progressive), "x", 100)
    progressive[frame + 5 : frame + 9] = (65_000).to_bytes(2) * 2  # far beyond Pillow's own guard
    with pytest.raises(ImageError, match="65000 × 65000 pixels"):
        decode_image(bytes(progressive), "x", 100)


def test_jpegs_whose_decoder_keeps_all_of_them_are_told_by_their_first_scan() -> None:
    plain = encoded(corners(), "JPEG")
    assert not images._in_scans(plain)
    assert not images._in_scans(encoded(corners().convert("L"), "JPEG"))
    assert images._in_scans(encoded(corners(), "JPEG", progressive=True))
    one_colour_at_a_time = bytearray(plain)
    scan = plain.index(b"\xff\xda")
    one_colour_at_a_time[scan + 4] = 1
    assert images._in_scans(bytes(one_colour_at_a_time))
    padded = plain[:2] + b"\xff\xff\xff\xfe\0\x04\xff\xda" + plain[2:]  # a comment that holds another marker
    assert not images._in_scans(padded)
    assert decode_image(padded, "x").size == (64, 48)


READS = """
import re, sys
from pathlib import Path
from masp.data.images import open_image

def highest():  # ru_maxrss would begin with the peak of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

before = highest()
image = open_image(sys.argv[1], int(sys.argv[2]) or None)
print(image.width, image.height, highest() - before)
"""


def peak(file: Path, longest_side: int) -> tuple[int, int, float]:
    """Width, height and the MiB that reading an image takes at its peak, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READS, file, str(longest_side)], capture_output=True, text=True, check=True
    )
    width, height, mebibytes = done.stdout.split()
    return int(width), int(height), float(mebibytes)


@pytest.mark.slow
def test_300_million_pixels_are_read_with_little_memory(tmp_path: Path) -> None:
    """Decoded whole they take 1,140 MiB. Measured beyond the file itself: 29 MiB at 1,024 pixels, 215 unshrunk."""
    file = tmp_path / "large.jpg"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 2000, 3), dtype=np.uint8))
    file.write_bytes(long_jpeg(20_000, 14_992, noise))
    size = file.stat().st_size / 2**20
    width, height, mebibytes = peak(file, 1024)
    print("300 million pixels at 1,024:", mebibytes, "MiB, of them the file", size)
    assert (width, height) == (1024, 768)
    assert mebibytes < size + 60
    width, height, mebibytes = peak(file, 0)
    print("unshrunk:", mebibytes, "MiB")
    assert (width, height) == (5_000, 3_748)
    assert mebibytes < size + 250


@pytest.mark.slow
def test_the_largest_progressive_jpeg_takes_less_than_the_largest_of_other_files(tmp_path: Path) -> None:
    """What the cap is chosen by: 580 MiB for 100 million pixels (4:4:4), 956 for a PNG of 50 million with alpha."""
    Image.new("RGB", (12_500, 8_000), (200, 30, 60)).save(
        tmp_path / "a.jpg", progressive=True, subsampling=0, quality=85
    )
    Image.new("RGBA", (10_000, 5_000), (200, 30, 60, 90)).save(tmp_path / "b.png", compress_level=1)
    progressive, other = peak(tmp_path / "a.jpg", 1024)[2], peak(tmp_path / "b.png", 1024)[2]
    print("progressive:", progressive, "MiB; with alpha:", other, "MiB")
    assert 400 < progressive < other
