"""Topics: beginnings of questions ("how many") with which some questions of a group must start.

Which one is drawn by what it brings and what is still uncovered; the auditor goes on from there. Where the question
earned something, its beginning counts in the update as if the auditor had chosen it.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.errors import UserError
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import padded, token_ids
from auditdm_jax.sampling import Begun

DECAY = 0.99
"""How much of the counts a step keeps."""


@flax.struct.dataclass
class Topics:
    """The tokens of the K beginnings, padded on the right."""

    ids: Int[Array, "K F"]
    mask: Bool[Array, "K F"]

    def begun(self, topic: Int[Array, "B G"], length: int) -> Begun:
        """What questions of a length must begin with; topic -1 is nothing."""
        pad = lambda x: jnp.pad(x[topic], ((0, 0), (0, 0), (0, length - x.shape[1])))  # noqa: E731
        return Begun(pad(self.ids), pad(self.mask) & (topic >= 0)[..., None])


def topics_of(vlm: VLM, beginnings: Sequence[str], max_question_tokens: int) -> Topics | None:
    """The topics of a run; None where it has none. Raises UserError as `beginnings_of` does."""
    if not beginnings:
        return None
    tokens = beginnings_of(vlm.tokenizer, beginnings, max_question_tokens)
    ids, mask = padded(tokens, max(map(len, tokens)), vlm.config.pad_token_id)
    return Topics(jnp.asarray(ids), jnp.asarray(mask))


def beginnings_of(tokenizer: Any, beginnings: Sequence[str], max_question_tokens: int) -> list[list[int]]:
    """The tokens of each. Raises UserError for a beginning that leaves no room to go on."""
    tokens = [token_ids(tokenizer, beginning).tolist() for beginning in beginnings]
    longest = max(range(len(tokens)), key=lambda i: len(tokens[i]))
    if len(tokens[longest]) > max_question_tokens - 2:
        raise UserError(
            f"the topic {beginnings[longest]!r} has {len(tokens[longest])} of a question's "
            f"{max_question_tokens} tokens; shorten it, raise --max-question-tokens, or give --reward.topic-share 0"
        )
    return tokens


def topic_weights(counts: Float[Array, "2 K"]) -> Float[Array, "K"]:
    """With which chance each topic is drawn: by how often it succeeds, less where much was found; they sum to 1.

        weight = rate^2 / (1 + K * its share of what all K topics found),  rate = (found + 1) / (asked + 2)

    A topic without failures is thus soon left, and among the others the draws even out.

    counts: questions asked of each topic, and failures found, lately.
    """
    asked, found = counts
    rate = (found + 1) / (asked + 2)
    weights = rate**2 / (1 + len(rate) * found / jnp.maximum(found.sum(), 1))
    return weights / weights.sum()


def draw_topics(key: Array, chances: Float[Array, "K"], shape: tuple[int, ...]) -> Int[Array, "..."]:
    """A topic for each question, -1 is none. chances: of each topic, 1 or less together."""
    none = jnp.maximum(1 - chances.sum(), 0)
    return jax.random.categorical(key, jnp.log(jnp.append(none, chances)), shape=shape) - 1


def counted(counts: Float[Array, "2 K"], topic: Int[Array, "B G"], claimed: Bool[Array, "B G"]) -> Float[Array, "2 K"]:
    """The counts after a batch; older questions fade."""
    of_topic = jax.nn.one_hot(topic, counts.shape[1])  # of -1 all zeros
    return DECAY * counts + jnp.stack([of_topic.sum((0, 1)), (of_topic * claimed[..., None]).sum((0, 1))])


def unpaid(begun: Bool[Array, "B G T"], reward: Float[Array, "B G"]) -> Bool[Array, "B G T"]:
    """Of the tokens that were given those that earned nothing: not the auditor's choice, and nothing to learn."""
    return begun & (reward <= 0)[..., None]
