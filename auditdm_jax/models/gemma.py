"""[jit] The Gemma 2 and Gemma 3 decoders as pure functions over stacked parameters.

One layer serves both: soft caps (Gemma 2) and query-key norm (Gemma 3) are switched by the configuration, and
a flag scanned along with the parameters says which layers are local (sliding window, own RoPE) and which are
global.

Queries are laid out `[B, G, T]`: G completions of one prompt. Keys come in blocks: those of the prompt, `[B,
K, S, H]`, are shared by the G rows and never repeated, a row's own are `[B, K, G, S, H]`; one softmax runs
over all blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from auditdm_jax.models.layers import UNROLL_UP_TO, Params, dense, random_dense, rms_norm, scan_layers

# Finite, so that a query without any visible key (padding) gives numbers instead of NaN.
MASKED = -1e30


@dataclass(frozen=True)
class GemmaConfig:
    """Sizes and variants of the decoder; hashable, a static argument of `jit`.

    query_scale multiplies the attention scores. attention_softcap and final_softcap: None is off.
    local_layers: one flag a layer, True for sliding-window attention of `sliding_window` tokens. rope_theta
    and rope_factor (linear scaling: positions are divided by it) are pairs (global, local).
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_scale: float
    local_layers: tuple[bool, ...]
    sliding_window: int | None
    rope_theta: tuple[float, float]
    rope_factor: tuple[float, float]
    attention_softcap: float | None
    final_softcap: float | None
    qk_norm: bool
    norm_eps: float = 1e-6


class ByKind(NamedTuple):
    """A pair of pytrees, for global and for local layers; the same object twice where nothing differs."""

    everywhere: Any
    local: Any

    def pick(self, is_local: Bool[Array, ""]) -> Any:
        """The one for this layer."""
        if self.everywhere is self.local:
            return self.everywhere
        return jax.tree.map(lambda a, b: jnp.where(is_local, b, a), self.everywhere, self.local)


class KeyBlock(NamedTuple):
    """Keys and values that queries may look at, beside those of their own layer input.

    keys, values: `[L, B, K, S, H]` shared by the G rows, or `[L, B, K, G, S, H]`.
    mask: pair of bool arrays that broadcast to `[B, G, T, S]`, True where a query sees a key.
    """

    keys: Array
    values: Array
    mask: ByKind


def init_params(key: Array, config: GemmaConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters for training from nothing."""
    keys = iter(jax.random.split(key, 8))
    depth, width = config.num_layers, config.width
    queries, pairs = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def linear(fan_in: int, fan_out: int) -> Params:
        return random_dense(next(keys), (depth, fan_in, fan_out), dtype)

    def norm(*shape: int) -> Params:
        return {"scale": jnp.zeros(shape, dtype)}

    layers = {
        "attention_norm": norm(depth, width),
        "q": linear(width, queries),
        "k": linear(width, pairs),
        "v": linear(width, pairs),
        "o": linear(queries, width),
        "post_attention_norm": norm(depth, width),
        "mlp_norm": norm(depth, width),
        "gate": linear(width, config.mlp_width),
        "up": linear(width, config.mlp_width),
        "down": linear(config.mlp_width, width),
        "post_mlp_norm": norm(depth, width),
    }
    if config.qk_norm:
        layers |= {"q_norm": norm(depth, config.head_dim), "k_norm": norm(depth, config.head_dim)}
    # The embedding is multiplied by sqrt(width) on the way in, so this starts the residual stream at unit
    # variance.
    embedding = jax.random.normal(next(keys), (config.vocab_size, width), jnp.float32) * width**-0.5
    return {"embedding": embedding.astype(dtype), "layers": layers, "norm": norm(width)}


def embed(params: Params, input_ids: Int[Array, "*batch T"]) -> Float[Array, "*batch T D"]:
    """Token embeddings times sqrt(width); the factor is rounded to the activation dtype, as in training."""
    table = params["embedding"]
    return table[input_ids] * jnp.asarray(table.shape[-1] ** 0.5, table.dtype)


def unembed(params: Params, config: GemmaConfig, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
    """Logits of the tied head in float32, after the final soft cap."""
    flat = hidden.reshape(-1, hidden.shape[-1])  # for the sake of the gradient, as in `dense`
    logits = jnp.einsum("nd,vd->nv", flat, params["embedding"], preferred_element_type=jnp.float32)
    logits = logits.reshape(*hidden.shape[:-1], -1)
    return _soft_cap(logits, config.final_softcap)


def decode(
    params: Params,
    config: GemmaConfig,
    x: Float[Array, "B G T D"],
    positions: Int[Array, "B G T"],
    own_mask: ByKind,
    context: Sequence[KeyBlock] = (),
    *,
    only: Int[Array, "B G"] | None = None,
    return_keys: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, "B G _ D"], Any]:
    """All layers and the last norm.

    x: embeddings. positions: none beyond the number of keys, T and those of the context. own_mask: pair of bool arrays
    that broadcast to `[B, G, T, T]`, for the T inputs among themselves. context: further keys and values, those of a
    prompt or a cache. only: the one token of each row whose result is wanted, as `[B, G, 1, D]`. return_keys: also
    return the new keys and values, each `[L, B, K, G, T, H]`; else None.
    """
    longest = x.shape[2] + sum(block.keys.shape[-2] for block in context)
    rope = _rope_tables(config, positions, longest)

    def layer(x: Array, scanned: tuple, only: Int[Array, "B G"] | None = None) -> tuple[Array, Any]:
        p, is_local, cached = scanned
        h = rms_norm(p["attention_norm"], x, config.norm_eps)
        k = dense(p["k"], h).reshape(*x.shape[:3], config.num_kv_heads, config.head_dim)
        v = dense(p["v"], h).reshape(k.shape)
        if config.qk_norm:
            k = rms_norm(p["k_norm"], k, config.norm_eps)
        (cos, sin), mask = rope.pick(is_local), own_mask.pick(is_local)
        masks = [block.mask.pick(is_local) for block in context]
        k = _rotate(k, cos, sin)
        if only is not None:
            x, h, cos, sin, mask = (_token(a, only) for a in (x, h, cos, sin, mask))
            masks = [seen if seen.shape[2] == 1 else _token(seen, only) for seen in masks]
        q = dense(p["q"], h).reshape(*x.shape[:3], config.num_heads, config.head_dim)
        if config.qk_norm:
            q = rms_norm(p["q_norm"], q, config.norm_eps)
        k, v = k.transpose(0, 3, 1, 2, 4), v.transpose(0, 3, 1, 2, 4)
        blocks = [(*kv, seen) for kv, seen in zip(cached, masks, strict=True)]
        mixed = _attend(config, _rotate(q, cos, sin), [*blocks, (k, v, mask)])
        x = x + rms_norm(p["post_attention_norm"], dense(p["o"], mixed), config.norm_eps)
        h = rms_norm(p["mlp_norm"], x, config.norm_eps)
        h = dense(p["down"], jax.nn.gelu(dense(p["gate"], h)) * dense(p["up"], h))  # its tanh approximation
        x = x + rms_norm(p["post_mlp_norm"], h, config.norm_eps)
        return x, ((k, v) if return_keys else None)

    cached = [(block.keys, block.values) for block in context]
    stacked = (params["layers"], jnp.asarray(config.local_layers), cached)
    if only is not None and 1 < config.num_layers <= UNROLL_UP_TO:
        # Of the last layer, all tokens are needed for their keys alone: a third of a three-layer model's work.
        # Where the scan is a real loop, taking that layer out would copy the stacked parameters.
        x, pairs = scan_layers(layer, x, jax.tree.map(lambda a: a[:-1], stacked), remat=remat)
        x, pair = layer(x, jax.tree.map(lambda a: a[-1], stacked), only)
        pairs = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), pairs, pair)
    else:
        x, pairs = scan_layers(layer, x, stacked, remat=remat)
        x = x if only is None else _token(x, only)
    return rms_norm(params["norm"], x, config.norm_eps), pairs


def _token(x: Array, index: Int[Array, "B G"]) -> Array:
    """One token of each row: `[B, G, T, ...]` -> `[B, G, 1, ...]`."""
    return jnp.take_along_axis(x, jnp.expand_dims(index, tuple(range(2, x.ndim))), axis=2)


def _attend(config: GemmaConfig, q: Array, blocks: list[tuple[Array, Array, Array]]) -> Float[Array, "B G T NH"]:
    """Grouped-query attention of q `[B, G, T, N, H]` over all blocks at once; softmax in float32."""
    batch, rows, length = q.shape[:3]
    kv_heads, size = config.num_kv_heads, config.head_dim
    # Heads first: every product below is then a plain batched matrix product, and scores are never
    # transposed.
    q = q.reshape(batch, rows, length, kv_heads, -1, size).transpose(0, 3, 1, 2, 4, 5)
    q = q.reshape(batch, kv_heads, rows, -1, size)
    scores = []
    for k, _, mask in blocks:
        spec = "bkgmh,bksh->bkgms" if k.ndim == 4 else "bkgmh,bkgsh->bkgms"
        s = jnp.einsum(spec, q, k, preferred_element_type=jnp.float32) * config.query_scale
        s = _soft_cap(s, config.attention_softcap).reshape(batch, kv_heads, rows, length, -1, s.shape[-1])
        scores.append(jnp.where(mask[:, None, :, :, None, :], s, MASKED))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0], axis=-1)
    weights = weights.astype(q.dtype).reshape(*q.shape[:-1], -1)
    widths = [v.shape[-2] for _, v, _ in blocks]
    parts = jnp.split(weights, np.cumsum(widths)[:-1], axis=-1)
    mixed = sum(
        jnp.einsum("bkgms,bksh->bkgmh" if v.ndim == 4 else "bkgms,bkgsh->bkgmh", part, v)
        for part, (_, v, _) in zip(parts, blocks, strict=True)
    )
    mixed = jnp.asarray(mixed).reshape(batch, kv_heads, rows, length, -1, size).transpose(0, 2, 3, 1, 4, 5)
    return mixed.reshape(batch, rows, length, -1)


def _soft_cap(x: Array, cap: float | None) -> Array:
    return x if cap is None else jnp.tanh(x / cap) * cap


def _rope_tables(config: GemmaConfig, positions: Int[Array, "B G T"], longest: int) -> ByKind:
    """Pair of (cos, sin), each float32 `[B, G, T, 1, H / 2]`. longest: no position is greater.

    Looked up, because a compiler that fuses cosines into each rotation computes them anew for every head and layer.
    """

    def tables(theta: float, factor: float) -> tuple[Array, Array]:
        rates = 1.0 / theta ** (np.arange(0, config.head_dim, 2) / config.head_dim) / factor
        angles = np.arange(longest + 1, dtype=np.float32)[:, None] * rates.astype(np.float32)
        cos, sin = (jnp.asarray(wave(angles))[positions][..., None, :] for wave in (np.cos, np.sin))
        return cos, sin

    both = list(zip(config.rope_theta, config.rope_factor, strict=True))
    everywhere = tables(*both[0])
    return ByKind(everywhere, everywhere if both[0] == both[1] else tables(*both[1]))


def _rotate(x: Float[Array, "B G T N H"], cos: Array, sin: Array) -> Float[Array, "B G T N H"]:
    """Rotary embedding: channel i is paired with channel i + H / 2. Computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
