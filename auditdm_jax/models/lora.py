"""[jit] Low-rank adapters (Hu et al., "LoRA", 2021) of the decoder as a second, small pytree.

An adapted map computes `x @ kernel + (x @ a) @ b`. The usual factor alpha / rank is 1, so adapters need no
settings beside their arrays. They keep float32 over bfloat16 kernels, for the optimizer's sake.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from auditdm_jax.errors import UserError
from auditdm_jax.models.layers import Params

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def init(key: Array, params: Params, rank: int) -> Params:
    """Adapters for all maps of every decoder layer: `{target: {"lora_a": ..., "lora_b": ...}}`.

    lora_a is float32 `[L, in, rank]`, normal; lora_b is `[L, rank, out]`, zero, so that the adapted model
    starts as the base. Raises UserError for a rank below 1.
    """
    if rank < 1:
        raise UserError(f"LoRA rank {rank} is too small; choose 1 or more")
    adapters = {}
    for target, target_key in zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True):
        depth, fan_in, fan_out = params["text"]["layers"][target]["kernel"].shape
        a = jax.random.normal(target_key, (depth, fan_in, rank)) * fan_in**-0.5
        adapters[target] = {"lora_a": a, "lora_b": jnp.zeros((depth, rank, fan_out))}
    return adapters


def attach(params: Params, adapters: Params) -> Params:
    """The tree with adapters grafted in; it shares every array with both arguments."""
    layers = dict(params["text"]["layers"])
    for target, adapter in adapters.items():
        layers[target] = layers[target] | adapter
    return params | {"text": params["text"] | {"layers": layers}}


def merge(params: Params, adapters: Params) -> Params:
    """The tree with adapters folded into the kernels, `kernel + a @ b` in float32, in the kernels' dtype."""
    folded = {}
    for target, adapter in adapters.items():
        kernel = params["text"]["layers"][target]["kernel"]
        update = jnp.einsum("lir,lro->lio", adapter["lora_a"], adapter["lora_b"], precision="highest")
        folded[target] = {"kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}
    return attach(params, folded)


def trainable_of(key: Array, params: Params, rank: int) -> Params:
    """What trains of a model: new adapters, or at rank 0 a float32 copy of all that it has."""
    return init(key, params, rank) if rank else jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)


def learned(params: Params, trainable: Params) -> Params:
    """The model after training, in its dtypes; adapters are folded in."""
    whole = trainable if "text" in trainable else merge(params, trainable)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), whole, params)
