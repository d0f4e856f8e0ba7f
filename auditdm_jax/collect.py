"""[jit] What an update learns from: a batch of images, asked about through the run's channels, answered and rewarded.

images -> what the auditor writes -> (new images ->) answers of target and references -> outcome -> reward
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.answering import Translate, examine
from auditdm_jax.conventions import GRPO
from auditdm_jax.critic import chances, head_of, taught
from auditdm_jax.layout import QUESTION
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
    """What a step is compiled for. steps: of the whole run."""

    grpo: GRPO
    reward: Reward
    steps: int
    max_question_tokens: int
    max_answer_tokens: int
    remat: bool
    optimizer: optax.GradientTransformation

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
    that the loss is over. room: how many what was written may have; None: all are questions. signal: groups whose
    rewards, before diversity, are not all the same. new: questions that the auditor asked of new images, which share
    the reward of what these were made from."""

    images: UInt8[Array, "B H W 3"]
    prompt: Prompt
    questions: Completions
    learned: Bool[Array, "B G T"]
    room: Int[Array, "B"] | None
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
    rewards, learned, memory, metrics, record = earned(trained, cast, settings, channels, drawn, questions, outcome)
    record |= {"question_ids": questions.ids, "question_mask": questions.mask}
    batch = Batch(images, prompt, questions, learned, None, rewards, ~zero_signal(outcome.reward))
    return batch, memory, metrics, record


class Drawn(NamedTuple):
    """The topic of each question (-1 is none), and what it must begin with."""

    topic: Int[Array, "B G"]
    begun: Begun


@partial(jax.jit, static_argnames=("settings",))
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


def earned(
    trained: Trained,
    cast: Cast,
    settings: StepSettings,
    channels: Int[Array, "B"],
    drawn: Drawn | None,
    written: Completions,
    outcome: Outcome,
) -> tuple[Float[Array, "B G"], Bool[Array, "B G T"], Memory, dict[str, Array], dict[str, Array]]:
    """What came of what was written: its rewards, the tokens that the loss is over (all, but for beginnings that earned
    nothing), the new memory, metrics, and the record."""
    given = trained.archive, settings.reward, settings.floor(trained.step)
    rewards, archive = diversified(outcome, written.ids, written.mask, *given)
    # Of the critic's heads a topic's sees its questions, a channel's all others.
    topic = jnp.full(outcome.claimed.shape, -1) if drawn is None else drawn.topic
    heads = head_of(channels, topic, len(cast.auditor.prompts.input_ids))
    memory = {"archive": archive, "critic": taught(trained.critic, written.ends, heads, outcome.claimed)}
    learned = written.mask
    if drawn is not None:
        memory["topics"] = counted(trained.topics, drawn.topic, outcome.claimed)
        begun = drawn.begun.mask
        begun = jnp.pad(begun, ((0, 0), (0, 0), (0, learned.shape[-1] - begun.shape[-1])))
        learned &= ~unpaid(begun, outcome.reward)

    share = outcome.claimed.mean()
    flags = {name: value for name, value in vars(outcome).items() if value.dtype == bool and name != "valid"}
    metrics = {f"outcome/{name}": value.mean() for name, value in flags.items()}
    metrics |= {"reward/mean": rewards.mean(), "reward/before_diversity": outcome.reward.mean()}
    metrics |= {"reward/groups_without_signal": zero_signal(outcome.reward).mean()}
    metrics |= {"reward/groups_without_signal_expected": expected_zero_signal(share, rewards.shape[1])}
    # How well the critic knew what would be claimed, before it was taught that; and who knows the share alone.
    error = jnp.square(chances(trained.critic.weights, written.ends, heads) - outcome.claimed).mean()
    metrics |= {"critic/error": error, "critic/error_of_share": share * (1 - share)}
    metrics |= {"question/tokens": written.mask.sum(-1).mean()}
    record = {name: getattr(outcome, name) for name in ("claimed", "target_id", "consensus_id")}
    record |= {"reward": rewards, "written_ids": written.ids, "written_mask": written.mask}
    return rewards, learned, memory, metrics, record


def auditor_params(trainable: Params, base: Params) -> Params:
    """The auditor's full parameters: adapters grafted onto the base, or the trained parameters themselves."""
    return trainable if "text" in trainable else lora.attach(base, trainable)
