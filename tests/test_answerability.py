"""answerability.py: shares and areas worked out by hand, and against an independent count and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.answerability import IMAGE_CHANGES, REPHRASINGS, agreement, auroc


def test_share_of_further_answers_that_equal_the_consensus():
    given_answers = [["two", "blue", ""], ["3", "a red", "unclear"], ["2", "red", "yes"]]
    np.testing.assert_allclose(agreement(["2", "red", "yes"], given_answers), [2 / 3, 2 / 3, 1 / 3])


def test_area_and_interval_by_hand():
    area, low, high = auroc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    # Pairs: 0.9 > 0.5, 0.9 > 0.1, 0.5 = 0.5, 0.5 > 0.1.
    assert area == 0.875
    for end in (low, high):
        variance = end * (1 - end) * (1 + (1 - end) / (2 - end) + end / (1 + end)) / 4
        assert (0.875 - end) ** 2 == pytest.approx(1.96**2 * variance)
    # All in order, m = n = 2: of an area a the chance of that is small where (1 - a) is 3.84 a (1 + ...) / 4.
    assert auroc(np.array([3.0, 4.0, 1.0, 2.0]), np.array([True, True, False, False]))[1] < 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_the_area_is_a_share_of_pairs(rows):
    up, down = ([score for score, positive in rows if positive is kind] for kind in (True, False))
    scores, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    area, low, high = auroc(scores, positive)
    if not up or not down:
        assert np.isnan(area)
        assert (low, high) == (0.0, 1.0)
        return
    assert area == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a in up for b in down]))
    assert 0 <= low <= area <= high <= 1
    assert auroc(-scores, positive)[0] == pytest.approx(1 - area)


@pytest.mark.parametrize(
    ("few", "many", "apart", "true"), [(40, 80, 1.0, 0.7602), (6, 6, 1.81, 0.8997), (15, 15, 2.77, 0.9749)]
)
def test_the_interval_holds_the_true_area(few, many, apart, true):
    """Two normal distributions some standard deviations apart: the area is Phi(apart / sqrt 2)."""
    rng, positive = np.random.default_rng(0), np.arange(few + many) < few
    held = []
    for _ in range(400):
        _, low, high = auroc(rng.normal(apart * positive), positive)
        held.append(low <= true <= high)
    assert 0.92 <= np.mean(held) <= 0.995


def test_changes_are_small_and_repeatable():
    images = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), np.uint8)
    kept = images.copy()
    for name, change in IMAGE_CHANGES.items():
        made = change(images)
        assert (made.shape, made.dtype) == (images.shape, np.uint8)
        np.testing.assert_array_equal(made, change(images))
        assert (made != images).any(), name
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(IMAGE_CHANGES["shift"](images)[:, :, 1:], images[:, :, :-1])
    moved = np.abs(IMAGE_CHANGES["noise"](images).astype(int) - images)
    assert 1 < moved.mean() < 6
    assert (IMAGE_CHANGES["brighter"](images) >= images).all()


def test_rephrasings_change_the_words_and_not_the_question():
    forms = {rephrase("how many dogs are there?") for rephrase in REPHRASINGS.values()}
    assert forms == {"please how many dogs are there?", "now how many dogs are there?", "how many dogs are there"}
