"""[jit] Policy gradients: `policy_gradient_loss` is the door, and every equation behind it can be imported from here.

    A_i  = (R_i - mean R) / (std R + 1e-4)                                 arXiv:2402.03300, section 4.1.2
    r_it = exp(logp_it - old_logp_it)
    loss = aggregate over i, t of  -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + beta * KL_it

is GRPO; the presets of `conventions.py` say what other methods, and other libraries, put in each place.

Departures from every library: a group (for REINFORCE++, a batch) whose rewards are all equal has advantages of exactly
0, where rounding could leave some; in an exponent a log-ratio above 80 counts as 80, which keeps exp finite.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from auditdm_jax.advantages import (
    expected_zero_signal,
    group_advantages,
    leave_one_out_advantages,
    mean_std,
    overlong_penalty,
    reinforce_plus_plus_advantages,
    whiten,
    zero_signal,
)
from auditdm_jax.conventions import DEFAULT_PRESET, PRESETS, Convention, convention_of
from auditdm_jax.errors import UserError
from auditdm_jax.policy_terms import (
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    kl_divergence,
    log_ratios,
    ratio_of,
    sampling_weights,
)

__all__ = [
    "DEFAULT_PRESET", "PRESETS", "Convention", "advantages_of", "aggregate", "cispo_surrogate", "clipped_surrogate",
    "convention_of", "expected_zero_signal", "group_advantages", "kl_divergence", "leave_one_out_advantages",
    "log_ratios", "mean_std", "overlong_penalty", "policy_gradient_loss", "ratio_of", "reinforce_plus_plus_advantages",
    "sampling_weights", "whiten", "zero_signal",
]  # fmt: skip


def policy_gradient_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"] | None,
    ref_logps: Float[Array, "B T"] | None,
    mask: Shaped[Array, "B T"],
    rewards: Float[Array, "B"],
    group_size: int,
    preset: str | Convention = DEFAULT_PRESET,
    *,
    sampling_logps: Float[Array, "B T"] | None = None,
    lengths: Int[Array, "B"] | None = None,
    **overrides: Any,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss to minimise in `logps`, and metrics. B = groups * group_size completions, a group in a row.

    old_logps: under the policy before the updates with this batch; None, with num_iterations 1, where that is the
    current one. ref_logps: under the frozen base; None only with beta 0. mask: nonzero on a completion's tokens;
    nothing off it has influence. rewards: NaN where none could be given. sampling_logps: those the sampler computed;
    without them its drift has no weights. lengths: tokens that the penalty for length is for, where the mask leaves
    out some of a completion. overrides: settings of `Convention`, in place of the preset's.

    A group without signal adds nothing to the gradient but its KL (with REINFORCE++, whose baseline is the batch's, it
    may). With old_logps equal to logps the value of the policy term is about 0 by construction: watch `advantage_abs`
    and the gradient instead.

    Metrics: `reward`, of those given; `reward_std`, the mean over groups; `frac_reward_missing`, those that are NaN;
    `frac_reward_zero_std`, groups without signal; `advantage_abs`, the mean over tokens; of the tokens the shares
    `clip_ratio/low`, `clip_ratio/high`, `clip_ratio/region` (either), where PPO's clip would take the gradient (which
    CISPO leaves; dual clip is not counted); where ref_logps are given `kl`, the mean of k3 over all tokens, whatever
    the estimator in the loss, so that runs compare; where weighted `sampling/importance_weight`.

    Raises UserError for what is no array of real numbers, or one of another shape, a group of one where the group is
    the baseline, a batch that does not divide into groups, settings that do not fit, an infinite reward, or rewards
    that are all NaN (under `jit`, where no values are known, these give 0).
    """
    setting = convention_of(preset, **overrides)
    needed = {"logps": logps, "mask": mask, "rewards": rewards}
    optional = {"old_logps": old_logps, "ref_logps": ref_logps, "sampling_logps": sampling_logps, "lengths": lengths}
    arrays = needed | {name: array for name, array in optional.items() if array is not None}
    for name, array in arrays.items():
        if not isinstance(array, jax.Array | np.ndarray) or not _is_real(array.dtype):
            kind = getattr(array, "dtype", None) or type(array).__name__
            raise UserError(f"{name} is {kind}: give an array of real numbers")
    if rewards.shape != logps.shape[:-1] or logps.ndim != 2 or not logps.shape[1]:
        shapes = f"logps has the shape {logps.shape} and rewards {rewards.shape}"
        raise UserError(f"{shapes}: give [B, T] and [B], T a token or more")
    for name, array in arrays.items():
        like = "rewards" if name in ("rewards", "lengths") else "logps"
        if array.shape != arrays[like].shape:
            raise UserError(f"{name} has the shape {array.shape}: give that of {like}, {arrays[like].shape}")
    if not isinstance(group_size, int | np.integer) or isinstance(group_size, bool):
        raise UserError(f"the group size is {group_size!r}: it must be a whole number")
    if group_size < setting.smallest_group:
        least = setting.smallest_group
        raise UserError(f"the group size is {group_size}: this advantage needs {least} completions or more to compare")
    if not len(rewards) or len(rewards) % group_size:
        raise UserError(f"{len(rewards)} completions do not divide into groups of {group_size}: change either")
    if not isinstance(rewards, jax.core.Tracer) and np.isnan(rewards).all():
        raise UserError("every reward is NaN, so there is nothing to learn from: see why none could be given")
    if not isinstance(rewards, jax.core.Tracer) and np.isinf(rewards).any():
        raise UserError("a reward is infinite: give NaN where none could be given")
    if setting.beta and ref_logps is None:
        raise UserError(f"beta is {setting.beta} without ref_logps: give the frozen base's, or beta 0")
    if setting.num_iterations > 1 and old_logps is None:
        raise UserError(f"num_iterations is {setting.num_iterations} without old_logps: give those before the first")
    mask = mask.astype(bool)
    rewards = jnp.where(jnp.isinf(rewards), jnp.nan, _single(rewards))  # under `jit` nobody was told
    # Replaced before any arithmetic: not even an infinity off the mask may reach the gradient.
    logps = jnp.where(mask, _single(logps), 0.0)
    old_logps = jax.lax.stop_gradient(logps if old_logps is None else jnp.where(mask, _single(old_logps), 0.0))
    ref_logps = None if ref_logps is None else jnp.where(mask, _single(ref_logps), 0.0)
    lengths = mask.sum(-1) if lengths is None else lengths
    advantages = advantages_of(setting, old_logps, ref_logps, mask, rewards, lengths, group_size)

    high = setting.epsilon if setting.epsilon_high is None else setting.epsilon_high
    bounds = (1 - setting.epsilon, 1 + high)
    log_ratio = log_ratios(logps, old_logps, mask, setting.importance_sampling_level, setting.log_ratio_clip)
    if setting.loss_type == "cispo":
        bounds = (0.0, high) if setting.cispo_range == "absolute" else bounds
        token_losses = cispo_surrogate(log_ratio, logps, advantages, *bounds)
    else:
        token_losses = clipped_surrogate(log_ratio, advantages, setting.epsilon, high, setting.delta)
    tokens = jnp.maximum(mask.sum(), 1)
    too_low = (ratio_of(log_ratio) < bounds[0]) & (advantages < 0) & mask
    too_high = (ratio_of(log_ratio) > bounds[1]) & (advantages > 0) & mask
    grouped = rewards.reshape(-1, group_size)
    metrics = {
        "reward": mean_std(grouped, axis=None)[0].squeeze(),
        "reward_std": mean_std(grouped, axis=-1)[1].mean(),
        "frac_reward_missing": jnp.isnan(rewards).mean(),
        "frac_reward_zero_std": zero_signal(grouped).mean(),
        "advantage_abs": (jnp.abs(advantages) * mask).sum() / tokens,
        "clip_ratio/low": too_low.sum() / tokens,
        "clip_ratio/high": too_high.sum() / tokens,
        "clip_ratio/region": (too_low | too_high).sum() / tokens,
    }
    if sampling_logps is not None and setting.importance_sampling_mode != "none":
        limits = (setting.importance_sampling_clip_max, setting.importance_sampling_clip_min)
        weights = sampling_weights(old_logps, _single(sampling_logps), mask, setting.importance_sampling_mode, *limits)
        token_losses = token_losses * weights
        metrics["sampling/importance_weight"] = (weights * mask).sum() / tokens
    if ref_logps is not None:
        metrics["kl"] = kl_divergence(logps, ref_logps).sum() / tokens
        if setting.beta and not setting.kl_in_reward:
            kl = kl_divergence(logps, ref_logps, setting.kl_estimator, setting.k3_clip)
            kl = kl * ratio_of(log_ratio) if setting.use_bias_correction_kl else kl
            token_losses = token_losses + setting.beta * kl
    length = setting.max_completion_length or mask.shape[-1]
    loss = aggregate(
        token_losses, mask, setting.loss_type, length, setting.count_empty, num_items=setting.num_items_in_batch
    )
    return loss, metrics


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _single(x: Array) -> Array:
    """At least in single precision: half has no room for a ratio, nor for the sum of a completion."""
    x = jnp.asarray(x)  # double from NumPy is single here, unless JAX is told otherwise
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def advantages_of(
    setting: Convention,
    old_logps: Float[Array, "B T"],
    ref_logps: Float[Array, "B T"] | None,
    mask: Bool[Array, "B T"],
    rewards: Float[Array, "B"],
    lengths: Int[Array, "B"],
    group_size: int,
) -> Float[Array, "B #T"]:
    """The convention's advantages of the rewards, less what it subtracts from those for length and for the KL."""
    if setting.soft_punish_cache:
        length = setting.max_completion_length or mask.shape[-1]
        rewards = rewards + overlong_penalty(lengths, length, setting.soft_punish_cache)
    penalties = jnp.zeros(mask.shape)
    if ref_logps is not None and setting.kl_in_reward:
        penalties = setting.beta * kl_divergence(old_logps, ref_logps, setting.kl_estimator, setting.k3_clip)
    if setting.advantage_estimator == "reinforce_plus_plus":
        return reinforce_plus_plus_advantages(rewards, mask, penalties)
    grouped = (rewards - penalties.sum(-1)).reshape(-1, group_size)
    if setting.advantage_estimator == "leave_one_out":
        return leave_one_out_advantages(grouped).reshape(-1, 1)
    if setting.advantage_estimator == "group":
        return group_advantages(grouped, setting.scale_rewards, setting.std_epsilon).reshape(-1, 1)
    given = ~jnp.isnan(grouped)
    compared = given & (given.sum(-1, keepdims=True) > 1)  # one alone has no baseline
    above_group = jnp.where(compared, group_advantages(grouped, "none"), jnp.nan)
    return reinforce_plus_plus_advantages(above_group.reshape(-1), mask)
