"""[jit] Building blocks of the vision tower and the decoder: linear maps, norms and the scan over layers.

A linear map is a dictionary `{"kernel": [in, out]}` with an optional `"bias": [out]`. Low-rank adapters are
grafted into the same dictionary as `"lora_a": [in, rank]` and `"lora_b": [rank, out]` (see `lora.py`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Params = dict[str, Any]

# Up to this depth the scan over layers is unrolled: a few small layers run faster without a loop around them,
# while deep models must compile in the time of one layer.
UNROLL_UP_TO = 8


def dense(p: Params, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
    """`x @ kernel (+ bias) (+ (x @ lora_a) @ lora_b)` in the dtype of `x`."""
    # One batch axis: with several, the gradient of the kernel is a slower contraction on CPUs.
    flat = x.reshape(-1, x.shape[-1])
    y = flat @ p["kernel"]
    if "lora_a" in p:
        y = y + (flat @ p["lora_a"].astype(x.dtype)) @ p["lora_b"].astype(x.dtype)
    if "bias" in p:
        y = y + p["bias"]
    return y.reshape(*x.shape[:-1], y.shape[-1])


def rms_norm(p: Params, x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """Gemma's root-mean-square norm: computed in float32, and the stored scale is an offset from one."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(_mean(wide * wide) + eps)
    return (wide * (1.0 + p["scale"].astype(jnp.float32))).astype(x.dtype)


def _mean(x: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    """Mean of the last axis, as a product with a column: XLA's CPU compiler (0.10) fuses a plain reduction with the
    matrix products around it, and what comes out takes a third longer."""
    column = jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1], x.dtype)
    mean = jnp.matmul(x.reshape(-1, x.shape[-1]), column, precision=jax.lax.Precision.HIGHEST)
    return mean.reshape(*x.shape[:-1], 1)


def layer_norm(p: Params, x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """Layer norm with scale and bias, computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * p["scale"].astype(jnp.float32) + p["bias"].astype(jnp.float32)).astype(x.dtype)


def scan_layers(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, stacked: PyTree[Array], *, remat: bool = False
) -> tuple[Any, Any]:
    """`jax.lax.scan` of `body` over the leading layer axis L of `stacked`, unrolled up to `UNROLL_UP_TO` layers.

    remat: recompute each layer's activations in the backward pass instead of storing them.
    """
    length = jax.tree.leaves(stacked)[0].shape[0]
    unroll = length if length <= UNROLL_UP_TO else 1
    if remat:
        # Inside a real loop nothing could merge the recomputation with the forward pass, so the barrier that
        # prevents it is needed only where the loop is unrolled.
        body = jax.checkpoint(body, prevent_cse=unroll > 1)
    return jax.lax.scan(body, carry, stacked, unroll=unroll)


def random_dense(key: Array, shape: tuple[int, ...], dtype: Any, *, bias: bool = False) -> Params:
    """A linear map `[..., in, out]` with normal weights of variance 1 / in, and a zero bias if asked for."""
    kernel = jax.random.normal(key, shape, jnp.float32) * shape[-2] ** -0.5
    p = {"kernel": kernel.astype(dtype)}
    if bias:
        p["bias"] = jnp.zeros((*shape[:-2], shape[-1]), dtype)
    return p
