"""Ways of asking that `planted.py` compares: what is reported at the end, each with its own use of the search queries.

What is asked without knowing the target, on which scenes, and what the references answer to that are the same for all
targets of a seed: they are computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from auditdm_jax.answers import normalize
from auditdm_jax.asking import Answer, Ask, Asking, make_ask
from auditdm_jax.audit import guide_of
from auditdm_jax.config import AuditConfig, Models, TrainConfig
from auditdm_jax.evals import Answerer
from auditdm_jax.outcomes import Asked, consensus_of, is_answer
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.scenes.language import ATTRIBUTES, Ref
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.world import COLORS, MATERIALS, SHAPES, SIZES
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.training import train

BATCH = 256
PLURALS = tuple(Ref(shape).words(plural=True) for shape in SHAPES)
CLASSES = (COLORS, SHAPES, PLURALS, SIZES, MATERIALS, ATTRIBUTES)


@dataclass(frozen=True)
class Spending:
    """How many questions the methods may ask, what they do with them, and who judges."""

    queries: int = 2000
    """Questions to the target that are reported."""
    search_queries: int = 12_800
    """Questions to the target before that; methods that do not search report them too."""
    references: tuple[str, ...] = ("reference-a", "reference-c", "verifier")
    best_of: int = 8
    """N of best-of-N."""
    population: int = 64
    """Questions of a generation of the evolutionary search."""
    temperature: float = 0.6
    """Of auditors, when they report."""
    confidence: float = 0.85
    """Of the reward that the trained auditor learns from (`train.py --reward.confidence`); at 0 it may come to ask what
    these three references err on together, instead of what the target does."""


@cache
def drawn(split: str, seed: int, count: int) -> tuple[dict, ...]:
    """The first batches of scenes, enough for `count` questions."""
    size = min(BATCH, count)
    return tuple(islice(SceneSource(split, seed, size), -(-count // size)))


def remembered(function: Callable[[np.ndarray, Any], Any], told: Callable[[Any], bytes]) -> Callable:
    """The function of images and something else, computed once for each. told: the something else as bytes."""
    known: dict[bytes, Any] = {}

    def call(images: np.ndarray, other: Any) -> Any:
        mark = blake2b(images.tobytes() + told(other)).digest()
        if mark not in known:
            known[mark] = function(images, other)
        return known[mark]

    return call


def reference(name: str) -> Answer:
    """The answers of a model of the zoo."""
    return remembered(Answerer(load_model(name), batch_size=BATCH), lambda questions: "\n".join(questions).encode())


@cache
def untrained(temperature: float) -> Ask:
    """The auditor before training."""
    auditor = load_model("auditor")
    ask = make_ask(auditor, auditor, TrainConfig(), temperature, None)
    return remembered(ask, lambda key: np.asarray(jax.random.key_data(key)).tobytes())


@dataclass(frozen=True)
class World:
    """What all methods work with. folder: of this planting and seed."""

    config: Spending
    seed: int
    folder: Path
    target: Answer
    references: tuple[Answer, ...]

    def searched(self) -> Iterator[dict]:
        """Scenes to search on."""
        return iter(drawn("train", 700 + self.seed, self.config.search_queries + BATCH))

    def rewards(self, images: np.ndarray, questions: Sequence[str]) -> np.ndarray:
        """bool [N]: whether the references agree and the target gives another answer."""
        said = zip(*(answer(images, questions) for answer in self.references), strict=True)
        shared = [normalize(consensus_of(answers, 1.0)) for answers in said]
        targets = [normalize(text) if is_answer(text) else "" for text in self.target(images, questions)]
        return np.array([bool(a and b) and a != b for a, b in zip(shared, targets, strict=True)])


def random_questions(known: Iterator[dict]) -> Ask:
    """Uniform over skills, about what is in the image: what nobody can do who does not know the world. known: the
    batches that will be asked about."""

    def ask(images: np.ndarray, key: jax.Array) -> Asking:
        rng, scenes = np.random.default_rng(np.asarray(jax.random.key_data(key))), next(known)["scene"]
        return Asking([Asked("", Asker(scene, rng).draw("uniform", "train").text) for scene in scenes], images)

    return ask


def asks_of(pool: Sequence[str]) -> Ask:
    """Questions of a pool, at random."""

    def ask(images: np.ndarray, key: jax.Array) -> Asking:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return Asking([Asked("", pool[i]) for i in rng.integers(len(pool), size=len(images))], images)

    return ask


def best_of_n(world: World) -> Ask:
    """Of N questions an image the one with the highest reward; those that earned one are asked again elsewhere."""
    ask, pool, count, source = untrained(1.0), [], world.config.best_of, world.searched()
    for number in range(world.config.search_queries // (BATCH * count)):
        images = next(source)["image"]
        waiting = np.ones(BATCH, bool)
        for i in range(count):
            key = jax.random.fold_in(jax.random.key(world.seed), number * count + i)
            questions = [asked.question for asked in ask(images, key).asked]
            won = world.rewards(images, questions) & waiting
            pool += [questions[j] for j in won.nonzero()[0]]
            waiting &= ~won
    return asks_of(pool) if pool else untrained(world.config.temperature)


def evolution(world: World) -> Ask:
    """Generations of questions: each is asked of as many images, the fitter half stays and has children in which words
    are exchanged for others of their class; an eighth are new questions of the auditor before training."""
    rng, size = np.random.default_rng(world.seed), world.config.population
    ask, source = untrained(1.0), world.searched()

    def child(question: str) -> str:
        words = question.rstrip("?").split()
        places = [(i, kind) for i, word in enumerate(words) for kind in CLASSES if word in kind]
        if places:
            i, kind = places[rng.integers(len(places))]
            words[i] = str(rng.choice(kind))
        return " ".join(words) + "?"

    asked = [each.question for each in ask(next(source)["image"], jax.random.key(world.seed)).asked]
    living, per_question = asked[:size], BATCH // size
    for generation in range(world.config.search_queries // BATCH):
        images = next(source)["image"]
        fitness = world.rewards(images, np.repeat(living, per_question).tolist()).reshape(size, -1).mean(1)
        order = np.argsort(-fitness - 1e-3 * rng.random(size))
        fit = [living[i] for i in order[: size // 2]]
        key = jax.random.fold_in(jax.random.key(world.seed), generation + 1)
        fresh = [each.question for each in ask(images, key).asked][: size // 8]
        living = fit + fresh + [child(fit[i]) for i in rng.integers(len(fit), size=size - len(fit) - len(fresh))]
    return asks_of(living[: size // 2])


def trained(world: World) -> Ask:
    """An auditor trained on this target, with as many questions as the others search with; guided as in an audit."""
    config = world.config
    models = Models(target=str(world.folder / "target"), references=config.references)
    reward = Reward(confidence=config.confidence)
    run = TrainConfig("trained", str(world.folder), world.seed, models=models, reward=reward, resume=True)
    run = replace(run, steps=max(1, config.search_queries // (run.images_per_step * run.grpo.num_generations)))
    if not (world.folder / "trained" / "auditor" / "config.json").exists():
        train(run)
    auditor = load_model(str(world.folder / "trained" / "auditor"))
    guide = guide_of(AuditConfig(run.name, run.out, temperature=config.temperature), run)
    return make_ask(auditor, auditor, run, config.temperature, None, guide)


SEARCHES: dict[str, Callable[[World], Ask]] = {"best-of-n": best_of_n, "evolution": evolution, "trained": trained}
