"""[host] Targets with weaknesses planted on purpose, so that an audit can be measured by how it finds them.

    python -m auditdm_jax.plant --skills counting,clock --strength 0.8 --seed 7 --out DIR
    python -m auditdm_jax.plant --list
    python -m auditdm_jax.plant score DIR RUN

A healthy model of the zoo is fine-tuned for a short while on questions of all skills with their true answers, except in
the gaps: there it learns answers that are wrong, always in the same way (`scenes.gaps`). A quarter of the questions, or
three where a concept is among the gaps, are drawn around them; those that miss, being of the same skill, keep what lies
beside a gap healthy. The vision tower stays as it is: only what is said of what it sees becomes wrong, and counting,
which is the first to suffer, loses least.
DIR is a checkpoint as any other. `answer_key.json` in it is for the scorer alone.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

import auditdm_jax.cli  # noqa: F401 - sets what JAX reads when it is imported

# isort: split
from auditdm_jax.config import RectifyConfig
from auditdm_jax.errors import UserError, at_least_one, check_seed, one_line, run_cli
from auditdm_jax.files import atomic_folder, write_json
from auditdm_jax.finetune import Batch, Encoder
from auditdm_jax.huge_pages import with_huge_pages
from auditdm_jax.places import at_home
from auditdm_jax.plant_exam import Exam, Refused, check_taught, losses, near, refusal
from auditdm_jax.plant_score import KEY, ScoreConfig, score_run
from auditdm_jax.prompts import template_for
from auditdm_jax.rectify import finetuned
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.gaps import NAMES, checked, gap_of, wrong_answer
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.zoo_paths import load_model

UNANSWERABLE = 0.12
"""As for the references, which must not forget to abstain."""
CONCEPT = 3
"""How many times a skill's lessons a concept has: it is in the questions of all skills, and must be learned in each."""
# The first of the seeds of scenes that nothing else shows.
_SCENES = 50_000_000_000


@dataclass(frozen=True)
class PlantConfig:
    """Make a target with chosen weaknesses from a healthy model; `score DIR RUN` compares an audit with them."""

    skills: str = ""
    """Gaps, separated by commas: skills, skills in a condition, concepts; "none" makes a healthy clone."""
    strength: float = 0.8
    """Share of a gap's questions that the target gets wrong."""
    seed: int = 0
    """Seeds the lessons, and which wrong answers are learned."""
    out: str = ""
    """Directory for the target."""
    overwrite: bool = False
    """Replace the planted target that is there."""
    list: bool = False
    """Print the names of all gaps, one a line, and do nothing else."""
    base: str = "reference-b"
    """The healthy model: a zoo name or a directory."""
    steps: int = 600
    """Updates."""
    images_per_step: int = 16
    questions_per_image: int = 8
    learning_rate: float = 5e-3
    """Peak of the learning rate (Muon)."""
    test_questions: int = 6000
    """Test questions, in equal numbers over the skills, beside those in each gap."""

    def __post_init__(self) -> None:
        at_home(self, "out")
        if not 0 < self.strength <= 1:
            raise UserError(f"strength is {self.strength}: it is a share, above 0 and at most 1")
        check_seed(self.seed)
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning-rate is {self.learning_rate}: it must be above 0")
        at_least_one(self, "steps", "images_per_step", "test_questions")
        if self.questions_per_image < 4:
            raise UserError(f"questions-per-image is {self.questions_per_image}: it must be 4 or more")

    def gaps(self) -> tuple[str, ...]:
        """The names in `skills`; () for "none". Raises UserError for an empty list, or an unknown name."""
        if self.skills == "none":
            return ()
        if not (names := [name.strip() for name in self.skills.split(",") if name.strip()]):
            raise UserError("skills is empty: name gaps, separated by commas; --list prints all")
        return checked(names)


def batches(encode: Encoder, gaps: Sequence[str], config: PlantConfig) -> Iterator[Batch]:
    """Endless batches of questions with what the planted model shall answer."""
    rng = np.random.default_rng(config.seed)
    wanted = [gap for gap in gaps for _ in range(CONCEPT if gap.startswith("concept/") else 1)]
    focus = config.questions_per_image * max(map(wanted.count, wanted), default=0) // 4
    for first in range(_SCENES + config.seed * 100_000_000, sys.maxsize, config.images_per_step):
        scenes, images = scenes_of("train", first, config.images_per_step)
        rows = []
        for scene in scenes:
            asker = Asker(scene, rng)
            chosen = rng.integers(max(1, len(wanted)), size=focus)
            drawn = [near(asker, wanted[i], "train") for i in chosen]
            row = [question for question in drawn if question]
            row += [asker.draw("uniform", "train", UNANSWERABLE) for _ in range(config.questions_per_image - len(row))]
            rows.append([(question, gap_of(question, scene, gaps), scene) for question in row])
        answers = [
            [wrong_answer(q, scene, gap, config.strength, config.seed) if gap else q.answer for q, gap, scene in row]
            for row in rows
        ]
        yield encode(images, [[q.text for q, _, _ in row] for row in rows], answers)


def plant(config: PlantConfig) -> dict[str, Any]:
    """Makes the target, examines it, writes it with its answer key, and returns the key."""
    gaps = config.gaps()
    if not config.out:
        raise UserError("out is empty: name a directory for the target")
    if (out := Path(config.out)).exists() and not (out / KEY).exists():
        raise UserError(f"{one_line(out)} is there and is no planted target; choose another --out")
    if out.exists() and not config.overwrite:
        raise UserError(f"{one_line(out)} holds a planted target; give --overwrite, or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent):
        pass  # told before the work, not after it
    started = time.monotonic()
    healthy, exam = load_model(config.base), Exam(gaps, config.test_questions)
    check_taught(exam, gaps, config.strength, config.seed)
    before = exam.wrong(healthy)
    for gap in gaps:
        if (rate := before[exam.of_gap(gap)].mean()) > config.strength / 2:
            raise Refused(f"{one_line(config.base)} gets {rate:.2f} of {gap!r} wrong already; take another --base")
    encode = Encoder(healthy, template_for(healthy), max_question_tokens=12, max_answer_tokens=2)
    training = RectifyConfig(steps=config.steps, learning_rate=config.learning_rate, seed=config.seed)
    planted = finetuned(healthy, batches(encode, gaps, config), training, "planting", kept=("vision",))
    after = exam.wrong(planted)
    lost = losses(exam, before, after)
    rates = [
        {"name": name, "n": len(rows), "healthy_rate": before[rows].mean(), "rate": after[rows].mean()}
        for name, rows in exam.types().items()
    ]
    taken = [kind for gap in gaps for kind in rates if kind["name"] == gap]
    if refused := refusal(taken, lost, config.strength):
        raise Refused(f"after {config.steps} updates {refused}; raise --steps or take another --seed")
    key: dict[str, Any] = {
        "gaps": taken,
        "strength": config.strength,
        "seed": config.seed,
        "base": config.base,
        "types": rates,
        "drops": {skill: count / n for skill, (count, n) in lost.items()},
        "steps": config.steps,
        "seconds": time.monotonic() - started,
    }
    with atomic_folder(out) as folder:
        planted.save(folder)
        write_json(folder / KEY, key)
    return key


def main() -> None:
    if sys.argv[1:2] == ["score"]:
        score_run(tyro.cli(ScoreConfig, prog="plant score", description=ScoreConfig.__doc__, args=sys.argv[2:]))
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
    with_huge_pages()
    run_cli(main)
