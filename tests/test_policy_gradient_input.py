"""What `policy_gradient_loss` and the equations behind it refuse, and what they make of numbers at the edge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_batch import NAN, example

from auditdm_jax.errors import UserError
from auditdm_jax.policy_gradient import (
    PRESETS,
    Convention,
    aggregate,
    group_advantages,
    kl_divergence,
    log_ratios,
    policy_gradient_loss,
    sampling_weights,
)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"beta": np.float32(-1)}, "beta is .*: it must be 0 or more"),
        ({"beta": float("inf")}, "beta is inf: it must be finite"),
        ({"epsilon": "0.2"}, "epsilon is '0.2': it must be one number"),
        ({"epsilon": None}, "epsilon is None"),
        ({"num_iterations": 0}, "num-iterations is 0: it must be 1 or more"),
        ({"max_completion_length": 0}, "max-completion-length is 0: it must be 1 or more"),
        ({"max_completion_length": 2.5}, "max-completion-length is 2.5: it must be a whole number"),
        ({"log_ratio_clip": 0.0}, "log-ratio-clip is 0.0: it must be above 0"),
        ({"importance_sampling_clip_max": NAN}, "importance-sampling-clip-max is nan"),
        ({"importance_sampling_clip_min": 4.0}, "importance-sampling-clip-min is 4.0, above the clip-max of 3.0"),
        ({"num_items_in_batch": np.array([3.0, 4.0])}, "num-items-in-batch is .*: it must be one number"),
        ({"use_bias_correction_kl": "no"}, "use_bias_correction_kl is 'no': it must be True or False"),
        ({"preset": None}, "no preset is called 'None'"),
        ({"group_size": 1}, "group size is 1"),
        ({"group_size": 5}, "12 completions do not divide into groups of 5"),
        ({"loss_type": "gpro"}, "loss_type is 'gpro': choose one of grpo, bnpo, dr_grpo"),
        ({"scale_rewards": "std"}, "scale_rewards is 'std': choose one of group, batch, none"),
        ({"group_size": 4.0}, "the group size is 4.0: it must be a whole number"),
        ({"group_size": True}, "the group size is True: it must be a whole number"),
        ({"preset": ["grpo@trl"]}, "no preset is called"),
        ({"epsilon": {}}, "epsilon is {}: it must be one number"),
        ({"lengths": 3}, "lengths is int: give an array of real numbers"),
        ({"lengths": np.ones(())}, r"lengths has the shape \(\): give that of rewards, \(12,\)"),
        ({"lengths": np.ones((12, 1))}, r"lengths has the shape \(12, 1\)"),
    ],
)
def test_settings_that_would_train_wrong_are_told(setup, message):
    given = {"group_size": 4, "preset": "grpo@trl"} | setup
    with pytest.raises(UserError, match=message):
        policy_gradient_loss(*(jnp.asarray(x) for x in example(2)), **given)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("wrong", [lambda x: x.tolist(), lambda x: x + 1j, lambda x: x.astype(str), lambda x: None])
def test_what_is_no_array_of_real_numbers_is_told(place, wrong):
    arrays = [np.asarray(x) for x in example(2)]
    arrays[place] = wrong(arrays[place])
    if arrays[place] is None and place in (1, 2):
        return  # may be left out
    with pytest.raises(UserError, match="give an array of real numbers"):
        policy_gradient_loss(*arrays, 4, "grpo@trl", beta=0.0)


def test_a_convention_is_checked_as_a_preset_is():
    with pytest.raises(UserError, match="loss_type is 'gpro'"):
        Convention(loss_type="gpro")
    with pytest.raises(UserError, match="k3-clip is -5"):
        dataclasses.replace(PRESETS["grpo@verl"], k3_clip=-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m: kl_divergence(x, x, "k4"), "kl_estimator is 'k4'"),
        (lambda x, m: aggregate(x, m, "gpro", 3), "loss_type is 'gpro'"),
        (lambda x, m: group_advantages(x, "std"), "scale_rewards is 'std'"),
        (lambda x, m: log_ratios(x, x, m, "seq"), "importance_sampling_level is 'seq'"),
        (lambda x, m: sampling_weights(x, x, m, "token_maks", 3.0), "importance_sampling_mode is 'token_maks'"),
    ],
)
def test_an_equation_knows_its_choices(call, message):
    with pytest.raises(UserError, match=message):
        call(jnp.zeros((2, 3)), jnp.ones((2, 3), bool))


def test_without_a_correction_the_sampler_weighs_one():
    off = jnp.full((2, 3), -1.0)
    assert (sampling_weights(jnp.zeros((2, 3)), off, jnp.ones((2, 3), bool), "none", 3.0) == 1).all()


@pytest.mark.parametrize("setup", [{"epsilon": 0.0}, {"epsilon": 0.0, "epsilon_high": 0.28}, {"delta": 1.0}])
def test_on_a_bound_the_gradient_is_whole(setup):
    """On-policy, every ratio is exactly 1: the gradient is -A / (B T), as `torch.clamp` has it, and not half of it."""
    logps, mask, rewards = jnp.full((2, 1), -1.0), jnp.ones((2, 1), bool), jnp.array([1.0, 0.0])
    loss = lambda x: policy_gradient_loss(x, logps, None, mask, rewards, 2, "dr_grpo@trl", **setup)[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(logps)[:, 0], [-0.25, 0.25], rtol=1e-6)


def test_far_from_the_reference_k3_has_no_reversed_gradient():
    near = jax.grad(lambda x: kl_divergence(x, jnp.zeros((1, 1))).sum())
    assert near(jnp.full((1, 1), -20.0)) < 0
    assert near(jnp.full((1, 1), -85.0)) == 0


def test_an_infinite_reward_is_told():
    *arrays, rewards = (jnp.asarray(x) for x in example(3))
    with pytest.raises(UserError, match="a reward is infinite: give NaN"):
        policy_gradient_loss(*arrays, rewards.at[0].set(jnp.inf), 4)


def test_one_reward_alone_has_no_baseline():
    """Of REINFORCE++'s baseline variant, too, whose whitening is over the batch."""
    logps, mask = jnp.full((4, 3), -1.0), jnp.array([[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]], bool)
    rewards = jnp.array([1, NAN, 1, 0])
    preset = "reinforce++_baseline@verl"
    loss = lambda x: policy_gradient_loss(x, logps, logps, mask, rewards, 2, preset, beta=0.0)[0]  # noqa: E731
    gradient = jax.grad(loss)(logps)
    assert not gradient[:2].any()
    assert gradient[2:].any()


def test_a_mean_over_tokens_knows_no_padding():
    *arrays, rewards = example(4)
    metric = lambda pad: policy_gradient_loss(  # noqa: E731
        *(jnp.pad(jnp.asarray(x), ((0, 0), (0, pad))) for x in arrays), jnp.asarray(rewards), 4, "reinforce++@verl"
    )[1]["advantage_abs"]
    np.testing.assert_allclose(metric(0), metric(50), rtol=1e-5)


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


@pytest.mark.parametrize("preset", PRESETS)
def test_half_precision_is_raised_to_single_in_every_array(preset):
    rng = np.random.default_rng(0)
    new, old, ref, sampler = (jnp.asarray(-rng.exponential(2.0, (4, 64)), jnp.bfloat16) for _ in range(4))
    mask, rewards = jnp.ones((4, 64), bool), jnp.array([1.0, 0.0, 0.5, 1.0])

    def found(*arrays):
        logps, old_logps, ref_logps, sampling_logps = arrays
        loss = lambda x: policy_gradient_loss(  # noqa: E731
            x, old_logps, ref_logps, mask, rewards, 4, preset, sampling_logps=sampling_logps
        )[0]
        return jax.value_and_grad(loss)(logps.astype(jnp.float32))

    half = (new, new * 1.01, ref, sampler), (new, old, ref, sampler)
    for arrays in half:
        got, want = found(*arrays), found(*(x.astype(jnp.float32) for x in arrays))
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_completions_of_no_tokens_are_told():
    nothing = jnp.zeros((4, 0))
    with pytest.raises(UserError, match=r"logps has the shape \(4, 0\) .*: give \[B, T\] and \[B\], T a token or more"):
        policy_gradient_loss(nothing, nothing, nothing, nothing, jnp.array([1.0, 0.0, 0.0, 1.0]), 2, "dr_grpo@trl")
