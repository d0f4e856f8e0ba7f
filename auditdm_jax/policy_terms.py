"""[jit] The terms of a policy-gradient loss: ratios, surrogates, KL, corrections, averages. One function an equation.

Log-probabilities are in nats, at the temperature of sampling, and 0 off the mask. B completions of T tokens; the second
axis is 1 where a term has one value for a whole completion.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from auditdm_jax.errors import check_choice

RatioLevel = Literal["token", "sequence", "sequence_token", "sequence_sum"]
KLEstimator = Literal["k1", "k2", "k3"]
SamplingCorrection = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "rloo"]

_MAX_LOG_RATIO = 80.0  # exp(89) is infinite in float32, and the gradient of a clipped token then 0 * infinity
_MAX_GSPO_TOKEN_LOG_RATIO = 10.0  # tunix's and verl's


def log_ratios(
    logps: Float[Array, "B T"],
    old_logps: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    level: RatioLevel = "token",
    log_ratio_clip: float = float("inf"),
) -> Float[Array, "B #T"]:
    """log r, r the probability ratio, d_t = clip(logp_t - old_logp_t, -log_ratio_clip, log_ratio_clip).

    token           d_t                                  PPO, GRPO
    sequence        s = 1/T sum over t of d_t            GSPO, arXiv:2507.18071
    sequence_token  sg[s] + logp_t - sg[logp_t]          GSPO-token of the same paper: s's value, a gradient per token
    sequence_sum    sum over t of logp_t - old_logp_t    RLOO: the ratio of whole completions
    """
    check_choice("importance_sampling_level", level, RatioLevel)
    if level == "sequence_sum":  # two sums, as in TRL, whose rounding matters in an exponent
        return (logps * mask).sum(-1, keepdims=True) - (old_logps * mask).sum(-1, keepdims=True)
    token = jnp.clip(logps - old_logps, -log_ratio_clip, log_ratio_clip)
    if level == "token":
        return token
    mean = (token * mask).sum(-1, keepdims=True) / jnp.maximum(mask.sum(-1, keepdims=True), 1)
    if level == "sequence":
        return mean
    log_ratio = jax.lax.stop_gradient(mean) + logps - jax.lax.stop_gradient(logps)
    return jnp.minimum(log_ratio, _MAX_GSPO_TOKEN_LOG_RATIO)


def ratio_of(log_ratio: Float[Array, "B #T"]) -> Float[Array, "B #T"]:
    """exp(log_ratio), a log-ratio above 80 counting as 80, which keeps it finite."""
    return jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO))


def clipped_surrogate(
    log_ratio: Float[Array, "B #T"],
    advantages: Float[Array, "B #T"],
    epsilon: float,
    epsilon_high: float,
    delta: float | None = None,
) -> Float[Array, "B #T"]:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), r = exp(log_ratio): arXiv:1707.06347.

    delta bounds r in the first product, and with it the loss where A < 0, at -delta A: dual clip, arXiv:1912.09729.
    """
    ratio = ratio_of(log_ratio)
    clipped = _clip(ratio, 1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = _clip(ratio, 0.0, delta)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def _clip(x: Array, low: float, high: float) -> Array:
    """As `jnp.clip`, which on a bound halves the gradient; here, as in PyTorch, it is whole: on-policy every ratio is
    exactly 1, which may be one."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def cispo_surrogate(
    log_ratio: Float[Array, "B #T"],
    logps: Float[Array, "B T"],
    advantages: Float[Array, "B #T"],
    low: float,
    high: float,
) -> Float[Array, "B T"]:
    """CISPO: -sg[clip(r, low, high)] A logp, so that no token loses its gradient: arXiv:2506.13585."""
    weights = jax.lax.stop_gradient(jnp.clip(ratio_of(log_ratio), low, high))
    return -weights * advantages * logps


def kl_divergence(
    logps: Float[Array, "B T"],
    ref_logps: Float[Array, "B T"],
    estimator: KLEstimator = "k3",
    k3_clip: float | None = None,
) -> Float[Array, "B T"]:
    """Per-token estimates of KL(policy || reference) from the policy's samples, d = logp - ref_logp.

    k1 = d              unbiased; as a loss its gradient is 0 on average
    k2 = d^2 / 2        biased; its gradient is that of the reverse KL, KL(policy || reference)
    k3 = e^-d - 1 + d   unbiased and never negative; its gradient is that of the forward KL. Clipped at k3_clip.
    """
    check_choice("kl_estimator", estimator, KLEstimator)
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    difference = jnp.maximum(difference, -_MAX_LOG_RATIO)
    return jnp.clip(jnp.expm1(-difference) + difference, max=k3_clip)


def sampling_weights(
    old_logps: Float[Array, "B T"],
    sampling_logps: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    correction: SamplingCorrection,
    clip_max: float | None,
    clip_min: float | None = None,
) -> Float[Array, "B #T"]:
    """Weights for a sampler whose log-probabilities differ from the trainer's, rho = exp(old_logp - sampling_logp).

    truncate  clip(rho, clip_min, clip_max)                     truncated importance sampling
    mask      rho where clip_min <= rho <= clip_max, else 0     masked importance sampling, arXiv:2510.18855

    rho is a token's, or the product over the tokens of a completion ("sequence_"). A token that the sampler could not
    score (NaN) has rho = 1.
    """
    check_choice("importance_sampling_mode", correction, SamplingCorrection)
    if correction == "none":
        return jnp.ones(mask.shape)
    difference = jnp.nan_to_num((old_logps - sampling_logps) * mask, nan=0.0)
    if correction.startswith("sequence"):
        difference = difference.sum(-1, keepdims=True)
    rho = jax.lax.stop_gradient(ratio_of(difference))
    kept = jnp.clip(rho, clip_min, clip_max)
    return kept if correction.endswith("truncate") else jnp.where(kept == rho, rho, 0.0)


def aggregate(
    token_losses: Float[Array, "B #T"],
    mask: Bool[Array, "B T"],
    loss_type: LossType,
    max_completion_length: int,
    count_empty: bool = True,
    num_items: Float[Array, ""] | int | None = None,
) -> Float[Array, ""]:
    """One number from token losses: how much a long completion weighs against a short one.

    grpo               mean over B completions of the mean over their tokens (0 for one without tokens)
    rloo               the same, but one without tokens counts with its surrogate, whose ratio is 1
    bnpo               sum over all tokens, divided by their number
    dapo, cispo        sum over all tokens, divided by num_items: their number, unless given
    dr_grpo            sum over all tokens, divided by B * max_completion_length

    count_empty: whether B counts completions without tokens. num_items: for a part of a batch, the whole's.
    """
    check_choice("loss_type", loss_type, LossType)
    row_sums, row_lengths = (token_losses * mask).sum(-1), mask.sum(-1)
    rows = len(row_sums) if count_empty else jnp.maximum((row_lengths > 0).sum(), 1)
    if loss_type == "dr_grpo":
        return row_sums.sum() / (rows * max_completion_length)
    if loss_type in ("grpo", "rloo"):
        row_means = row_sums / jnp.maximum(row_lengths, 1)
        if loss_type == "rloo":
            row_means = jnp.where(row_lengths > 0, row_means, token_losses[:, 0])
        return row_means.sum() / rows
    if num_items is None or loss_type == "bnpo":
        num_items = mask.sum()
    return row_sums.sum() / jnp.maximum(num_items, 1)
