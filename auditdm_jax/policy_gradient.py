"""Group-relative policy optimisation (GRPO), one function an equation, by TRL's names and conventions.

    A_i  = (R_i - mean R) / (std R + 1e-4)                                 arXiv:2402.03300, section 4.1.2
    r_it = exp(logp_it - old_logp_it)
    loss = aggregate over i, t of  -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A) + beta * KL_it

Log-probabilities are in nats, at the temperature of sampling. Standard deviations divide by n - 1.
`scale_rewards="none"` with `loss_type="dr_grpo"` is Dr. GRPO (arXiv:2503.20783).

A completion without a reward (NaN) is left out of its group's statistics and has advantage 0. Departures from
TRL: a group whose rewards are all equal has advantages of exactly 0, where rounding could leave some; a
log-ratio above 80 counts as 80, which keeps exp finite.
"""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from auditdm_jax.errors import UserError

ScaleRewards = Literal["group", "batch", "none"]
LossType = Literal["grpo", "bnpo", "dr_grpo"]
KLEstimator = Literal["k1", "k2", "k3"]

_STD_EPSILON = 1e-4  # TRL's; it bounds the advantages of groups whose rewards hardly differ
_MAX_LOG_RATIO = 80.0  # exp(89) is infinite in float32, and the gradient of a clipped token then 0 * infinity


def zero_signal(rewards: Float[Array, "B G"]) -> Bool[Array, "B"]:
    """Groups that teach nothing: the rewards that are not NaN are all the same number, or fewer than two.

    Found by comparing the rewards themselves: the standard deviation of equal rewards need not round to 0.
    Called with rewards before shaping, it tells how many groups the task itself left without signal.
    """
    given = ~jnp.isnan(rewards)
    return jnp.where(given, rewards, -jnp.inf).max(-1) <= jnp.where(given, rewards, jnp.inf).min(-1)


def group_advantages(rewards: Float[Array, "B G"], scale_rewards: ScaleRewards = "group") -> Float[Array, "B G"]:
    """Rewards above their group's mean, divided by a standard deviation: the group's, the batch's, or none.

    0 where the reward is NaN, and exactly 0 in groups without signal.
    `group_advantages([[1, 0, 0, 1]])` is about `[[0.866, -0.866, -0.866, 0.866]]`.
    """
    _check("scale_rewards", scale_rewards, ScaleRewards)
    mean, group_std = _mean_std(rewards, axis=-1)
    advantages = rewards - mean
    if scale_rewards == "group":
        advantages /= group_std + _STD_EPSILON
    elif scale_rewards == "batch":
        advantages /= _mean_std(rewards, axis=None)[1] + _STD_EPSILON
    return jnp.where(jnp.isnan(rewards) | zero_signal(rewards)[:, None], 0.0, advantages)


def clipped_surrogate(
    log_ratio: Float[Array, "B T"], advantages: Float[Array, "B 1"], epsilon: float, epsilon_high: float
) -> Float[Array, "B T"]:
    """Per token -min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), r = exp(log_ratio): arXiv:1707.06347."""
    ratio = jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO))
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def kl_divergence(
    logps: Float[Array, "B T"], ref_logps: Float[Array, "B T"], estimator: KLEstimator = "k3"
) -> Float[Array, "B T"]:
    """Per-token estimates of KL(policy || reference) from the policy's samples, d = logp - ref_logp.

    k1 = d              unbiased; as a loss its gradient is 0 on average
    k2 = d^2 / 2        biased; its gradient is that of the reverse KL, KL(policy || reference)
    k3 = e^-d - 1 + d   unbiased and never negative; its gradient is that of the forward KL
    """
    _check("kl_estimator", estimator, KLEstimator)
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    return jnp.expm1(jnp.minimum(-difference, _MAX_LOG_RATIO)) + difference


def aggregate(
    token_losses: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    loss_type: LossType,
    max_completion_length: int,
) -> Float[Array, ""]:
    """One number from token losses: how much a long completion weighs against a short one.

    grpo:    mean over all B completions of the mean over their tokens (0 for one without tokens)
    bnpo:    mean over all tokens of the batch
    dr_grpo: sum over all tokens, divided by B * max_completion_length
    """
    _check("loss_type", loss_type, LossType)
    row_sums, row_lengths = (token_losses * mask).sum(-1), mask.sum(-1)
    if loss_type == "grpo":
        return (row_sums / jnp.maximum(row_lengths, 1)).mean()
    if loss_type == "bnpo":
        return row_sums.sum() / jnp.maximum(row_lengths.sum(), 1)
    return row_sums.sum() / (len(row_sums) * max_completion_length)


def policy_gradient_loss(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    ref_logps: Float[Array, "B T"] | None,
    mask: Shaped[Array, "B T"],
    rewards: Float[Array, "B"],
    group_size: int,
    *,
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    scale_rewards: ScaleRewards = "group",
    loss_type: LossType = "grpo",
    kl_estimator: KLEstimator = "k3",
    max_completion_length: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss to minimise in `logps`, and metrics. B = groups * group_size completions, a group in a row.

    old_logps: under the policy that sampled. ref_logps: under the frozen base; None only with beta = 0. mask:
    nonzero on a completion's tokens; nothing off it has influence. rewards: NaN where none could be given.
    epsilon_high: as epsilon by default. max_completion_length: for dr_grpo; T by default.

    A group without signal adds nothing to the gradient but its KL. With old_logps equal to logps the value of
    the policy term is about 0 by construction: watch `advantage_abs` and the gradient instead.

    Metrics: `reward`; `reward_std`, the mean over groups; `frac_reward_missing`, those that are NaN;
    `frac_reward_zero_std`, groups without signal; `advantage_abs`; of the tokens the shares `clip_ratio/low`,
    `clip_ratio/high`, `clip_ratio/region` (either); where ref_logps are given `kl`, the mean of k3 over all
    tokens, whatever the estimator in the loss, so that runs compare.

    Raises UserError for a group of one, a batch that does not divide into groups, or a setting unheard of.
    """
    if group_size < 2:
        raise UserError(f"the group size is {group_size}: an advantage needs 2 completions or more to compare")
    if len(rewards) % group_size:
        raise UserError(f"{len(rewards)} completions do not divide into groups of {group_size}: change either")
    if beta and ref_logps is None:
        raise UserError(f"beta is {beta} without ref_logps: give the frozen base's log-probabilities, or beta 0")
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    mask = mask.astype(bool)
    # Replaced before any arithmetic: not even an infinity off the mask may reach the gradient.
    logps, old_logps = jnp.where(mask, logps, 0.0), jnp.where(mask, old_logps, 0.0)
    grouped = rewards.reshape(-1, group_size)
    advantages = group_advantages(grouped, scale_rewards).reshape(-1, 1)

    log_ratio = logps - old_logps
    token_losses = clipped_surrogate(log_ratio, advantages, epsilon, epsilon_high)
    low = (log_ratio < jnp.log1p(-epsilon)) & (advantages < 0)
    high = (log_ratio > jnp.log1p(epsilon_high)) & (advantages > 0)
    tokens = jnp.maximum(mask.sum(), 1)
    metrics = {
        "reward": jnp.nanmean(rewards),
        "reward_std": _mean_std(grouped, axis=-1)[1].mean(),
        "frac_reward_missing": jnp.isnan(rewards).mean(),
        "frac_reward_zero_std": zero_signal(grouped).mean(),
        "advantage_abs": jnp.abs(advantages).mean(),
        "clip_ratio/low": (low & mask).sum() / tokens,
        "clip_ratio/high": (high & mask).sum() / tokens,
        "clip_ratio/region": ((low | high) & mask).sum() / tokens,
    }
    if ref_logps is not None:
        ref_logps = jnp.where(mask, ref_logps, 0.0)
        metrics["kl"] = kl_divergence(logps, ref_logps).sum() / tokens
        if beta:
            token_losses += beta * kl_divergence(logps, ref_logps, kl_estimator)
    return aggregate(token_losses, mask, loss_type, max_completion_length or mask.shape[-1]), metrics


def _mean_std(rewards: Float[Array, "B G"], axis: int | None) -> tuple[Array, Array]:
    """Mean and sample standard deviation of what is not NaN, 0 where too few are left; keeps the axis."""
    given = ~jnp.isnan(rewards)
    count = given.sum(axis, keepdims=True)
    mean = jnp.where(given, rewards, 0.0).sum(axis, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.where(given, (rewards - mean) ** 2, 0.0).sum(axis, keepdims=True)
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _check(name: str, value: str, allowed: object) -> None:
    if value not in get_args(allowed):
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(get_args(allowed))}")
