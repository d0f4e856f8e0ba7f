"""conventions.py: verl's presets by hand, what holds for every preset, and what a user gives in a preset's place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_batch import MASK, NAN
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.policy_gradient import DEFAULT_PRESET, PRESETS, convention_of, policy_gradient_loss


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
@given(st.integers(0, 10_000), PRESET_NAMES, st.sampled_from(["k1", "k2", "k3"]), st.booleans())
def test_neither_order_in_a_group_nor_what_is_off_the_mask_matters(seed, preset, estimator, corrected):
    arrays, sampling = batch(seed)
    kl = dict(beta=0.1, kl_estimator=estimator, use_bias_correction_kl=corrected)
    loss, slope = slope_of(arrays, sampling, preset, **kl)
    rng = np.random.default_rng(seed)
    order = np.concatenate([4 * group + rng.permutation(4) for group in rng.permutation(2)])
    moved = slope_of([x[order] for x in arrays], sampling[order], preset, **kl)
    np.testing.assert_allclose(moved[0], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved[1], slope[order], rtol=1e-4, atol=1e-6)
    mask = arrays[3]
    spoilt = [jnp.where(mask, x, rng.choice([NAN, np.inf, -np.inf, 1e30])) for x in arrays[:3]]
    other = slope_of([*spoilt, *arrays[3:]], jnp.where(mask, sampling, NAN), preset, **kl)
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
        (lambda: GRPO(preset="grpo"), "no preset is called 'grpo', the nearest is 'grpo@trl'; there are dr_grpo@audit"),
        (lambda: convention_of("DAPO@TLR"), "the nearest is 'dapo@trl'"),
        (lambda: GRPO(num_generations=1), "num-generations is 1: a group needs 2"),
        (lambda: GRPO("reinforce++_baseline@verl", num_generations=1), "num-generations is 1"),
        (lambda: GRPO("reinforce++@verl", num_generations=1, max_resamples=1), "num-generations is 1"),
        (lambda: GRPO("reinforce++@verl", num_generations=0), "num-generations is 0"),
        (lambda: GRPO(max_resamples=-1), "max-resamples is -1"),
        (lambda: GRPO(num_iterations=0), "num-iterations is 0"),
        (lambda: GRPO(learning_rate=0.0), "learning-rate is 0.0"),
        (lambda: convention_of("grpo@trl", betta=1.0), "no setting 'betta', the nearest is 'beta'; it has adv"),
        (lambda: convention_of("grpo@trl", beta=float("nan")), "beta is nan: it must be 0 or more"),
        (lambda: convention_of("grpo@trl", soft_punish_cache=-2), "soft-punish-cache is -2"),
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


@pytest.mark.parametrize("name", ["beta", "soft_punish_cache", "num_iterations", "max_completion_length"])
def test_what_decides_the_computation_cannot_be_traced(name):
    arrays, _ = batch(0)
    with pytest.raises(UserError, match=f"{name} is traced by jit: give a number"):
        jax.jit(lambda value: policy_gradient_loss(*arrays, 4, "grpo@trl", **{name: value})[0])(1)


@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_arrays_of_another_shape_are_not_broadcast(place):
    arrays, _ = batch(0)
    odd = [x[:1] if i == place else x for i, x in enumerate(arrays)]
    with pytest.raises(UserError, match=r"has the shape .*give"):
        policy_gradient_loss(*odd, 4, "grpo@trl", beta=0.1)
    with pytest.raises(UserError, match=r"give \[B, T\] and \[B\]"):
        policy_gradient_loss(*(x[0] for x in arrays[:4]), arrays[4], 4)
    with pytest.raises(UserError, match="0 completions do not divide"):
        policy_gradient_loss(*(x[:0] for x in arrays), 4)


def test_trls_presets_have_the_kl_of_the_papers():
    """Its own default multiplies it by the ratio since 1.10: one flag."""
    arrays, _ = batch(2)
    plain, corrected = (
        policy_gradient_loss(*arrays, 4, "grpo@trl", beta=0.1, use_bias_correction_kl=by)[0] for by in (False, True)
    )
    assert plain == policy_gradient_loss(*arrays, 4, "grpo@trl", beta=0.1)[0] != corrected
    assert GRPO("grpo@trl", use_bias_correction_kl=True).convention().use_bias_correction_kl


def test_reinforce_plus_plus_needs_no_groups():
    """Its baseline is the mean of the whole batch."""
    assert GRPO("reinforce++@verl", num_generations=1).num_generations == 1
    arrays, _ = batch(1)
    losses = [policy_gradient_loss(*arrays, size, "reinforce++@verl")[0] for size in (1, 4)]
    assert losses[0] == losses[1] != 0


def test_without_old_logps_the_ratio_is_one():
    (logps, _, *rest), _ = batch(3)
    both = [
        jax.value_and_grad(lambda x, old=old: policy_gradient_loss(x, old, *rest, 4, "grpo@trl")[0])(logps)
        for old in (None, logps)
    ]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_array_equal(both[0][1], both[1][1])
