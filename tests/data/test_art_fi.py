"""FI, Abstract, ArtPhoto, Flickr and Instagram as they are published."""

from pathlib import Path

import pytest

from fixtures.pictures import abstract, artphoto, complaint, fi, put, tree, votes
from masp.core.config import load_config
from masp.core.errors import DataError
from masp.core.labels import LABEL_SETS
from masp.data.readers.common import Reading
from masp.data.readers.open_dataset import open_dataset, read_dataset, settings_for
from masp.data.records import BadFiles


def reading(path: Path, layout: str = "auto") -> Reading:
    return read_dataset(settings_for(path, layout), BadFiles())


def found(path: Path, layout: str = "auto") -> dict[str, str | None]:
    return {record.path.name: record.label for record in open_dataset(path, layout).records}


# --- Abstract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_abstract_is_read_through_its_quotation_marks(tmp_path: Path, end: str) -> None:
    abstract(tmp_path, [(1, 0, 0, 5, 0, 0, 2, 0), (0, 7, 0, 0, 0, 0, 0, 1), (3, 3, 0, 0, 0, 0, 0, 0)], end)
    read = reading(tmp_path)
    assert (read.layout, read.labels) == ("abstract", LABEL_SETS["abstract"])
    first, second = read.splits["all"]
    assert (first.path.name, first.label, second.label) == ("abstract_0001.jpg", "content", "anger")
    assert (first.distribution["content"], first.distribution["fear"]) == (5 / 8, 2 / 8)
    assert read.skipped == {"images with as many votes for a second label": 1}
    assert (read.account.used, read.account.rejected) == (3, [])


def test_abstracts_rows_with_faults_are_left_out_by_name(tmp_path: Path) -> None:
    abstract(tmp_path, [(1, 0, 0, 0, 0, 0, 0, 0)] * 3)
    with (tmp_path / "ABSTRACT_groundTruth.csv").open("a") as table:
        table.write("'abstract_0009.jpg',1,0,0,0,0,0,0,0\n'abstract_0001.jpg',1,0\n")
        table.write("'abstract_0001.jpg',1,0,0,x,0,0,0,0\n'abstract_0001.jpg',0,0,0,0,0,0,0,0\n")
    account = BadFiles(tolerant=True)
    read = read_dataset(settings_for(tmp_path), account)
    assert len(read.splits["all"]) == 3
    assert [one.fault for one in account.rejected] == ["picture", "annotation", "annotation", "annotation"]
    reasons = " ".join(one.reason for one in account.rejected)
    assert "there are 3 cells" in reasons
    assert "a count of votes is 'x'" in reasons
    assert "nobody voted" in reasons


def test_abstract_without_a_column_is_refused(tmp_path: Path) -> None:
    abstract(tmp_path, [(1, 0, 0, 0, 0, 0, 0, 0)])
    table = tmp_path / "ABSTRACT_groundTruth.csv"
    table.write_text(table.read_text().replace("'Sad'", "'Glad'"))
    assert "has no column for sad" in complaint(tmp_path)


# --- ArtPhoto ------------------------------------------------------------------------------------------------------


def test_artphoto_is_read_in_both_spellings(tmp_path: Path) -> None:
    artphoto(tmp_path, {"sad": 1, "sadness": 1, "Contentment": 1, "awe": 2})
    assert open_dataset(tmp_path).layout == "artphoto"
    assert found(tmp_path) == {
        "sad_0001.jpg": "sad",
        "sadness_0001.jpg": "sad",
        "Contentment_0001.jpg": "content",
        "awe_0001.jpg": "awe",
        "awe_0002.jpg": "awe",
    }


def test_other_flat_folders_are_not_artphoto(tmp_path: Path) -> None:
    artphoto(tmp_path, {"sad": 2, "joyride": 1})
    assert "holds images but no class folders" in complaint(tmp_path)
    account = BadFiles(tolerant=True)
    assert len(read_dataset(settings_for(tmp_path, "artphoto"), account).splits["all"]) == 2
    assert (account.rejected[0].fault, account.rejected[0].path.name) == ("label", "joyride_0001.jpg")


# --- FI ------------------------------------------------------------------------------------------------------------


def test_fi_keeps_what_more_people_agree_with(tmp_path: Path) -> None:
    rows = [
        "awe,http://farm1.example.com/12/awe_0.jpg,1,4",
        "awe,http://farm1.example.com/12/awe_1.jpg,3,2",
        "http://farm1.example.com/12/sadness_0.jpg,sadness,2,2",
        "sadness,sadness_7.jpg,0,5",
    ]
    fi(tmp_path, {"awe": 3, "sadness": 2}, rows)
    read = reading(tmp_path)
    assert (read.layout, read.labels) == ("fi", LABEL_SETS["fi"])
    assert [record.path.name for record in read.splits["all"]] == ["awe_0.jpg", "awe_2.jpg", "sadness_1.jpg"]
    assert read.skipped == {"images whose label no majority agreed with": 2}


def test_fi_is_read_without_tables_and_with_tables_of_other_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fi(tmp_path / "a", {"awe": 2, "sad": 1})
    assert found(tmp_path / "a")["sad_0.jpg"] == "sadness"
    fi(tmp_path / "b", {"awe": 2, "fear": 1}, ["awe,4711.jpg,5,0"])
    assert len(found(tmp_path / "b")) == 3
    assert "name none of its images; all of them are used" in caplog.text


def test_fis_strange_folders_and_tables_are_named(tmp_path: Path) -> None:
    fi(tmp_path, {"awe": 2, "fear": 2, "joy": 1})
    account = BadFiles(tolerant=True)
    assert len(read_dataset(settings_for(tmp_path), account).splits["all"]) == 4
    assert (account.rejected[0].fault, account.rejected[0].path.name) == ("label", "joy_0.jpg")
    assert "the label is 'joy'; expected one of amusement, awe" in account.rejected[0].reason
    (tmp_path / "other.csv").write_text("name,size\n")
    assert "row 0 of" in complaint(tmp_path)
    assert "expected four cells, the last two numbers" in complaint(tmp_path)


# --- Flickr and Instagram ------------------------------------------------------------------------------------------


def test_votes_become_labels_by_majority(tmp_path: Path) -> None:
    votes(tmp_path, ["101,3,0,0", "102,0,1,2", "103,1,1,1", "104,0,2,1", "105,2,1,0"], pictures=4)
    read = reading(tmp_path)
    assert (read.layout, read.labels) == ("votes", ("positive", "negative"))
    assert [(record.path.stem, record.label) for record in read.splits["all"]] == [
        ("101", "positive"),
        ("102", "negative"),
    ]
    assert read.splits["all"][1].distribution == {"positive": 0, "negative": 2 / 3, "neutral": 1 / 3}
    assert read.skipped == {"rows without a majority for positive or negative": 2, "rows without an image": 1}
    assert read.account.used == 5


def test_the_user_names_the_columns_of_votes(tmp_path: Path) -> None:
    votes(tmp_path, ["7;1;2", "8;3;0"], header="bild;schlecht;gut")
    for name in ("7", "8"):
        put(tmp_path / "images" / f"{name}.jpg", int(name))
    assert "holds" in complaint(tmp_path)
    columns = "data.columns={path: Bild, positive: gut, negative: schlecht}"
    data = load_config(None, [f"data.path={tmp_path}", columns]).data
    assert {record.path.stem: record.label for record in open_dataset(data).records} == {
        "7": "positive",
        "8": "negative",
    }
    wrong = load_config(None, [f"data.path={tmp_path}", "data.layout=votes", "data.columns.path=bilt"]).data
    with pytest.raises(DataError, match=r"has no column 'bilt'\. Did you mean 'bild'\?"):
        open_dataset(wrong)
    assert "one of images, such as 'path'. Name it with data.columns.path" in complaint(tmp_path, "votes")


def test_votes_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    votes(tmp_path, ["1,3,0,0", "2,x,0,0", "3,0,0,-2", "4,0,0,3"])
    account = BadFiles(tolerant=True)
    assert len(read_dataset(settings_for(tmp_path), account).splits["all"]) == 2
    assert ["row 2: a count of votes is 'x'" in account.rejected[0].reason, len(account.rejected)] == [True, 2]


# --- one folder deeper, and trees that are none of these -----------------------------------------------------------


def test_an_unpacked_archive_may_be_opened_one_folder_higher(tmp_path: Path) -> None:
    abstract(tmp_path / "testImages_abstract", [(1, 0, 0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0, 0, 0)])
    assert open_dataset(tmp_path).layout == "abstract"
    (tmp_path / "notes.txt").write_text("mine")
    assert "one class only" in complaint(tmp_path)


def test_folders_of_labels_win_over_a_table_beside_them(tmp_path: Path) -> None:
    tree(tmp_path, {"joy": 2, "fear": 2})
    (tmp_path / "list.csv").write_text("path,label\njoy/0.png,other\nfear/0.png,different\n")
    assert open_dataset(tmp_path).labels == ("fear", "joy")
    assert open_dataset(tmp_path, "table").labels == ("different", "other")
