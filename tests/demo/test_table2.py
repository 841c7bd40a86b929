"""The five rows of Table 2 on a tiny random model: which parts each row uses, and that images are read once."""

import json

import pytest

from fixtures.adapters import write_adapter
from fixtures.scenes import write_scenes
from masp.baselines.prompted import TABLE2
from masp.core.errors import UsageError
from masp.data.images import open_image
from masp.demo.measure import table2, write_table
from masp.evaluation.predict_split import Batching
from masp.model.masp_model import ActiveParts
from masp.model.scoring import score
from masp.predictor import Masp


class Counting:
    """A backbone that counts how often the vision tower is asked."""

    def __init__(self, backbone):
        self._backbone = backbone
        self.images = 0

    def __getattr__(self, name):
        return getattr(self._backbone, name)

    def visual_tokens(self, pixels):
        self.images += len(pixels)
        return self._backbone.visual_tokens(pixels)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    full = Masp.from_pretrained(write_adapter(folder / "full"), dtype="float32")
    alone = Masp.from_pretrained(write_adapter(folder / "alone", aspects=(), seed=5), full.backbone)
    return full, alone


def labels_of(model, use, masp, records):
    images = [open_image(record.path, masp.task.longest_side, masp.task.rounding) for record in records]
    visual = masp.visual_tokens(masp.backbone.preprocess(images))
    best = score(model, visual, masp.task.question, masp.labels, use).argmax(1)
    return tuple(masp.labels[index] for index in best.tolist())


def test_each_row_uses_its_parts(pair, tmp_path):
    full, alone = pair
    records = write_scenes(tmp_path).splits["test"]
    table = table2(full, alone, records, seed=3, batching=Batching(7))
    assert [row.name for row in table.rows] == list(TABLE2) == ["V", "V+A", "V+S", "V+A+rS", "V+A+S"]
    assert table.row("V").predicted == labels_of(full.model, ActiveParts((), prompt=False), full, records)
    assert table.row("V+A").predicted == labels_of(full.model, ActiveParts(prompt=False), full, records)
    assert table.row("V+S").predicted == labels_of(alone.model, ActiveParts(()), full, records)
    assert table.row("V+A+S").predicted == labels_of(full.model, ActiveParts(), full, records)
    assert table.row("V+A+S").predicted == tuple(one.label for one in full.predict([r.path for r in records]))
    assert len({row.calibration_error for row in table.rows}) == 5  # no two rows compute the same


def test_the_untrained_prompt_depends_on_its_seed_alone(pair, tmp_path):
    full, alone = pair
    records = write_scenes(tmp_path).splits["test"]
    first, again, other = (table2(full, alone, records, seed).rows for seed in (3, 3, 4))
    assert first[3] == again[3] != other[3]
    assert first[4] == other[4]


def test_visual_tokens_are_computed_once_for_all_rows(pair, tmp_path, monkeypatch):
    full, alone = pair
    counting = Counting(full.backbone)
    monkeypatch.setattr(full.model, "backbone", counting)
    table2(full, alone, write_scenes(tmp_path).splits["test"], batching=Batching(3))
    assert counting.images == 7


def test_differences_are_paired_with_v_and_with_v_plus_s(pair, tmp_path):
    full, alone = pair
    table = table2(full, alone, write_scenes(tmp_path).splits["test"])
    names = [difference.name for difference in table.differences]
    assert names == ["V+A - V", "V+S - V", "V+A+rS - V", "V+A+S - V", "V+A+rS - V+S", "V+A+S - V+S"]
    for difference in table.differences:
        one, base = difference.name.split(" - ")
        gap = table.row(one).accuracy.value - table.row(base).accuracy.value
        assert difference.paired.difference == pytest.approx(gap)


def test_a_pair_that_does_not_belong_together_is_refused(pair, tmp_path):
    full, alone = pair
    records = write_scenes(tmp_path).splits["test"]
    other = Masp.from_pretrained(write_adapter(tmp_path / "o", labels=("joy", "awe"), aspects=()), full.backbone)
    for first, second, words in (
        (full, full, "not a soft prompt trained without aspects"),
        (alone, alone, "lacks aspects"),
        (full, other, "different labels"),
    ):
        with pytest.raises(UsageError, match=words):
            table2(first, second, records)
    strange = Masp.from_pretrained(write_adapter(tmp_path / "s", aspects=(), family="qwen2_5_vl"), dtype="float32")
    with pytest.raises(UsageError, match="different backbones"):
        table2(full, strange, records)


def test_the_table_is_written_with_every_label(pair, tmp_path):
    full, alone = pair
    table = table2(full, alone, write_scenes(tmp_path).splits["test"], seed=3)
    write_table(tmp_path / "out", table, {"note": "made up"})
    summary = json.loads((tmp_path / "out" / "table2.json").read_text())
    assert summary["random_seed"] == 3
    assert summary["provenance"] == {"note": "made up"}
    assert [row["accuracy"]["value"] for row in summary["rows"]] == [row.accuracy.value for row in table.rows]
    lines = [json.loads(line) for line in (tmp_path / "out" / "table2.jsonl").read_text().splitlines()]
    assert tuple(line["V+A+rS"] for line in lines) == table.row("V+A+rS").predicted
    assert [line["truth"] for line in lines] == list(table.truth)
