"""The benchmark against PEFT: both sides see one sequence, and PEFT's layers are gone when it is done."""

import json

import pytest
import torch

peft = pytest.importorskip("peft")

import against_peft  # noqa: E402
from bench_setting import setting  # noqa: E402

import update_readme  # noqa: E402
from masp.model.masp_model import ActiveParts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of each other; nothing of it is ours


@pytest.fixture
def small():
    return setting(True, 1, torch.float32, torch.device("cpu"))


def test_both_sides_have_the_same_loss(small):
    """The soft prompt's vectors are put where PEFT's tokens start: then only an error would tell the losses apart."""
    model = small.model("paper")
    ids = against_peft.trained(small)
    with torch.no_grad():
        small.made.plain.get_input_embeddings().weight[ids] = model.prompt.vectors.detach()
    visual = small.backbone.visual_tokens(small.pixels(35))
    ours = model.prompt_loss(visual, [small.question()], ["awe"], ActiveParts(()))
    theirs = against_peft.wrapped(small)
    batch = against_peft.collate([against_peft.Rows(small, 35, 2)[0]] * 2)
    assert float(theirs(**batch).loss) == pytest.approx(float(ours), rel=1e-5)
    assert sum(one.numel() for one in theirs.parameters() if one.requires_grad) == 32 * small.shape.dim


def test_the_trainer_steps_and_leaves_the_backbone_as_it_was(small):
    before = {name: value.clone() for name, value in small.made.plain.state_dict().items()}
    found = against_peft.peft_seconds(small, 16, 2, 3)
    assert len(found) == 3
    assert min(found) > 0
    assert not small.made.plain.training
    assert not any(one.requires_grad for one in small.made.plain.parameters())
    after = small.made.plain.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_result_is_a_table_that_documents_show(tmp_path):
    out = tmp_path / "against_peft.json"
    against_peft.measure(True, 2, 2, out)
    found = json.loads(out.read_text())
    assert [(row["visual"], row["store"]) for row in found["results"]] == [
        (count, store) for count in (16, 35) for store in ("none", "features", "prefix")
    ]
    for row in found["results"]:
        assert row["ratio"] == pytest.approx(row["peft_s"] / row["ours_s"])
        assert len(row["peft_seconds"]) == len(row["our_seconds"]) == 2
    assert found["command"] == "python benchmarks/against_peft.py --quick --batch 2 --steps 2"
    assert "| 35 | prefix |" in update_readme.results(tmp_path)
    assert not (against_peft.HOME / "results" / ".peft").exists()
