"""policy_terms.py by hand; more of it in test_policy_gradient.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.policy_gradient import cispo_surrogate, clipped_surrogate, log_ratios, sampling_weights

NAN = float("nan")
MASK = jnp.array([[1, 1, 1], [1, 0, 0]], bool)


def test_log_ratios_by_hand():
    logps, old = jnp.array([[-1.0, -2.0, -3.0], [-1.0, 0, 0]]), jnp.array([[-2.0, -2.5, -2.4], [-0.5, 0, 0]])
    np.testing.assert_allclose(log_ratios(logps, old, MASK), [[1.0, 0.5, -0.6], [-0.5, 0, 0]], rtol=1e-5)
    for level, value in {"sequence": 0.3, "sequence_token": 0.3, "sequence_sum": 0.9}.items():
        ratio = log_ratios(logps, old, MASK, level)
        np.testing.assert_allclose(ratio[0], np.full(ratio.shape[1], value), rtol=1e-5)
    clipped = log_ratios(logps, old, MASK, "sequence", 0.5)
    np.testing.assert_allclose(clipped[0], [(0.5 + 0.5 - 0.5) / 3], rtol=1e-5)


def test_gspo_token_has_gspos_value_and_a_gradient_for_each_token():
    logps, old = jnp.array([[-1.0, -2.0, -3.0], [-1.0, 0, 0]]), jnp.array([[-2.0, -2.5, -2.4], [-0.5, 0, 0]])

    def value(logps, level, weights):
        return (weights * jnp.exp(log_ratios(logps, old, MASK, level)) * MASK).sum()

    weights = jnp.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    of_sequence, of_token = (jax.grad(value)(logps, level, weights) for level in ("sequence", "sequence_token"))
    np.testing.assert_allclose(of_sequence[0], of_token[0], rtol=1e-6)  # equal weights: the same objective
    weights = weights.at[0, 1:].set(0)
    of_sequence, of_token = (jax.grad(value)(logps, level, weights) for level in ("sequence", "sequence_token"))
    np.testing.assert_allclose(of_sequence[0], np.full(3, np.exp(0.3) / 3), rtol=1e-5)
    np.testing.assert_allclose(of_token[0], [np.exp(0.3), 0, 0], rtol=1e-5)


def test_dual_clip_by_hand():
    ratios = jnp.log(jnp.array([[1.1, 2.5, 9.0], [1.1, 2.5, 9.0]]))
    losses = clipped_surrogate(ratios, jnp.array([[1.0], [-1.0]]), 0.2, 0.2, 3.0)
    np.testing.assert_allclose(losses, [[-1.1, -1.2, -1.2], [1.1, 2.5, 3.0]], rtol=1e-6)


def test_cispo_keeps_every_tokens_gradient():
    ratios, logps = jnp.log(jnp.array([[0.1, 2.0, 9.0]])), jnp.array([[-1.0, -2.0, -3.0]])
    losses = cispo_surrogate(ratios, logps, jnp.array([[2.0]]), 0.0, 5.0)
    np.testing.assert_allclose(losses, [[0.2, 8.0, 30.0]], rtol=1e-6)
    slope = jax.grad(lambda x: cispo_surrogate(ratios + x - logps, x, jnp.array([[2.0]]), 0.0, 5.0).sum())(logps)
    np.testing.assert_allclose(slope, [[-0.2, -4.0, -10.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("correction", "want"),
    [
        ("token_truncate", [[1.5, 0.5, 1.0], [1.2, 1.0, 1.0]]),
        ("token_mask", [[0.0, 0.0, 1.0], [1.2, 1.0, 1.0]]),
        ("sequence_truncate", [[0.8], [1.2]]),
        ("sequence_mask", [[0.8], [1.2]]),
    ],
)
def test_weights_for_the_samplers_drift_by_hand(correction, want):
    old = jnp.log(jnp.array([[2.0, 0.4, 1.0], [1.2, 7.0, 7.0]]))
    sampler = jnp.where(MASK, 0.0, NAN)
    np.testing.assert_allclose(sampling_weights(old, sampler, MASK, correction, 1.5, 0.5), want, rtol=1e-6)


def test_a_token_the_sampler_could_not_score_weighs_one():
    sampler = jnp.array([[NAN, 0.0, 0.0], [0.0, 0, 0]])
    weights = sampling_weights(jnp.log(jnp.full((2, 3), 1.2)), sampler, MASK, "token_mask", 3.0)
    np.testing.assert_allclose(weights, [[1.0, 1.2, 1.2], [1.2, 1, 1]], rtol=1e-6)
