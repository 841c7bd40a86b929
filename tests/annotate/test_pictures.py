"""Which images are annotated, and under which names."""

from pathlib import Path

import pytest

from fixtures.pictures import MIKELS, ROWS, emoset, put, tree
from masp.annotate.images import UNLABELLED, find_images
from masp.core.config import load_config
from masp.core.errors import DataError, UsageError


def found(path: Path, limit: int | None = None, *changes: str):
    return find_images(load_config(None, [f"data.path={path}", *changes]).data, limit)


def test_a_known_layout_keeps_its_labels_and_splits(tmp_path):
    pictures = found(emoset(tmp_path / "E", ROWS))
    assert (pictures.labels, pictures.labelled) == (MIKELS, True)
    assert [(item.split, item.label, item.name) for item in pictures.items][:2] == [
        ("train", "fear", "fear_00000"),
        ("train", "awe", "awe_00001"),
    ]
    assert {item.split for item in pictures.items} == {"train", "val", "test"}
    assert pictures.items[0].place == "image/fear/fear_00000.jpg"


def test_a_plain_folder_has_no_labels(tmp_path):
    for seed, name in enumerate(("b.png", "a.jpg", "deep/er/a.png", "deep/er/A.gif")):
        put(tmp_path / "photos" / name, seed)
    pictures = found(tmp_path / "photos")
    assert (pictures.labels, pictures.labelled) == (MIKELS, False)  # the table of numbers that EmoSet's format wants
    assert [item.place for item in pictures.items] == ["a.jpg", "b.png", "deep/er/A.gif", "deep/er/a.png"]
    assert [item.name for item in pictures.items] == ["a", "b", "A-2", "a-3"]  # also where case does not count
    assert {(item.label, item.split, item.home) for item in pictures.items} == {(None, "all", UNLABELLED)}


def test_one_folder_of_pictures_is_no_label(tmp_path):
    pictures = found(tree(tmp_path / "photos", {"holiday": 3}))
    assert (pictures.labelled, len(pictures.items)) == (False, 3)


def test_names_are_safe_for_any_disk(tmp_path):
    for seed, name in enumerate(("é b:c?", ".", "x" * 200)):
        put(tmp_path / "d" / ("one two" if seed else "näh") / f"{name if name != '.' else '___'}.png", seed)
    names = {(item.home, item.name) for item in found(tmp_path / "d").items}
    assert names == {("näh", "é_b_c"), ("one_two", "picture"), ("one_two", "x" * 50)}


def test_a_limit_is_spread_over_the_data_set(tmp_path):
    root = tree(tmp_path / "t", {"calm": 6, "wild": 3})
    assert [(item.label, item.name) for item in found(root, 3).items] == [("calm", "0"), ("calm", "3"), ("wild", "0")]
    assert len(found(root, 50).items) == 9


def test_what_cannot_be_annotated_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        found(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be read"):
        found(tmp_path / "none")
    with pytest.raises(UsageError, match=r"data\.taxonomy has no meaning here"):
        found(tmp_path, None, "data.taxonomy=polarity")
    put(tmp_path / "table" / "a.png", 0)
    (tmp_path / "table" / "list.csv").write_text("path,label,split\na.png,calm,extra\na.png,wild,extra\n")
    with pytest.raises(DataError, match="the split is 'extra'; expected train, val or test"):
        found(tmp_path / "table" / "list.csv")
