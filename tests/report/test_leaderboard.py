"""Systems beside each other: the reference, McNemar's counts, what each aspect adds, results that do not fit."""

import pytest

from fixtures.results import TRUTH, answer, answers, result
from masp.core.errors import UsageError
from masp.evaluation import metrics
from masp.evaluation.result import Evaluation, LabelledPrediction
from masp.report import leaderboard as standings
from masp.report.load_results import ResultSource, trials

WEAK, STRONG = answers("jjffffaj"), answers("jjjjffaf")  # 5 and 7 of 8 right; all that WEAK gets right STRONG does too


def trial(*found: Evaluation):
    (one,) = trials([ResultSource("", f"place {number}", result) for number, result in enumerate(found)])
    return one


def test_a_pair_counts_what_one_alone_gets_right():
    one = trial(result("weak", WEAK), result("strong", answers("jjjjfjaf")))
    (pair,) = standings.pairs(one, one.systems[0])
    assert (pair.name, pair.images, pair.only_this, pair.only_reference) == ("strong", 8, 2, 1)
    assert pair.points.value == pytest.approx(1 / 8)
    assert pair.p == pytest.approx(1.0)


def test_only_common_images_with_one_label_are_compared():
    other = [*STRONG[:6], answer(6, "joy", 0.9, truth="joy")]
    one = trial(result("weak", WEAK), result("strong", other))
    (pair,) = standings.pairs(one, one.systems[0])
    assert (pair.images, pair.only_this, pair.only_reference) == (6, 2, 0)


def test_nothing_in_common_is_said():
    one = trial(result("weak", WEAK[:4]), result("strong", STRONG[4:]))
    (pair,) = standings.pairs(one, one.systems[0])
    assert (pair.points, pair.images) == (None, 0)


def test_seeds_leave_mcnemar_out():
    seeds = [result("s", said, provenance={"seed": n}) for n, said in enumerate((WEAK, STRONG))]
    one = trial(result("weak", WEAK), *seeds)
    (pair,) = standings.pairs(one, one.systems[0])
    assert (pair.p, pair.images) == (None, 8)
    assert pair.points.value == pytest.approx(1 / 8)  # the mean of 0 and 2 of 8
    row = standings.rows(one)[1][1]
    assert row.meaning == "2 seeds (0, 1)"
    assert row.figures["accuracy"].value == pytest.approx(6 / 8)
    assert row.figures["accuracy"].sd == pytest.approx(2 / 8 / 2**0.5)
    assert (row.figures["accuracy"].low or 1) < 6 / 8 < (row.figures["accuracy"].high or 0)


def test_of_several_seeds_difference_and_interval_are_those_of_the_shared_comparison():
    seeds = [result("s", said, provenance={"seed": n}) for n, said in enumerate((WEAK, STRONG, STRONG))]
    one = trial(result("weak", WEAK), *seeds)
    (pair,) = standings.pairs(one, one.systems[0])
    said = [[single.predicted for single in answered] for answered in (WEAK, WEAK, STRONG, STRONG)]
    shared = metrics.compare_seeds(TRUTH, said[:1], said[1:])
    assert pair.points == metrics.Interval(shared.difference, shared.low, shared.high)


def test_the_reference_is_first_best_or_named():
    one = trial(result("weak", WEAK), result("strong", STRONG))
    assert [standings.reference(one, word).name for word in ("first", "best", "strong")] == ["weak", "strong", "strong"]
    with pytest.raises(UsageError, match=r"no system of made is called 'strnog'.*Did you mean 'strong'"):
        standings.reference(one, "strnog")


def test_columns_that_nobody_fills_are_left_out():
    columns, (row,) = standings.rows(trial(result("bare", answers("jjffffa-", None), mode="generate", unanswered=1)))
    assert [column.key for column in columns] == ["accuracy", "f1", "unparsed"]
    assert row.figures["unparsed"].value == 1
    assert row.meaning == "answers in free text, 1 not answered"
    assert not row.best


def with_aspects(system, said, *aspects):
    return result(system, said, provenance={"adapter": {"aspects": list(aspects), "method": {"prompt_length": 7}}})


def gains(*found):
    return {(one.name, gain.aspect): gain.points.value for one in standings.gains(trial(*found)) for gain in one.gains}


def test_aspects_alone_and_left_out():
    found = gains(
        with_aspects("none", WEAK),
        with_aspects("scene", STRONG, "scene"),
        with_aspects("both", answers("jjjjffaa"), "scene", "object"),
    )
    assert found == {
        ("Each aspect alone", "scene"): pytest.approx(2 / 8),
        ("Each aspect left out", "object"): pytest.approx(1 / 8),
    }


def test_a_trained_prompt_is_not_taken_for_an_aspect():
    """The rows of `masp reproduce` say the same of their method, whether a prompt takes part or not."""

    def row(name, said, *aspects):
        return result(name, said, provenance={"system": {"aspects": list(aspects), "method": {"prompt_length": 7}}})

    found = gains(row("V", WEAK), row("V+S", STRONG), row("V+scene+S", STRONG, "scene"))
    assert found == {("Each aspect alone", "scene"): pytest.approx(0)}


def test_results_that_do_not_fit_are_told():
    odd = [*STRONG[:7], answer(7, "joy", 0.9, truth="joy")]
    copies = trial(result("a", WEAK), result("b", odd, provenance={"data": {"fingerprint": "g"}}))
    (copied,) = standings.disagreements(copies)
    assert "2 different copies of made" in copied
    renamed = [*STRONG[:7], answer(7, "joy", 0.9)]
    renamed[7] = LabelledPrediction("awe/7.png", "fear", "joy", renamed[7].log_probabilities)
    assert standings.disagreements(trial(result("a", WEAK), result("b", renamed))) == (
        "The results do not agree on the true label of 1 of the images.",
    )
    assert standings.disagreements(trial(result("a", WEAK), result("b", STRONG))) == ()
