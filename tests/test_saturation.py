"""saturation.py: numbers worked out by hand, and how often the interval holds the truth in simulated audits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.evals import wilson
from auditdm_jax.saturation import ENOUGH_SHARE, good_turing, saturation_line


def test_turings_estimate_by_hand():
    found = good_turing(["a", "a", "b", "c", "c", "d", "d", "d", "e", "f"])  # b, e, f once; a, c twice
    assert (found.n, found.seen, found.singletons, found.doubletons) == (10, 6, 3, 2)
    assert found.unseen_share == 0.3
    # variance (3 (1 - 0.3) + 2 * 2) / 100 = 0.061; 1.96 * sqrt(0.061) = 0.48408
    assert found.ci_low == 0
    assert found.ci_high == pytest.approx(0.78408, abs=1e-5)
    assert not found.enough


def test_without_singletons_the_interval_is_wilsons():
    found = good_turing(["a"] * 5 + ["b"] * 70)
    assert (found.unseen_share, found.ci_low, found.ci_high) == (0.0, 0.0, wilson(0, 75)[1])
    assert found.enough  # 1.96^2 / (75 + 1.96^2) = 0.0487
    assert not good_turing(["a"] * 72).enough  # 0.0506


def test_nothing_found_says_nothing():
    found = good_turing([])
    assert (found.unseen_share, found.ci_low, found.ci_high, found.enough) == (None, 0.0, 1.0, False)
    assert saturation_line(found, found).endswith("keep going")


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60))
def test_it_is_the_share_of_failures_that_leaving_one_out_makes_new(types):
    found = good_turing(types)
    new = sum(kind not in types[:i] + types[i + 1 :] for i, kind in enumerate(types))
    assert found.unseen_share == new / len(types)
    assert 0 <= found.ci_low <= found.unseen_share <= found.ci_high <= 1
    assert found == good_turing(types[::-1])
    assert found.enough == (found.ci_high <= ENOUGH_SHARE)


@pytest.mark.parametrize(("kinds", "power"), [(20, 0), (60, 1), (60, 3), (500, 2)])
def test_the_interval_holds_the_unseen_share(kinds, power):
    """Audits of 200 failures whose types follow a power law."""
    shares = np.arange(1, kinds + 1.0) ** -power
    shares /= shares.sum()
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        drawn = rng.choice(kinds, 200, p=shares)
        found = good_turing([str(kind) for kind in drawn])
        unseen = max(0.0, 1 - shares[np.unique(drawn)].sum())
        held.append(found.ci_low <= unseen <= found.ci_high)
    assert np.mean(held) >= 0.92


def test_the_line_says_what_to_do():
    few, many = good_turing(["a", "b", "c"]), good_turing(["a"] * 500)
    assert saturation_line(few, few).endswith("keep going")
    line = saturation_line(many, few)
    assert line.endswith("0.000 [0.000, 0.008] of failures to come are of a new type (1.000 type or answer): enough")
