"""policy_gradient.py against a plain NumPy account of TRL's formulas, in double precision, and against hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_batch import NAN, example
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.policy_gradient import policy_gradient_loss

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
