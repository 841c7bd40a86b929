"""Figures against numbers worked out by hand."""

import math
from itertools import product

import pytest

from masp.evaluation import metrics

LABELS = ("joy", "fear", "awe")
#          joy    joy    joy     joy   fear    fear   awe
TRUTH = ["joy", "joy", "joy", "joy", "fear", "fear", "awe"]
GUESS = ["joy", "joy", "fear", None, "fear", "joy", "awe"]


def test_wilson_interval_is_the_published_one():
    found = metrics.share(81, 263)  # Newcombe 1998, table I: 0.3080, score interval 0.2553 to 0.3662
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.3080, 0.2553, 0.3662)
    assert metrics.share(0, 5).low == 0.0
    assert metrics.share(5, 5).high == 1.0
    assert round(metrics.share(0, 20).high, 4) == 0.1611


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(correct, total):
    with pytest.raises(ValueError, match="share"):
        metrics.share(correct, total)


def test_an_unreadable_answer_counts_as_wrong():
    assert metrics.accuracy(TRUTH, GUESS).value == 4 / 7
    assert metrics.majority_accuracy(TRUTH).value == 4 / 7
    assert metrics.majority_accuracy(["joy", "fear", "awe", "awe", "awe"]).value == 3 / 5


def test_confusion_has_a_column_for_answers_without_a_label():
    assert metrics.confusion(TRUTH, GUESS, LABELS) == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]


def test_precision_recall_and_f1_by_hand():
    joy, fear, awe = metrics.per_class(TRUTH, GUESS, LABELS)
    assert (joy.precision, joy.recall, joy.support) == (2 / 3, 2 / 4, 4)
    assert joy.f1 == pytest.approx(4 / 7)
    assert (fear.precision, fear.recall, fear.f1) == (1 / 2, 1 / 2, 1 / 2)
    assert (awe.precision, awe.recall, awe.f1) == (1.0, 1.0, 1.0)
    assert metrics.macro_f1(TRUTH, GUESS, LABELS) == pytest.approx((4 / 7 + 1 / 2 + 1) / 3)


def test_macro_f1_leaves_out_labels_that_never_occur_but_not_those_only_predicted():
    assert metrics.macro_f1(["joy"], ["joy"], LABELS) == 1.0
    assert metrics.macro_f1(["joy", "joy"], ["joy", "fear"], LABELS) == pytest.approx((2 / 3 + 0) / 2)


def test_calibration_error_by_hand():
    # bin [0.8, 1]: 0.9 right, 0.8 wrong, gap |0.85 - 0.5| of 2; bin [0.4, 0.6): 0.5 right, gap 0.5 of 1; over 3
    assert metrics.calibration_error([0.9, 0.8, 0.5], [True, False, True], bins=5) == pytest.approx((0.7 + 0.5) / 3)
    assert metrics.calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert metrics.calibration_error([], []) == 0.0


def test_mcnemar_is_the_exact_binomial():
    assert metrics.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert metrics.mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 128)
    assert metrics.mcnemar(4, 4) == 1.0
    assert metrics.mcnemar(0, 0) == 1.0


def test_compare_counts_the_examples_on_which_two_systems_differ():
    truth = ["joy"] * 100
    first = ["joy"] * 50 + ["awe"] * 50
    second = ["awe"] * 5 + ["joy"] * 75 + [None] * 20
    found = metrics.compare(truth, first, second, seed=3)
    assert (found.only_first, found.only_second) == (5, 30)
    assert found.difference == pytest.approx(0.25)
    # the standard error of the mean of 30 ones, 5 minus ones and 65 zeros is sqrt((0.35 - 0.0625) / 100) = 0.0536
    assert found.low == pytest.approx(0.25 - 1.96 * 0.0536, abs=0.015)
    assert found.high == pytest.approx(0.25 + 1.96 * 0.0536, abs=0.015)
    assert found == metrics.compare(truth, first, second, seed=3)
    assert found.p_value < 1e-4


def test_compare_is_antisymmetric_and_zero_for_twins():
    same = metrics.compare(TRUTH, GUESS, GUESS)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    there = metrics.compare(TRUTH, GUESS, ["joy"] * 7).difference
    assert there == -metrics.compare(TRUTH, ["joy"] * 7, GUESS).difference


def right(pattern: str) -> list[str]:
    """What one seed said where the truth is always joy: 1 is right, 0 is wrong."""
    return ["joy" if one == "1" else "fear" for one in pattern]


def test_an_example_counts_with_the_share_of_the_seeds_that_got_it_right():
    truth = ["joy"] * 6
    first = [right("110000"), right("100000")]  # shares 1, 1/2, 0, 0, 0, 0
    second = [right("111100"), right("011000"), right("011000")]  # shares 1/3, 1, 1, 1/3, 0, 0
    found = metrics.compare_seeds(truth, first, second)
    assert found.difference == pytest.approx((8 / 3 - 3 / 2) / 6)
    assert (found.only_first, found.only_second) == (1, 3)
    # differences in sixths: -4, 3, 6, 2, which sum to 7; of the 16 choices of signs four sum to 7 or more (15 with all
    # of one sign, 11, 9 and 7 with the 2, the 3 or the 4 against the others), and as many to -7 or less
    assert found.p_value == pytest.approx(8 / 16)
    assert found.low <= found.difference <= found.high


def test_the_interval_of_several_seeds_belongs_to_their_mean():
    """The interval of the first seed may leave out the mean of all, which it was shown beside."""
    truth, base = ["joy"] * 1000, right("1" * 500 + "0" * 500)
    weak, strong = right("1" * 510 + "0" * 490), right("1" * 600 + "0" * 400)
    one = metrics.compare(truth, base, weak)
    found = metrics.compare_seeds(truth, [base] * 3, [weak, strong, strong])
    assert found.difference == pytest.approx((0.01 + 0.1 + 0.1) / 3)
    assert one.high < found.difference
    # 10 examples gain 1 and 90 gain 2/3: mean 0.07, deviation sqrt(0.01 + 0.04 - 0.0049) = 0.2124 of one example
    assert found.low == pytest.approx(0.07 - 1.96 * 0.2124 / 1000**0.5, abs=0.002)
    assert found.high == pytest.approx(0.07 + 1.96 * 0.2124 / 1000**0.5, abs=0.002)


def test_of_single_seeds_it_is_compare_and_of_the_same_seeds_too():
    truth, first, second = ["joy"] * 8, right("11110001"), right("11000111")
    single = metrics.compare(truth, first, second, seed=3)
    assert single == metrics.compare_seeds(truth, [first], [second], seed=3)
    assert single == metrics.compare_seeds(truth, [first, first], [second, second], seed=3)
    assert single.p_value == pytest.approx(metrics.mcnemar(2, 2))


@pytest.mark.parametrize("sizes", [{1: 7}, {1: 3, 2: 4}, {2: 1, 3: 2, 6: 3}, {1: 1}])
def test_signs_are_flipped_in_every_way(sizes):
    values = [size for size, count in sizes.items() for _ in range(count)]
    sums = [sum(map(math.prod, zip(values, signs, strict=True))) for signs in product((-1, 1), repeat=len(values))]
    for total in set(sums):
        expected = sum(abs(one) >= abs(total) for one in sums) / len(sums)
        assert metrics.sign_flip(sizes, total) == pytest.approx(expected)


def test_signs_of_one_size_are_mcnemar():
    assert metrics.sign_flip({3: 35}, 3 * 25) == pytest.approx(metrics.mcnemar(5, 30))
    assert metrics.sign_flip({1: 60_000, 3: 20_000}, 1000) == pytest.approx(0.0411, abs=0.001)  # sd is 489.9, z 2.04
    assert metrics.sign_flip({1: 5000}, 5000) == 1e-10


@pytest.mark.parametrize(("truth", "first", "second"), [([], [[]], [[]]), (["joy"], [], [["joy"]])])
def test_nothing_cannot_be_compared(truth, first, second):
    with pytest.raises(ValueError, match="without examples"):
        metrics.compare_seeds(truth, first, second)
    with pytest.raises(ValueError, match="no mean without examples"):
        metrics.mean_share([], 1)


def test_the_mean_of_shares_has_its_interval():
    found = metrics.mean_share([0, 1, 3, 3] * 100, 3)
    assert found.value == pytest.approx(7 / 12)
    # deviation of 0, 1/3, 1, 1: sqrt(19/36 - 49/144) = 0.4330
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.4330 / 20, abs=0.002)


def test_texts_carry_units():
    assert metrics.share(81, 263).percent() == "30.8 % [25.5, 36.6]"
    assert metrics.PairedComparison(0.031, -0.01, 0.052, 0.2, 3, 5).points() == "+3.1 points [-1.0, +5.2]"
