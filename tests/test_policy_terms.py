"""The terms of a policy-gradient loss, one by one, by hand; what holds for every preset; verl's presets by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.config import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.policy_gradient import (
    DEFAULT_PRESET,
    PRESETS,
    cispo_surrogate,
    clipped_surrogate,
    convention_of,
    expected_zero_signal,
    leave_one_out_advantages,
    log_ratios,
    overlong_penalty,
    policy_gradient_loss,
    reinforce_plus_plus_advantages,
    sampling_weights,
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


def test_expected_zero_signal_by_hand_and_by_draws():
    assert expected_zero_signal(jnp.array(0.25), 2) == pytest.approx(0.0625 + 0.5625)
    draws = np.random.default_rng(0).random((200_000, 8)) < 0.3
    observed = (draws.all(1) | ~draws.any(1)).mean()
    assert expected_zero_signal(jnp.array(0.3), 8) == pytest.approx(observed, abs=1e-3)


def by_hand(preset, rewards=(1.0, 0.0), ratios=((1.5, 1.0, 0.5), (4.0, 1, 1)), **overrides):
    """A loss whose policy moved by the ratios from log-probabilities of -1, the reference at -1."""
    old = jnp.full((2, 3), -1.0)
    arguments = (old, old, MASK, jnp.array(rewards), 2, preset)
    return float(policy_gradient_loss(old + jnp.log(jnp.array(ratios)), *arguments, **overrides)[0])


def test_verls_conventions_by_hand():
    # Advantages of (1, 0): 0.5 / (0.70711 + 1e-6) = 0.70711 = a. Tokens: -1.2 a, -a, -0.5 a; the other 3 a (dual clip).
    a = 0.5**0.5
    assert by_hand("grpo@verl") == pytest.approx((3 - 2.7) * a / 4, rel=1e-5)
    assert by_hand("grpo@verl", delta=None) == pytest.approx((4 - 2.7) * a / 4, rel=1e-5)
    assert by_hand("dapo@verl") == pytest.approx((4 - 1.28 - 1.5) * a / 4, rel=1e-5)
    # Not divided by the standard deviation; by 2 rows of 3 tokens; a row without tokens does not count as a row.
    assert by_hand("dr_grpo@verl") == pytest.approx((3 - 2.7) * 0.5 / 6, rel=1e-5)
    # Leave one out: advantages 1 and -1.
    assert by_hand("rloo@verl") == pytest.approx((3 - 2.7) / 4, rel=1e-5)
    # Weights 1.2, 1, 0.8 and 1.2 times -A logp: logps are -1 + ln r.
    logps = np.log([1.5, 1.0, 0.5, 4.0]) - 1
    assert by_hand("cispo@verl") == pytest.approx(-(np.array([1.2, 1, 0.8, -1.2]) * logps).sum() * a / 4, rel=1e-5)
    # s = cube root of 0.75, below 1 and unclipped where A > 0; 4 where A < 0, which nothing bounds.
    assert by_hand("gspo-token@verl") == pytest.approx((4 - 0.75 ** (1 / 3)) * a / 2, rel=1e-5)
    # Whitened over tokens 1, 1, 1, 0: mean 0.75, std 0.5. The baseline variant's are 0.5 less: whitened the same.
    for name in ("reinforce++@verl", "reinforce++_baseline@verl"):
        assert by_hand(name) == pytest.approx((3 * 1.5 - 2.7 * 0.5) / 4, rel=1e-5)
    # k3 at a log-ratio of ln 1.5: 1 / 1.5 - 1 + ln 1.5; and at -5 clipped from 143 to 10.
    far = by_hand("grpo@verl", ratios=((1.0, 1, 1), (np.exp(-5.0), 1, 1)), beta=0.1)
    assert far == pytest.approx(((0.8 - 3) * a + 0.1 * 10) / 4, rel=1e-5)


def test_kl_in_the_reward_moves_the_advantage_and_not_the_loss():
    old, ref = jnp.full((2, 3), -1.0), jnp.array([[-1.5, -1.5, -1.5], [-1.0, -1.0, -1.0]])
    arguments = (old, old, ref, MASK, jnp.array([1.0, 1.0]), 2, "rloo@trl")
    slope = jax.grad(lambda x: policy_gradient_loss(x, *arguments[1:])[0])(old)
    # k1 of the first completion: 1.5, so rewards 1 - 0.075 and 1: advantages -0.075 and 0.075, a mean over two.
    np.testing.assert_allclose(slope, [[0.0375] * 3, [-0.0375, 0, 0]], rtol=1e-5)


def batch(seed, group_size=4, rows=8, length=5):
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(1.5, (rows, length)).astype(np.float32)
    old, ref, sampling = (logps + rng.normal(0, 0.4, logps.shape).astype(np.float32) for _ in range(3))
    mask = np.arange(length) < rng.integers(1, length + 1, rows)[:, None]
    rewards = rng.choice(np.array([0.0, 0.5, 1.0], np.float32), rows)
    return [jnp.asarray(x) for x in (logps, old, ref, mask, rewards)], jnp.asarray(sampling)


def slope_of(arrays, sampling, preset, **overrides):
    rest = arrays[1:]
    loss = lambda x: policy_gradient_loss(x, *rest, 4, preset, sampling_logps=sampling, **overrides)[0]  # noqa: E731
    return jax.value_and_grad(loss)(arrays[0])


PRESET_NAMES = st.sampled_from(sorted(PRESETS))


@settings(max_examples=30)
@given(st.integers(0, 10_000), PRESET_NAMES, st.sampled_from([0.0, 0.007, 1.0]))
def test_equal_rewards_give_no_gradient_without_kl(seed, preset, reward):
    arrays, sampling = batch(seed)
    arrays[4] = jnp.full(8, reward)
    _, slope = slope_of(arrays, sampling, preset, beta=0.0)
    assert (slope == 0).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000), PRESET_NAMES)
def test_neither_order_in_a_group_nor_what_is_off_the_mask_matters(seed, preset):
    arrays, sampling = batch(seed)
    loss, slope = slope_of(arrays, sampling, preset, beta=0.1)
    rng = np.random.default_rng(seed)
    order = np.concatenate([4 * group + rng.permutation(4) for group in rng.permutation(2)])
    moved = slope_of([x[order] for x in arrays], sampling[order], preset, beta=0.1)
    np.testing.assert_allclose(moved[0], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved[1], slope[order], rtol=1e-4, atol=1e-6)
    mask = arrays[3]
    spoilt = [jnp.where(mask, x, rng.choice([NAN, np.inf, -np.inf, 1e30])) for x in arrays[:3]]
    other = slope_of([*spoilt, *arrays[3:]], jnp.where(mask, sampling, NAN), preset, beta=0.1)
    assert other[0] == loss
    np.testing.assert_array_equal(other[1], slope)
    assert (slope[~mask] == 0).all()


@settings(max_examples=30)
@given(st.integers(0, 10_000), PRESET_NAMES, st.sampled_from([0.25, 4.0]))
def test_rewards_scale_the_gradient_or_cancel_as_the_formula_says(seed, preset, factor):
    arrays, sampling = batch(seed)
    _, slope = slope_of(arrays, sampling, preset, beta=0.0, std_epsilon=0.0)
    _, scaled = slope_of([*arrays[:4], factor * arrays[4]], sampling, preset, beta=0.0, std_epsilon=0.0)
    convention = PRESETS[preset]
    divided = convention.advantage_estimator.startswith("reinforce") or (
        convention.advantage_estimator == "group" and convention.scale_rewards != "none"
    )
    np.testing.assert_allclose(scaled, slope if divided else factor * slope, rtol=1e-4, atol=1e-6)


def test_what_a_user_gives_wins_over_the_preset():
    assert GRPO().convention() == convention_of(DEFAULT_PRESET)
    ours = PRESETS[DEFAULT_PRESET]
    assert (ours.beta, ours.epsilon, ours.epsilon_high, ours.kl_estimator) == (0.03, 0.2, None, "k2")
    assert (ours.loss_type, ours.scale_rewards, ours.importance_sampling_mode) == ("dr_grpo", "none", "none")
    given = GRPO(preset="dapo@trl", beta=0.0, epsilon_high=0.5, num_iterations=3).convention()
    assert given == convention_of("dapo@trl", beta=0.0, epsilon_high=0.5, num_iterations=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GRPO(preset="grpo"), "preset is 'grpo': choose one of dr_grpo@auditdm, grpo@trl"),
        (lambda: GRPO(max_resamples=-1), "max-resamples is -1"),
        (lambda: convention_of("grpo@trl", betta=1.0), "no setting 'betta': it has .*beta"),
        (lambda: convention_of("grpo@trl", cispo_range="wide"), "cispo_range is 'wide': choose one of absolute"),
        (
            lambda: policy_gradient_loss(*batch(0)[0][:1], None, *batch(0)[0][2:], 4, num_iterations=2),
            "without old_logps",
        ),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_without_old_logps_the_ratio_is_one():
    (logps, _, *rest), _ = batch(3)
    both = [
        jax.value_and_grad(lambda x, old=old: policy_gradient_loss(x, old, *rest, 4, "grpo@trl")[0])(logps)
        for old in (None, logps)
    ]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_array_equal(both[0][1], both[1][1])
