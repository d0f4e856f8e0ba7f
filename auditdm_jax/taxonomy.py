"""[host] Failure types: what a question tests and under which condition, counted with rates and intervals.

For scenes of the embedded world the oracle names both, the skill and the condition. For other images nobody
knows them, so a question is labelled by its own leading words ("how many", "is there") and the kind of its
answer: coarse, but readable, and the same for every auditor.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from auditdm_jax.answers import normalize
from auditdm_jax.evals import wilson

_WH_WORDS = ("what", "which", "who", "whose", "where", "when", "why", "how")
_MAX_LABEL = 40


class Rate(NamedTuple):
    """A share with its 95 % Wilson interval; `rate` is None where n is 0."""

    n: int
    count: int  # type: ignore[assignment]  # a tuple's method of that name is not used
    rate: float | None
    ci_low: float
    ci_high: float


class FailureType(NamedTuple):
    """n: questions of the type that have an answer; failures: verified ones. The interval is Wilson's."""

    name: str
    n: int
    failures: int
    rate: float
    ci_low: float
    ci_high: float


def rate_of(count: int, n: int) -> Rate:
    """count of n as a share with its interval."""
    return Rate(n, count, count / n if n else None, *wilson(count, n))


def interval(rate: Rate) -> str:
    """As it is printed: "0.500 [0.237, 0.763]", or "-" of nothing."""
    return "-" if rate.rate is None else f"{rate.rate:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]"


def tally(names: Sequence[str], failed: Sequence[bool]) -> list[FailureType]:
    """Failure types of questions (question i is of type names[i]), the one with most failures first."""
    failures = Counter(name for name, failure in zip(names, failed, strict=True) if failure)
    types = [
        FailureType(name, n, failures[name], failures[name] / n, *wilson(failures[name], n))
        for name, n in Counter(names).items()
    ]
    return sorted(types, key=lambda kind: (-kind.failures, -kind.rate, kind.name))


def question_label(question: str) -> str:
    """What a question of an unknown world asks for, from its own words: a question word and the one after
    it, or else the first two words. Lower case, articles left out; "" without words.

    "In the photo, how many dogs are there?" -> "how many"; "Is there a cat?" -> "is there".
    """
    words = re.findall(r"\w+", normalize(question.lower()))
    start = next((i for i, word in enumerate(words) if word in _WH_WORDS), 0)
    return " ".join(words[start : start + 2])[:_MAX_LABEL]


def answer_kind(answer: str) -> str:
    """VQA's three kinds of answers: "yes or no", "number", "other"; "" for none."""
    text = normalize(answer)
    if text in ("yes", "no"):
        return "yes or no"
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return "number"
    return "other" if text else ""
