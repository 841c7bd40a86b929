"""Lists of words that answers are restricted to."""

import json

import pytest

from fixtures.pictures import ROWS, emoset
from masp.annotate.ask import EXPRESSIONS, read_vocabulary
from masp.core.aspects import LEVELS
from masp.core.errors import DataError

LIGHT = {"brightness": LEVELS, "colorfulness": LEVELS}


def test_a_file_of_words(tmp_path):
    (tmp_path / "v.json").write_text(json.dumps({"scene": ["Ice_Rink", "beach", "ice rink"], "brightness": []}))
    assert read_vocabulary(str(tmp_path / "v.json")) == {"scene": ("ice rink", "beach"), **LIGHT}


def test_the_info_of_emoset(tmp_path):
    content = {
        "emotion": {"label2idx": {"awe": 0}},
        "brightness": {"label2idx": {"0.1": 0}},
        "object": {"label2idx": {"Food & drink": 0, "Tree": 1}},
    }
    (tmp_path / "info.json").write_text(json.dumps(content))
    assert read_vocabulary(str(tmp_path / "info.json")) == {"object": ("food & drink", "tree"), **LIGHT}


def test_the_words_of_a_data_set(tmp_path):
    found = read_vocabulary(str(emoset(tmp_path / "E", ROWS)))
    assert found == {
        "facial_expression": ("happy",),
        "object": ("food & drink", "tree"),
        "scene": ("ice skating rink/outdoor",),
        "human_action": ("reading (a book)",),
        **LIGHT,
    }


def test_what_is_published_and_short():
    assert read_vocabulary("published") == {"facial_expression": EXPRESSIONS, **LIGHT}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scenes": ["a"]}, "unknown key 'scenes'. Did you mean 'scene'"),
        ({"scene": "a"}, "key 'scene' holds 'a'"),
        ({"scene": [1]}, "key 'scene' holds"),
        ({"scene": [" "]}, "has no words for scene"),
        (["a"], "holds list"),
        ({}, "holds no words for an aspect"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, content, message):
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_vocabulary(str(tmp_path / "v.json"))
