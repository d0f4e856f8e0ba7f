"""[host] What became of each question that the auditor asked.

A question is a claimed failure where the references share an answer, their consensus, and the target gives
another. It is verified where the truth is known to be the consensus: by the oracle for scenes of the
embedded world, otherwise by the verifier, a model that took no part in training. Questions that could not
be asked or scored have outcomes of their own and are never counted as wrong.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from auditdm_jax.answers import ABSTENTIONS, normalize
from auditdm_jax.reward import votes_needed
from auditdm_jax.scenes.language import UNCLEAR, parse
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.world import Scene
from auditdm_jax.taxonomy import answer_kind, question_label

OUTCOMES = {
    "empty": "nothing was asked",
    "overlong": "what was written did not end within the tokens allowed",
    "spoiled": "the new image was blank, unchanged or shifted",
    "unparsable": "no question of this world (of other images: no question mark)",
    "abstained": "the references share that the question has no answer",
    "no_consensus": "the references do not share an answer",
    "target_unanswered": "the references agree, the target abstains or says nothing",
    "agreed": "the target gives the references' answer",
    "claimed": "the target gives another answer than the references share",
}
"""What can become of a question: exactly one of these, the first that holds. The names are those of training
(`reward.Outcome`), where nobody can tell which questions parse."""

NOT_ASKED = ("empty", "overlong", "spoiled", "unparsable")
"""Of these, what never came to an answer that means something."""

UNREAD = "image not read"
"""Condition of a question about a new image that shows no scene of the world any more."""


class Asked(NamedTuple):
    """What the auditor asked of one image, and by which channel.

    ended: within the tokens allowed, like the command or caption `written` from which a new image was made. old: the
    question was written for the original image. spoiled: why the new image counts for nothing.
    """

    image_id: str
    question: str
    ended: bool = True
    channel: str = "question"
    written: str = ""
    old: bool = False
    spoiled: str = ""


class Answers(NamedTuple):
    """What was answered to one question; the references in the order of the run's settings."""

    target: str
    references: tuple[str, ...]
    verifier: str


class Examined(NamedTuple):
    """A question and what became of it.

    consensus: "" where there is none. oracle_answer: "" without an oracle, or where the scene has no answer.
    answerable: the question has an answer (known to the oracle, or else a consensus), so it counts in the rate of its
    failure type, skill and condition. channel, written, old, spoiled: as `Asked` has them. original_consensus,
    original_target_answer: of an edited image with an old question, what was said of the original.
    """

    image_id: str
    question: str
    target_answer: str
    reference_answers: tuple[str, ...]
    consensus: str
    verifier_answer: str
    oracle_answer: str
    skill: str
    condition: str
    outcome: str
    verified: bool
    answerable: bool
    channel: str = "question"
    written: str = ""
    old: bool = False
    spoiled: str = ""
    original_consensus: str = ""
    original_target_answer: str = ""

    @property
    def claimed(self) -> bool:
        return self.outcome == "claimed"

    @property
    def comparable(self) -> bool:
        """Whether an edit left the references' answer as it was, which the target gave of the original."""
        shared = normalize(self.original_consensus)
        scored = self.outcome in ("agreed", "claimed", "target_unanswered")
        return bool(shared) and scored and shared == normalize(self.consensus) == normalize(self.original_target_answer)

    @property
    def flipped(self) -> bool:
        """Whether such an edit turned the target's answer, or made it say nothing, and not the references'."""
        return self.comparable and self.outcome != "agreed"


def is_answer(text: str) -> bool:
    """Whether something was said, and it is not an abstention."""
    return normalize(text) not in ("", *ABSTENTIONS)


def vote(answer: str) -> str:
    """The form in which answers are counted: normalised, and `UNCLEAR` where none is given."""
    return normalize(answer) if is_answer(answer) else UNCLEAR


def shared_answer(answers: Sequence[str], agreement: float) -> str | None:
    """The most common of the references' answers, as first written, if it has the share `agreement`; else None.

    The rule of `reward.consensus`, on text: answers are compared after normalisation, saying nothing is a vote for
    `UNCLEAR`, and of two that are equally common neither is shared.
    """
    votes = [vote(answer) for answer in answers]
    (winner, count), *others = Counter(votes).most_common(2)
    tied = bool(others) and others[0][1] == count
    if tied or count < votes_needed(agreement, len(answers)):
        return None
    return answers[votes.index(winner)] if winner != UNCLEAR else UNCLEAR


def consensus_of(answers: Sequence[str], agreement: float) -> str:
    """The answer that the references share; "" where they share none, or only that there is none."""
    shared = shared_answer(answers, agreement)
    return shared if shared is not None and shared != UNCLEAR else ""


def examine(
    asked: Asked, answers: Answers, agreement: float, scene: Scene | None = None, unread: bool = False
) -> Examined:
    """What became of one question. scene: the truth, where it is known. unread: the new image was one of the world's
    scenes, and shows none now: the verifier judges, and the question's own words name its skill."""
    consensus = consensus_of(answers.references, agreement)
    shared = normalize(consensus)
    truth, answerable, confirmed = "", bool(consensus), normalize(answers.verifier) == shared
    if unread:
        found = parse(asked.question)
        parsed, skill, condition = found is not None, found[0] if found else "", UNREAD
    elif scene is None:
        parsed, skill, condition = "?" in asked.question, question_label(asked.question), answer_kind(consensus)
    else:
        status, truth, skill, condition = judge(asked.question, scene)
        parsed, answerable = status != "unparsable", status == "answered"
        confirmed = answerable and normalize(truth) == shared
    asks = {
        "empty": not normalize(asked.question) or (asked.channel != "question" and not asked.written),
        "overlong": not asked.ended,
        "spoiled": asked.spoiled,
        "unparsable": not parsed,
    }
    scores = {
        "abstained": not consensus and shared_answer(answers.references, agreement) is not None,
        "no_consensus": not consensus,
        "target_unanswered": not is_answer(answers.target),
        "agreed": normalize(answers.target) == shared,
    }
    outcome = next((name for name, holds in (asks | scores).items() if holds), "claimed")
    return Examined(
        asked.image_id,
        asked.question,
        answers.target,
        answers.references,
        consensus,
        answers.verifier,
        truth,
        skill,
        condition,
        outcome,
        verified=outcome == "claimed" and confirmed,
        answerable=answerable and outcome not in asks,
        channel=asked.channel,
        written=asked.written,
        old=asked.old,
        spoiled=asked.spoiled,
    )
