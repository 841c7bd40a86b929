"""The plan beside the benchmark: what is estimated for a line is what `estimate` says of that line's job."""

from dataclasses import replace

import pytest

from masp.bench.planned import LINES, NO_READING, checked
from masp.core.flops import Sizes
from masp.model.cost_estimate import CostJob, Device, activation_bytes, estimate

SIZES = Sizes(10, 2, 4, 6000, 100, 700, 8, 3)
PEAKS = (2e-6, 1e9)  # two million operations a second
JOB = CostJob(images=1, visual=6, epochs1=1, epochs2=1, itemsize=4)


def line(name, share=None, batch=4, median_s=2.0, **more):
    """A line that reached this share of the peak."""
    found = {"name": name, "visual": 6, "batch": batch, "median_s": median_s}
    return found | {"more": more if share is None else {"tflops": share * PEAKS[0], **more}}


def lines():
    return [
        line("stage 2, paper layout, prefix kept", 0.5),
        line("stage 2, released layout", 0.2, median_s=5.0),
        line("stage 1, image-major", 0.4, batch=12),
        line("baseline of stage 2", optimizer_s=1.0),
        line("peak memory, stage 2, paper layout, prefix kept", batch=1, bytes=5000),
        line("score, one image", batch=1, median_s=0.1),
    ]


def seconds(job, efficiency, part):
    device = Device(*PEAKS, 1.0, efficiency)
    (found,) = [one for one in estimate(SIZES, job, device, NO_READING) if one.name == part]
    return found.seconds / found.examples


def test_every_line_is_estimated_by_the_efficiency_of_the_others():
    found = {row["name"]: row for row in checked(lines(), SIZES, PEAKS, 4)}
    assert "baseline of stage 2" not in found
    kept = found["stage 2, paper layout, prefix kept"]
    by_hand = SIZES.step_flops(32 + 40, 16 + 6 + 6, 3) / (2e6 * 0.3)  # 0.3: the median of 0.2 and 0.4
    assert kept["estimated"] == pytest.approx(by_hand)
    assert kept["estimated"] == pytest.approx(seconds(replace(JOB, store="prefix", batch=4), 0.3, "stage 2"))
    assert (kept["visual"], kept["unit"], kept["measured"]) == (6, "s", 2.0)
    assert kept["ratio"] == pytest.approx(by_hand / 2.0)
    other = replace(JOB, store="features", batch=4, released=True, queries=5)
    assert found["stage 2, released layout"]["estimated"] == pytest.approx(seconds(other, 0.45, "stage 2"))
    pair = replace(JOB, store="none", batch=12)
    assert found["stage 1, image-major"]["estimated"] == pytest.approx(seconds(pair, 0.35, "stage 1"))


def test_scores_have_the_efficiency_of_training():
    (found,) = [row for row in checked(lines(), SIZES, PEAKS, 4) if row["name"] == "score, one image"]
    job = CostJob(images=0, visual=6, label=1, batch=1, itemsize=4)
    assert found["estimated"] == pytest.approx(seconds(job, 0.4, "labelling"))
    assert found["measured"] == 0.1


def test_memory_is_compared_beyond_the_weights():
    (found,) = [row for row in checked(lines(), SIZES, PEAKS, 4) if row["unit"] == "GB"]
    by_hand = (32 + 40) * activation_bytes(SIZES, 4) + SIZES.kept_bytes(16 + 6 + 6 + 32 + 40, 4)
    assert found["estimated"] == pytest.approx(by_hand / 1e9)
    assert found["measured"] == 5000 / 1e9
    nothing = checked([*lines()[:2], lines()[4] | {"more": {"bytes": 0}}], SIZES, PEAKS, 4)
    assert nothing[-1]["ratio"] is None


def test_one_line_of_training_alone_predicts_nothing_of_itself():
    assert checked(lines()[:1], SIZES, PEAKS, 4) == []
    assert [row["name"] for row in checked([lines()[0], lines()[5]], SIZES, PEAKS, 4)] == ["score, one image"]


def test_a_share_above_the_measured_peak_counts_as_the_peak():
    found = checked([line("stage 2, released layout", 1.2), line("stage 1, image-major", 1.3)], SIZES, PEAKS, 4)
    job = replace(JOB, store="features", batch=4, released=True, queries=5)
    assert found[0]["estimated"] == pytest.approx(seconds(job, 1.0, "stage 2"))


@pytest.mark.parametrize("name", LINES)
def test_every_line_has_a_job_that_can_be(name):
    planned = LINES[name]
    found = estimate(SIZES, planned.job(6, 2, 4), Device(1.0, 1.0, 1.0), NO_READING)
    assert planned.part in {part.name for part in found}
