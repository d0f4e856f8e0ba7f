"""Topics: beginnings of questions ("how many") with which some questions of a group must start.

Which one is drawn by what it brings and what is still uncovered; the auditor goes on from there. Where the question
earned something, its beginning counts in the update as if the auditor had chosen it. In an audit a share of the images
has a topic, each where the auditor finds it likeliest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import read_json, write_json
from auditdm_jax.prompts import padded, token_ids
from auditdm_jax.sampling import Begun

if TYPE_CHECKING:
    from auditdm_jax.models.vlm import VLM

TOPICS = "topics.json"
"""In the run's folder: with which chance each topic would be drawn next."""
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


def topics_of(vlm: "VLM", beginnings: Sequence[str], max_question_tokens: int) -> Topics | None:
    """The topics of a run; None where it has none. Raises UserError for a beginning that leaves no room to go on."""
    if not beginnings:
        return None
    tokens = [token_ids(vlm.tokenizer, beginning).tolist() for beginning in beginnings]
    longest = max(range(len(tokens)), key=lambda i: len(tokens[i]))
    if len(tokens[longest]) > max_question_tokens - 2:
        raise UserError(
            f"the topic {beginnings[longest]!r} has {len(tokens[longest])} of a question's "
            f"{max_question_tokens} tokens; shorten it, or raise --max-question-tokens"
        )
    ids, mask = padded(tokens, len(tokens[longest]), vlm.config.pad_token_id)
    return Topics(jnp.asarray(ids), jnp.asarray(mask))


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


def write_weights(run: Path, beginnings: Sequence[str], weights: Float[Array, "K"]) -> None:
    """Keeps in the run's folder what `topic_weights` gives."""
    write_json(run / TOPICS, dict(zip(beginnings, weights.tolist(), strict=True)))


def read_weights(run: Path, beginnings: Sequence[str]) -> dict[str, float]:
    """The chance of each topic, as the run kept them. Raises UserError if they are missing or damaged."""
    path = run / TOPICS
    try:
        weights = read_json(path)
    except UserError:
        weights = None
    whole = isinstance(weights, dict) and weights.keys() == {*beginnings} and all(map(_is_chance, weights.values()))
    if not whole or not sum(weights.values()):
        problem = "does not give each topic of the run a chance of 0 or more" if path.exists() else "is missing"
        raise UserError(f"{one_line(path)} {problem}; train.py --resume with the settings of the run writes it anew")
    return weights


def _is_chance(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


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


def share_out(
    rng: np.random.Generator, chances: Float[np.ndarray, "K"], logps: Float[np.ndarray, "N K"]
) -> Int[np.ndarray, "N"]:
    """A topic for some of N images, -1 for the others: as often as drawn, where it is likeliest.

    chances: of each topic, 1 or less together. logps: of each beginning, of each image. A topic takes the images of
    which the auditor would rather than of others have asked so; the one that is drawn least chooses first.
    """
    images, topics = logps.shape
    wanted = rng.multinomial(images, [*chances, max(0.0, 1 - chances.sum())])[:topics]
    chosen = np.full(images, -1)
    for topic in np.argsort(wanted, kind="stable"):
        free = np.flatnonzero(chosen < 0)
        chosen[free[np.argsort(-logps[free, topic], kind="stable")[: wanted[topic]]]] = topic
    return chosen
