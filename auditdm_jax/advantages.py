"""[jit] How much better than its peers a completion did: one function an equation.

R is a reward, NaN where none could be given: such a completion is left out of every statistic and has advantage 0.
Standard deviations divide by n - 1.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.errors import check_choice

ScaleRewards = Literal["group", "batch", "none"]


def zero_signal(rewards: Float[Array, "B G"]) -> Bool[Array, "B"]:
    """Groups that teach nothing: the rewards that are not NaN are all the same number, or fewer than two.

    Found by comparing the rewards themselves: the standard deviation of equal rewards need not round to 0.
    Called with rewards before shaping, it tells how many groups the task itself left without signal.
    """
    given = ~jnp.isnan(rewards)
    return jnp.where(given, rewards, -jnp.inf).max(-1) <= jnp.where(given, rewards, jnp.inf).min(-1)


def expected_zero_signal(success_rate: Float[Array, ""], group_size: int) -> Float[Array, ""]:
    """p^G + (1 - p)^G: the share of groups without signal if every completion succeeded with the same chance p.

    Prompts that differ in difficulty have more: the expression is convex in p (for G = 2, its excess is 2 var p).
    """
    return success_rate**group_size + (1 - success_rate) ** group_size


def group_advantages(
    rewards: Float[Array, "B G"], scale_rewards: ScaleRewards = "group", std_epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """(R_i - mean R) / (std R + std_epsilon): arXiv:2402.03300, section 4.1.2; undivided: arXiv:2503.20783.

    The mean is the group's; the standard deviation the group's, the batch's, or none. std_epsilon bounds the advantages
    of groups whose rewards hardly differ. Exactly 0 in groups without signal, where rounding could leave some.
    `group_advantages([[1, 0, 0, 1]])` is about `[[0.866, -0.866, -0.866, 0.866]]`.
    """
    check_choice("scale_rewards", scale_rewards, ScaleRewards)
    mean, group_std = mean_std(rewards, axis=-1)
    advantages = rewards - mean
    if scale_rewards == "group":
        advantages /= group_std + std_epsilon
    elif scale_rewards == "batch":
        advantages /= mean_std(rewards, axis=None)[1] + std_epsilon
    return jnp.where(jnp.isnan(rewards) | zero_signal(rewards)[:, None], 0.0, advantages)


def leave_one_out_advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """RLOO: R_i - mean of the others' R = G / (G - 1) (R_i - mean R), G those with a reward: arXiv:2402.14740."""
    count = (~jnp.isnan(rewards)).sum(-1, keepdims=True)
    return count / jnp.maximum(count - 1, 1) * group_advantages(rewards, "none")


def reinforce_plus_plus_advantages(
    rewards: Float[Array, "B"], mask: Bool[Array, "B T"], penalties: Float[Array, "B T"] | float = 0.0
) -> Float[Array, "B T"]:
    """REINFORCE++: whiten_t( sum over s >= t of (R on the last token - penalty_s) ): arXiv:2501.03262.

    penalties: beta * KL of each token, 0 off the mask. With a group's mean subtracted from the rewards beforehand this
    is the paper's baseline variant.
    """
    to_go = jnp.cumsum(jnp.broadcast_to(penalties, mask.shape)[:, ::-1], axis=-1)[:, ::-1]
    return whiten(rewards[:, None] - to_go, mask & ~jnp.isnan(rewards)[:, None])


def whiten(values: Float[Array, "B T"], where: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """(x - mean x) / sqrt(var x + 1e-8) over the whole batch's tokens; 0 elsewhere, and where all x are equal."""
    values = jnp.where(where, values, jnp.nan)
    mean, std = mean_std(values, axis=None)
    flat = zero_signal(values.reshape(1, -1))
    return jnp.where(where & ~flat, (values - mean) / jnp.sqrt(std**2 + 1e-8), 0.0)


def overlong_penalty(
    lengths: Int[Array, "*batch"], max_completion_length: int, soft_punish_cache: int
) -> Float[Array, "*batch"]:
    """DAPO's reward for length, lengths in tokens, L and c the two settings: arXiv:2503.14476, equation 13.

    0 up to L - c;  ((L - c) - length) / c up to L;  -1 beyond.
    """
    over = max_completion_length - soft_punish_cache - lengths
    return jnp.clip(over / max(soft_punish_cache, 1), -1.0, 0.0)  # without a c, -1 from L + 1 on


def mean_std(rewards: Float[Array, "B G"], axis: int | None) -> tuple[Array, Array]:
    """Mean and sample standard deviation of what is not NaN, 0 where too few are left; keeps the axis."""
    given = ~jnp.isnan(rewards)
    count = given.sum(axis, keepdims=True)
    mean = jnp.where(given, rewards, 0.0).sum(axis, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.where(given, (rewards - mean) ** 2, 0.0).sum(axis, keepdims=True)
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))
