"""The auditor asks: a batch of images -> G sampled questions each."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.models.multimodal import VLMConfig, encode_images, preprocess_on_device
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import QUESTION_INSTRUCTION, instruction_prompts, texts_of
from auditdm_jax.sampling import Completions, Prompt, completion_logps, sample


def prompt_rows(prompts: Prompt, rows: Int[Array, "B"]) -> Prompt:
    """The prompt of each image, [B, P]: that of the given number among the auditor's [C, P]."""
    return Prompt(prompts.input_ids[rows], prompts.attention_mask[rows])


@partial(jax.jit, static_argnames=("config", "num_generations", "max_new_tokens", "temperature"))
def ask(params, config: VLMConfig, prompt: Prompt, images: UInt8[Array, "B H W 3"], key: Array, **how) -> Completions:
    """G completions of each image's prompt, [B, G, T]; image and prompt are computed once. how: as `sample` has it."""
    features = encode_images(params, config, preprocess_on_device(config, images))
    return sample(params, config, prompt, features, key, **how)


def words_of(
    written: Completions, config: VLMConfig
) -> tuple[Bool[Array, "B G T"], Bool[Array, "B G"], Bool[Array, "B G"]]:
    """Which tokens are words and no end token, which completions have none, and which never ended."""
    is_end = jnp.isin(written.ids, jnp.asarray(config.eos_token_ids)) & written.mask
    words = written.mask & ~is_end
    return words, ~words.any(-1), ~is_end.any(-1)


def question_logps(
    params,
    config: VLMConfig,
    prompt: Prompt,
    images: UInt8[Array, "B H W 3"],
    parts: Sequence[tuple[Int[Array, "b G T"], Bool[Array, "b G T"]]],
    *,
    temperature: float,
    remat: bool = False,
) -> list[Float[Array, "b G T"]]:
    """Log-probabilities of questions already asked (nats, at the sampling temperature), differentiable in params.

    parts: ids and masks, as `completion_logps` has them.
    """
    features = encode_images(params, config, preprocess_on_device(config, images), remat=remat)
    return completion_logps(params, config, prompt, features, parts, temperature=temperature, remat=remat)


def ask_many(
    vlm: VLM,
    images: np.ndarray,
    seed: int,
    *,
    num_generations: int = 1,
    instruction: str = QUESTION_INSTRUCTION,
    max_new_tokens: int = 16,
    batch_size: int = 128,
) -> list[list[str]]:
    """G questions as text for each of N images (uint8 [N, H, W, 3]), at temperature 1, compiled for one shape; "" for
    one that has not ended within the tokens."""
    prompt = prompt_rows(instruction_prompts(vlm, [instruction]), jnp.zeros(batch_size, jnp.int32))
    questions: list[str] = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)
        padded[: len(chunk)] = chunk
        key = jax.random.fold_in(jax.random.key(seed), start)
        settings = dict(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=1.0)
        done = ask(vlm.params, vlm.config, prompt, padded, key, **settings)
        _, _, overlong = map(np.asarray, words_of(done, vlm.config))
        texts = ["" if cut else text for text, cut in zip(decode(vlm, done), overlong.ravel(), strict=True)]
        questions += texts[: len(chunk) * num_generations]
    return [questions[i : i + num_generations] for i in range(0, len(questions), num_generations)]


def decode(vlm: VLM, completions: Completions) -> list[str]:
    """The B * G completions as text, without special tokens."""
    return [text.strip() for text in texts_of(vlm.tokenizer, completions.ids, completions.mask)]
