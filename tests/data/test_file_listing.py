"""What a user can name on the command line becomes a stream of images."""

import inspect
import io
import itertools
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest

from fixtures.pictures import put
from masp.core.errors import DataError
from masp.data.file_listing import images_from, listing


def listed(*paths: str | Path, stdin: str = "") -> list[str]:
    return [path.as_posix() for path in images_from(paths, io.StringIO(stdin))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/2.png",
        "b/10.JPG",
        "b/deep/er/x.webp",
        "a.gif",
        "c.bmp",
        ".hidden/y.png",
        "b/.z.png",
        "b/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def test_a_folder_stands_for_the_pictures_below_it(folder: Path) -> None:
    assert listed(".") == ["a.gif", "c.bmp", "b/10.JPG", "b/2.png", "b/deep/er/x.webp"]
    assert listed("b", "a.gif") == ["b/10.JPG", "b/2.png", "b/deep/er/x.webp", "a.gif"]


def test_a_file_stands_for_itself_whatever_its_name(folder: Path) -> None:
    assert listed("b/notes.txt", Path("b/.z.png")) == ["b/notes.txt", "b/.z.png"]


def test_lists_and_standard_input_name_files_and_folders(folder: Path) -> None:
    (folder / "list.txt").write_text("\ufeffa.gif\r\n\n  \nb/deep\nnot there.png\n", encoding="utf-8")
    assert listed("@list.txt") == ["a.gif", "b/deep/er/x.webp", "not there.png"]
    assert listed("c.bmp", "-", stdin="b/2.png\nb/deep\n") == ["c.bmp", "b/2.png", "b/deep/er/x.webp"]
    assert listed("-", stdin="a\0b\n" + "x" * 5000 + "\n") == ["a\0b", "x" * 5000]
    assert listed() == []


def test_names_that_are_not_utf8_survive(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    put(folder / name)
    (folder / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert listed("@list.txt") == [name]
    assert name in listed(".")


def test_a_list_that_is_not_text_is_refused() -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"a.png\n\xff\xfe\n"), encoding="utf-8")
    with pytest.raises(DataError, match="the list of images is not text; expected one path per line, in UTF-8"):
        list(images_from(["-"], lines))


def test_what_names_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"b/3\.png cannot be read \(No such file or directory\)\. Did you mean '2\.png'\?"
    ):
        listed("b/3.png")
    with pytest.raises(DataError, match="none cannot be read"):
        listed("@none")
    with pytest.raises(DataError, match=r"'a\\x00b' is not a path"):
        listed("a\0b")


def test_links_are_followed_but_not_in_circles(folder: Path) -> None:
    (folder / "linked").symlink_to(folder / "b" / "deep")
    assert "linked/er/x.webp" in listed(".")
    (folder / "b" / "deep" / "up").symlink_to(folder)
    with pytest.raises(DataError, match="up is a link to a folder it lies in; expected folders without cycles"):
        listed(".")


def test_a_line_that_cannot_be_walked_may_be_told_and_left_out(folder: Path) -> None:
    (folder / "b" / "deep" / "up").symlink_to(folder)
    told: list[tuple[str, str]] = []
    found = images_from(["-"], ["b\n", "a.gif\n"], lambda line, error: told.append((line, str(error))))
    assert list(found)[-1] == Path("a.gif")
    assert [line for line, _ in told] == ["b"]
    assert "is a link to a folder it lies in" in told[0][1]
    with pytest.raises(DataError, match="a folder it lies in"):
        list(images_from(["-"], ["b\n", "a.gif\n"]))


def test_deep_folders_need_no_deep_stack(folder: Path) -> None:
    deep = folder.joinpath(*["d"] * 300)
    put(deep / "x.png")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        found = listed(folder / "d")
    finally:
        sys.setrecursionlimit(usual)
    assert found == [f"{deep.as_posix()}/x.png"]


def test_an_endless_list_is_read_as_it_is_used() -> None:
    found = images_from(["-"], (f"{number}.png\n" for number in itertools.count()))
    grown = []
    tracemalloc.start()
    for _ in range(5):  # other threads of the process allocate too, but not in every round
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3000):
            next(found)
        grown.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    assert min(grown) < 100_000  # kept paths would take six times as much in each


def test_a_folder_that_goes_away_while_it_is_walked_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="none cannot be read"):
        listing(folder / "none")
    stream = images_from(["."])
    assert next(stream) == Path("a.gif")
    shutil.rmtree(folder / "b")
    with pytest.raises(DataError, match="b cannot be read"):
        list(stream)


def test_a_url_is_refused_as_one() -> None:
    with pytest.raises(DataError, match="is a URL"):
        next(images_from(["https://example.com/a.jpg"]))
