"""[jit] The critic: how likely what the auditor wrote is to show a failure, as its own last hidden state tells.

A logistic regression for each channel, and one for each topic that a question began with, fitted while the auditor
trains, on what it wrote of the images and whether a failure was claimed. In an audit several candidates of an image are
drawn, and the likeliest, as the critic finds, is asked: that costs no question to target or references.
"""

from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import atomic_file

FILE = "critic.safetensors"
"""In the run's folder: the weights."""
AS_DRAWN = "train again, or ask as drawn with --candidates 1 --topic-share 0"
MEMORY = 0.995
"""How much of what it saw before the critic keeps in a step: the auditor that wrote it changes."""
PRIOR = 0.5 / 96
"""Weight of the prior that says nothing, for each feature: the more of these, the more a question weighs. Weak, for of
a topic a step has a question or two: under one of 10 / 96 the best were taken for mediocre (Brier score over topics, on
unseen images of two runs, 0.165, here 0.133; over questions without one 0.067 and 0.066)."""
WIDTH = 128
"""Wider states are projected to so many features: the precision of thousands would be as large as the auditor."""


@flax.struct.dataclass
class Critic:
    """weights: of the H heads, those of the C channels and then of the K topics, for F features. precision: of the
    posterior that they are the mean of, the negative Hessian of its log (Laplace's approximation)."""

    weights: Float32[Array, "H F"]
    precision: Float32[Array, "H F F"]


def ignorant(heads: int, width: int) -> Critic:
    """A critic that has seen nothing of states of a width: every chance is a half."""
    count = num_features(width)
    unit = _prior(count) * jnp.eye(count)
    return Critic(jnp.zeros((heads, count)), jnp.broadcast_to(unit, (heads, *unit.shape)))


def num_features(width: int) -> int:
    """F, of hidden states of a width."""
    return min(width, WIDTH) + 1


def _prior(count: int) -> float:
    return PRIOR * (count - 1)


def features(states: Float[Array, "*batch D"]) -> Float32[Array, "*batch F"]:
    """Hidden states, of which wide ones are projected at random, at unit root mean square, whatever the scale of the
    model's last norm; and a constant."""
    states = states.astype(jnp.float32)
    if states.shape[-1] > WIDTH:
        states @= jax.random.rademacher(jax.random.key(0), (states.shape[-1], WIDTH), jnp.float32)
    states *= jax.lax.rsqrt(jnp.mean(jnp.square(states), axis=-1, keepdims=True) + 1e-6)
    return jnp.concatenate([states, jnp.ones_like(states[..., :1])], axis=-1)


def head_of(channels: Int[Array, "B"], topic: Int[Array, "B G"], first: int) -> Int[Array, "B G"]:
    """Which head sees each completion: its topic's, of which the first is `first`, or of topic -1 its channel's."""
    return jnp.where(topic < 0, channels[:, None], first + topic)


@jax.jit
def chances(
    weights: Float32[Array, "H F"], states: Float[Array, "B G D"], heads: Int[Array, "B G"]
) -> Float32[Array, "B G"]:
    """The chance of a claimed failure of each of G completions, as the given head sees it."""
    every = jnp.einsum("bgd,hd->bgh", features(states), weights)
    return jax.nn.sigmoid(jnp.take_along_axis(every, heads[..., None], axis=-1)[..., 0])


@jax.custom_batching.sequential_vmap
def _solve(precision: Float[Array, "F F"], slope: Float[Array, "F"]) -> Float[Array, "F"]:
    """P^-1 s, of several one after the other: jaxlib's Cholesky shares out a batch among the CPU's threads and waits
    for them in one of these. Two such at a time, of a step and of a probe, wait for each other for ever on two cores.
    """
    return jax.scipy.linalg.solve(precision, slope, assume_a="pos")


@jax.jit
def taught(
    critic: Critic, states: Float[Array, "B G D"], heads: Int[Array, "B G"], claimed: Bool[Array, "B G"]
) -> Critic:
    """The critic after a batch: one Newton step of each logistic regression, whose older examples fade.

        P <- m P + (1 - m) prior I + sum p (1 - p) x x'
        w <- w + P^-1 (sum (y - p) x - (1 - m) prior w)

    claimed: y. The prior fades with what was seen and is put back, so that its weight stays.
    """
    x, y = features(states), claimed.astype(jnp.float32)
    p, fade = chances(critic.weights, states, heads), (1 - MEMORY) * _prior(x.shape[-1])

    def one(number: Array, weights: Array, precision: Array) -> tuple[Array, Array]:
        ours = (heads == number).astype(jnp.float32)
        seen = jnp.einsum("bg,bgd,bge->de", ours * p * (1 - p), x, x)
        precision = MEMORY * precision + fade * jnp.eye(len(weights)) + seen
        slope = jnp.einsum("bg,bgd->d", ours * (y - p), x) - fade * weights
        return weights + _solve(precision, slope), precision

    return Critic(*jax.vmap(one)(jnp.arange(len(critic.weights)), critic.weights, critic.precision))


def write_critic(run: Path, critic: Critic) -> None:
    """Keeps the weights in the run's folder."""
    with atomic_file(run / FILE) as draft:
        save_file({"weights": np.asarray(critic.weights)}, draft)


def read_critic(run: Path) -> Float[np.ndarray, "H F"]:
    """The weights, as the run kept them. Raises UserError if they are missing or damaged."""
    path = run / FILE
    try:
        return load_file(path)["weights"]
    except (OSError, KeyError, SafetensorError):
        problem = "is no critic's file" if path.exists() else "is missing"
        raise UserError(f"{one_line(path)} {problem}; {AS_DRAWN}") from None
