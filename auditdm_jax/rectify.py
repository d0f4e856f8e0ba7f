"""Rectification without annotation: fine-tune the target on what the auditor found, labelled by the ensemble.

Two arms of the same number of steps and examples start from the same target:
  rectified  half ordinary questions, half the audit's: new questions of the trained auditor (failures or not), and the
             discovered questions asked again of other images;
  control    ordinary questions alone.
Ordinary questions are those of the auditor before training. Every label, in both arms, is the consensus of the
references; questions without one are left out. Failures alone would teach the reverse of the target's bias: asked
again of other images, whatever the target says there, they carry no such selection.

In both arms an answer is taught as often as the square root of its lessons says, as far as the images allow.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from auditdm_jax import discoveries
from auditdm_jax.answers import normalize
from auditdm_jax.config import RectifyConfig, TrainConfig
from auditdm_jax.data import reasons
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.evals import Answerer, accuracy
from auditdm_jax.files import atomic_folder, write_json
from auditdm_jax.finetune import Batch, Encoder, fit, init_state, make_optimizer
from auditdm_jax.models import lora
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import consensus_of
from auditdm_jax.pool import pool_of, unseen_first
from auditdm_jax.prompts import token_ids
from auditdm_jax.rollout import ask_many
from auditdm_jax.runs import audited_images, audited_models, trained_auditor, training_settings
from auditdm_jax.scenes.dataset import balanced_set
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.taxonomy import question_label


class Lesson(NamedTuple):
    """A question with the answer to learn: the consensus of the references."""

    question: str
    answer: str


Lessons = list[list[Lesson]]
"""For each image of a pool, what is taught about it."""


class Exam(NamedTuple):
    """images: uint8 [M, H, W, 3]; N questions, the numbers of their images, their true answers and skills."""

    images: np.ndarray
    shown: np.ndarray
    questions: Sequence[str]
    truths: Sequence[str]
    skills: Sequence[str]

    def score(self, answerer: Answerer) -> dict:
        """Accuracy overall, with its interval, and by skill."""
        answers = answerer(self.images, self.questions, "examining", self.shown)
        return accuracy(answers, self.truths, self.skills, self.shown)


class Ensemble:
    """The references, asked together."""

    def __init__(self, answerers: Sequence[Answerer], agreement: float):
        self.answerers, self.agreement = answerers, agreement

    def teach(self, images: np.ndarray, questions: list[list[str]]) -> Lessons:
        """Of each image's questions those that the references agree on, with their answer.

        images: uint8 [N, H, W, 3]; questions: N lists.
        """
        owner = np.repeat(np.arange(len(images)), [len(row) for row in questions])
        flat = [question for row in questions for question in row]
        said = [answerer(images, flat, "consensus", owner) for answerer in self.answerers]
        lessons: Lessons = [[] for _ in images]
        for index, question, answers in zip(owner, flat, zip(*said, strict=True), strict=True):
            if agreed := consensus_of(answers, self.agreement):
                lessons[index].append(Lesson(question, agreed))
        return lessons


def rarity(lessons: Sequence[Lesson]) -> Float[np.ndarray, "N"]:
    """Chances, over all lessons, that make an answer as likely as the square root of its count.

    As they come, the commonest would be nearly all; with every answer as likely as any other, those that were found a
    few times would take as much as those that make up the audit, and be learned no better.
    """
    answers = [normalize(lesson.answer) for lesson in lessons]
    counts = Counter(answers)
    weights = np.array([counts[answer] ** -0.5 for answer in answers])
    return weights / weights.sum()


def again(discovered: Sequence[Lesson], images: int, per_image: int, seed: int) -> list[list[str]]:
    """Discovered questions for each of `images` other images, drawn by the `rarity` of the answers they had."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(discovered), size=(images, per_image), p=rarity(discovered))
    return [[discovered[i].question for i in row] for row in drawn]


def chances_of(lessons: Lessons) -> list[Float[np.ndarray, "K"]]:
    """Of each image's lessons the chances, by `rarity` among all."""
    rare = rarity([lesson for row in lessons for lesson in row])
    parts = np.split(rare, np.cumsum([len(row) for row in lessons])[:-1])
    return [part / part.sum() if len(part) else part for part in parts]


def batches(images: np.ndarray, kinds: Sequence[Lessons], encode: Encoder, config: RectifyConfig) -> Iterator[Batch]:
    """Endless batches with equal parts from each kind of lessons; of an image those with a rare answer are preferred.

    An auditor asks most of what surely succeeds, and the target learns a skill only from many lessons: drawn as they
    come, the less frequent would be taught too seldom.

    images: uint8 [N, H, W, 3]. An image takes part if it has a lesson of every kind.
    Raises UserError where too few do.
    """
    rng = np.random.default_rng(config.seed)
    usable = np.array([i for i in range(len(images)) if all(lessons[i] for lessons in kinds)])
    if len(usable) < config.images_per_step:
        raise UserError(
            f"only {len(usable)} images have questions that the references agree on, fewer than a batch of "
            f"{config.images_per_step}; raise --pool or lower --images-per-step"
        )
    share = config.questions_per_image // len(kinds)
    chances = [chances_of(lessons) for lessons in kinds]
    size = config.images_per_step
    while True:
        order = rng.permutation(usable)
        for rows in order[: len(order) // size * size].reshape(-1, size):
            drawn = [
                [
                    lessons[i][k]
                    for lessons, chance in zip(kinds, chances, strict=True)
                    for k in rng.choice(len(lessons[i]), size=share, p=chance[i])
                ]
                for i in rows
            ]
            texts = [[[getattr(lesson, part) for lesson in row] for row in drawn] for part in Lesson._fields]
            yield encode(images[rows], *texts)


def finetuned(target: VLM, data: Iterator[Batch], config: RectifyConfig, name: str, kept: tuple[str, ...] = ()) -> VLM:
    """The target after `config.steps` updates on one arm's data. kept: as `make_optimizer` has it."""
    optimizer = make_optimizer(config.optimizer, config.learning_rate, config.steps, kept)
    trainable = lora.trainable_of(jax.random.key(config.seed), target.params, config.lora_rank)
    frozen = target.params if config.lora_rank else None
    with tqdm(total=config.steps, desc=name, unit="step") as bar:

        def on_step(state, loss: float) -> None:
            bar.update(int(state.step) - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        settings = dict(config=target.config, optimizer=optimizer, remat=config.remat, on_step=on_step)
        state = fit(init_state(trainable, optimizer), frozen, data, config.steps, **settings)
    params = lora.learned(target.params, state.trainable)
    return VLM(params, target.config, target.processor, target.hf_config)


def exam(scenes: bool, images: np.ndarray, lessons: Lessons, config: RectifyConfig) -> Exam:
    """What the target is examined on, before and after.

    Scenes: test questions with true answers, equally over the skills. Other images: the ordinary questions of images
    kept out of both arms, each once, with the consensus for the truth and the question's first words for its skill.
    """
    if scenes:
        test = balanced_set(config.test_questions)
        texts, truths, skills = zip(*test.questions, strict=True)
        return Exam(test.images, np.arange(len(texts)), texts, truths, skills)
    different = [list(dict.fromkeys(row)) for row in lessons]
    owner = np.repeat(np.arange(len(images)), [len(row) for row in different])
    flat = [lesson for row in different for lesson in row]
    if not flat:
        raise UserError(
            f"the references agree on no question about the {len(images)} images kept for the examination; "
            "give more --images or raise --pool"
        )
    questions, truths = zip(*flat, strict=True)
    return Exam(images, owner, questions, truths, [question_label(question) for question in questions])


def rectify(config: RectifyConfig) -> dict:
    """Both arms and their evaluation; writes `rectify/target/` and `rectify/summary.json`, and returns the summary."""
    run = Path(config.out) / config.name
    trained = training_settings(run) or TrainConfig(name=config.name, out=config.out, seed=config.seed)
    trained = replace(trained, models=audited_models(run, trained.models, config))
    dtype = jnp.dtype(trained.dtype)
    target, base = (load_model(name, dtype) for name in (trained.models.target, trained.models.auditor))
    auditor = load_model(trained_auditor(run) or trained.models.auditor, dtype)
    answerer = partial(Answerer.of_run, auditor=base, settings=trained, batch_size=config.batch_size)
    references = [load_model(name, dtype) for name in trained.models.references]
    ensemble = Ensemble([answerer(model) for model in references], trained.reward.agreement)
    size = max(vlm.config.vision.image_size for vlm in (target, base, *references))
    spec = config.images or trained.images or (() if config.discoveries else audited_images(run))
    pool, held = pool_of(spec, "train" if trained.images else "all", size, config), 0
    # Scenes have a size of their own, which the models resample.
    found = discoveries.read(config.discoveries or run / "audit" / "discoveries.parquet", pool.images.shape[1])
    others = len(pool.images)
    if spec:
        pool, unseen = unseen_first(pool, found)
        if not (held := min(max(1, others // 10), unseen)):
            raise UserError(
                "every image of the pool is among the discoveries; give --images that the audit did not see"
            )
    images = np.concatenate([pool.images, found.images[: config.pool]])
    half = config.questions_per_image // 2

    def ask(vlm: VLM, seed: int, count: int) -> list[list[str]]:
        asked = ask_many(
            vlm,
            images,
            seed,
            num_generations=count,
            instruction=trained.instruction,
            max_new_tokens=trained.max_question_tokens,
            batch_size=max(1, config.batch_size // 2),
        )
        return [[question for question in row if question] for row in asked]

    ordinary = ensemble.teach(images, ask(base, config.seed, config.questions_per_image))
    discovered = [Lesson(row.question, row.consensus) for row in found.rows]
    fresh = ask(auditor, config.seed + 1, half)
    repeated = again(discovered, len(images), half, config.seed)
    audited = ensemble.teach(images, [a + b for a, b in zip(fresh, repeated, strict=True)])
    for lessons, lesson in zip(audited[others:], discovered, strict=False):
        lessons.append(lesson)
    test = exam(not spec, images[:held], ordinary[:held], config)

    own = answerer(target)
    # Discoveries may be another run's, with longer texts, and the target's tokens finer than those of the references.
    tokens = lambda text: len(token_ids(target.tokenizer, text))  # noqa: E731
    longest = max((tokens(lesson.question) for lesson in discovered), default=0)
    answers = {lesson.answer for lessons in (*ordinary, *audited) for lesson in lessons}
    encode = Encoder(target, own.template, max(own.max_question, longest), max([own.max_new, *map(tokens, answers)]))
    summary: dict[str, Any] = {"before": test.score(own)}
    arms = {"control": [ordinary[held:]], "after": [ordinary[held:], audited[held:]]}
    for name, kinds in arms.items():
        repaired = finetuned(target, batches(images[held:], kinds, encode, config), config, name)
        summary[name] = test.score(answerer(repaired))
    with atomic_folder(run / "rectify" / "target") as folder:
        repaired.save(folder)
    summary["examples"] = config.steps * config.images_per_step * config.questions_per_image
    summary["seed"], summary["target"] = config.seed, trained.models.target
    summary["skipped"] = {"images": pool.skipped, "discoveries": found.skipped}
    write_json(run / "rectify" / "summary.json", summary)
    print_summary(summary, run)
    return summary


def print_summary(summary: dict, run: Path) -> None:
    """Before, control and after, overall with 95 % intervals and by skill."""
    arms = ("before", "control", "after")
    sizes = f"{summary['before']['n']} test questions, {summary['examples']} examples an arm"
    print(f"\nAccuracy of {one_line(summary['target'])} ({sizes})")
    print(f"{'':22}" + "".join(f"{arm:>22}" for arm in arms))
    overall = [f"{summary[a]['overall']:.3f} [{summary[a]['ci_low']:.3f}, {summary[a]['ci_high']:.3f}]" for a in arms]
    print(f"{'overall':22}" + "".join(f"{cell:>22}" for cell in overall))
    for skill in summary["before"]["per_skill"]:
        print(f"{one_line(skill, 22):22}" + "".join(f"{summary[a]['per_skill'][skill]:>22.3f}" for a in arms))
    for kind, skipped in summary["skipped"].items():
        if skipped:
            print(f"{kind} skipped: {reasons(skipped)}")
    print(f"the repaired target: {run / 'rectify' / 'target'}")
