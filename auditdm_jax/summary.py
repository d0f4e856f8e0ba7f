"""[host] What an audit found, in numbers: summary.json and the table on the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from auditdm_jax.config import CHANNELS
from auditdm_jax.errors import one_line
from auditdm_jax.outcomes import OUTCOMES, UNREAD, Examined, vote
from auditdm_jax.saturation import Saturation, good_turing, saturation_line
from auditdm_jax.taxonomy import FailureType, Rate, interval, rate_of, tally
from auditdm_jax.weaknesses import weaknesses

ENOUGH = 10
"""Questions that a type needs to be listed on the terminal, and failures that make a skill count as found."""


def success(rows: Sequence[Examined]) -> dict[str, Any]:
    """How often an auditor succeeds: shares of all images asked about, each with its 95 % Wilson interval."""
    n = len(rows)
    claimed = rate_of(sum(row.claimed for row in rows), n)
    verified = rate_of(sum(row.verified for row in rows), n)
    outcomes = Counter(row.outcome for row in rows)
    return {
        "images": n,
        "claimed_success_rate": claimed.rate,
        "verified_success_rate": verified.rate,
        "claimed": claimed._asdict(),
        "verified": verified._asdict(),
        "answerable": sum(row.answerable for row in rows),
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
    }


def sensitivity(rows: Sequence[Examined]) -> dict[str, Any]:
    """Of the edits that left the references' answer as it was, which the target gave too, how many turned the target's,
    with the 95 % Wilson interval."""
    pairs = [row for row in rows if row.comparable]
    return rate_of(sum(row.flipped for row in pairs), len(pairs))._asdict()


def summarize(rows: Sequence[Examined], prompt_only: Sequence[Examined], oracle: bool = True) -> dict[str, Any]:
    """The numbers of summary.json. oracle: whether one judges, or else the verifier. Failure types and skills count
    questions that have an answer, and their verified failures. Of a new image that could not be read no condition is
    known, so it is in no type."""
    counted = [row for row in rows if row.answerable]
    skills = tally([row.skill for row in counted], [row.verified for row in counted])
    typed = [row for row in counted if row.condition != UNREAD]
    types = tally([f"{row.skill}/{row.condition}" for row in typed], [row.verified for row in typed])
    kinds = [f"{row.skill}/{row.condition}" for row in typed if row.verified]
    cells = [f"{row.skill}/{row.condition}/{vote(row.consensus)}" for row in typed if row.verified]
    before, after = success(prompt_only), success(rows)
    channels = [name for name in CHANNELS if any(row.channel == name for row in rows)]
    found = weaknesses(rows, oracle)
    gain = after["verified"]["rate"] / before["verified"]["rate"] if before["verified"]["count"] else None
    return after | {
        "prompt_only": before,
        "verified_gain": gain,
        "channels": {
            name: success([row for row in rows if row.channel == name])
            | {"prompt_only": success([row for row in prompt_only if row.channel == name])}
            for name in channels
        },
        "sensitivity": sensitivity(rows) | {"prompt_only": sensitivity(prompt_only)},
        "new_images_not_read": sum(row.condition == UNREAD for row in rows),
        "image_faults": dict(Counter(f"{row.channel}/{row.spoiled}" for row in rows if row.spoiled)),
        "saturation": {"types": good_turing(kinds)._asdict(), "cells": good_turing(cells)._asdict()},
        "skills_found": sum(skill.failures >= ENOUGH for skill in skills),
        "weaknesses": [weakness.name for weakness in found],
        "weakness_evidence": [weakness._asdict() for weakness in found],
        "failure_types": [kind._asdict() for kind in types],
        "skills": [skill._asdict() for skill in skills],
    }


def report_lines(summary: dict[str, Any], top: int = 20) -> Iterator[str]:
    """The summary for the terminal; model-written names are made safe to print."""
    trained = summary["auditor"]["trained"]
    judge = "the oracle" if summary["verified_by"] == "oracle" else "the verifier"
    if unread := summary["new_images_not_read"]:
        judge += f" ({unread} new images that nobody could read: by the verifier)"
    yield f"{'':<12}{'images':>7}   {'claimed':<24}verified by {judge}"
    channels = summary["channels"] if list(summary["channels"]) != ["question"] else {}
    for channel, both in {"": summary, **channels}.items():
        if channel:
            yield f"channel {channel}"
        auditors = {"prompt-only": both["prompt_only"]} | ({"trained": both} if trained else {})
        for name, part in auditors.items():
            claimed, verified = (interval(Rate(**part[key])) for key in ("claimed", "verified"))
            yield f"{name:<12}{part['images']:>7}   {claimed:<24}{verified}"
    if trained and summary["verified_gain"] is not None:
        yield f"verified success is {summary['verified_gain']:.1f} times that of the prompt-only auditor"
    yield ""
    yield f"{summary['images']} questions, {summary['answerable']} of them with an answer: " + ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in summary["outcomes"].items() if n
    )
    if "edit" in channels:
        before = summary["sensitivity"]["prompt_only"]
        for name, pairs in {"prompt-only": before, **({"trained": summary["sensitivity"]} if trained else {})}.items():
            rate = Rate(**{key: pairs[key] for key in Rate._fields})
            if rate.n:  # without old questions there are none
                turned = f"{rate.count} of {rate.n} harmless edits turned the answer"
                yield f"sensitivity, {name}: {turned}, {interval(rate)}"
    if summary["image_faults"]:
        yield "new images spoiled: " + ", ".join(f"{n} {name}" for name, n in summary["image_faults"].items())
    yield f"{summary['skills_found']} skills with {ENOUGH} or more verified failures"
    yield saturation_line(*(Saturation(**summary["saturation"][name]) for name in ("types", "cells")))
    named = ", ".join(one_line(name, 44) for name in summary["weaknesses"])
    yield f"weaknesses, where it errs more than every reference beyond chance: {named or 'none'}"
    yield ""
    types = [FailureType(**kind) for kind in summary["failure_types"]]
    listed = [kind for kind in types if kind.n >= ENOUGH] or types
    shown = sorted(listed, key=lambda kind: -kind.rate)[:top]
    rare = f"; those of fewer than {ENOUGH} questions are in summary.json" if len(listed) < len(types) else ""
    yield f"failure types by rate, {len(shown)} of {len(types)}{rare}"
    yield "verified failures / questions with an answer:"
    for kind in shown:
        rate = Rate(kind.n, kind.failures, kind.rate, kind.ci_low, kind.ci_high)
        yield f"  {one_line(kind.name, 44):<44} {kind.failures:>5} / {kind.n:<5} {interval(rate)}"
