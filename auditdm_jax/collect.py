"""[jit] What an update learns from: a batch of images, asked about through the run's channels, answered and rewarded.

images -> what the auditor writes -> (new images ->) answers of target and references -> outcome -> reward
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.answering import Translate, examine
from auditdm_jax.channels import Prober
from auditdm_jax.config import CHANNELS
from auditdm_jax.conventions import GRPO
from auditdm_jax.critic import chances, head_of, taught
from auditdm_jax.layout import QUESTION, Spans, layout
from auditdm_jax.models import lora
from auditdm_jax.policy_gradient import expected_zero_signal, zero_signal
from auditdm_jax.reward import Outcome, Reward, diversified
from auditdm_jax.rollout import ask, prompt_rows, words_of
from auditdm_jax.sampling import Begun, Completions, Prompt
from auditdm_jax.state import Cast, Frozen, Params, Trained
from auditdm_jax.topics import counted, draw_topics, topic_weights, unpaid

Memory = dict[str, Any]
"""What a batch changes of `state.Trained`: the archive, the critic, and the counts of the topics."""


@dataclass(frozen=True)
class StepSettings:
    """What a step is compiled for. steps: of the whole run. spans: how long what is written of each image may be, where
    that differs."""

    grpo: GRPO
    reward: Reward
    steps: int
    max_question_tokens: int
    max_answer_tokens: int
    remat: bool
    optimizer: optax.GradientTransformation
    spans: Spans = ()

    def floor(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The reward's floor at a step. It rises in a line: what was found early and rarely would be lost to what
        succeeds most, if success counted most from the beginning."""
        return self.reward.floor * jnp.minimum(step / self.steps, 1.0)


class FollowUps(NamedTuple):
    """The question of each image that N of the B groups were made into. prompt: [N, G, P]; questions: [N, G, T], with
    an empty mask where it is an old one, or itself what was written. groups: their numbers, if not all B are here."""

    images: UInt8[Array, "N G H W 3"]
    prompt: Prompt
    questions: Completions
    groups: Int[Array, "N"] | None


class Batch(NamedTuple):
    """What an update learns from. questions: what the auditor wrote of them, behind the prompt. learned: the tokens
    that the loss is over. room: how many what was written may have. signal: groups whose rewards, before diversity, are
    not all the same. new: questions that the auditor asked of new images, which share the reward of what these were
    made from."""

    images: UInt8[Array, "B H W 3"]
    prompt: Prompt
    questions: Completions
    learned: Bool[Array, "B G T"]
    room: Int[Array, "B"]
    rewards: Float[Array, "B G"]
    signal: Bool[Array, "B"]
    new: FollowUps | None = None


def collect(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    translate: Translate | None,
) -> tuple[Batch, Memory, dict[str, Array], dict[str, Array]]:
    """Questions about a batch of images, answered and rewarded; the new memory, metrics, and the record."""
    drawn = drawn_topics(trained, cast, settings, np.ones(len(images), bool), key)
    channels = jnp.full(len(images), QUESTION)
    prompt = prompt_rows(cast.auditor.prompts, channels)
    questions = ask(
        auditor_params(trained.auditor, frozen.auditor),
        cast.auditor.config,
        prompt,
        images,
        key,
        num_generations=settings.grpo.num_generations,
        max_new_tokens=settings.max_question_tokens,
        temperature=settings.grpo.temperature,
        begun=drawn and drawn.begun,
    )
    words, empty, overlong = words_of(questions, cast.auditor.config)
    flaws = {"question_empty": empty, "question_overlong": overlong}
    asked = (questions.ids, words)
    outcome = examine(frozen, cast, images, asked, flaws, settings.reward, settings.max_answer_tokens, translate)
    rewards, archive = diversified(
        outcome, questions.ids, questions.mask, trained.archive, settings.reward, settings.floor(trained.step)
    )
    heads = heads_of(cast, channels, drawn, outcome)
    memory, learned = remembered(trained, archive, drawn, questions, heads, outcome)
    metrics = asked_metrics(outcome, rewards, questions) | foreseen(trained, questions, heads, outcome)
    record = {"question_ids": questions.ids, "question_mask": questions.mask, "reward": rewards}
    record |= recorded(outcome, questions)
    room = jnp.full(len(images), settings.max_question_tokens)
    batch = Batch(images, prompt, questions, learned, room, rewards, ~zero_signal(outcome.reward))
    return batch, memory, metrics, record


def collect_probes(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    translate: Translate | None,
    prober: Prober,
) -> tuple[Batch, Memory, dict[str, Array], dict[str, Array]]:
    """As `collect`, through all of the run's channels: rewarded are what was written for these, and new questions."""
    images = jnp.asarray(images)
    current = auditor_params(trained.auditor, frozen.auditor)
    shared_out = layout(prober.probing, len(images))
    drawn = drawn_topics(trained, cast, settings, shared_out.asks(), key)
    generations = settings.grpo.num_generations
    probes = prober(current, frozen.auditor, images, key, generations, drawn and drawn.begun)
    shape = probes.empty.shape
    flaws = {"question_empty": probes.empty, "question_overlong": probes.overlong, "image_spoiled": probes.spoiled}
    flaws = {name: flaw.reshape(-1, 1) for name, flaw in flaws.items()}
    # One question for each of the N images.
    written = jax.tree.map(lambda x: x.reshape(-1, 1, x.shape[-1]), probes.written)
    rewarded = _rewarded if translate else _rewarded_compiled
    distinct, shown = shared_out.distinct(generations)
    outcome, rewards, archive = rewarded(
        frozen,
        cast,
        probes.images[distinct],
        jnp.asarray(shown),
        probes.questions,
        flaws,
        written,
        trained.archive,
        trained.step,
        settings=settings,
        translate=translate,
    )
    outcome, rewards = jax.tree.map(lambda x: x.reshape(shape), (outcome, rewards))
    heads = heads_of(cast, jnp.asarray(shared_out.channels), drawn, outcome)
    metrics = asked_metrics(outcome, rewards, probes.written) | foreseen(trained, probes.written, heads, outcome)
    for name in CHANNELS:
        rows = shared_out.through(name)
        if len(rows):
            shares = {"claimed": outcome.claimed, "spoiled": outcome.spoiled, "reward": rewards}
            metrics |= {f"{name}/{share}": value[rows].mean() for share, value in shares.items()}
        if len(rows) and name != "question":
            metrics |= {f"{name}/{fault}": each.reshape(shape)[rows].sum() for fault, each in probes.faults.items()}
    metrics |= {name: jnp.float32(count) for name, count in probes.skips.items()}
    ids, mask = (x.reshape(*shape, -1) for x in (probes.questions.ids, probes.questions.mask))
    record = {"question_ids": ids, "question_mask": mask, "reward": rewards, "images": probes.images}
    record |= recorded(outcome, probes.written)
    memory, learned = remembered(trained, archive, drawn, probes.written, heads, outcome)
    room = jnp.array(prober.limits)[np.array(shared_out.channels)]
    batch = Batch(images, probes.prompt, probes.written, learned, room, rewards, ~zero_signal(outcome.reward))
    if (new := shared_out.new()).any():
        # Only these: else the update would run all new images through the auditor for nothing. But where `refill`
        # picks among groups, or rewards are scaled by those of the batch, all come along.
        grpo = settings.grpo
        every = grpo.max_resamples > 0 or grpo.convention().scale_rewards == "batch"
        rows = np.arange(len(new)) if every else np.flatnonzero(new)
        of_rows = lambda x: x.reshape(*shape, *x.shape[1:])[rows]  # noqa: E731
        asked = jax.tree.map(lambda x: of_rows(x[:, 0]), probes.questions)
        follow_ups = FollowUps(
            of_rows(probes.images),
            jax.tree.map(of_rows, prober.question_prompt(rewards.size)),
            asked.replace(mask=asked.mask & new[rows, None, None]),
            None if every else jnp.asarray(rows),
        )
        batch = batch._replace(new=follow_ups)
    return batch, memory, metrics, record


class Drawn(NamedTuple):
    """The topic of each question (-1 is none), and what it must begin with."""

    topic: Int[Array, "B G"]
    begun: Begun


def drawn_topics(
    trained: Trained, cast: Cast, settings: StepSettings, asks: Bool[np.ndarray, "B"], key: Array
) -> Drawn | None:
    """The topics of a step; None where the run has none. asks: images of which the auditor is to write a question."""
    topics = cast.auditor.topics
    if topics is None:
        return None
    chances = settings.reward.topic_share * topic_weights(trained.topics)
    shape = (len(asks), settings.grpo.num_generations)
    topic = jnp.where(asks[:, None], draw_topics(jax.random.fold_in(key, 2**30), chances, shape), -1)
    return Drawn(topic, topics.begun(topic, settings.max_question_tokens))


def remembered(
    trained: Trained,
    archive: Float[Array, "A"],
    drawn: Drawn | None,
    written: Completions,
    heads: Int[Array, "B G"],
    outcome: Outcome,
) -> tuple[Memory, Bool[Array, "B G T"]]:
    """The new memory, and the tokens that the loss is over: all, but for beginnings that earned nothing."""
    memory = {"archive": archive, "critic": taught(trained.critic, written.ends, heads, outcome.claimed)}
    if drawn is None:
        return memory, written.mask
    begun = drawn.begun.mask
    begun = jnp.pad(begun, ((0, 0), (0, 0), (0, written.mask.shape[-1] - begun.shape[-1])))
    memory["topics"] = counted(trained.topics, drawn.topic, outcome.claimed)
    return memory, written.mask & ~unpaid(begun, outcome.reward)


def _rewarded(
    frozen: Frozen,
    cast: Cast,
    images: Array,
    shown: Array,
    questions: Completions,
    flaws: dict[str, Array],
    written: Completions,
    archive: Array,
    step: Array,
    *,
    settings: StepSettings,
    translate: Translate | None,
) -> tuple[Outcome, Array, Array]:
    words, _, _ = words_of(questions, cast.auditor.config)
    asked = (questions.ids, words)
    tokens = settings.max_answer_tokens
    outcome = examine(frozen, cast, images, asked, flaws, settings.reward, tokens, translate, shown)
    return outcome, *diversified(outcome, written.ids, written.mask, archive, settings.reward, settings.floor(step))


_rewarded_compiled = jax.jit(_rewarded, static_argnames=("settings", "translate"))


def asked_metrics(outcome: Outcome, rewards: Float[Array, "B G"], written: Completions) -> dict[str, Array]:
    """How the questions of a batch came out, and what they earned."""
    expected = expected_zero_signal(outcome.claimed.mean(), rewards.shape[1])
    shares = {name: value.mean() for name, value in vars(outcome).items() if value.dtype == bool and name != "valid"}
    metrics = {f"outcome/{name}": share for name, share in shares.items()}
    metrics |= {"reward/mean": rewards.mean(), "reward/before_diversity": outcome.reward.mean()}
    metrics |= {"reward/groups_without_signal": zero_signal(outcome.reward).mean()}
    metrics |= {"reward/groups_without_signal_expected": expected}
    return metrics | {"question/tokens": written.mask.sum(-1).mean()}


def heads_of(cast: Cast, channels: Int[Array, "B"], drawn: Drawn | None, outcome: Outcome) -> Int[Array, "B G"]:
    """Which of the critic's heads sees each completion: its topic's, else its channel's."""
    topic = jnp.full(outcome.claimed.shape, -1) if drawn is None else drawn.topic
    return head_of(channels, topic, len(cast.auditor.prompts.input_ids))


def foreseen(trained: Trained, written: Completions, heads: Int[Array, "B G"], outcome: Outcome) -> dict[str, Array]:
    """How well the critic knew, before it was taught them, which questions would be claimed: its mean squared error,
    and that of who knows their share alone."""
    error = jnp.square(chances(trained.critic.weights, written.ends, heads) - outcome.claimed).mean()
    return {"critic/error": error, "critic/error_of_share": outcome.claimed.mean() * (1 - outcome.claimed.mean())}


def recorded(outcome: Outcome, written: Completions) -> dict[str, Array]:
    record = {name: getattr(outcome, name) for name in ("claimed", "target_id", "consensus_id")}
    return record | {"written_ids": written.ids, "written_mask": written.mask}


def auditor_params(trainable: Params, base: Params) -> Params:
    """The auditor's full parameters: adapters grafted onto the base, or the trained parameters themselves."""
    return trainable if "text" in trainable else lora.attach(base, trainable)
