"""[jit] The critic: how likely what the auditor wrote is to show a failure, as its own last hidden state tells.

A logistic regression for each channel, and one for each topic that a question began with, fitted while the auditor
trains, on all that it wrote and whether a failure was claimed. In an audit several candidates of an image are drawn,
and the one that the critic finds likeliest is asked: that costs no question to the target or to the references.
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

FILE = "critic.safetensors"
"""In the run's folder: the weights."""
MEMORY = 0.995
"""How much of what it saw before the critic keeps in a step: the auditor that wrote it changes."""
PRIOR = 10.0
"""Weight of the prior that says nothing, in questions of variance 1."""


@flax.struct.dataclass
class Critic:
    """weights: of the H heads, those of the C channels and then of the K topics, for D features and a constant.
    precision: of the posterior that they are the mean of, the negative Hessian of its log (Laplace's approximation)."""

    weights: Float32[Array, "H D+1"]
    precision: Float32[Array, "H D+1 D+1"]


def ignorant(heads: int, width: int) -> Critic:
    """A critic that has seen nothing: every chance is a half."""
    unit = PRIOR * jnp.eye(width + 1)
    return Critic(jnp.zeros((heads, width + 1)), jnp.broadcast_to(unit, (heads, *unit.shape)))


def features(states: Float[Array, "*batch D"]) -> Float32[Array, "*batch D+1"]:
    """Hidden states at unit root mean square, whatever the scale of the model's last norm, and a constant."""
    states = states.astype(jnp.float32)
    states *= jax.lax.rsqrt(jnp.mean(jnp.square(states), axis=-1, keepdims=True) + 1e-6)
    return jnp.concatenate([states, jnp.ones_like(states[..., :1])], axis=-1)


def chances(
    weights: Float32[Array, "H D+1"], states: Float[Array, "B G D"], heads: Int[Array, "B G"]
) -> Float32[Array, "B G"]:
    """The chance of a claimed failure of each of G completions, as the given head sees it."""
    every = jnp.einsum("bgd,hd->bgh", features(states), weights)
    return jax.nn.sigmoid(jnp.take_along_axis(every, heads[..., None], axis=-1)[..., 0])


def taught(
    critic: Critic, states: Float[Array, "B G D"], heads: Int[Array, "B G"], claimed: Bool[Array, "B G"]
) -> Critic:
    """The critic after a batch: one Newton step of each logistic regression, whose older examples fade.

        P <- m P + (1 - m) prior I + sum p (1 - p) x x'
        w <- w + P^-1 (sum (y - p) x - (1 - m) prior w)

    claimed: y. The prior fades with what was seen and is put back, so that its weight stays.
    """
    x, y = features(states), claimed.astype(jnp.float32)
    p = chances(critic.weights, states, heads)

    def one(number: Array, weights: Array, precision: Array) -> tuple[Array, Array]:
        ours = (heads == number).astype(jnp.float32)
        fade = (1 - MEMORY) * PRIOR
        seen = jnp.einsum("bg,bgd,bge->de", ours * p * (1 - p), x, x)
        precision = MEMORY * precision + fade * jnp.eye(len(weights)) + seen
        slope = jnp.einsum("bg,bgd->d", ours * (y - p), x) - fade * weights
        return weights + jax.scipy.linalg.solve(precision, slope, assume_a="pos"), precision

    return Critic(*jax.vmap(one)(jnp.arange(len(critic.weights)), critic.weights, critic.precision))


def write_critic(run: Path, critic: Critic) -> None:
    """Keeps the weights in the run's folder."""
    save_file({"weights": np.asarray(critic.weights)}, run / FILE)


def read_critic(run: Path) -> Float[np.ndarray, "H D+1"]:
    """The weights, as the run kept them. Raises UserError if they are missing or damaged."""
    path = run / FILE
    try:
        return load_file(path)["weights"]
    except (OSError, KeyError, SafetensorError):
        problem = "is no critic's file" if path.exists() else "is missing"
        raise UserError(
            f"{one_line(path)} {problem}; train again, or ask as drawn with --candidates 1 --topic-share 0"
        ) from None
