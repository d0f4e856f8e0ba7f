"""advantages.py by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.policy_gradient import (
    expected_zero_signal,
    leave_one_out_advantages,
    overlong_penalty,
    reinforce_plus_plus_advantages,
)

NAN = float("nan")
MASK = jnp.array([[1, 1, 1], [1, 0, 0]], bool)


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
