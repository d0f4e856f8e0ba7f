"""[host] Which of several candidates an audit asks: the one that the critic finds likeliest to show a failure.

Of every image some candidates are drawn as the auditor likes, and one begins with each topic. The topics that cost
least take the images where they do, until they have brought their share of failures, and more where that costs little.
What came of the batches before tells how many are still to come, and how far the critic's chances hold.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.critic import chances, head_of
from auditdm_jax.sampling import Begun, Completions
from auditdm_jax.topics import Topics

MIDDLE, LIKELIEST = 0.65, 0.75
"""What is asked without a topic has the log-odds of the middle one of its candidates and those of the likeliest, times
these: fitted to nine auditors' 2,000 questions each, of eight at a time, it is at most 1.4 points off for the ninth on
average. The likeliest alone is less likely than it seems: of the 60 questions that one critic gave least, 0.71, 0.23
failed; of the 60 whose middle one it gave least, 0.26, 0.08 did."""
WORTH = 0.3
"""A topic is asked of an image where it is this likely to show a failure, beside the best of what else could be
asked."""
DOUBT = 8
"""So many failures of a topic must have been expected, until what came of them counts for half of what the critic says:
of the likeliest it says 0.1 to 0.2 too much."""
COST = 0.021
"""The cheapest topics are asked, as long as what each is to bring costs together this share of the failures that are
expected without any: what shows seldom is found, too, and no auditor sets out to spend more on it than another."""
CHEAP = 0.75
"""A topic that is worth this much costs little."""
VARIETY = 0.4
"""A topic that is cheap is asked this often at least, as a share of what it would have were all kinds asked alike."""


class Guide(NamedTuple):
    """What a run knows of its auditor's questions. critic: its weights. candidates: to be drawn of each image. topics:
    with which others begin. share: of the audit's images, as many failures are to come from topics."""

    critic: Float[np.ndarray, "H F"]
    candidates: int
    topics: tuple[str, ...]
    share: float


class Costs(NamedTuple):
    """What topics would have cost so far. of: failures, by topic. failures: expected where none is asked."""

    of: Float[np.ndarray, "K"] | float = 0.0
    failures: float = 0.0


NONE = Costs()


@dataclass(eq=False)
class Choice:
    """A guide, and its K topics in the auditor's tokens (None: it has none). costs: of all batches before, lest other
    topics be too dear in each: a few questions with each of several find too little of any. images: in these batches.
    """

    guide: Guide
    topics: Topics | None
    costs: Costs = NONE
    images: float = 0.0

    def __post_init__(self) -> None:
        # Failures that the critic expected of what was asked with each topic, and those that came.
        self.expected, self.found = np.zeros((2, len(self.guide.topics)))
        # Of the images picked for last the topic, -1 is none, and the chance of each.
        self._given, self._chance = np.zeros(0, int), np.zeros((0, len(self.guide.topics)))

    def begun(self, asks: Bool[np.ndarray, "B"], length: int) -> Begun | None:
        """What the J + K candidates of each image must begin with, of a question's length: the last K with a topic, of
        the images that are asked about."""
        if self.topics is None:
            return None
        return self.topics.begun(jnp.asarray(np.where(asks[:, None], self._topic(), -1)), length)

    def _topic(self) -> Int[np.ndarray, "J+K"]:
        """The topic of each candidate of an image, -1 is none."""
        return np.append(np.full(self.guide.candidates, -1), np.arange(len(self.guide.topics)))

    def pick(
        self,
        written: Completions,
        channels: Int[np.ndarray, "B"],
        asks: Bool[np.ndarray, "B"],
        key: Array,
        asked: float = 1.0,
    ) -> Completions:
        """One of the J candidates of each image, or of J + K; [B, 1, T]. channels: of each image. asked: the share of
        all images that are asked about as they are; topics are asked of these, for all."""
        count, topics = self.guide.candidates, len(self.guide.topics)
        rows = written.ids.shape[:2]
        topic = jnp.broadcast_to(self._topic()[: rows[1]], rows)
        heads = head_of(jnp.asarray(channels), topic, len(self.guide.critic) - topics)
        found = np.asarray(chances(jnp.asarray(self.guide.critic), written.ends, heads))
        free, topical = np.split(found, [count], axis=1)
        chosen = free.argmax(1)
        odds = np.clip(free, 1e-6, 1 - 1e-6)
        odds = np.log(odds / (1 - odds))
        beside = 1 / (1 + np.exp(-MIDDLE * np.median(odds, axis=1) - LIKELIEST * odds.max(1)))
        if topical.shape[1]:
            self._given, self._chance = self._topics_of(topical, beside, asks, key, asked), topical
            chosen = np.where(self._given < 0, chosen, count + self._given)
        return jax.tree.map(lambda x: jnp.take_along_axis(x, chosen[:, None, None], axis=1), written)

    def _topics_of(
        self,
        chance: Float[np.ndarray, "B K"],
        beside: Float[np.ndarray, "B"],
        asks: Bool[np.ndarray, "B"],
        key: Array,
        asked: float,
    ) -> Int[np.ndarray, "B"]:
        """The topic that each image is asked with, -1 is none. chance: of each topic, by the critic; beside: of a
        question without one."""
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,))))
        images, each = asks.sum() / asked, self.guide.share / len(self.guide.topics)
        self.images += images
        owed = np.maximum(each * self.images - self.found, 0)
        likely = np.minimum(chance[asks] * (self.found + DOUBT) / (self.expected + DOUBT), 1)
        given = np.full(len(asks), -1)
        given[asks], self.costs = share_out(rng, each * images, owed, likely, beside[asks], self.costs, asked)
        return given

    def learn(self, claimed: Bool[np.ndarray, "B"]) -> None:
        """Which of the questions that were picked last, of the images that may have a topic, are claimed failures."""
        asked = np.flatnonzero(self._given >= 0)
        topic = self._given[asked]
        np.add.at(self.expected, topic, self._chance[asked, topic])
        np.add.at(self.found, topic, claimed[asked])
        self._given = self._given[:0]


def share_out(
    rng: np.random.Generator,
    quota: float,
    owed: Float[np.ndarray, "K"],
    chance: Float[np.ndarray, "N K"],
    beside: Float[np.ndarray, "N"],
    costs: Costs = NONE,
    asked: float = 1.0,
) -> tuple[Int[np.ndarray, "N"], Costs]:
    """A topic for some of N images, -1 for the others; and the costs, these images among them.

    Of each topic as many as are expected to bring the failures that are `owed`, on average over draws, where its chance
    is greatest beside the best of the image's others, `beside` (without a topic) or another topic's, and nowhere if
    that is below `WORTH`; but of the topics for which `quota` failures cost least alone, in these images and those
    before, as many as together cost `COST` of the failures without a topic; these images are the share `asked` of those
    that have any. Where a topic is `CHEAP`, `VARIETY` times as many at least as if topics and questions without one
    were asked alike. The topic that is worth least chooses first.
    """
    second, first = np.sort(np.column_stack([beside, chance]), axis=1)[:, -2:].T
    other = np.where(chance == first[:, None], second[:, None], first[:, None])
    worth, loss = chance / other, np.maximum(other - chance, 0)
    chosen = np.full(len(chance), -1)

    def best(topic: int) -> tuple[Int[np.ndarray, "M"], Float[np.ndarray, "M"]]:
        """The images that are left for it, and the failures expected of those before each."""
        left = np.flatnonzero((chosen < 0) & (worth[:, topic] >= WORTH))
        left = left[np.argsort(-worth[left, topic], kind="stable")]
        return left, np.cumsum(chance[left, topic]) - chance[left, topic]

    here = np.zeros(chance.shape[1])
    for topic in range(chance.shape[1]):
        left, before = best(topic)
        here[topic] = loss[left[before < quota], topic].sum()
    costs = Costs(costs.of + here, costs.failures + float(beside.sum()) / asked)
    affordable = np.argsort(costs.of, kind="stable")[np.cumsum(np.sort(costs.of)) <= COST * costs.failures]
    enough = VARIETY * len(chance) / (chance.shape[1] + 1)
    for topic in affordable[np.argsort(worth.max(0, initial=0.0)[affordable], kind="stable")]:
        left, before = best(topic)
        # Whole images until what is owed is reached; the one that crosses it with a chance that makes up for the rest.
        takes = rng.random() * chance[left, topic] < owed[topic] - before
        takes |= (worth[left, topic] >= CHEAP) & (np.arange(len(left)) < enough)
        chosen[left[takes]] = topic
    return chosen, costs
