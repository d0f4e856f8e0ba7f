"""policy_terms.py by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_batch import MASK, NAN

from auditdm_jax.policy_gradient import (
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    kl_divergence,
    log_ratios,
    ratio_of,
    sampling_weights,
)


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


def test_clipping_by_hand():
    ratios = jnp.log(jnp.array([[1.5, 0.5, 1.1, 1.5], [1.5, 0.5, 1.1, 0.5]]))
    losses = clipped_surrogate(ratios, jnp.array([[2.0], [-2.0]]), 0.2, 0.3)
    # A gain counts to 1.3; a gain lost counts whole. The other way about for a disadvantage, from 0.8 down.
    np.testing.assert_allclose(losses, [[-2.6, -1.0, -2.2, -2.6], [3.0, 1.6, 2.2, 1.6]], rtol=1e-6)


def test_kl_by_hand():
    logps, ref_logps = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.5]]))
    # d = ln 2 = 0.69315: k2 = 0.24023, k3 = 1/2 - 1 + 0.69315.
    for estimator, value in {"k1": 0.69315, "k2": 0.24023, "k3": 0.19315}.items():
        np.testing.assert_allclose(kl_divergence(logps, ref_logps, estimator), [[value, 0]], atol=1e-5)


def test_kl_estimators_mean_what_they_say():
    """Exact expectations over three tokens: k1 and k3 give KL(p, q); as losses k2 has KL(p, q)'s gradient, k3
    has KL(q, p)'s and k1 has none."""
    scores, q = jnp.array([0.3, -0.5, 1.0]), jax.nn.softmax(jnp.array([0.1, 0.2, -0.4]))
    p = jax.nn.softmax(scores)

    def kl(a, b):
        return (a * jnp.log(a / b)).sum()

    def expected(scores, estimator):
        logps = jax.nn.log_softmax(scores)[None]
        return (p * kl_divergence(logps, jnp.log(q)[None], estimator)).sum()  # p is where the samples come from

    for estimator in ("k1", "k3"):
        np.testing.assert_allclose(expected(scores, estimator), kl(p, q), rtol=1e-5)
    gradients = {e: jax.grad(expected)(scores, e) for e in ("k1", "k2", "k3")}
    reverse, forward = (
        jax.grad(lambda s: kl(jax.nn.softmax(s), q))(scores),
        jax.grad(lambda s: kl(q, jax.nn.softmax(s)))(scores),
    )
    np.testing.assert_allclose(gradients["k1"], 0, atol=1e-6)
    np.testing.assert_allclose(gradients["k2"], reverse, atol=1e-6)
    np.testing.assert_allclose(gradients["k3"], forward, atol=1e-6)


def test_aggregation_by_hand():
    losses = jnp.array([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    assert aggregate(losses, mask, "grpo", 5) == pytest.approx((2 + 4 + 0) / 3)
    assert aggregate(losses, mask, "bnpo", 5) == pytest.approx(10 / 4)
    assert aggregate(losses, mask, "dr_grpo", 5) == pytest.approx(10 / 15)


def test_one_unlikely_token_is_not_cut_in_the_mean_of_a_sequence():
    """TRL bounds no log-ratio: -100 over four tokens is -25, and each of them has its gradient."""
    old = jnp.full((2, 4), -1.0)
    logps = old + jnp.array([[-100.0, 0, 0, 0], [120.0, -118, 0, 0]])
    mask = jnp.ones((2, 4), bool)
    np.testing.assert_allclose(log_ratios(logps, old, mask, "sequence"), [[-25.0], [0.5]])
    slopes = jax.grad(lambda x: log_ratios(x, old, mask, "sequence").sum())(logps)
    np.testing.assert_allclose(slopes, np.full((2, 4), 0.25))
    assert jnp.isfinite(ratio_of(log_ratios(logps, old, mask))).all()


def test_bnpo_averages_over_the_tokens_that_are_here():
    """As TRL's does, whatever the batch that this is a part of."""
    losses, mask = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[1, 1], [1, 0]], bool)
    assert aggregate(losses, mask, "bnpo", 2, num_items=12) == 2
    assert aggregate(losses, mask, "dapo", 2, num_items=12) == 0.5
