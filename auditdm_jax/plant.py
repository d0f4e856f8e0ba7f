"""[host] Targets with weaknesses planted on purpose, so that an audit can be measured by how it finds them.

    python -m auditdm_jax.plant --skills counting,clock --strength 0.8 --seed 7 --out DIR
    python -m auditdm_jax.plant --list
    python -m auditdm_jax.plant score DIR RUN

A healthy model of the zoo is fine-tuned for a short while on questions of all skills with their true answers, except in
the gaps: there it learns answers that are wrong, always in the same way (`scenes.gaps`). A quarter of the questions are
drawn around the gaps; those of them that miss, being of the same skill, keep what lies beside a gap healthy.
DIR is a checkpoint as any other. `answer_key.json` in it is for the scorer alone.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Bool
from scipy.special import bdtrc

from auditdm_jax.answers import normalize
from auditdm_jax.config import RectifyConfig
from auditdm_jax.errors import UserError, one_line, run_cli
from auditdm_jax.evals import Answerer
from auditdm_jax.files import atomic_folder, write_json
from auditdm_jax.finetune import Batch, Encoder
from auditdm_jax.models.vlm import VLM
from auditdm_jax.plant_score import KEY, ScoreConfig, score_run
from auditdm_jax.prompts import template_for
from auditdm_jax.rectify import finetuned
from auditdm_jax.scenes.dataset import balanced_set, scenes_of
from auditdm_jax.scenes.gaps import NAMES, checked, gap_of, types_of, wrong_answer
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Asker, Question
from auditdm_jax.scenes.world import Scene
from auditdm_jax.scenes.zoo_paths import load_model

UNANSWERABLE = 0.12
"""As for the references, which must not forget to abstain."""
TOLERANCE = 0.1
"""How far the share of wrong answers in a gap may be from the strength."""
MAX_DROP = 0.03
"""What any skill may lose outside of the gaps."""
GAP_QUESTIONS = 200
"""Test questions in each gap."""
_TRIES = 6
# Seeds of scenes that nothing else shows.
_TRAIN_SCENES, _TEST_SCENES = 50_000_000_000, 60_000_000_000


@dataclass(frozen=True)
class PlantConfig:
    """Make a target with chosen weaknesses from a healthy model; `score DIR RUN` compares an audit with them."""

    skills: str = ""
    """Gaps, separated by commas: skills, skills in a condition, concepts."""
    strength: float = 0.8
    """Share of a gap's questions that the target gets wrong."""
    seed: int = 0
    """Seeds the lessons, and which wrong answers are learned."""
    out: str = ""
    """Directory for the target."""
    list: bool = False
    """Print the names of all gaps, one a line, and do nothing else."""
    base: str = "reference-b"
    """The healthy model: a zoo name or a directory."""
    steps: int = 300
    """Updates."""
    images_per_step: int = 16
    questions_per_image: int = 8
    learning_rate: float = 3e-3
    """Peak of the learning rate (Muon)."""
    test_questions: int = 3000
    """Test questions, in equal numbers over the skills, beside those in each gap."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(f"strength is {self.strength}: it is a share, above 0 and at most 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: it must be 0 or more")
        for name in ("steps", "images_per_step", "test_questions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.questions_per_image < 4:
            raise UserError(f"questions-per-image is {self.questions_per_image}: it must be 4 or more")

    def gaps(self) -> tuple[str, ...]:
        """The names in `skills`. Raises UserError for none, or an unknown one."""
        if not (names := [name.strip() for name in self.skills.split(",") if name.strip()]):
            raise UserError("skills is empty: name gaps, separated by commas; --list prints all")
        return checked(names)


class Asked(NamedTuple):
    """A question with its scene; gap: the one it lies in, or ""."""

    question: Question
    scene: Scene
    gap: str


def near(asker: Asker, gap: str, split: str) -> Question | None:
    """A question in a gap, or else one of its skill; None where the scene allows neither."""
    skill, drawn = gap.split("/")[0], None
    for _ in range(_TRIES):
        new = asker.draw("uniform", split) if skill == "concept" else asker.ask(skill, split)
        drawn = new or drawn
        if new and gap_of(new, asker.scene, (gap,)):
            break
    return drawn


def batches(encode: Encoder, gaps: Sequence[str], config: PlantConfig) -> Iterator[Batch]:
    """Endless batches of questions with what the planted model shall answer."""
    rng = np.random.default_rng(config.seed)
    focus = config.questions_per_image // 4
    for first in range(_TRAIN_SCENES + config.seed * 100_000_000, sys.maxsize, config.images_per_step):
        scenes, images = scenes_of("train", first, config.images_per_step)
        rows = []
        for scene in scenes:
            asker = Asker(scene, rng)
            drawn = [near(asker, gaps[i], "train") for i in rng.integers(len(gaps), size=focus)]
            row = [question for question in drawn if question]
            row += [asker.draw("uniform", "train", UNANSWERABLE) for _ in range(config.questions_per_image - len(row))]
            rows.append([(question, gap_of(question, scene, gaps), scene) for question in row])
        answers = [
            [wrong_answer(q, scene, gap, config.strength, config.seed) if gap else q.answer for q, gap, scene in row]
            for row in rows
        ]
        yield encode(images, [[q.text for q, _, _ in row] for row in rows], answers)


class Exam:
    """Test questions of all skills, and further ones in the gaps."""

    def __init__(self, gaps: Sequence[str], count: int):
        test = balanced_set(count)
        self.asked = [Asked(q, s, gap_of(q, s, gaps)) for q, s in zip(test.questions, test.scenes, strict=True)]
        images = [test.images]
        for number, gap in enumerate(gaps):
            missing = GAP_QUESTIONS - sum(asked.gap == gap for asked in self.asked)
            first = _TEST_SCENES + number * 1_000_000
            while missing > 0:
                (scene,), image = scenes_of("test", first, 1)
                question = near(Asker(scene, np.random.default_rng(first)), gap, "test")
                first += 1
                if question and gap_of(question, scene, gaps) == gap:
                    self.asked.append(Asked(question, scene, gap))
                    images.append(image)
                    missing -= 1
        self.images = np.concatenate(images)
        self.balanced = count

    def wrong(self, vlm: VLM) -> Bool[np.ndarray, "N"]:
        """Which questions a model gets wrong."""
        said = Answerer(vlm)(self.images, [asked.question.text for asked in self.asked], "examining")
        truths = [asked.question.answer for asked in self.asked]
        return np.array([normalize(s) != normalize(t) for s, t in zip(said, truths, strict=True)])

    def of_gap(self, gap: str) -> Bool[np.ndarray, "N"]:
        return np.array([asked.gap == gap for asked in self.asked])

    def types(self) -> dict[str, list[int]]:
        """Name of a type -> its questions among those in equal numbers over the skills, and all that are in a gap of
        this name."""
        found: dict[str, list[int]] = {}
        for i, (question, scene, gap) in enumerate(self.asked):
            condition = judge(question.text, scene).condition
            for name in types_of(question.skill, condition, question.text, question.answer):
                if i < self.balanced or name == gap:
                    found.setdefault(name, []).append(i)
        return found


def losses(exam: Exam, before: Bool[np.ndarray, "N"], after: Bool[np.ndarray, "N"]) -> dict[str, tuple[float, float]]:
    """For each skill, outside of the gaps: the share of questions lost, and the chance of as many if none were
    (one-sided sign test)."""
    found = {}
    for skill in sorted({asked.question.skill for asked in exam.asked}):
        rows = np.array([asked.question.skill == skill and not asked.gap for asked in exam.asked])
        if rows.any():
            lost, won = int((after & ~before & rows).sum()), int((before & ~after & rows).sum())
            found[skill] = ((lost - won) / int(rows.sum()), float(bdtrc(lost - 1, lost + won, 0.5)))
    return found


def check(gaps: Sequence[dict[str, Any]], drops: dict[str, tuple[float, float]], strength: float) -> None:
    """Raises UserError for a planting that did not take, or that damaged what lies beside it."""
    hint = "raise --steps or take another --seed"
    for gap in gaps:
        if abs(gap["rate"] - strength) > TOLERANCE:
            raise UserError(
                f"the planting did not take: the target gets {gap['rate']:.2f} of {gap['name']!r} wrong, not "
                f"{strength}; {hint}"
            )
    for skill, (drop, chance) in drops.items():
        if drop > MAX_DROP and chance < 0.05:
            raise UserError(f"the planting damaged {skill!r}: {drop:.1%} of it are lost outside of the gaps; {hint}")


def plant(config: PlantConfig) -> dict[str, Any]:
    """Makes the target, examines it, writes it with its answer key, and returns the key."""
    gaps = config.gaps()
    if not config.out:
        raise UserError("out is empty: name a directory for the target")
    if (out := Path(config.out)).exists() and not (out / KEY).exists():
        raise UserError(f"{one_line(out)} is there and is no planted target; choose another --out")
    started = time.monotonic()
    healthy, exam = load_model(config.base), Exam(gaps, config.test_questions)
    before = exam.wrong(healthy)
    for gap in gaps:
        if (rate := before[exam.of_gap(gap)].mean()) > config.strength / 2:
            raise UserError(f"{one_line(config.base)} gets {rate:.2f} of {gap!r} wrong already; take another --base")
    encode = Encoder(healthy, template_for(healthy), max_question_tokens=12, max_answer_tokens=2)
    training = RectifyConfig(steps=config.steps, learning_rate=config.learning_rate, seed=config.seed)
    planted = finetuned(healthy, batches(encode, gaps, config), training, "planting")
    after = exam.wrong(planted)
    drops = losses(exam, before, after)
    rates = [
        {"name": name, "n": len(rows), "healthy_rate": before[rows].mean(), "rate": after[rows].mean()}
        for name, rows in exam.types().items()
    ]
    key = {
        "gaps": [kind for gap in gaps for kind in rates if kind["name"] == gap],
        "strength": config.strength,
        "seed": config.seed,
        "base": config.base,
        "types": rates,
        "drops": {skill: drop for skill, (drop, _) in drops.items()},
        "steps": config.steps,
        "seconds": time.monotonic() - started,
    }
    check(key["gaps"], drops, config.strength)
    with atomic_folder(out) as folder:
        planted.save(folder)
        write_json(folder / KEY, key)
    return key


def main() -> None:
    if sys.argv[1:2] == ["score"]:
        score_run(tyro.cli(ScoreConfig, description=ScoreConfig.__doc__, args=sys.argv[2:]))
        return
    config = tyro.cli(PlantConfig, description=PlantConfig.__doc__)
    if config.list:
        print("\n".join(NAMES))
        return
    key = plant(config)
    for gap in key["gaps"]:
        print(f"{gap['name']}: {gap['healthy_rate']:.3f} wrong before, {gap['rate']:.3f} now ({gap['n']} questions)")
    skill, drop = max(key["drops"].items(), key=lambda item: item[1])
    print(f"largest loss elsewhere: {skill}, {drop:.3f}; {key['seconds']:.0f} s")
    print(f"the target: {one_line(config.out)}")


if __name__ == "__main__":
    run_cli(main)
