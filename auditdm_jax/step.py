"""[jit] One training step, as in the paper's figure: rollout -> answers -> reward -> update.

Where all models read the same tokens the whole step is one compiled function, and a question goes from the auditor to
the others as ids; otherwise the compiled parts are joined by `Translate`, which takes the text through the host. With
dynamic sampling (arXiv:2503.14476) the rollouts of several batches, compiled as one function, come before one update.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.answers import answer_ids, text_answer_id
from auditdm_jax.config import GRPO, Reward
from auditdm_jax.models import lora
from auditdm_jax.models.multimodal import VLMConfig, encode_images, preprocess_on_device
from auditdm_jax.policy_gradient import expected_zero_signal, policy_gradient_loss, zero_signal
from auditdm_jax.prompts import fill
from auditdm_jax.reward import Outcome, disagreement, novelty_weights, question_ngrams
from auditdm_jax.rollout import ask, prompt_rows, question_logps
from auditdm_jax.sampling import Completions, Prompt, sample
from auditdm_jax.state import Auditor, AuditState, Cast, Frozen, Params, Role, Trained

ABSTENTION = "unclear"

Questions = tuple[Int[Array, "B G T"], Bool[Array, "B G T"]]
# (questions in the auditor's tokens, number of the model that is asked: the target is 0, then come the references).
Translate = Callable[[Questions, int], Questions]
Draw = Callable[[], Array]


@dataclass(frozen=True)
class StepSettings:
    """What a step is compiled for."""

    grpo: GRPO
    reward: Reward
    max_question_tokens: int
    max_answer_tokens: int
    remat: bool
    optimizer: optax.GradientTransformation


class Batch(NamedTuple):
    """What an update learns from. signal: groups whose rewards, before diversity, are not all the same."""

    images: UInt8[Array, "B H W 3"]
    questions: Completions
    rewards: Float[Array, "B G"]
    signal: Bool[Array, "B"]


def make_step(cast: Cast, settings: StepSettings, translate: Translate | None = None):
    """step(state, images, draw=None) -> (state, metrics, record).

    translate: None where every model reads the auditor's tokens. draw: gives further images, for dynamic sampling.
    """
    parts: dict[str, Any] = dict(
        cast=cast, settings=settings, translate=translate or (lambda questions, number: questions)
    )
    if settings.grpo.max_resamples:
        ask_once = partial(collect, **parts)
        # Compiled once: every batch has one shape, and how many there are is decided outside.
        compiled = ask_once if translate else jax.jit(ask_once)
        return partial(resampling_step, ask_once=compiled, cast=cast, settings=settings)
    if translate is not None:
        return lambda state, images, draw=None: audit_step(state, images, **parts)

    @partial(jax.jit, donate_argnums=0)
    def fused(trained: Trained, frozen: Frozen, images: Array) -> tuple[Trained, dict, dict]:
        state, metrics, record = audit_step(AuditState(trained, frozen), images, **parts)
        return state.trained, metrics, record

    def step(state: AuditState, images: Array, draw: Draw | None = None) -> tuple[AuditState, dict, dict]:
        # Only what trains is donated and returned: the frozen arrays stay where they are, uncopied.
        trained, metrics, record = fused(state.trained, state.frozen, images)
        return AuditState(trained, state.frozen), metrics, record

    return step


def audit_step(
    state: AuditState, images: UInt8[Array, "B H W 3"], *, cast: Cast, settings: StepSettings, translate: Translate
) -> tuple[AuditState, dict[str, Array], dict[str, Array]]:
    """One update of the auditor with one batch of images.

    Every component of the reward is in the metrics; the record holds the questions and how each came out.
    """
    trained, frozen = state.trained, state.frozen
    key = jax.random.fold_in(trained.key, trained.step)
    batch, archive, asked, record = collect(
        trained, frozen, images, key, cast=cast, settings=settings, translate=translate
    )
    prompt = question_prompt(cast.auditor, len(images))
    trained, metrics = update(trained, frozen, cast.auditor.config, prompt, batch, settings)
    return AuditState(replace(trained, archive=archive), frozen), metrics | asked, record


def resampling_step(
    state: AuditState,
    images: Array,
    draw: Draw | None = None,
    *,
    ask_once: Callable,
    cast: Cast,
    settings: StepSettings,
) -> tuple[AuditState, dict[str, Array], dict[str, Array]]:
    """As `audit_step`, but groups without signal give way to such with, of up to `max_resamples` further batches.

    What is then still without signal loses its rewards, and counts as a group of advantage 0. Metrics of questions are
    means over all that were asked; the record is the first batch's.
    """
    trained, frozen = state.trained, state.frozen
    key = jax.random.fold_in(trained.key, trained.step)
    batch, archive, asked, record = ask_once(trained, frozen, images, key)
    metrics = [asked]
    while draw is not None and len(metrics) <= settings.grpo.max_resamples and not batch.signal.all():
        key = jax.random.fold_in(key, len(metrics))
        other, archive, asked, _ = ask_once(replace(trained, archive=archive), frozen, draw(), key)
        batch = refill(batch, other)
        metrics.append(asked)
    batch = batch._replace(rewards=jnp.where(batch.signal[:, None], batch.rewards, jnp.nan))
    prompt = question_prompt(cast.auditor, len(images))
    trained, updated = update(trained, frozen, cast.auditor.config, prompt, batch, settings)
    updated |= {name: sum(asked[name] for asked in metrics) / len(metrics) for name in metrics[0]}
    updated |= {"sampling/batches": len(metrics), "sampling/groups_with_signal": batch.signal.mean()}
    return AuditState(replace(trained, archive=archive), frozen), updated, record


@jax.jit
def refill(batch: Batch, other: Batch) -> Batch:
    """Of two batches of B groups the first B with signal, filled up with groups without: the shape never changes."""
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), batch, other)
    chosen = jnp.argsort(~both.signal, stable=True)[: len(batch.signal)]
    return jax.tree.map(lambda x: x[chosen], both)


def collect(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    translate: Translate,
) -> tuple[Batch, Float[Array, "A"], dict[str, Array], dict[str, Array]]:
    """Questions about a batch of images, answered and rewarded; the new archive, metrics, and the record."""
    questions = ask(
        auditor_params(trained.auditor, frozen.auditor),
        cast.auditor.config,
        question_prompt(cast.auditor, len(images)),
        images,
        key,
        num_generations=settings.grpo.num_generations,
        max_new_tokens=settings.max_question_tokens,
        temperature=settings.grpo.temperature,
    )
    outcome = examine(frozen, cast, images, questions, settings, translate)
    rewards, archive = diversified(outcome, questions, trained.archive, settings.reward)
    without = zero_signal(outcome.reward)
    expected = expected_zero_signal(outcome.reward.mean(), settings.grpo.num_generations)
    shares = {name: value.mean() for name, value in vars(outcome).items() if value.dtype == bool and name != "valid"}
    metrics = {f"outcome/{name}": share for name, share in shares.items()}
    metrics |= {"reward/mean": rewards.mean(), "reward/before_diversity": outcome.reward.mean()}
    metrics |= {"reward/groups_without_signal": without.mean(), "reward/groups_without_signal_expected": expected}
    metrics |= {"question/tokens": questions.mask.sum(-1).mean()}
    record = {"question_ids": questions.ids, "question_mask": questions.mask, "claimed": outcome.claimed}
    record |= {"target_id": outcome.target_id, "consensus_id": outcome.consensus_id}
    return Batch(images, questions, rewards, ~without), archive, metrics, record


def question_prompt(auditor: Auditor, images: int) -> Prompt:
    """The auditor's first prompt, for each of so many images: [B, P]."""
    return prompt_rows(auditor.prompts, jnp.zeros(images, jnp.int32))


def auditor_params(trainable: Params, base: Params) -> Params:
    """The auditor's full parameters: adapters grafted onto the base, or the trained parameters themselves."""
    return trainable if "text" in trainable else lora.attach(base, trainable)


def examine(
    frozen: Frozen, cast: Cast, images: Array, questions: Completions, settings: StepSettings, translate: Translate
) -> Outcome:
    """What target and references answer, and how each question came out."""
    ended = jnp.any((questions.ids[..., None] == jnp.asarray(cast.auditor.config.eos_token_ids)).any(-1), -1)
    words = questions.mask & ~jnp.isin(questions.ids, jnp.asarray(cast.auditor.config.eos_token_ids))
    asked = (questions.ids, words)
    models = zip((frozen.target, *frozen.references), (cast.target, *cast.references), strict=True)
    answers = [
        answer(params, role, images, translate(asked, number), settings.max_answer_tokens)
        for number, (params, role) in enumerate(models)
    ]
    ids, empty = (jnp.stack(field) for field in zip(*answers, strict=True))
    return disagreement(
        ids[0],
        empty[0],
        ids[1:],
        empty[1:],
        abstain_id=text_answer_id(ABSTENTION),
        agreement=settings.reward.agreement,
        question_empty=~words.any(-1),
        question_overlong=~ended,
    )


@partial(jax.jit, static_argnames=("max_new_tokens",))
def answer(
    params: Params, role: Role, images: UInt8[Array, "B H W 3"], questions: Questions, max_new_tokens: int
) -> tuple[Array, Array]:
    """Greedy answers to G questions about each image as (canonical id uint32 [B, G], empty bool [B, G])."""
    ids, mask = questions
    batch, rows, length = ids.shape
    flat = (ids.reshape(-1, length), mask.reshape(-1, length))
    prompt = fill(role.template, *flat, role.config.pad_token_id)
    features = encode_images(params, role.config, preprocess_on_device(role.config, images))
    done = sample(
        params,
        role.config,
        prompt,
        jnp.repeat(features, rows, axis=0),
        jax.random.key(0),  # greedy decoding draws nothing
        num_generations=1,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    canonical, empty = answer_ids(role.token_bytes, done.ids[:, 0], done.mask[:, 0])
    return canonical.reshape(batch, rows), empty.reshape(batch, rows)


def diversified(
    outcome: Outcome, questions: Completions, archive: Float[Array, "A"], reward: Reward
) -> tuple[Float[Array, "B G"], Float[Array, "A"]]:
    """Rewards times 1 / (1 + c * how often such a failure was found, or so asked, lately), and the new archive."""
    if reward.novelty == "answer":
        parts, counted = outcome.consensus_id[..., None], outcome.claimed[..., None]
    else:
        parts, counted = question_ngrams(questions.ids, questions.mask, reward.ngram)
    weights, archive = novelty_weights(parts, counted, archive, reward.diversity)
    return outcome.reward * weights, archive


@partial(jax.jit, static_argnames=("config", "settings"))
def update(
    trained: Trained,
    frozen: Frozen,
    config: VLMConfig,
    prompt: Prompt,
    batch: Batch,
    settings: StepSettings,
) -> tuple[Trained, dict[str, Array]]:
    """`num_iterations` policy-gradient updates with one batch of questions and their rewards."""
    convention, temperature = settings.grpo.convention(), settings.grpo.temperature
    questions = batch.questions
    arguments = (config, prompt, batch.images, questions.ids, questions.mask)
    logps_of = partial(question_logps, temperature=temperature, remat=settings.remat)
    rows = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    ref_logps = logps_of(frozen.auditor, *arguments) if convention.beta else None
    # With one iteration the auditor that asked is the one that learns: its log-probs need no forward pass of their own.
    current = auditor_params(trained.auditor, frozen.auditor)
    old_logps = None if convention.num_iterations == 1 else logps_of(current, *arguments)

    def loss_of(trainable: Params) -> tuple[Array, dict[str, Array]]:
        logps = logps_of(auditor_params(trainable, frozen.auditor), *arguments)
        loss, metrics = policy_gradient_loss(
            rows(logps),
            None if old_logps is None else rows(old_logps),
            None if ref_logps is None else rows(ref_logps),
            rows(questions.mask),
            batch.rewards.reshape(-1),
            settings.grpo.num_generations,
            convention,
            sampling_logps=rows(questions.logps),
        )
        drift = jnp.where(questions.mask, jnp.abs((logps if old_logps is None else old_logps) - questions.logps), 0.0)
        metrics |= {"sampling/drift_max": drift.max(), "sampling/drift_mean": drift.sum() / questions.mask.sum()}
        return loss, metrics

    def iteration(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], dict]:
        trainable, opt_state = carry
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, opt_state = settings.optimizer.update(grads, opt_state, trainable)
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return (optax.apply_updates(trainable, updates), opt_state), metrics

    carry, metrics = jax.lax.scan(iteration, (trained.auditor, trained.opt_state), length=convention.num_iterations)
    metrics = jax.tree.map(lambda x: x[-1], metrics)
    return replace(trained, auditor=carry[0], opt_state=carry[1], step=trained.step + 1), metrics
