"""[jit] Sampling G completions of each prompt, and the log-probs of given ones.

The image and the prompt are computed once; the G completions attend to the prompt's keys and values without
copies of them. Where a model sees the past alone, each row may first go on in its own way (`tails`): G questions
about one image share what was computed of it. Log-probs are those of the distribution that is sampled from: at
the given temperature, with the image placeholders left out, in nats.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from auditdm_jax.models import gemma, multimodal
from auditdm_jax.models.gemma import MASKED, ByKind, KeyBlock
from auditdm_jax.models.layers import Params
from auditdm_jax.models.multimodal import VLMConfig

# Logits are made for at most this many (token, vocabulary) pairs at a time: 256 MB in float32.
LOGITS_AT_ONCE = 2**26


@flax.struct.dataclass
class Prompt:
    """input_ids: with the image's placeholders, padded on either side. attention_mask: True on tokens."""

    input_ids: Int[Array, "B P"]
    attention_mask: Bool[Array, "B P"]


@flax.struct.dataclass
class Completions:
    """ids: pad after the end. mask: True on sampled tokens, the end token too. logps: nats, 0 elsewhere. ends: the
    hidden states that the last tokens were drawn from, which have read all others."""

    ids: Int[Array, "B G T"]
    mask: Bool[Array, "B G T"]
    logps: Float32[Array, "B G T"]
    ends: Float[Array, "B G D"]


class Begun(NamedTuple):
    """ids: first tokens of completions, T long. mask: True where one is given."""

    ids: Int[Array, "B G T"]
    mask: Bool[Array, "B G T"]


class _Read(NamedTuple):
    """Tokens as keys: a prompt, R = 1 and no axis of it in the keys, or what each of its R = G rows goes on with."""

    keys: Float[Array, "L B K *R S H"]
    values: Float[Array, "L B K *R S H"]
    mask: Bool[Array, "B R S"]
    positions: Int[Array, "B R S"]

    def block(self, config: VLMConfig, queries: Int[Array, "B G T"], longest: int) -> KeyBlock:
        """As keys for tokens at positions `queries`. longest: no query is further behind."""
        real = self.mask[:, :, None, :]
        near = multimodal.window(config, queries, self.positions, longest)
        return KeyBlock(self.keys, self.values, ByKind(real, real if near is None else real & near))


class _Context(NamedTuple):
    """What completions follow. last: hidden state of the last token, R = 1 where all rows share it. end: its
    position."""

    last: Float[Array, "B R 1 D"]
    end: Int[Array, "B R 1"]
    read: tuple[_Read, ...]

    def blocks(self, config: VLMConfig, queries: Int[Array, "B G T"], longest: int) -> list[KeyBlock]:
        """All that was read, as keys for tokens of completions of up to `longest`."""
        total = longest + sum(part.mask.shape[-1] for part in self.read)
        return [part.block(config, queries, total) for part in self.read]

    def of(self, some: slice) -> "_Context":
        """That of some of the B prompts."""
        read = (_Read(r.keys[:, some], r.values[:, some], r.mask[some], r.positions[some]) for r in self.read)
        return _Context(self.last[some], self.end[some], tuple(read))


def _prefill(
    params: Params,
    config: VLMConfig,
    prompt: Prompt,
    image_features: Float[Array, "B I D"],
    tails: Prompt | None = None,
    remat: bool = False,
) -> _Context:
    mask = prompt.attention_mask
    positions = multimodal.positions_of(config, mask)
    masks = multimodal.input_masks(config, prompt.input_ids, mask, positions)
    x = multimodal.embed(params, config, prompt.input_ids, image_features)[:, None]
    decode = partial(gemma.decode, params["text"], config.text, return_keys=True, remat=remat)
    mask, positions = mask[:, None], positions[:, None]
    last, (keys, values) = decode(x, positions, masks, only=_last(mask))
    shared = _Read(keys[:, :, :, 0], values[:, :, :, 0], mask, positions)
    context = _Context(last, _end(mask, positions), (shared,))
    if tails is None:
        return context
    ids, mask = tails.input_ids, tails.attention_mask
    positions, masks = _after(config, context.end, mask)
    blocks = context.blocks(config, positions, ids.shape[-1])
    last, (keys, values) = decode(gemma.embed(params["text"], ids), positions, masks, blocks, only=_last(mask))
    return _Context(last, _end(mask, positions), (shared, _Read(keys, values, mask, positions)))


def _last(mask: Bool[Array, "B R S"]) -> Int[Array, "B R"]:
    """Which token of each row is the last real one."""
    return mask.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], axis=-1)


def _end(mask: Bool[Array, "B R S"], positions: Int[Array, "B R S"]) -> Int[Array, "B R 1"]:
    """The position of that token."""
    return jnp.max(jnp.where(mask, positions, 0), axis=-1, keepdims=True)


def _after(
    config: VLMConfig, end: Int[Array, "B R 1"], real: Bool[Array, "B G T"]
) -> tuple[Int[Array, "B G T"], ByKind]:
    """Positions of tokens behind a context, padded on the right, and which of them see which."""
    length = real.shape[-1]
    positions = end + jnp.cumsum(real, axis=-1, dtype=jnp.int32)
    everywhere = jnp.tril(jnp.ones((length, length), bool)) & real[:, :, None, :]
    near = multimodal.window(config, positions, positions, length)
    return positions, ByKind(everywhere, everywhere if near is None else everywhere & near)


def _sampled_logits(
    params: Params, config: VLMConfig, hidden: Float[Array, "*batch D"], temperature: float
) -> Float32[Array, "*batch V"]:
    """Logits at the temperature (greedy decoding counts as 1), image placeholders masked."""
    logits = multimodal.unembed(params, config, hidden) / (temperature or 1.0)
    forbidden = np.zeros(config.text.vocab_size, bool)
    forbidden[list(config.forbidden_token_ids)] = True
    return jnp.where(forbidden, MASKED, logits)


def _logps_of(logits: Float32[Array, "*batch V"], ids: Int[Array, "*batch"]) -> Float32[Array, "*batch"]:
    """log softmax at `ids`. The pick is a masked sum: its gradient is no scatter, which is slow on CPUs."""
    chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == ids[..., None], logits, 0.0), axis=-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _argmax(x: Float[Array, "*batch V"]) -> Int[Array, "*batch"]:
    """The first of the greatest, as `jnp.argmax` has it, by two plain reductions: on CPUs ten times as fast."""
    size = x.shape[-1]
    return jnp.min(jnp.where(x == x.max(-1, keepdims=True), jnp.arange(size), size - 1), axis=-1)


@partial(jax.jit, static_argnames=("config", "num_generations", "max_new_tokens", "temperature"))
def sample(
    params: Params,
    config: VLMConfig,
    prompt: Prompt,
    image_features: Float[Array, "B I D"],
    key: Array,
    *,
    num_generations: int,
    max_new_tokens: int,
    temperature: float,
    begun: Begun | None = None,
    tails: Prompt | None = None,
) -> Completions:
    """G = num_generations completions of each prompt, of at most T = max_new_tokens tokens.

    temperature 0 is greedy. begun: first tokens that are given instead of drawn; their log-probs are the model's all
    the same. tails: tokens [B, G, Q] behind the prompt, padded on the right, that each row is completed after; only of
    a model that `sees_past_alone`. The loop stops as soon as every row has ended.
    """
    batch, rows, length = prompt.input_ids.shape[0], num_generations, max_new_tokens
    context = _prefill(params, config, prompt, image_features, tails)
    text = config.text
    ends = jnp.asarray(config.eos_token_ids)

    def draw(hidden: Float[Array, "B G D"], step: Array) -> tuple[Array, Array]:
        logits = _sampled_logits(params, config, hidden, temperature)
        logits = jnp.broadcast_to(logits, (batch, rows, logits.shape[-1]))
        noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape) if temperature else 0.0
        ids = _argmax(logits + noise)
        if begun is not None:
            given, there = (jax.lax.dynamic_index_in_dim(x, step, axis=2, keepdims=False) for x in begun)
            ids = jnp.where(there, given, ids)
        return ids.astype(jnp.int32), _logps_of(logits, ids)

    def write(out: Completions, done: Array, step: Array, hidden: Array) -> tuple[Completions, Array]:
        ids, logps = draw(hidden, step)
        out = Completions(
            ids=out.ids.at[:, :, step].set(jnp.where(done, config.pad_token_id, ids)),
            mask=out.mask.at[:, :, step].set(~done),
            logps=out.logps.at[:, :, step].set(jnp.where(done, 0.0, logps)),
            ends=jnp.where(done[..., None], out.ends, hidden),
        )
        return out, done | (ids[..., None] == ends).any(axis=-1)

    def unfinished(state: tuple) -> Array:
        step, _, done, _, _ = state
        return (step < length) & ~done.all()

    def advance(state: tuple) -> tuple:
        # Feed token `step - 1`, then draw token `step`.
        step, out, done, keys, values = state
        x = gemma.embed(params["text"], jax.lax.dynamic_slice_in_dim(out.ids, step - 1, 1, axis=2))
        positions = jnp.broadcast_to(context.end + step, (batch, rows, 1))
        behind = step - 1 - jnp.arange(length - 1)
        seen = (behind > 0)[None, None, None]
        near = seen
        if text.sliding_window is not None and length > text.sliding_window:
            near = seen & (behind < text.sliding_window)[None, None, None]
        blocks = [*context.blocks(config, positions, length), KeyBlock(keys, values, ByKind(seen, near))]
        itself = jnp.ones((1, 1, 1, 1), bool)
        x, pairs = gemma.decode(params["text"], text, x, positions, ByKind(itself, itself), blocks, return_keys=True)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, new, step - 1, axis=4)
            for old, new in zip((keys, values), pairs, strict=True)
        )
        out, done = write(out, done, step, x[:, :, 0])
        return step + 1, out, done, keys, values

    shape = (batch, rows, length)
    out = Completions(
        ids=jnp.full(shape, config.pad_token_id, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logps=jnp.zeros(shape),
        ends=jnp.zeros((batch, rows, context.last.shape[-1]), context.last.dtype),
    )
    out, done = write(out, jnp.zeros((batch, rows), bool), jnp.array(0), context.last[:, :, 0])
    if length == 1:
        return out
    cache_shape = (text.num_layers, batch, text.num_kv_heads, rows, length - 1, text.head_dim)
    cache = jnp.zeros(cache_shape, context.read[0].keys.dtype)
    return jax.lax.while_loop(unfinished, advance, (jnp.array(1), out, done, cache, cache))[1]


def completion_logps(
    params: Params,
    config: VLMConfig,
    prompt: Prompt,
    image_features: Float[Array, "B I D"],
    parts: Sequence[tuple[Int[Array, "b G T"], Bool[Array, "b G T"]]],
    *,
    temperature: float,
    remat: bool = False,
    tails: Prompt | None = None,
) -> list[Float32[Array, "b G T"]]:
    """Teacher-forced log-probs of given completions, 0 off the mask; differentiable.

    parts: ids, padded on the right, and masks; the first b prompts are those of the first part, and so on. All prompts
    are computed in one batch, each once for its G rows, and no part is padded to another's length. temperature 0 counts
    as 1. tails: as `sample` has them.
    """
    all_, found, first = _prefill(params, config, prompt, image_features, tails, remat), list[Array](), 0
    for ids, mask in parts:
        batch, rows, length = ids.shape
        context, first = all_.of(slice(first, first + batch)), first + batch
        hidden = jnp.broadcast_to(context.last, (batch, rows, 1, context.last.shape[-1]))
        if length > 1:
            positions, masks = _after(config, context.end, mask[..., :-1])
            blocks = context.blocks(config, positions, length)
            x = gemma.embed(params["text"], ids[..., :-1])
            x, _ = gemma.decode(params["text"], config.text, x, positions, masks, blocks, remat=remat)
            hidden = jnp.concatenate([hidden, x], axis=2)
        logps = token_logps(params, config, hidden, ids, temperature=temperature)
        found.append(jnp.where(mask, logps, 0.0))
    return found


def token_logps(
    params: Params,
    config: VLMConfig,
    hidden: Float[Array, "*batch D"],
    ids: Int[Array, "*batch"],
    *,
    temperature: float,
) -> Float32[Array, "*batch"]:
    """Log-prob of each id under its hidden state.

    With a large vocabulary the logits of all tokens at once would need more memory than the model: they are
    made and, for the gradient, made again chunk by chunk.
    """

    def logps(pair: tuple[Array, Array]) -> Array:
        return _logps_of(_sampled_logits(params, config, pair[0], temperature), pair[1])

    chunk = max(1, LOGITS_AT_ONCE // config.text.vocab_size)
    if ids.size <= chunk:
        return logps((hidden, ids))
    flat = (hidden.reshape(ids.size, -1), ids.reshape(-1))
    return jax.lax.map(jax.checkpoint(logps), flat, batch_size=chunk).reshape(ids.shape)
