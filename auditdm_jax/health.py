"""[host] Whether the references are fit to judge: how they agree, how often all are wrong, who is whose clone.

Agreement is evidence only between models that err apart. Two models that also give the same answer where they are
wrong count as one (error consistency: Geirhos, Meding, Wichmann, arXiv:2006.16736).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import jax

from auditdm_jax.errors import one_line
from auditdm_jax.outcomes import UNREAD, Examined, is_answer, shared_answer, vote
from auditdm_jax.taxonomy import Rate, interval, rate_of

CLONE_SHARE = 0.8
"""Two models are clones where, at 95 % confidence, they give the same answer to more than this share of the questions
that one of them gets wrong: 16 questions are the fewest that can show it."""


def reference_health(
    rows: Sequence[Examined], target: str, references: Sequence[str], agreement: float, oracle: bool
) -> dict[str, Any]:
    """The numbers of summary.json, each a share with its 95 % Wilson interval.

    consensus_wrong: of the answers that the references share, those that the judge contradicts; unanswerable,
    unparsable: how many of these are to questions that the oracle says have no answer, or cannot read, which may make
    sense all the same. The judge is the oracle, or the verifier where there is none.
    leave_one_out: of the questions on which the other references share an answer, or that there is none, those where
    this one says the same. pairs: of all questions, and of those that one of the two gets wrong, those that both answer
    alike, the target's pairs among them. Wrong is there what is known to be: not what a verifier says nothing of, or
    says alone against all models, nor an answer to what the oracle cannot read.
    """
    asked = [row for row in rows if row.outcome not in ("empty", "overlong", "spoiled")]
    truths = [_truth(row, oracle) for row in asked]
    shared = [(row, truth) for row, truth in zip(asked, truths, strict=True) if row.consensus]
    wrong = [row for row, truth in shared if vote(row.consensus) != truth]
    answers = {
        (number, name): [vote(row.reference_answers[number]) for row in asked] for number, name in enumerate(references)
    }
    named = {(-1, target): [vote(row.target_answer) for row in asked], **answers}

    def known(pair: set) -> list[str | None]:
        others = [said for key, said in named.items() if key not in pair]
        return [_known(row, oracle, [said[i] for said in others]) for i, row in enumerate(asked)]

    return {
        "judged_by": "oracle" if oracle else "verifier",
        "consensus_wrong": rate_of(len(wrong), len(shared))._asdict(),
        "unanswerable": sum(_unanswerable(row) for row in wrong) if oracle else 0,
        "unparsable": sum(row.outcome == "unparsable" for row in wrong) if oracle else 0,
        "leave_one_out": [
            {"name": name} | _leave_one_out(said, [v for k, v in answers.items() if k[0] != number], agreement)
            for (number, name), said in answers.items()
            if len(references) > 1
        ],
        "pairs": [
            {"models": [one[1], other[1]]} | _alike(named[one], named[other], known({one, other}))
            for one, other in combinations(named, 2)
        ],
    }


def _unanswerable(row: Examined) -> bool:
    return not row.answerable and row.outcome != "unparsable" and row.condition != UNREAD


def _truth(row: Examined, oracle: bool) -> str:
    """What the judge says: that there is no answer, too."""
    return vote(row.oracle_answer if oracle and row.condition != UNREAD else row.verifier_answer)


def _known(row: Examined, oracle: bool, others: Sequence[str]) -> str | None:
    """What is known to be true, None for nothing. others: what all models say but the two that are compared."""
    if oracle and row.condition != UNREAD:
        return None if row.outcome == "unparsable" else vote(row.oracle_answer)
    said = vote(row.verifier_answer)
    return said if is_answer(said) and (not others or said in others) else None


def _leave_one_out(said: Sequence[str], others: Sequence[Sequence[str]], agreement: float) -> dict[str, Any]:
    consensus = [shared_answer(answers, agreement) for answers in zip(*others, strict=True)]
    same = [answer == wanted for answer, wanted in zip(said, consensus, strict=True) if wanted is not None]
    return rate_of(sum(same), len(same))._asdict()


def _alike(one: Sequence[str], other: Sequence[str], truths: Sequence[str | None]) -> dict[str, Any]:
    said = list(zip(one, other, truths, strict=True))
    same = [a == b for a, b, _ in said]
    wrong = [a == b for a, b, truth in said if truth is not None and not a == b == truth]
    at_errors = rate_of(sum(wrong), len(wrong))
    return {
        "same": rate_of(sum(same), len(same))._asdict(),
        "same_where_wrong": at_errors._asdict(),
        "clones": at_errors.ci_low > CLONE_SHARE,
    }


def health_lines(health: dict[str, Any]) -> Iterator[str]:
    """For the terminal: one line on the references, and a warning for each pair of clones."""
    wrong = Rate(**health["consensus_wrong"])
    if wrong.rate is not None:
        kinds = [f"{health[name]} {name}" for name in ("unanswerable", "unparsable") if health[name]]
        yield (
            f"references: the {health['judged_by']} contradicts {wrong.count} of {wrong.n} shared answers, "
            f"{interval(wrong)}" + (f" (questions: {', '.join(kinds)})" if kinds else "")
        )
    rated = [each for each in health["leave_one_out"] if each["rate"] is not None]
    if rated:
        shares = ", ".join(f"{one_line(each['name'], 40)} {each['rate']:.3f}" for each in rated)
        yield f"references: agreement of each with the others: {shares}"
    for pair in health["pairs"]:
        if pair["clones"]:
            one, other = (one_line(name, 40) for name in pair["models"])
            alike = pair["same_where_wrong"]
            yield (
                f"warning: {one} and {other} answer alike in {alike['count']} of the {alike['n']} questions that one "
                "of them gets wrong: they count as one model, replace one of them"
            )


def weight_warnings(names: Sequence[str], params: Sequence[Any]) -> Iterator[str]:
    """A line for each pair of models whose pytrees of parameters are equal. Different models differ in their first
    arrays, so only copies are read whole."""

    def equal(one: Any, other: Any) -> bool:
        leaves, others = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
        return len(leaves) == len(others) and all(
            path == place and a.shape == b.shape and bool((a == b).all())
            for (path, a), (place, b) in zip(leaves, others, strict=True)
        )

    for one, other in combinations(range(len(names)), 2):
        if equal(params[one], params[other]):
            pair = f"{one_line(names[one], 80)} and {one_line(names[other], 80)}"
            yield f"warning: {pair} have the same weights: they count as one model, replace one of them"
