"""Supervised fine-tuning of either family on (image, question, answer): it makes the zoo and rectifies targets.

loss = - sum over answer tokens of log p(token | image, question, answer so far) / number of answer tokens

The part of the prompt that all K questions of an image share is computed once where the architecture permits: Gemma 3
is causal, so the image and everything before the question is one prefix; PaliGemma's image tokens see the question
(prefix-LM), so each question is a prompt of its own and only the vision tower is shared.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.errors import UserError
from auditdm_jax.models import lora
from auditdm_jax.models.multimodal import VLMConfig, encode_images, preprocess_on_device
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import PromptTemplate, padded
from auditdm_jax.sampling import Prompt, completion_logps

Params = Any
# Under Muon, embeddings, norms, biases and low-rank adapters learn by Adam, at this share of the rate.
ADAM_SHARE = 0.3


@flax.struct.dataclass
class Batch:
    """K examples for each of B images; `prompt` has B rows (shared prefix) or B*K rows (a prompt each, G = 1).

    images: RGB at the model's own size. ids: what follows each prompt, padded on the right; mask: real tokens of
    ids; answer_mask: those that are learned (the answer and its end token).
    """

    images: UInt8[Array, "B H W 3"]
    prompt: Prompt
    ids: Int[Array, "rows G T"]
    mask: Bool[Array, "rows G T"]
    answer_mask: Bool[Array, "rows G T"]


@flax.struct.dataclass
class FinetuneState:
    """trainable: the whole parameter tree, or LoRA adapters; step counts updates done."""

    trainable: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class Encoder:
    """Strings -> `Batch` for one model. Lengths are fixed up front, so that every batch has one compiled shape."""

    def __init__(self, vlm: VLM, template: PromptTemplate, max_question_tokens: int, max_answer_tokens: int):
        self.vlm, self.template = vlm, template
        self.max_question, self.max_answer = max_question_tokens, max_answer_tokens
        self.shares_prefix = template.shares_image(vlm.config)
        # The last end token is the one that closes an answer (Gemma 3 lists <eos>, then <end_of_turn>).
        self.end = vlm.config.eos_token_ids[-1]

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.vlm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def __call__(self, images: np.ndarray, questions: list[list[str]], answers: list[list[str]]) -> Batch:
        """images: uint8 [B, H, W, 3]; questions and answers: B lists of K strings each. Longer ones are cut."""
        flat_questions = [q[: self.max_question] for q in self.tokens([q for row in questions for q in row])]
        flat_answers = [[*a[: self.max_answer], self.end] for a in self.tokens([a for row in answers for a in row])]
        prefix, suffix = list(self.template.prefix_ids), list(self.template.suffix_ids)
        asked, width = [question + suffix for question in flat_questions], self.max_answer + 1
        room, before = self.max_question + len(suffix), asked
        if self.shares_prefix:
            prompts, prompt_width, width = [prefix] * len(questions), len(prefix), room + width
        else:
            prompts, prompt_width, before = [prefix + each for each in asked], len(prefix) + room, [[]] * len(asked)
        pad = self.vlm.config.pad_token_id
        prompt = Prompt(*map(jnp.asarray, padded(prompts, prompt_width, pad)))
        ids, mask = padded([b + a for b, a in zip(before, flat_answers, strict=True)], width, pad)
        answer_mask = mask & (np.arange(width) >= np.array([len(b) for b in before])[:, None])
        rows = (jnp.asarray(x.reshape(len(prompts), -1, width)) for x in (ids, mask, answer_mask))
        return Batch(jnp.asarray(images), prompt, *rows)


def batch_loss(params: Params, config: VLMConfig, batch: Batch, remat: bool = False) -> Float[Array, ""]:
    """Mean negative log-likelihood of the answer tokens (nats a token)."""
    features = encode_images(params, config, preprocess_on_device(config, batch.images), remat=remat)
    features = jnp.repeat(features, batch.prompt.input_ids.shape[0] // features.shape[0], axis=0)
    given = batch.prompt, features, [(batch.ids, batch.mask)]
    (logps,) = completion_logps(params, config, *given, temperature=1.0, remat=remat)
    return -jnp.sum(logps * batch.answer_mask) / jnp.maximum(jnp.sum(batch.answer_mask), 1)


def make_optimizer(
    name: str, learning_rate: float, steps: int, kept: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """ "muon" (matrices orthogonalised, the rest AdamW) or "adamw"; linear warm-up, then cosine to a twentieth.

    kept: parts of the model that stay as they are, as "vision"; what they would learn is not computed either.
    """

    def schedule(peak: float) -> optax.Schedule:
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, int(0.05 * steps)), max(2, steps), peak / 20)

    if name == "muon":
        core = optax.contrib.muon(
            schedule(learning_rate),
            muon_weight_dimension_numbers=_matrices,
            adam_learning_rate=schedule(ADAM_SHARE * learning_rate),
        )
    else:
        core = optax.adamw(schedule(learning_rate), b2=0.99, weight_decay=0.01)
    core = optax.chain(optax.clip_by_global_norm(1.0), core)
    if not kept:
        return core
    labels = lambda params: {part: "kept" if part in kept else "learned" for part in params}  # noqa: E731
    return optax.partition({"learned": core, "kept": optax.set_to_zero()}, labels)


def _matrices(params: Params) -> Params:
    """Which leaves Muon orthogonalises: kernels, the stacked layer axis apart; embeddings and norms are not."""

    def spec(path, leaf):
        is_kernel = any(getattr(key, "key", None) == "kernel" for key in path) and leaf.ndim >= 2
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_kernel else None

    return jax.tree_util.tree_map_with_path(spec, params)


def init_state(trainable: Params, optimizer: optax.GradientTransformation) -> FinetuneState:
    return FinetuneState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


@partial(jax.jit, static_argnames=("config", "optimizer", "remat"), donate_argnums=0)
def finetune_step(
    state: FinetuneState,
    frozen: Params | None,
    batch: Batch,
    *,
    config: VLMConfig,
    optimizer: optax.GradientTransformation,
    remat: bool = False,
) -> tuple[FinetuneState, Float[Array, ""]]:
    """One update. frozen: the base under LoRA adapters, or None where everything trains."""

    def loss_of(trainable: Params) -> Float[Array, ""]:
        params = trainable if frozen is None else lora.attach(frozen, trainable)
        return batch_loss(params, config, batch, remat)

    loss, grads = jax.value_and_grad(loss_of)(state.trainable)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    return FinetuneState(optax.apply_updates(state.trainable, updates), opt_state, state.step + 1), loss


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The next batch is made on a thread while the device works on this one."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch


def fit(
    state: FinetuneState,
    frozen: Params | None,
    batches: Iterator[Batch],
    steps: int,
    *,
    config: VLMConfig,
    optimizer: optax.GradientTransformation,
    remat: bool = False,
    on_step: Callable[[FinetuneState, float], None] | None = None,
) -> FinetuneState:
    """Train until `state.step` is `steps`. on_step(state, mean loss) is called every 25 steps and at the end.

    Raises UserError on a loss that is not finite, naming the step.
    """
    losses: list[Array] = []
    step = int(state.step)
    for batch in prefetch(batches):
        if step >= steps:
            break
        state, loss = finetune_step(state, frozen, batch, config=config, optimizer=optimizer, remat=remat)
        losses.append(loss)
        step += 1
        if step % 25 == 0 or step == steps:
            mean = float(jnp.stack(losses).mean())
            losses.clear()
            if not np.isfinite(mean):
                raise UserError(f"the fine-tuning loss is {mean} at step {step}; lower the learning rate")
            if on_step is not None:
                on_step(state, mean)
    return state
