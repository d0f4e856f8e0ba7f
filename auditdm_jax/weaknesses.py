"""[host] Which weaknesses an audit stands behind: where the target errs more often than every reference does.

Target and references answered the very same questions, so the comparison is paired, as in McNemar's test (1947). Of
the questions of a type, let b be those that the target gets wrong and a reference right, and c the reverse. A target
that is no worse than the reference has b ~ Binomial(b + c, at most 1/2), however hard the questions are and whoever
chose them; what all models find hard, and noise, is in both counts. The tail is the same where questions are asked
until b has some value, and an audit asks of a topic until it has brought enough (`choice.py`). A type is a weakness if,
against each reference,

    P(Binomial(b + c, 1/2) >= b) <= ALPHA / K        and        excess = (b - c) / n >= MATERIAL

K is Tarone's (1990): types in which no reference has discordant answers enough to reach the level are not counted among
those tested. The level holds for the chance of any false weakness of a target that has none; the second condition
leaves out what is certain and small. Right and wrong are the oracle's to say, or else the verifier's; who says nothing
is neither. All questions that the judge answers count, whether or not the references share an answer: where they do
they are right more often than each of them is, and the target would not have that advantage.

Types overlap (a skill, its conditions, concepts), and one gap shows in many. So they are found one by one, each time
the one that explains most, and its questions are set aside before the rest is tested again. A skill is named only where
all of its conditions fail, else those that do.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.special import bdtrc, xlogy

from auditdm_jax.answers import normalize
from auditdm_jax.outcomes import NOT_ASKED, UNREAD, Examined, is_answer
from auditdm_jax.scenes.gaps import types_of
from auditdm_jax.taxonomy import answer_kind

ALPHA = 0.05
"""Chance, at most, that an audit of a target without weaknesses names one."""
MATERIAL = 0.1
"""Share of a type's questions that the target gets wrong beyond the worst reference, at least."""
ENOUGH = 10
"""Questions of a condition that can speak against its skill."""


class Paired(NamedTuple):
    """Who was right and who wrong on N questions; who said nothing is neither."""

    target_right: Bool[np.ndarray, "N"]
    target_wrong: Bool[np.ndarray, "N"]
    references_right: Bool[np.ndarray, "R N"]
    references_wrong: Bool[np.ndarray, "R N"]


class Weakness(NamedTuple):
    """n: questions of the type that no type found before explains; failures: those that the target gets wrong; excess:
    share of them beyond the worst reference's, in [-1, 1]; p_value: of no excess, before the correction."""

    name: str
    n: int
    failures: int
    excess: float
    p_value: float


def weaknesses(rows: Sequence[Examined], oracle: bool) -> list[Weakness]:
    """The weaknesses that an audit's rows show, those that explain most first. oracle: whether one judges."""
    asked = [row for row in rows if row.outcome not in NOT_ASKED and row.skill and row.condition != UNREAD]
    if not oracle:  # a question's condition is the kind of its answer
        asked = [
            row._replace(oracle_answer=row.verifier_answer, condition=answer_kind(row.verifier_answer)) for row in asked
        ]
    judged = [(row, row.oracle_answer) for row in asked if is_answer(row.oracle_answer)]
    if not judged or not all(row.reference_answers for row, _ in judged):
        return []
    members: dict[str, np.ndarray] = {}
    for number, (row, truth) in enumerate(judged):
        for name in types_of(row.skill, row.condition, row.question, truth):
            members.setdefault(name, np.zeros(len(judged), bool))[number] = True
    return find(paired(judged), members)


def paired(judged: Sequence[tuple[Examined, str]]) -> Paired:
    """Questions with their true answers -> who was right and who wrong."""
    said = np.array([[normalize(text) for text in (row.target_answer, *row.reference_answers)] for row, _ in judged]).T
    right = said == np.array([normalize(truth) for _, truth in judged])
    wrong = np.array([[is_answer(text) for text in texts] for texts in said]) & ~right
    return Paired(right[0], wrong[0], right[1:], wrong[1:])


def find(
    answers: Paired, members: Mapping[str, Bool[np.ndarray, "N"]], alpha: float = ALPHA, material: float = MATERIAL
) -> list[Weakness]:
    """members: for each type its questions. Names are "skill", "skill/condition", or a concept's."""
    floor = (answers.references_wrong.sum() + 1) / (answers.references_wrong.size + 1)
    left = np.ones(len(answers.target_right), bool)
    found: list[Weakness] = []
    while True:
        pairs = [compared(answers, questions & left, name) for name, questions in members.items()]
        tests, level = {test.name: test for test, _ in pairs}, alpha / tarone([most for _, most in pairs], alpha)
        standing = [
            test
            for test in tests.values()
            if test.p_value <= level and test.excess >= material and _throughout(test.name, tests, material)
        ]
        if not standing:
            return found
        found.append(max(standing, key=lambda test: (evidence(test, floor), test.name)))
        left &= ~members[found[-1].name]


def compared(answers: Paired, questions: Bool[np.ndarray, "N"], name: str = "") -> tuple[Weakness, int]:
    """The target beside the reference that tells least against it, and the most questions on which it and a reference
    differ in being right. The most: the fewest would depend on how the target errs, and the level would not hold."""
    b = (answers.target_wrong & answers.references_right & questions).sum(1)
    c = (answers.target_right & answers.references_wrong & questions).sum(1)
    n = int(questions.sum())
    excess = float((b - c).min() / n) if n else 0.0
    failures = int((answers.target_wrong & questions).sum())
    return Weakness(name, n, failures, excess, float(bdtrc(b - 1, b + c, 0.5).max())), int((b + c).max())


def tarone(discordant: Sequence[int], alpha: float) -> int:
    """Tarone's K: the least k such that at most k types could reach the level alpha / k, as those can with
    2^-discordant <= alpha / k; 1 or more."""
    least = np.sort(0.5 ** np.array(discordant, float))
    return next(k for k in range(1, len(least) + 2) if np.searchsorted(least, alpha / k, "right") <= k)


def evidence(test: Weakness, floor: float) -> float:
    """How much a type explains: the log-likelihood ratio of a Poisson count of its excess failures to that of `floor`
    for each question, as in an expectation-based scan statistic (Neill 2009)."""
    count, expected = test.excess * test.n, floor * test.n
    return float(xlogy(count, count / expected) - count + expected) if count > expected else 0.0


def _throughout(name: str, tests: Mapping[str, Weakness], material: float) -> bool:
    """Whether every condition of a skill with questions enough fails materially; true of all that has none."""
    conditions = (test for other, test in tests.items() if other.startswith(f"{name}/"))
    return all(test.excess >= material for test in conditions if test.n >= ENOUGH)
