"""[host] How much an audit has not seen yet: which share of further failures would be of a new type.

It is the share of an endless audit by the same auditor: of what this auditor never asks nothing is known.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from auditdm_jax.evals import wilson

ENOUGH_SHARE = 0.05
"""An audit is long enough where, at 95 % confidence, at most one failure in twenty to come would be of a new type."""


class Saturation(NamedTuple):
    """n failures of `seen` types, `singletons` of which were met once and `doubletons` twice; unseen_share: of failures
    to come, those of types not met yet, in [0, 1], None without failures; enough: whether its interval lies below
    `ENOUGH_SHARE`."""

    n: int
    seen: int
    singletons: int
    doubletons: int
    unseen_share: float | None
    ci_low: float
    ci_high: float
    enough: bool


def good_turing(types: Sequence[str]) -> Saturation:
    """Turing's estimate of the unseen share from the types of n independent failures, f1/n, with its 95 % interval.

        share = f1 / n                                 Good, Biometrika 40 (1953)
        variance = (f1 (1 - f1 / n) + 2 f2) / n^2      Esty, Annals of Statistics 11 (1983)

    f1, f2: types met once, twice. The interval is never narrower than Wilson's of f1 in n: the variance is 0 without
    singletons. ["a", "a", "b", "c", "c"] has f1 = 1, f2 = 2: share 0.2, variance (0.8 + 4) / 25.
    """
    n, times = len(types), Counter(Counter(types).values())
    once, twice = times[1], times[2]
    low, high = wilson(once, n)
    if n:
        half = 1.96 * math.sqrt(once * (1 - once / n) + 2 * twice) / n
        low, high = max(0.0, min(low, once / n - half)), min(1.0, max(high, once / n + half))
    return Saturation(n, sum(times.values()), once, twice, once / n if n else None, low, high, high <= ENOUGH_SHARE)


def saturation_line(types: Saturation, cells: Saturation) -> str:
    """For the terminal. cells: failure types in which answers are told apart."""
    if types.unseen_share is None or cells.unseen_share is None:
        return "saturation: no failure was verified, so nothing is known of those to come: keep going"
    verdict = "enough" if types.enough else "keep going"
    share = f"{types.unseen_share:.3f} [{types.ci_low:.3f}, {types.ci_high:.3f}] of failures to come"
    return f"saturation: {share} are of a new type ({cells.unseen_share:.3f} type or answer): {verdict}"
