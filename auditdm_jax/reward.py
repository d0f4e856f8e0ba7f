"""What a question earns: 1 where the references agree and the target contradicts them, or a share; more where new.

Everything works on integers (`auditdm_jax.answers`) and is jit-able; nothing here has a gradient.

Departures from the paper: questions and answers that cannot be scored are outcomes of their own, apart from
questions that the target answers as the references do; novelty weights are this project's. Whether a question
parses is for an oracle to say, on the host: here such a question shows by what the references make of it.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_type_hints

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from auditdm_jax.answers import mix32
from auditdm_jax.errors import UserError, check_choice

BEGINNINGS = (
    "how many", "where is", "what color", "what shape", "what pattern", "what emotion", "what hour", "which action",
    "which word", "which meaning", "which country",
)  # fmt: skip
"""How questions about an image may begin, whatever the target: one beginning for each kind. They name what is asked
about: a bare "what is" ended in questions that are none ("what is the label say?"), of which references agree and
targets do not all the same."""


@dataclass(frozen=True)
class Reward:
    """What a question earns."""

    agreement: float = 1.0
    """Share of the references that must give the same answer for it to be the consensus; 1 = unanimous."""
    confidence: float = 0.0
    """Probability that the references must give to their answers, on average, for these to be a consensus; 0 = any.
    Where they share a mistake they hesitate."""
    disagreement: Literal["binary", "share", "likelihood"] = "binary"
    """1 or 0; the share of the references that are contradicted with one voice; or by how much likelier the consensus
    is to them than to the target (`reward.likelihood_reward`)."""
    diversity: float = 200.0
    """c in floor + (1 - floor) / (1 + c * frequency): how much less a kind often found earns; 0 = nothing."""
    novelty: Literal["answer", "ngrams", "cells"] = "answer"
    """Whose frequency that is: of the consensus answer among what earned something, of the question's word sequences
    among the questions, or of both together (a word sequence with an answer) among what earned something."""
    ngram: int = 2
    """Length of those sequences, in tokens."""
    scope: Literal["archive", "group"] = "archive"
    """Among what it is counted: all that the run found lately, or the questions of the same image."""
    decay: float = 0.97
    """Share of the archive that a step keeps; at 0 the batch alone counts."""
    floor: float = 0.8
    """Share of the reward that no frequency takes away when training ends; it rises from 0 in a line, so that coverage
    counts most at first. Nearer to 1, success counts more in the end."""
    topics: tuple[str, ...] = BEGINNINGS
    """Beginnings with which some of the questions must start, drawn by what they bring and what is still uncovered."""
    topic_share: float = 0.16
    """Share of the questions that must begin with a topic, by default one or two of each a step; 0: none."""

    def __post_init__(self) -> None:
        hints = get_type_hints(Reward)
        for name in ("disagreement", "novelty", "scope"):
            check_choice(f"reward.{name}", getattr(self, name), hints[name])
        if not 0 < self.agreement <= 1:
            raise UserError(f"reward.agreement is {self.agreement}: it is a share of the references, above 0, up to 1")
        if not 0 <= self.confidence < 1:
            raise UserError(f"reward.confidence is {self.confidence}: it is a probability, from 0 to below 1")
        if not 0 <= self.diversity < float("inf"):
            raise UserError(f"reward.diversity is {self.diversity}: it must be 0 (no diversity term) or more")
        if self.ngram < 1:
            raise UserError(f"reward.ngram is {self.ngram}: a word sequence has 1 token or more")
        if not 0 <= self.decay < 1:
            raise UserError(f"reward.decay is {self.decay}: it must be from 0 to below 1")
        if not 0 <= self.floor <= 1:
            raise UserError(f"reward.floor is {self.floor}: it is a share of the reward, from 0 to 1")
        if not 0 <= self.topic_share <= 1:
            raise UserError(f"reward.topic-share is {self.topic_share}: it is a share, from 0 to 1")
        if self.topic_share and not self.topics:
            raise UserError("reward.topics is empty: name at least one, or give --reward.topic-share 0")
        if len({*self.topics}) < len(self.topics) or not all(topic.strip() for topic in self.topics):
            raise UserError("reward.topics has a topic that is empty or stands twice: name each once")


@flax.struct.dataclass
class Outcome:
    """What came of G questions for each of B images. Exactly one of the eight outcomes holds for each.

    reward: 1 where claimed, otherwise 0, unless it is graded (`share_reward`, `likelihood_reward`). valid: claimed or
    agreed, so that the question was scored.

    Of what was written:     empty, overlong (it never ended).
    Of a new image:          spoiled (blank, unchanged or shifted: a failure would be the renderer's).
    Of the references:       abstained (their shared answer is that there is none), no_consensus.
    Of the target's answer:  target_unanswered (it abstains or is empty), agreed, claimed (it differs from the
                             consensus: a failure, as far as the references know).

    target_id, consensus_id: the answers, see `answer_ids`; the consensus has a meaning only where valid or
    target_unanswered.
    """

    reward: Float[Array, "B G"]
    valid: Bool[Array, "B G"]
    empty: Bool[Array, "B G"]
    overlong: Bool[Array, "B G"]
    spoiled: Bool[Array, "B G"]
    abstained: Bool[Array, "B G"]
    no_consensus: Bool[Array, "B G"]
    target_unanswered: Bool[Array, "B G"]
    agreed: Bool[Array, "B G"]
    claimed: Bool[Array, "B G"]
    target_id: UInt32[Array, "B G"]
    consensus_id: UInt32[Array, "B G"]


def consensus(
    reference_ids: UInt32[Array, "R *batch"], agreement: float = 1.0
) -> tuple[UInt32[Array, "*batch"], Bool[Array, "*batch"]]:
    """The references' most common answer, and whether it is a consensus: no other ties, and it has the share.

    agreement: share in (0, 1] of the R references that must give it; 1 = unanimous. Order does not matter.
    """
    votes = (reference_ids[:, None] == reference_ids[None]).sum(0)
    most = votes.max(0)
    in_front = votes == most
    winner = jnp.where(in_front, reference_ids, jnp.uint32(2**32 - 1)).min(0)
    tied = (in_front & (reference_ids != winner)).any(0)
    return winner, (most >= votes_needed(agreement, len(reference_ids))) & ~tied


def votes_needed(agreement: float, references: int) -> int:
    """How many of the references a share in (0, 1] is: of 3, 0.66 and 0.67 are 2, for shares are written rounded."""
    return max(1, math.ceil(references * (agreement - 0.005) - 1e-9))


def disagreement(
    target_ids: UInt32[Array, "B G"],
    target_empty: Bool[Array, "B G"],
    reference_ids: UInt32[Array, "R B G"],
    reference_empty: Bool[Array, "R B G"],
    abstain_id: int,
    agreement: float = 1.0,
    *,
    unsure: Bool[Array, "B G"] | bool = False,
    question_empty: Bool[Array, "B G"] | bool = False,
    question_overlong: Bool[Array, "B G"] | bool = False,
    image_spoiled: Bool[Array, "B G"] | bool = False,
) -> Outcome:
    """The paper's reward: the references agree on an answer and the target gives another.

    Ids and emptiness are those of `answer_ids`; abstain_id is the `text_answer_id` of the word for "cannot be
    answered", and an empty answer counts as that word. Where several outcomes would hold, the first in the
    order of `Outcome` does. unsure: where the references hesitate too much to agree, see `Reward.confidence`.
    """
    abstention = np.uint32(abstain_id)
    winner, is_consensus = consensus(jnp.where(reference_empty, abstention, reference_ids), agreement)
    is_consensus &= ~jnp.asarray(unsure)
    conditions = {
        "empty": question_empty,
        "overlong": question_overlong,
        "spoiled": image_spoiled,
        "abstained": is_consensus & (winner == abstention),
        "no_consensus": ~is_consensus,
        "target_unanswered": target_empty | (target_ids == abstention),
        "agreed": target_ids == winner,
        "claimed": True,
    }
    outcomes, undecided = {}, jnp.ones(target_ids.shape, bool)
    for name, holds in conditions.items():
        outcomes[name] = undecided & holds
        undecided &= ~outcomes[name]
    return Outcome(
        reward=outcomes["claimed"].astype(jnp.float32),
        valid=outcomes["claimed"] | outcomes["agreed"],
        target_id=target_ids,
        consensus_id=winner,
        **outcomes,
    )


def share_reward(plurality: Outcome, reference_ids: UInt32[Array, "R B G"]) -> Float[Array, "B G"]:
    """The share of the R references that the target contradicts with one voice: 0, or from 2/R to 1 (R = 1: 1).

    Their voice is the most common answer, consensus or not. Where another is as common, where it is an abstention, or
    where the target gives it or no answer, the reward is 0. References that say something else do not count, though
    the target may contradict them too: from three that contradict each other nothing follows.

    plurality: from `disagreement` with an agreement of 1/R.
    """
    return plurality.reward * (reference_ids == plurality.consensus_id).mean(0)


def likelihood_gap(target_logps: Float[Array, "B G"], reference_logps: Float[Array, "R B G"]) -> Float[Array, "B G"]:
    """Nats by which the consensus answer is likelier to the references, on average, than to the target; any number.

    The log-probabilities are of the answer, divided by its tokens.
    """
    return reference_logps.mean(0) - target_logps


def likelihood_reward(outcome: Outcome, gap: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """1 - exp(-gap), in [0, 1): the share of the references' probability that the target does not give to their answer.

    0 where the target finds it likelier than they do, and where there is no consensus, it is an abstention, or the
    target abstains. A question that the target answers rightly, but hesitates, earns something.
    """
    return jnp.where(outcome.valid, -jnp.expm1(-jnp.maximum(gap, 0.0)), 0.0)


def question_ngrams(
    ids: Int[Array, "*batch T"], mask: Bool[Array, "*batch T"], n: int
) -> tuple[UInt32[Array, "*batch T"], Bool[Array, "*batch T"]]:
    """Hashes of a question's n-grams of tokens, n >= 1, and which of them are there.

    An n-gram for each token: the n tokens that end with it. Off the mask stands a token of its own, so that a
    question of one token has an n-gram too, and is not for ever new.
    """
    tokens = jnp.where(mask, ids.astype(jnp.uint32) + 1, 0)
    hashes = jnp.zeros(tokens.shape, jnp.uint32)
    for back in reversed(range(n)):
        before = [(0, 0)] * (tokens.ndim - 1) + [(back, 0)]
        earlier = jnp.pad(tokens, before)[..., : tokens.shape[-1]]
        hashes = mix32(hashes * 31 + earlier + 1)
    return hashes, mask


def novelty_weights(
    features: UInt32[Array, "B G K"],
    mask: Bool[Array, "B G K"],
    archive: Float[Array, "A"],
    c: float,
    *,
    decay: float = 0.9,
    floor: float | Float[Array, ""] = 0.0,
) -> tuple[Float[Array, "B G"], Float[Array, "A"]]:
    """Weights in (floor, 1] that shrink the reward of a question whose parts are often met; the new archive.

        weight = floor + (1 - floor) * mean over the question's parts of 1 / (1 + c * frequency)

    A frequency is the share, in [0, 1], of recent questions that hold the part: the archive keeps it for A
    hashed buckets as an exponential moving average, from zeros, and takes the batch in before it is read.

    features: hashes of the parts: n-grams (`question_ngrams`), or the answer. mask: which count; a question without
    any weighs 1, uncounted.
    c: at 0 nothing shrinks. decay: share of the old archive in the new one, in [0, 1); at 0 the batch alone counts.
    floor: what is left of the reward of the most common part, in [0, 1]: a failure that is rare is preferred to a
    common one only if it succeeds more than `floor` times as often.
    """
    buckets = (features % archive.shape[0]).astype(jnp.int32)
    # A part that a question repeats counts once: else repeating a rare one would pay.
    earlier = jnp.tri(features.shape[-1], k=-1, dtype=bool)
    repeats = ((buckets[..., :, None] == buckets[..., None, :]) & mask[..., None, :] & earlier).any(-1)
    first = (mask & ~repeats).astype(jnp.float32)
    questions = jnp.maximum(mask.any(-1).sum(), 1)
    share = jnp.zeros_like(archive).at[buckets].add(first) / questions
    archive = decay * archive + (1 - decay) * share
    weights = 1 / (1 + c * archive[buckets])
    mean = (weights * first).sum(-1) / jnp.maximum(first.sum(-1), 1)
    return jnp.where(mask.any(-1), floor + (1 - floor) * mean, 1.0), archive


def diversified(
    outcome: Outcome,
    ids: Int[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    archive: Float[Array, "A"],
    reward: Reward,
    floor: Float[Array, ""],
) -> tuple[Float[Array, "B G"], Float[Array, "A"]]:
    """Rewards times the weight of how often such a failure was found, or so asked, lately; and the new archive."""
    parts, counts = outcome.consensus_id[..., None], outcome.reward[..., None] > 0
    if reward.novelty != "answer":
        ngrams, present = question_ngrams(ids, mask, reward.ngram)
        # A cell is a piece of a question together with the right answer, and only what earns is in a cell.
        cells = reward.novelty == "cells"
        parts, counts = (mix32(ngrams * 31 + parts), present & counts) if cells else (ngrams, present)
    weigh = partial(novelty_weights, archive=archive, c=reward.diversity, floor=floor)
    if reward.scope == "group":
        alone = lambda *group: weigh(*group, decay=0.0)[0]  # noqa: E731
        return outcome.reward * jax.vmap(alone)(parts[:, None], counts[:, None])[:, 0], archive
    weights, archive = weigh(parts, counts, decay=reward.decay)
    return outcome.reward * weights, archive
