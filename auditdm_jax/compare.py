"""[host] The cells of a sweep beside each other, and which differences are larger than seed noise.

The test: a seed gives all cells the same images to train on and to audit, so each cell is compared with the first one
seed by seed. The n differences have a 95 % t interval of their mean and, by a paired t test, a p value; those of all
comparisons in the table are corrected together (Holm). Of fewer than 3 seeds nothing is said; nor of a difference that
is the same in every seed, which small counts can be by chance and which leaves no noise to measure it with.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from auditdm_jax.errors import one_line
from auditdm_jax.summary import ENOUGH

FEWEST = 3
"""Seeds that a statement needs."""
LEVEL = 0.05

MEASURES = ("claimed", "verified", "skills", "types")
"""Of an audit: claimed and verified success, skills and failure types with `ENOUGH` verified failures."""

Result = Mapping[str, float]
"""The measures of one audit."""


class Difference(NamedTuple):
    """Mean of n differences and its 95 % interval; p: of a mean so far from 0 if there were none, corrected. NaN where
    nothing can be said."""

    n: int
    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    corrected: float = math.nan


def measures_of(summary: Mapping[str, Any]) -> Result:
    """The measures of an audit's summary.json. Raises ValueError for what is no number, and as damage may."""
    types = sum(kind["failures"] >= ENOUGH for kind in summary["failure_types"])
    rates = {name: summary[name]["rate"] for name in ("claimed", "verified")}
    measures = {**rates, "skills": summary["skills_found"], "types": types}
    if not all(is_number(value) for value in measures.values()):
        raise ValueError(measures)
    return measures


def is_number(value: Any) -> bool:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of the mean of n values; NaN for fewer than `FEWEST`."""
    if len(values) < FEWEST:
        return math.nan, math.nan
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def difference(values: Mapping[int, float], first: Mapping[int, float]) -> Difference:
    """values - first, seed by seed, over the seeds that both have; p is not corrected yet."""
    paired = [values[seed] - first[seed] for seed in values if seed in first]
    n, mean = len(paired), float(np.mean(paired)) if paired else math.nan
    # Equal but for rounding.
    if n < FEWEST or np.ptp(paired) <= 1e-9:
        return Difference(n, mean)
    return Difference(n, mean, *t_interval(paired), float(stats.ttest_1samp(paired, 0.0).pvalue))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest of m p values times m - i (i from 0), and no less than any smaller one."""
    order = np.argsort(ps)
    scaled = np.maximum.accumulate(np.array(ps)[order] * np.arange(len(ps), 0, -1)).clip(max=1.0)
    return scaled[np.argsort(order)].tolist()


def differences(results: Mapping[str, Mapping[int, Result]]) -> dict[tuple[str, str], Difference]:
    """Of every later cell from the first, by cell and measure. results: the audits by cell and seed."""
    (_, first), *others = results.items()
    found = {
        (label, name): difference({s: r[name] for s, r in cell.items()}, {s: r[name] for s, r in first.items()})
        for label, cell in others
        for name in MEASURES
    }
    tested = [key for key, value in found.items() if not math.isnan(value.p)]
    for key, p in zip(tested, holm([found[key].p for key in tested]), strict=True):
        found[key] = found[key]._replace(corrected=p)
    return found


def table(results: Mapping[str, Mapping[int, Result]]) -> str:
    """Markdown: the cells, their differences from the first, and what can be said of these."""
    head = f"| cell | seeds | {' | '.join(MEASURES)} |\n|---|---|{'---|' * len(MEASURES)}"
    rows = [
        [
            safe(label),
            ", ".join(map(str, cell)),
            *(_values([result[name] for result in cell.values()]) for name in MEASURES),
        ]
        for label, cell in results.items()
    ]
    lines = [head, *(f"| {' | '.join(row)} |" for row in rows), ""]
    lines += [
        f"claimed, verified: share of an audit's questions; skills, types: those with {ENOUGH} or more verified "
        f"failures. In brackets the 95 % t interval over seeds, in parentheses single values if fewer than {FEWEST}.",
        "",
    ]
    if len(results) < 2:
        return "\n".join(lines)
    found, first = differences(results), safe(next(iter(results)))
    lines += [f"Differences from {first}, seed by seed:", "", head.replace("seeds", "n")]
    for label in list(results)[1:]:
        row = [found[label, name] for name in MEASURES]
        lines.append(f"| {safe(label)} | {row[0].n} | {' | '.join(map(_difference, row))} |")
    return "\n".join([*lines, "", *verdict(found)])


def verdict(found: Mapping[tuple[str, str], Difference]) -> list[str]:
    """Which differences are larger than seed noise, in sentences."""
    tested = {key: value for key, value in found.items() if not math.isnan(value.p)}
    if not tested:
        return [f"Nothing can be said of differences: that takes {FEWEST} seeds of both cells, and noise among them."]
    sure = [f"{safe(label)}: {name} {_difference(d)}" for (label, name), d in tested.items() if d.corrected < LEVEL]
    alone = sum(d.p < LEVEL for d in tested.values()) - len(sure)
    return [
        f"Larger than seed noise (**; paired t tests, p < {LEVEL} after Holm's correction for the {len(tested)} "
        f"comparisons that can be made): {len(sure)}.",
        *(f"- {line}" for line in sure),
        f"Beyond it only if each were the sole comparison (*): {alone}, where {LEVEL * len(tested):.1f} in all are "
        "expected by chance.",
    ]


def _values(values: Sequence[float]) -> str:
    if len(values) < FEWEST:
        return f"{np.mean(values):.3f} ({', '.join(f'{v:.3g}' for v in values)})" if values else "-"
    low, high = t_interval(values)
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def _difference(d: Difference) -> str:
    if math.isnan(d.p):
        return f"{d.mean:+.3f}" if d.n else "-"
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" + ("**" if d.corrected < LEVEL else "*" * (d.p < LEVEL))


def safe(text: str) -> str:
    """Text of a spec inside Markdown, a table's too: neither it nor HTML is obeyed in it."""
    return re.sub(r"([|*`\[\]\\])", r"\\\1", html.escape(one_line(text), quote=False))
