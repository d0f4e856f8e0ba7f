"""Topics: beginnings of questions ("how many") that the auditor is given in its prompt, and drawn by what is uncovered.

A group of questions shares its beginning, so it competes within its topic alone, and success elsewhere cannot crowd the
topic out. Topic 0 is no beginning: the auditor writes the whole question.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import read_json, write_json
from auditdm_jax.prompts import instruction_prompts, padded, token_ids
from auditdm_jax.sampling import Completions, Prompt

if TYPE_CHECKING:
    from auditdm_jax.models.vlm import VLM

TOPICS = "topics.json"
"""In the run's folder: with which chance each topic would be drawn next; "" is none."""
DECAY = 0.99
"""How much of the counts a step keeps."""


@flax.struct.dataclass
class Topics:
    """Of each of the K topics, and of none: the auditor's prompt, the beginning's tokens (padded on the right)."""

    prompts: Prompt
    ids: Int[Array, "K+1 F"]
    mask: Bool[Array, "K+1 F"]


def topics_of(vlm: "VLM", instruction: str, beginnings: Sequence[str], max_question_tokens: int) -> Topics | None:
    """The topics of a run; None where it has none. Raises UserError for a beginning that leaves no room to go on."""
    if not beginnings:
        return None
    tokens = [token_ids(vlm.tokenizer, beginning).tolist() for beginning in ("", *beginnings)]
    longest = max(range(len(tokens)), key=lambda i: len(tokens[i]))
    if len(tokens[longest]) > max_question_tokens - 2:
        raise UserError(
            f"the topic {('', *beginnings)[longest]!r} has {len(tokens[longest])} of a question's "
            f"{max_question_tokens} tokens; shorten it, or raise --max-question-tokens"
        )
    ids, mask = padded(tokens, len(tokens[longest]), vlm.config.pad_token_id)
    prompts = instruction_prompts(vlm, [instruction] * len(tokens), tokens)
    return Topics(prompts, jnp.asarray(ids), jnp.asarray(mask))


def topic_weights(counts: Float[Array, "2 K"], c: float, share: float) -> Float[Array, "K+1"]:
    """With which chance each topic is drawn, none first: what its next question should earn, over their sum.

        weight = rate / (1 + c * its share of what all topics found),  rate = (found + 1) / (asked + 2)

    A topic without failures is thus soon left, and among the others the draws even out.

    counts: questions asked of each topic, and failures found, lately. share: of the images that have a topic.
    """
    asked, found = counts
    earns = (found + 1) / (asked + 2) / (1 + c * found / jnp.maximum(found.sum(), 1))
    return jnp.concatenate([jnp.array([1 - share]), share * earns / earns.sum()])


def write_weights(run: Path, beginnings: Sequence[str], weights: Float[Array, "K+1"]) -> None:
    """Keeps in the run's folder what `topic_weights` gives."""
    write_json(run / TOPICS, dict(zip(("", *beginnings), weights.tolist(), strict=True)))


def read_weights(run: Path, beginnings: Sequence[str]) -> dict[str, float]:
    """The chance of each topic, "" for none, as the run kept them. Raises UserError if they are missing or damaged."""
    path = run / TOPICS
    try:
        weights = read_json(path)
    except UserError:
        weights = None
    names = {"", *beginnings}
    whole = isinstance(weights, dict) and weights.keys() == names and all(map(_is_chance, weights.values()))
    if not whole or not sum(weights.values()):
        problem = "does not give each topic of the run a chance of 0 or more" if path.exists() else "is missing"
        raise UserError(f"{one_line(path)} {problem}; train.py --resume with the settings of the run writes it anew")
    return weights


def _is_chance(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def draw_topics(key: Array, weights: Float[Array, "K+1"], images: int) -> Int[Array, "B"]:
    """A topic for each image."""
    return jax.random.categorical(key, jnp.log(weights), shape=(images,))


def counted(counts: Float[Array, "2 K"], topic: Int[Array, "B"], claimed: Bool[Array, "B G"]) -> Float[Array, "2 K"]:
    """The counts after a batch; older questions fade."""
    of_topic = jax.nn.one_hot(topic - 1, counts.shape[1])  # topic 0 is none of them
    new = jnp.stack([of_topic * claimed.shape[1], of_topic * claimed.sum(1, keepdims=True)])
    return DECAY * counts + new.sum(1)


def whole_questions(topics: Topics, topic: Int[Array, "B"], written: Completions, length: int) -> Completions:
    """Beginnings and what was written behind them, cut at `length` tokens; a beginning's log-prob is 0."""
    generations = written.ids.shape[1]
    spread = lambda x: jnp.repeat(x[topic][:, None], generations, axis=1)  # noqa: E731
    begun = Completions(spread(topics.ids), spread(topics.mask), jnp.zeros(spread(topics.mask).shape))
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=-1), begun, written)
    # Behind a beginning shorter than others stands padding: it goes to the end.
    order = jnp.argsort(~both.mask, axis=-1, stable=True)[..., :length]
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=-1), both)
