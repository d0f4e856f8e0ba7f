"""advantages.py by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from gradient_batch import MASK, NAN

from auditdm_jax.policy_gradient import (
    expected_zero_signal,
    group_advantages,
    leave_one_out_advantages,
    overlong_penalty,
    reinforce_plus_plus_advantages,
    zero_signal,
)


def test_leave_one_out_by_hand():
    rewards = jnp.array([[3.0, 0.0, 0.0], [NAN, 1.0, 0.0], [NAN, NAN, 2.0], [1.0, 1.0, 1.0]])
    want = [[3.0, -1.5, -1.5], [0.0, 1.0, -1.0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(leave_one_out_advantages(rewards), want, rtol=1e-6)


def test_reinforce_plus_plus_by_hand():
    # To go: 1 - 0.6, 1 - 0.5, 1 - 0.3 and -1. Mean 0.15, squares 0.0625 + 0.1225 + 0.3025 + 1.3225 over 3: std 0.77675.
    penalties = jnp.array([[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])
    want = np.array([[0.25, 0.35, 0.55], [-1.15, 0, 0]]) / 0.77675
    np.testing.assert_allclose(reinforce_plus_plus_advantages(jnp.array([1.0, -1.0]), MASK, penalties), want, rtol=1e-4)
    # Without a reward a completion is outside mean and standard deviation; what is left is equal.
    assert (reinforce_plus_plus_advantages(jnp.array([1.0, NAN]), MASK) == 0).all()


def test_overlong_penalty_by_hand():
    # DAPO's numbers: L = 20480, c = 4096. Half of the buffer used: -1/2.
    lengths = jnp.array([0, 16384, 18432, 20480, 30000])
    np.testing.assert_allclose(overlong_penalty(lengths, 20480, 4096), [0, 0, -0.5, -1, -1])


def test_expected_zero_signal_by_hand_and_by_draws():
    assert expected_zero_signal(jnp.array(0.25), 2) == pytest.approx(0.0625 + 0.5625)
    draws = np.random.default_rng(0).random((200_000, 8)) < 0.3
    observed = (draws.all(1) | ~draws.any(1)).mean()
    assert expected_zero_signal(jnp.array(0.3), 8) == pytest.approx(observed, abs=2e-3)


def test_advantages_by_hand():
    # Mean 1/2; squares sum to 1, over 3: std 0.57735; 0.5 / 0.57745 = 0.86588.
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    np.testing.assert_allclose(group_advantages(rewards), [[0.86588, -0.86588, -0.86588, 0.86588]], rtol=1e-5)
    # A batch of 1, 0, 2, 2: mean 1.25, squares 2.75, over 3: std 0.95743; 0.5 / 0.95753 = 0.52218.
    rewards = jnp.array([[1.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(group_advantages(rewards, "batch"), [[0.52218, -0.52218], [0, 0]], rtol=1e-5)
    np.testing.assert_allclose(group_advantages(rewards, "none"), [[0.5, -0.5], [0, 0]])
    # NaN is no zero: the other two have mean 2, std 1.41421; 1 / 1.41431 = 0.70706.
    rewards = jnp.array([[1.0, NAN, 3.0]])
    np.testing.assert_allclose(group_advantages(rewards), [[-0.70706, 0, 0.70706]], rtol=1e-5)


def test_groups_without_signal_are_counted_exactly():
    tiny = np.float32(1) + np.finfo(np.float32).eps
    flat = [[1, 1, 1], [1, 1, tiny], [0.1, 0.1, 0.1], [NAN, 1, 1], [NAN, NAN, 1], [NAN] * 3, [NAN, 0, 1]]
    rewards = jnp.array(flat)
    assert zero_signal(rewards).tolist() == [True, False, True, True, True, True, False]
    assert (group_advantages(rewards)[2:6] == 0).all()
