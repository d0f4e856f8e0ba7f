"""[jit] PaliGemma 2 and Gemma 3 as pure functions: image features among text embeddings, masks, hidden
states, logits.

Every function takes parameters, a static `VLMConfig` and arrays. One image a row. Padding may stand on either
side; positions are counted from the attention mask. What a token sees:
  PaliGemma 2: image and prefix see each other both ways, the suffix (token type 1) sees the past.
  Gemma 3: everything sees the past, image tokens also the rest of their image, local layers within their
  window.
Padding is masked after every other rule, so that no rule can bring it back.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from auditdm_jax.models import gemma, siglip
from auditdm_jax.models.gemma import ByKind, GemmaConfig
from auditdm_jax.models.layers import Params, dense, random_dense, rms_norm
from auditdm_jax.models.siglip import SiglipConfig


@dataclass(frozen=True)
class VLMConfig:
    """What the functions need to know of a model; hashable, a static argument of `jit`.

    family: "paligemma" or "gemma3". num_image_tokens: I, how many `image_token_id` stand in a prompt.
    eos_token_ids: any of them ends a completion; the last one closes an answer. forbidden_token_ids: image
    placeholders, never sampled. image_mean, image_std: pixels in [0, 1] are normalised with them, channel by
    channel.
    """

    family: str
    vision: SiglipConfig
    text: GemmaConfig
    image_token_id: int
    num_image_tokens: int
    pad_token_id: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    forbidden_token_ids: tuple[int, ...]
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def sees_past_alone(self) -> bool:
        """Whether what stands behind an image and its text leaves their keys as they are."""
        return self.family == "gemma3"


def init_params(key: Array, config: VLMConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters, for training from nothing."""
    vision_key, text_key, projector_key = jax.random.split(key, 3)
    widths = (config.vision.width, config.text.width)
    projector = random_dense(projector_key, widths, dtype, bias=config.family == "paligemma")
    if config.family == "gemma3":
        projector["norm"] = {"scale": jnp.zeros(config.vision.width, dtype)}
    return {
        "vision": siglip.init_params(vision_key, config.vision, dtype),
        "projector": projector,
        "text": gemma.init_params(text_key, config.text, dtype),
    }


def preprocess_on_device(config: VLMConfig, images: UInt8[Array, "B H W 3"]) -> Float32[Array, "B 3 S S"]:
    """Pixel values for RGB images; at the model's own size S they are what its processor makes.

    Other sizes are resampled bilinearly, antialiased: close to the processor's result, not equal to it.
    """
    size = config.vision.image_size
    pixels = images.astype(jnp.float32)
    if images.shape[1:3] != (size, size):
        pixels = jax.image.resize(pixels, (images.shape[0], size, size, 3), "bilinear", antialias=True)
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    return ((pixels * (1 / 255) - mean) / std).transpose(0, 3, 1, 2)


def encode_images(
    params: Params, config: VLMConfig, pixel_values: Float[Array, "B 3 H W"], *, remat: bool = False
) -> Float[Array, "B I D"]:
    """Vision tower and projector: what stands at the image tokens, where it is not scaled as text is."""
    x = siglip.encode(params["vision"], config.vision, pixel_values, remat=remat)
    if config.family == "gemma3":
        side = round(config.num_image_tokens**0.5)
        pool = config.vision.grid // side
        if pool > 1:
            x = x.reshape(-1, side, pool, side, pool, x.shape[-1]).mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype)
            x = x.reshape(-1, side * side, x.shape[-1])
        x = rms_norm(params["projector"]["norm"], x, config.vision.norm_eps)
    return dense(params["projector"], x)


def embed(
    params: Params, config: VLMConfig, input_ids: Int[Array, "B T"], image_features: Float[Array, "B I D"]
) -> Float[Array, "B T D"]:
    """Text embeddings with the image's features, in order, at the image tokens."""
    is_image = input_ids == config.image_token_id
    # The placeholder's id may lie outside the vocabulary.
    x = gemma.embed(params["text"], jnp.where(is_image, 0, input_ids))
    order = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0)
    placed = jnp.take_along_axis(image_features.astype(x.dtype), order[..., None], axis=1)
    return jnp.where(is_image[..., None], placed, x)


def positions_of(config: VLMConfig, attention_mask: Bool[Array, "*batch T"]) -> Int[Array, "*batch T"]:
    """Positions count real tokens; PaliGemma's first is 1, Gemma 3's is 0."""
    first = 1 if config.family == "paligemma" else 0
    counted = jnp.cumsum(attention_mask, axis=-1, dtype=jnp.int32) - 1
    return jnp.maximum(counted, 0) + first


def input_masks(
    config: VLMConfig,
    input_ids: Int[Array, "B T"],
    attention_mask: Bool[Array, "B T"],
    positions: Int[Array, "B T"],
    token_type_ids: Int[Array, "B T"] | None = None,
) -> ByKind:
    """Which inputs see which, for global and local layers: bool `[B, 1, T, T]`, queries before keys.

    token_type_ids: 1 marks PaliGemma's suffix; without it all is prefix. Gemma 3 does not need them.
    """
    length = input_ids.shape[1]
    past = jnp.tril(jnp.ones((length, length), bool))
    near = window(config, positions, positions, length)
    if config.family == "paligemma":
        block = attention_mask if token_type_ids is None else token_type_ids == 0
        both = block[:, :, None] & block[:, None, :]
        # As in transformers, the prefix sees all of itself, in local layers too.
        everywhere, local = past | both, None if near is None else (past & near) | both
    else:
        block = input_ids == config.image_token_id
        everywhere = past | (block[:, :, None] & block[:, None, :])
        local = None if near is None else everywhere & near
    real = attention_mask[:, None, :]
    everywhere = (everywhere & real)[:, None]
    return ByKind(everywhere, everywhere if local is None else (local & real)[:, None])


def window(
    config: VLMConfig, queries: Int[Array, "*#batch T"], keys: Int[Array, "*#batch S"], longest: int
) -> Bool[Array, "*#batch T S"] | None:
    """True where a key is less than the sliding window behind its query.

    longest: no two positions are further apart than this; None is returned where the window cannot matter.
    """
    size = config.text.sliding_window
    if size is None or longest <= size or not any(config.text.local_layers):
        return None
    return queries[..., :, None] - keys[..., None, :] < size


def hidden_states(
    params: Params,
    config: VLMConfig,
    input_ids: Int[Array, "B T"],
    image_features: Float[Array, "B I D"],
    attention_mask: Bool[Array, "B T"],
    token_type_ids: Int[Array, "B T"] | None = None,
    *,
    remat: bool = False,
) -> Float[Array, "B T D"]:
    """Last hidden states after the last norm; meaningless where the attention mask is False."""
    positions = positions_of(config, attention_mask)
    masks = input_masks(config, input_ids, attention_mask, positions, token_type_ids)
    x = embed(params, config, input_ids, image_features)
    x, _ = gemma.decode(params["text"], config.text, x[:, None], positions[:, None], masks, remat=remat)
    return x[:, 0]


def unembed(params: Params, config: VLMConfig, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
    """Logits: tied head and final soft cap, in float32."""
    return gemma.unembed(params["text"], config.text, hidden)
