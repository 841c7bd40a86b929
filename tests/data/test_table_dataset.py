"""Tables of path and label, as spreadsheets, scripts and old computers write them."""

import sys
from pathlib import Path

import pytest

from fixtures.pictures import complaint, put
from masp.core.config import load_config
from masp.core.errors import DataError, UsageError
from masp.data.readers.open_dataset import open_dataset, read_dataset, settings_for
from masp.data.records import BadFiles
from masp.data.tables import read_table


def pictures(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        put(root / name, seed)
    return root


def labels(path: Path) -> dict[str, str | None]:
    return {record.path.name: record.label for record in open_dataset(path).records}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,joy\nb.png,fear\n",
        "\ufeffImage_Path;Emotion\r\na.jpg;joy \r\nb.png;fear\r\n\r\n",
        "split\tfile name\tclass\ntrain\ta.jpg\tjoy\ntest\tb.png\tfear\n",
        '"label","name"\r"joy","a.jpg"\r"fear","b.png"\r',
        "'path','label'\n'a.jpg','joy'\n'./b.png','fear'\n",
        'id, label, more\na, joy, "x, y"\nb, fear, \n',
    ],
)
def test_tables_are_read_however_they_are_written(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, "a.jpg", "b.png")
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    assert labels(tmp_path) == {"a.jpg": "joy", "b.png": "fear"}
    assert labels(tmp_path / "list.csv") == {"a.jpg": "joy", "b.png": "fear"}
    assert open_dataset(tmp_path).layout == "table"


def test_oasis_tables_are_read(tmp_path: Path) -> None:
    """Bare carriage returns, names with trailing blanks, and names without a suffix."""
    pictures(tmp_path, "images/Acorns 1.jpg", "images/Alcohol 5.jpg")
    table = tmp_path / "OASIS.csv"
    table.write_bytes(b",Theme,Category,Valence_mean\rI1,Acorns 1 ,Object,4.6\rI7,Alcohol 5 ,Scene,5\r")
    data = load_config(None, [f"data.path={table}", "data.columns={path: Theme, label: Category}"]).data
    assert {record.path.name: record.label for record in open_dataset(data).records} == {
        "Acorns 1.jpg": "Object",
        "Alcohol 5.jpg": "Scene",
    }


def test_a_column_of_splits_is_used(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rows = "a.jpg,joy,Test\nb.jpg,fear,training\nc.jpg,joy,valid\nd.jpg,fear,tets\n"
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    dataset = open_dataset(tmp_path)
    assert {name: [r.path.name for r in records] for name, records in dataset.splits.items()} == {
        "train": ["b.jpg"],
        "val": ["c.jpg"],
        "test": ["a.jpg"],
    }
    assert dataset.split_by == "published"
    assert "the split is 'tets'; expected train, val or test" in dataset.rejected[0].reason


def test_a_picture_is_found_by_the_end_of_its_path_and_never_by_its_name_alone(tmp_path: Path) -> None:
    pictures(tmp_path, "images/joy/1.jpg", "images/fear/1.jpg", "images/fear/2.jpg")
    rows = f"joy/1.jpg,joy\nfear/1.jpg,fear\n{tmp_path.name}/fear/2.jpg,fear\n"
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    found = {"/".join(record.path.parts[-2:]): record.label for record in open_dataset(tmp_path).records}
    assert found == {"joy/1.jpg": "joy", "fear/1.jpg": "fear", "fear/2.jpg": "fear"}
    (tmp_path / "list.csv").write_text("path,label\njoy/1.jpg,joy\nfear/1.jpg,fear\njoy/2.jpg,joy\n1.jpg,joy\n")
    account = BadFiles(tolerant=True)
    assert len(read_dataset(settings_for(tmp_path), account).splits["all"]) == 2
    assert [one.fault for one in account.rejected] == ["picture", "row"]
    assert "row 3: there is no image joy/2.jpg" in account.rejected[0].reason
    assert "one image. Write the whole path" in account.rejected[1].reason


@pytest.mark.parametrize(
    ("row", "fault", "reason"),
    [
        ("a.jpg,", "label", "row 3: the label is blank"),
        ("a.jpg", "row", "there are 1 cells; expected at least 2"),
        ("../../etc/x.jpg,joy", "row", "does not name a file of the data set"),
        (",joy", "row", "does not name a file of the data set"),
        ("z.jpg,joy", "picture", "there is no image z.jpg"),
        ('a.jpg,"joy\nb.jpg,fear\n', "row", "expected one line. Close the quotation marks"),
    ],
)
def test_rows_with_faults_are_left_out_with_their_reason(tmp_path: Path, row: str, fault: str, reason: str) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text(f"path,label\na.jpg,joy\nb.jpg,fear\n{row}\n")
    dataset = open_dataset(tmp_path)
    assert len(dataset.records) == 2
    (rejected,) = dataset.rejected
    assert (rejected.path, rejected.fault) == (tmp_path / "list.csv", fault)
    assert reason in rejected.reason


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    table = tmp_path / "list.csv"
    table.write_text("")
    assert "is empty; expected a table with a row of names" in complaint(table, "table")
    table.write_bytes(b"path,label\n\xff\xfe,joy\n")
    assert "is not text in UTF-8" in complaint(table, "table")
    table.write_text("one,two\na.jpg,joy\n")
    assert "has the columns 'one', 'two'; expected one of images, such as 'path'" in complaint(table, "table")
    table.write_text("path,label\na.jpg," + "x" * 200_000)
    assert "is not a table (field larger" in complaint(table, "table")
    (tmp_path / "second.csv").write_text("path,label\n")
    assert "does not hold one table" in complaint(tmp_path, "table")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


def test_a_parquet_table_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    pictures(tmp_path, "a.jpg", "b.jpg", "3.jpg")
    content = {"path": ["a.jpg", "b.jpg ", "3"], "label": ["joy", "fear", None], "n": [1, 2, 3]}
    parquet.write_table(arrow.table(content), tmp_path / "list.parquet")
    assert labels(tmp_path) == {"a.jpg": "joy", "b.jpg": "fear"}
    (tmp_path / "list.parquet").write_bytes(b"PAR1 no PAR1")
    assert "is not Parquet" in complaint(tmp_path / "list.parquet", "table")


def test_without_pyarrow_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"expected pyarrow\. Install it with: pip install 'masp\[parquet\]'"):
        open_dataset(tmp_path / "list.parquet", "table")


ASPECT_ROWS = (
    "image,aspect,value,split\n"
    "scenes/a.jpg,scene,Forest_Path,train\n"
    "scenes/a.jpg,brightness,0.9,train\n"
    "things/b.jpg,object,dog,val\n"
    "things/b.jpg,object,ball,val\n"
)


def test_a_table_with_a_row_for_each_aspect_is_read_without_labels(tmp_path: Path) -> None:
    pictures(tmp_path, "scenes/a.jpg", "things/b.jpg")
    (tmp_path / "annotations.csv").write_text(ASPECT_ROWS)
    for path in (tmp_path, tmp_path / "annotations.csv"):  # though the folders look like labels
        dataset = open_dataset(path)
        found = {
            split: [(r.path.name, r.label, dict(r.annotations)) for r in one] for split, one in dataset.splits.items()
        }
        assert dataset.layout == "aspects"
        assert found == {
            "train": [("a.jpg", None, {"scene": "forest path", "brightness": "very high"})],
            "val": [("b.jpg", None, {"object": "dog, ball"})],
        }


def test_columns_of_aspects_may_have_other_names(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text("file,about,says\na.jpg,scene,beach\n")
    settings = [f"data.path={tmp_path}", "data.layout=aspects", "data.columns={aspect: about, value: says}"]
    (record,) = open_dataset(load_config(None, settings).data).records
    assert record.annotations == {"scene": "beach"}


@pytest.mark.parametrize(("row", "fault"), [("a.jpg,mood,grim", "the aspect is 'mood'"), ("a.jpg,scene,", "is blank")])
def test_a_row_about_no_aspect_is_refused(tmp_path: Path, row: str, fault: str) -> None:
    pictures(tmp_path, "a.jpg")
    (tmp_path / "list.csv").write_text(f"image,aspect,value\n{row}\n")
    with pytest.raises(DataError, match=fault):
        open_dataset(tmp_path, strict=True)
