"""policy_gradient.py against a plain NumPy account of TRL's formulas, in double precision, and against hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.errors import UserError
from auditdm_jax.policy_gradient import (
    aggregate,
    clipped_surrogate,
    group_advantages,
    kl_divergence,
    policy_gradient_loss,
    zero_signal,
)

NAN = float("nan")
SETTINGS = st.fixed_dictionaries(
    {
        "beta": st.sampled_from([0.0, 0.04, 0.5]),
        "epsilon": st.sampled_from([0.1, 0.2]),
        "epsilon_high": st.sampled_from([None, 0.28]),
        "scale_rewards": st.sampled_from(["group", "batch", "none"]),
        "loss_type": st.sampled_from(["grpo", "bnpo", "dr_grpo"]),
        "kl_estimator": st.sampled_from(["k1", "k2", "k3"]),
        "use_bias_correction_kl": st.booleans(),
        "max_completion_length": st.sampled_from([None, 9]),
    }
)


def oracle(logps, old_logps, ref_logps, mask, rewards, group_size, **s):
    """(loss, dloss/dlogps), completion by completion and token by token."""
    rows, length = logps.shape
    high = s["epsilon"] if s["epsilon_high"] is None else s["epsilon_high"]
    batch = rewards[~np.isnan(rewards)]
    lengths = mask.sum(1)
    loss, gradient = 0.0, np.zeros(logps.shape)
    for i in range(rows):
        start = i - i % group_size
        group = rewards[start : start + group_size]
        group = group[~np.isnan(group)]
        advantage = 0.0
        if not np.isnan(rewards[i]) and len(set(group.tolist())) > 1:
            advantage = rewards[i] - group.mean()
            if s["scale_rewards"] != "none":
                values = group if s["scale_rewards"] == "group" else batch
                advantage /= values.std(ddof=1) + 1e-4
        for t in range(length):
            if not mask[i, t]:
                continue
            ratio = np.exp(logps[i, t] - old_logps[i, t])
            clipped = min(max(ratio, 1 - s["epsilon"]), 1 + high)
            value = -min(ratio * advantage, clipped * advantage)
            slope = -ratio * advantage if ratio * advantage <= clipped * advantage else 0.0
            d = logps[i, t] - ref_logps[i, t]
            kl = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[s["kl_estimator"]]
            kl_slope = {"k1": 1.0, "k2": d, "k3": 1 - np.exp(-d)}[s["kl_estimator"]]
            if s["use_bias_correction_kl"]:
                kl, kl_slope = ratio * kl, ratio * (kl_slope + kl)
            value += s["beta"] * kl
            slope += s["beta"] * kl_slope
            weight = {
                "grpo": 1 / (rows * max(lengths[i], 1)),
                "bnpo": 1 / max(lengths.sum(), 1),
                "dr_grpo": 1 / (rows * (s["max_completion_length"] or length)),
            }[s["loss_type"]]
            loss += weight * value
            gradient[i, t] = weight * slope
    return loss, gradient


def example(seed, group_size=4, rows=12, length=6):
    """A batch with ratios on both sides of the clip, unequal lengths, an empty row, a group without signal."""
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(1.5, (rows, length))
    old_logps = logps + rng.normal(0, 0.4, logps.shape)
    ref_logps = logps + rng.normal(0, 0.5, logps.shape)
    lengths = rng.integers(1, length + 1, rows)
    lengths[rng.integers(rows)] = 0
    rewards = rng.choice([0.0, 0.5, 1.0], rows)
    rewards[:group_size] = 0.1
    mask = np.arange(length) < lengths[:, None]
    return *(x.astype(np.float32) for x in (logps, old_logps, ref_logps)), mask, rewards.astype(np.float32)


def value_and_grad(logps, old_logps, ref_logps, mask, rewards, group_size, **setup):
    def loss_of(logps):
        return policy_gradient_loss(logps, *arrays, group_size, "grpo@trl", **setup)

    arrays = tuple(jnp.asarray(x) for x in (old_logps, ref_logps, mask, rewards))
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(jnp.asarray(logps))
    return loss, gradient, metrics


@settings(max_examples=40)
@given(st.integers(0, 10_000), SETTINGS, st.sampled_from([4, 2]), st.booleans())
def test_loss_and_gradient_are_the_formulas(seed, setup, group_size, missing):
    logps, old_logps, ref_logps, mask, rewards = example(seed, group_size)
    if missing:
        rewards[[1, -1]] = NAN
    loss, gradient, _ = value_and_grad(logps, old_logps, ref_logps, mask, rewards, group_size, **setup)
    exact = [x.astype(np.float64) for x in (logps, old_logps, ref_logps)]
    want_loss, want_gradient = oracle(*exact, mask, rewards.astype(np.float64), group_size, **setup)
    np.testing.assert_allclose(loss, want_loss, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=2e-4, atol=2e-6)


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


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("reward", [0.0, 0.007, 0.012, 1.0])
def test_equal_rewards_give_exactly_no_gradient_but_the_kls(scale_rewards, reward):
    logps, old_logps, ref_logps, mask, rewards = example(0, group_size=6)
    rewards[:6] = reward  # in float32 the mean of six 0.007 is not 0.007
    arguments = (logps, old_logps, ref_logps, mask, rewards, 6)
    _, gradient, _ = value_and_grad(*arguments, scale_rewards=scale_rewards)
    assert (gradient[:6] == 0).all()
    assert (gradient[6:] != 0).any()
    _, gradient, _ = value_and_grad(*arguments, scale_rewards=scale_rewards, beta=0.1)
    assert (gradient[:6] != 0)[mask[:6]].all()


def test_groups_without_signal_are_counted_exactly():
    tiny = np.float32(1) + np.finfo(np.float32).eps
    flat = [[1, 1, 1], [1, 1, tiny], [0.1, 0.1, 0.1], [NAN, 1, 1], [NAN, NAN, 1], [NAN] * 3, [NAN, 0, 1]]
    rewards = jnp.array(flat)
    assert zero_signal(rewards).tolist() == [True, False, True, True, True, True, False]
    assert (group_advantages(rewards)[2:6] == 0).all()


def test_metrics_by_hand():
    ratio = np.array([[1.5, 0.5, 1.0], [1.5, 0.5, 9.0], [1.5, 0.5, 1.0], [0.5, 0.5, 0.5]], np.float32)
    log_ratio = np.log(ratio)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    rewards = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    old_logps = np.full((4, 3), -2.0, np.float32)
    logps = old_logps + log_ratio
    _, _, metrics = value_and_grad(logps, old_logps, logps, mask, rewards, 2, scale_rewards="none")
    want = {
        "reward": 0.75,
        "reward_std": 0.5**0.5 / 2,
        "frac_reward_missing": 0,
        "frac_reward_zero_std": 0.5,
        "advantage_abs": 2.5 / 11,
        "clip_ratio/high": 1 / 11,  # the one token of 11 that rises with A > 0
        "clip_ratio/low": 1 / 11,
        "clip_ratio/region": 2 / 11,
        "kl": 0,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(want, abs=1e-6)
    rewards = np.array([1, NAN, 1, 0], np.float32)
    _, _, metrics = value_and_grad(logps, old_logps, old_logps, mask, rewards, 2)
    assert metrics["frac_reward_missing"] == 0.25
    assert metrics["reward"] == pytest.approx(2 / 3)
    assert metrics["kl"] == pytest.approx(((1 / ratio - 1 + log_ratio) * mask).sum() / 11, rel=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 10_000), SETTINGS)
def test_neither_what_is_off_the_mask_nor_the_order_in_a_group_matters(seed, setup):
    logps, old_logps, ref_logps, mask, rewards = example(seed)
    loss, gradient, _ = value_and_grad(logps, old_logps, ref_logps, mask, rewards, 4, **setup)
    rng = np.random.default_rng(seed)
    junk = rng.choice(np.array([NAN, np.inf, -np.inf, 1e30], np.float32), (3, *mask.shape))
    spoilt = np.where(mask, np.stack([logps, old_logps, ref_logps]), junk)
    other = value_and_grad(*spoilt, mask, rewards, 4, **setup)
    assert other[0] == loss
    np.testing.assert_array_equal(other[1], gradient)
    order = np.concatenate([4 * group + rng.permutation(4) for group in rng.permutation(3)])
    moved = (x[order] for x in (logps, old_logps, ref_logps, mask, rewards))
    other = value_and_grad(*moved, 4, **setup)
    np.testing.assert_allclose(other[0], loss, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other[1], gradient[order], rtol=1e-4, atol=1e-6)


def test_the_penalty_for_length_is_of_the_whole_completion():
    """4 and 2 tokens of at most 4, cache 2: penalties 1 and 0, though the loss leaves out a token of the first."""
    mask = jnp.array([[0, 1, 1, 1], [1, 1, 0, 0]])
    arrays = (jnp.zeros((2, 4)), None, None, mask, jnp.zeros(2), 2, "dr_grpo@trl")
    _, whole = policy_gradient_loss(*arrays, lengths=jnp.array([4, 2]), soft_punish_cache=2)
    _, masked = policy_gradient_loss(*arrays, soft_punish_cache=2)
    assert (whole["advantage_abs"], masked["advantage_abs"]) == (0.5, 0.25)


@pytest.mark.parametrize("preset", ["dr_grpo@auditdm", "grpo@trl", "rloo@trl", "reinforce++@verl"])
def test_an_infinite_reward_under_jit_counts_as_none(preset):
    logps, old_logps, ref_logps, mask, rewards = (jnp.asarray(x) for x in example(1))
    given = jax.jit(
        lambda r: jax.grad(lambda x: policy_gradient_loss(x, old_logps, ref_logps, mask, r, 4, preset)[0])(logps)
    )
    infinite, missing = given(rewards.at[0].set(jnp.inf)), given(rewards.at[0].set(jnp.nan))
    assert jnp.isfinite(infinite).all()
    np.testing.assert_array_equal(infinite, missing)


def test_half_precision_is_computed_in_single():
    logps, old_logps, ref_logps, mask, rewards = (jnp.asarray(x) for x in example(1))
    half = [x.astype(jnp.float16) for x in (logps, old_logps - 15, ref_logps)]
    single = [x.astype(jnp.float32) for x in half]
    got, want = (policy_gradient_loss(*of, mask, rewards, 4, "grpo@trl", beta=0.1)[0] for of in (half, single))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.filterwarnings("error")
def test_numpys_doubles_are_taken_without_a_word():
    arrays = [np.asarray(x, np.float64) for x in example(1)]
    assert jnp.isfinite(policy_gradient_loss(*arrays[:3], arrays[3] > 0, arrays[4], 4, "grpo@trl", beta=0.1)[0])


def test_ratios_far_outside_stay_finite():
    logps, old_logps, _, mask, rewards = example(4)
    logps[4:8], old_logps[4:8] = 0, -200
    logps[8:], old_logps[8:] = -200, 0
    mask[:], rewards[4:] = True, [1, 0, 0, 0, 1, 0, 0, 0]
    for corrected in (True, False):
        setup = dict(beta=0.1, use_bias_correction_kl=corrected)
        loss, gradient, _ = value_and_grad(logps, old_logps, old_logps, mask, rewards, 4, **setup)
        assert jnp.isfinite(loss)
        assert jnp.isfinite(gradient).all()
    # Clipped, the KL not corrected: what is left is the gradient of the KL, beta * (1 - e^-200) / (12 * 6).
    np.testing.assert_allclose(gradient[4], 0.1 / 72, rtol=1e-6)


def test_without_reference():
    logps, old_logps, ref_logps, mask, rewards = (jnp.asarray(x) for x in example(1))
    loss, metrics = policy_gradient_loss(logps, old_logps, None, mask, rewards, 4, "grpo@trl")
    assert loss == policy_gradient_loss(logps, old_logps, ref_logps, mask, rewards, 4, "grpo@trl")[0]
    assert "kl" not in metrics


@pytest.mark.parametrize(
    ("group_size", "setup", "message"),
    [
        (1, {}, "group size is 1"),
        (5, {}, "12 completions do not divide into groups of 5"),
        (4, {"loss_type": "gpro"}, "loss_type is 'gpro': choose one of grpo, bnpo, dr_grpo"),
        (4, {"scale_rewards": "std"}, "scale_rewards is 'std': choose one of group, batch, none"),
        (4, {"beta": 0.1, "kl_estimator": "k4"}, "kl_estimator is 'k4': choose one of k1, k2, k3"),
    ],
)
def test_bad_settings_are_named(group_size, setup, message):
    with pytest.raises(UserError, match=message):
        policy_gradient_loss(*(jnp.asarray(x) for x in example(2)), group_size, **setup)


def test_beta_needs_a_reference():
    logps, old_logps, _, mask, rewards = (jnp.asarray(x) for x in example(3))
    with pytest.raises(UserError, match="without ref_logps"):
        policy_gradient_loss(logps, old_logps, None, mask, rewards, 4, beta=0.1)


def test_rewards_that_are_all_missing_are_told_before_anything_is_computed():
    *arrays, mask, rewards = (jnp.asarray(x) for x in example(3))
    nothing = jnp.full_like(rewards, NAN)

    def loss_of(logps, rewards):
        return policy_gradient_loss(logps, *arrays[1:], mask, rewards, 4, "grpo@trl")[0]

    with pytest.raises(UserError, match="every reward is NaN"):
        jax.grad(loss_of)(arrays[0], nothing)
    assert jnp.isfinite(loss_of(arrays[0], nothing.at[0].set(1.0)))
    # In a compiled step no values are known: there they teach nothing.
    assert not jax.jit(jax.grad(loss_of))(arrays[0], nothing).any()
