"""[host] The examination of a planted target: did the gaps take, and is everything beside them as it was?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from auditdm_jax.answers import normalize
from auditdm_jax.errors import UserError
from auditdm_jax.evals import Answerer
from auditdm_jax.models.vlm import VLM
from auditdm_jax.scenes.dataset import balanced_set, scenes_of
from auditdm_jax.scenes.gaps import UNLEARNED, gap_of, types_of, wrong_answer
from auditdm_jax.scenes.language import SKILLS
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Asker, Question
from auditdm_jax.scenes.world import Scene

TOLERANCE = 0.1
"""How far the share of wrong answers in a gap may be from the strength, but not further than half of it."""
STUDENT = 0.03
"""How far what is learned is from what is taught, about."""
MAX_DROP = 0.03
"""What any skill may lose outside of the gaps, as a share of its questions..."""
CHANCE = 3
"""...and the most questions that it may, however few it has."""
GAP_QUESTIONS = 200
"""Test questions in each gap."""
AT_CHANCE = 5
"""How many times the questions of another skill are asked of each that is answered at chance: of few of these, 3 points
are lost by chance."""
_TRIES = 12
# The first of the seeds of scenes that nothing else shows.
_SCENES = 60_000_000_000
_SCENES_ENOUGH = 2000
"""Scenes in a row without a question in a gap, after which there is none to be had."""


class Refused(UserError):
    """A planting that cannot be, or that did not come out as it should."""


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


def further(name: str, gaps: Sequence[str], count: int, first: int) -> list[tuple[Asked, UInt8[np.ndarray, "1 H W 3"]]]:
    """Up to `count` questions in a gap, or of a skill beside the gaps, each with its image; fewer where there are no
    more. first: the first scene."""
    found: list[tuple[Asked, np.ndarray]] = []
    last = first + _SCENES_ENOUGH
    while len(found) < count and first < last:
        (scene,), image = scenes_of("test", first, 1)
        question = near(Asker(scene, np.random.default_rng(first)), name, "test")
        first += 1
        if question and (gap := gap_of(question, scene, gaps)) == (name if name in gaps else ""):
            found.append((Asked(question, scene, gap), image))
            last = first + _SCENES_ENOUGH
    return found


class Exam:
    """Test questions of all skills, further ones in the gaps, and of the skills that are answered at chance."""

    def __init__(self, gaps: Sequence[str], count: int):
        test = balanced_set(count)
        self.asked = [Asked(q, s, gap_of(q, s, gaps)) for q, s in zip(test.questions, test.scenes, strict=True)]
        wanted = {gap: GAP_QUESTIONS - sum(asked.gap == gap for asked in self.asked) for gap in gaps}
        wanted |= dict.fromkeys(UNLEARNED, (AT_CHANCE - 1) * count // len(SKILLS))
        images = [test.images]
        for number, (name, missing) in enumerate(wanted.items()):
            found = further(name, gaps, missing, _SCENES + number * 1_000_000)
            if name in gaps and len(found) < missing:
                raise UserError(
                    f"of {name!r} no question is left by the gaps named before it; name it first, or leave it out"
                )
            self.asked += [asked for asked, _ in found]
            images += [image for _, image in found]
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


def losses(exam: Exam, before: Bool[np.ndarray, "N"], after: Bool[np.ndarray, "N"]) -> dict[str, tuple[int, int]]:
    """For each skill, outside of the gaps: questions lost, less those won, and of how many."""
    found = {}
    for skill in sorted({asked.question.skill for asked in exam.asked}):
        rows = np.array([asked.question.skill == skill and not asked.gap for asked in exam.asked])
        if rows.any():
            found[skill] = int(after[rows].sum()) - int(before[rows].sum()), int(rows.sum())
    return found


def check_taught(exam: Exam, gaps: Sequence[str], strength: float, seed: int) -> None:
    """Raises Refused where the lessons of a seed teach so many wrong answers, or so few, that no student can pass."""
    for gap in gaps:
        asked = [each for each in exam.asked if each.gap == gap]
        wrong = [wrong_answer(q, scene, gap, strength, seed) != q.answer for q, scene, _ in asked]
        if _off(rate := float(np.mean(wrong)), strength) > STUDENT:
            raise Refused(
                f"seed {seed} teaches {rate:.2f} of {gap!r} wrong, not {strength}; take another --seed or --strength"
            )


def _off(rate: float, strength: float) -> float:
    """How far a rate is outside of what is tolerated; 0 or less: it is inside."""
    return abs(rate - strength) - min(TOLERANCE, strength / 2)


def refusal(gaps: Sequence[dict[str, Any]], lost: Mapping[str, tuple[int, int]], strength: float) -> str:
    """Why a planting did not take, or what it damaged beside its gaps; "" for one that is as it should be."""
    for gap in gaps:
        if _off(gap["rate"], strength) > 0:
            return (
                f"the planting did not take: the target gets {gap['rate']:.2f} of {gap['name']!r} wrong, not {strength}"
            )
    for skill, (count, n) in lost.items():
        if count > max(MAX_DROP * n, CHANCE):
            return f"the planting damaged {skill!r}: {count / n:.1%} of it are lost outside of the gaps"
    return ""
