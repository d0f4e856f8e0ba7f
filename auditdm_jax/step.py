"""[jit] One training step, as in the paper's figure: rollout -> answers -> reward -> update.

Where all models read the same tokens the whole step is one compiled function, and a question goes from the auditor to
the others as ids; otherwise the compiled parts are joined by `Translate`, which takes the text through the host. So
are they where images are made anew, between what the auditor writes and what is asked (`channels.Prober`). With
dynamic sampling (arXiv:2503.14476) the rollouts of several batches, compiled as one function, come before one update.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped, UInt8

from auditdm_jax.answering import Translate
from auditdm_jax.channels import Prober
from auditdm_jax.collect import Batch, StepSettings, auditor_params, collect
from auditdm_jax.collect_probes import collect_probes
from auditdm_jax.layout import Spans, layout
from auditdm_jax.models.multimodal import VLMConfig
from auditdm_jax.policy_gradient import policy_gradient_loss
from auditdm_jax.rollout import question_logps
from auditdm_jax.state import AuditState, Cast, Frozen, Params, Trained

Draw = Callable[[], Array]


def make_step(cast: Cast, settings: StepSettings, translate: Translate | None = None, prober: Prober | None = None):
    """step(state, images, draw=None) -> (state, metrics, record).

    translate: None where every model reads the auditor's tokens. prober: None where the auditor only asks. draw: gives
    further images, for dynamic sampling.
    """
    parts: dict[str, Any] = dict(cast=cast, settings=settings, translate=translate)
    ask_once = partial(collect, **parts) if prober is None else partial(collect_probes, prober=prober, **parts)
    if settings.grpo.max_resamples:
        # Compiled once: every batch has one shape, and how many there are is decided outside.
        compiled = ask_once if translate or prober else jax.jit(ask_once)
        return partial(resampling_step, ask_once=compiled, cast=cast, settings=settings)
    fixed: dict[str, Any] = dict(config=cast.auditor.config, settings=settings, prober=prober)
    one: Callable = partial(audit_step, ask_once=ask_once, **fixed)
    if translate is None and prober is None:
        # Only what trains is donated and returned: the frozen arrays stay where they are, uncopied.
        one = jax.jit(one, donate_argnums=0)

    def step(state: AuditState, images: Array, draw: Draw | None = None) -> tuple[AuditState, dict, dict]:
        trained, metrics, record = one(state.trained, state.frozen, images)
        return AuditState(trained, state.frozen), metrics, record

    return step


def make_look(cast: Cast, settings: StepSettings, translate: Translate | None, prober: Prober):
    """A step that makes new images, but without its update: what a probe looks at."""
    collected = partial(collect_probes, cast=cast, settings=settings, translate=translate, prober=prober)

    def look(state: AuditState, images: Array, draw: Draw | None = None) -> tuple[AuditState, dict, dict]:
        return state, *collected(state.trained, state.frozen, images, step_key(state.trained))[2:]

    return look


def step_key(trained: Trained) -> Array:
    """What a step draws with: the run's key and the step's number, so that a resumed run repeats exactly."""
    return jax.random.fold_in(trained.key, trained.step)


def audit_step(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    *,
    ask_once: Callable,
    config: VLMConfig,
    settings: StepSettings,
    prober: Prober | None = None,
) -> tuple[Trained, dict[str, Array], dict[str, Array]]:
    """One update of the auditor with one batch of images. ask_once: `collect`, or `collect_probes` of the prober.

    Every component of the reward is in the metrics; the record holds the questions and how each came out.
    """
    batch, memory, asked, record = ask_once(trained, frozen, images, step_key(trained))
    spans = layout(prober.probing, len(images)).spans(prober.limits) if prober else None
    trained, metrics = update(trained, frozen, config, batch, settings, spans)
    return replace(trained, **memory), metrics | asked, record


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
    key = step_key(trained)
    batch, memory, asked, record = ask_once(trained, frozen, images, key)
    # All of it bound to the device, as `refill` returns it: else what is refilled would be compiled for once more.
    batch, metrics = jax.device_put(batch, trained.step.sharding), [asked]
    while draw is not None and len(metrics) <= settings.grpo.max_resamples and not batch.signal.all():
        key = jax.random.fold_in(key, 2**31 + len(metrics))  # apart from the draws within a batch
        other, memory, asked, _ = ask_once(replace(trained, **memory), frozen, draw(), key)
        batch = refill(batch, jax.device_put(other, trained.step.sharding))
        metrics.append(asked)
    missing = jnp.isnan(batch.rewards).mean()
    batch = batch._replace(rewards=jnp.where(batch.signal[:, None], batch.rewards, jnp.nan))
    trained, updated = update(trained, frozen, cast.auditor.config, batch, settings)
    updated |= {name: sum(asked[name] for asked in metrics) / len(metrics) for name in metrics[0]}
    updated |= {"sampling/batches": len(metrics), "sampling/groups_with_signal": batch.signal.mean()}
    updated |= {"frac_reward_missing": missing}  # not what was put aside here
    return AuditState(replace(trained, **memory), frozen), updated, record


@jax.jit
def refill(batch: Batch, other: Batch) -> Batch:
    """Of two batches of B groups the first B with signal, filled up with groups without: the shape never changes."""
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), batch, other)
    chosen = jnp.argsort(~both.signal, stable=True)[: len(batch.signal)]
    return jax.tree.map(lambda x: x[chosen], both)


def rows_of(x: Shaped[Array, "*batch T"]) -> Shaped[Array, "N T"]:
    return x.reshape(-1, x.shape[-1])


def batch_logps(
    params: Params, config: VLMConfig, batch: Batch, settings: StepSettings, spans: Spans | None
) -> list[Float[Array, "n T"]]:
    """Log-probs (nats) of what was written [B * G, T], and of the questions of new images [N * G, T'] if there are any.

    All images and prompts are one batch; what follows them is computed span by span, each at its own length.
    """
    said, longest = batch.questions, batch.questions.ids.shape[-1]
    shown, parts, order = (batch.prompt, batch.images), [(said.ids, said.mask)], None
    if spans is not None:
        order = np.concatenate([rows for rows, _ in spans])
        shown = jax.tree.map(lambda x: x[order], shown)
        parts = [(said.ids[np.array(rows), :, :end], said.mask[np.array(rows), :, :end]) for rows, end in spans]
    count = len(parts)
    if batch.new is not None:
        new = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (batch.new.prompt, batch.new.images))
        shown = jax.tree.map(lambda *x: jnp.concatenate(x), shown, new)
        asked = batch.new.questions
        parts.append((rows_of(asked.ids)[:, None], rows_of(asked.mask)[:, None]))
    how: dict[str, Any] = dict(temperature=settings.grpo.temperature, remat=settings.remat)
    found = question_logps(params, config, *shown, parts, **how)
    if order is not None:
        padded = [jnp.pad(x, ((0, 0), (0, 0), (0, longest - x.shape[-1]))) for x in found[:count]]
        found[:count] = [jnp.concatenate(padded)[np.argsort(order)]]
    return [rows_of(x) for x in found]


@partial(jax.jit, static_argnames=("config", "settings", "spans"))
def update(
    trained: Trained,
    frozen: Frozen,
    config: VLMConfig,
    batch: Batch,
    settings: StepSettings,
    spans: Spans | None = None,
) -> tuple[Trained, dict[str, Array]]:
    """`num_iterations` policy-gradient updates with one batch of questions and their rewards.

    A new question of a new image has the reward of the command or caption that it followed, and so the advantage, where
    that is within a group: the loss is the sum of both. Metrics are those of what was written first. spans: how long
    what was written of each image may be; by default as long as the longest.
    """
    # A constant that token losses are divided by is of each text its own limit, whatever a step's longest: a question
    # counts as much in a step that makes new images as in one that does not, and a caption no more for being long. Nor
    # is it penalised for that: what counts is how near its own limit it is.
    question = settings.max_question_tokens
    convention = replace(settings.grpo.convention(), max_completion_length=question)
    lengths = batch.questions.mask.sum(-1)
    share: Array | None = None
    if batch.room is not None:
        lengths += (question - batch.room)[:, None]
        if convention.loss_type == "dr_grpo":
            share = jnp.repeat(question / batch.room, batch.rewards.shape[1])[:, None]
    scored = [(batch.learned, batch.questions.logps, batch.rewards, lengths, share)]
    if batch.new is not None:
        asked, groups = batch.new.questions, batch.new.groups
        rewards = batch.rewards if groups is None else batch.rewards[groups]
        scored.append((asked.mask, asked.logps, rewards, asked.mask.sum(-1), None))

    def averaged_over(mask: Array) -> Array | int:
        return len(mask) if convention.averages_empty else jnp.maximum(mask.any(-1).sum(), 1)

    logps_of = partial(batch_logps, config=config, batch=batch, settings=settings, spans=spans)
    ref_logps = logps_of(frozen.auditor) if convention.beta else [None] * len(scored)
    # With one iteration the auditor that asked is the one that learns: its log-probs need no forward pass of their own.
    current = auditor_params(trained.auditor, frozen.auditor)
    old_logps = [None] * len(scored) if convention.num_iterations == 1 else logps_of(current)

    def loss_of(trainable: Params) -> tuple[Array, dict[str, Array]]:
        found = []
        logps = logps_of(auditor_params(trainable, frozen.auditor))
        given = zip(logps, old_logps, ref_logps, scored, strict=True)
        for new, old, ref, (learned, sampled, rewards, lengths, share) in given:
            mask, sampled, group = rows_of(learned), rows_of(sampled), settings.grpo.num_generations
            if share is not None:  # of the gradient
                still = jax.lax.stop_gradient(new)
                new = still + share * (new - still)
            spoken = {"sampling_logps": sampled, "lengths": lengths.reshape(-1)}
            loss, metrics = policy_gradient_loss(new, old, ref, mask, rewards.reshape(-1), group, convention, **spoken)
            # Each part is a mean of its own; a question counts as much, whichever part it is in.
            loss *= averaged_over(mask) / averaged_over(rows_of(batch.learned))
            drift = jnp.where(mask, jnp.abs((new if old is None else old) - sampled), 0.0)
            metrics |= {"sampling/drift_max": drift.max(), "sampling/drift_mean": drift.sum() / mask.sum()}
            found.append((loss, metrics))
        return jnp.stack([loss for loss, _ in found]).sum(), found[0][1]

    def iteration(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], dict]:
        trainable, opt_state = carry
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, opt_state = settings.optimizer.update(grads, opt_state, trainable)
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return (optax.apply_updates(trainable, updates), opt_state), metrics

    carry, metrics = jax.lax.scan(iteration, (trained.auditor, trained.opt_state), length=convention.num_iterations)
    metrics = jax.tree.map(lambda x: x[-1], metrics)
    return replace(trained, auditor=carry[0], opt_state=carry[1], step=trained.step + 1), metrics
