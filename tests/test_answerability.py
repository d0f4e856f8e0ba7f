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
    # Pairs: 0.9 > 0.5, 0.9 > 0.1, 0.5 = 0.5, 0.5 > 0.1. Shares of the positives 1, 0.75, of the negatives 0.75, 1:
    # each of variance 1/32, so the area's is 2 * (1/32) / 2 = 1/32.
    assert area == 0.875
    assert (low, high) == (pytest.approx(0.875 - 1.96 / np.sqrt(32)), 1.0)


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


def test_the_interval_holds_the_true_area():
    """Two normal distributions one standard deviation apart: the area is Phi(1 / sqrt 2) = 0.7602."""
    rng, positive = np.random.default_rng(0), np.arange(120) < 40
    held = []
    for _ in range(400):
        _, low, high = auroc(rng.normal(positive.astype(float)), positive)
        held.append(low <= 0.7602 <= high)
    assert 0.92 <= np.mean(held) <= 0.98


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
