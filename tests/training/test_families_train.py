"""Both stages and a prediction on families whose visual tokens are more than a grid of vectors.

Deep features, layouts of tiles and features that questions are put to must survive being kept, stacked and selected.
"""

import json

import pytest

from fixtures import tiny
from fixtures import training as small
from masp.adapters import load_adapter
from masp.core.aspects import ASPECTS
from masp.predictor import Masp
from masp.training import train_aspects, train_prompt

SPECIAL = ("qwen3_vl", "smolvlm", "llava_next", "gemma3", "instructblip")
FEW = ("aspects.max_steps=2", "prompt.max_steps=2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small.write_dataset(tmp_path_factory.mktemp("data"), train=7, val=3)


@pytest.mark.parametrize("family", SPECIAL)
def test_kept_and_recomputed_visual_tokens_train_alike_and_predict(tmp_path, dataset, family):
    backbone, found = tiny.backbone(family), {}
    for name, budget in (("kept", "4"), ("recomputed", "0")):
        memory = [f"{stage}.feature_memory_gb={budget}" for stage in ("aspects", "prompt")]
        config, out = small.config(*FEW, *memory), tmp_path / name
        aspects = train_aspects(config, dataset, backbone, out / "aspects").adapter
        folder = train_prompt(config, dataset, backbone, aspects, out / "prompt").adapter
        adapter = load_adapter(folder, backbone)
        found[name] = {**adapter.aspects.state_dict(), **adapter.prompt.state_dict()}
    for name, value in found["kept"].items():
        assert (value - found["recomputed"][name]).abs().max() < 2e-3, name  # two steps of 0.01 move by 2e-2
    masp = Masp.from_pretrained(folder, backbone)
    pictures = [tiny.picture(84, 56, 1), tiny.picture(58, 140, 2)]
    batch = masp.predict(pictures)
    alone = masp.predict(pictures[1])
    assert batch[1].label == alone.label
    for label, share in alone.probabilities.items():
        assert batch[1].probabilities[label] == pytest.approx(share, abs=1e-4)
    assert set(alone.aspects) == set(ASPECTS)
    for seen in alone.aspects.values():
        assert (seen.attention is None) == (family == "instructblip")
        if seen.attention is not None:
            assert sum(map(sum, seen.attention)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_record_of_the_image_transform_is_plain(family):
    json.dumps(tiny.backbone(family).image_transform)
