"""[host] An audit of a planted target beside the answer key, which nothing else reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import tyro
from jaxtyping import Float

from auditdm_jax.compare import is_number
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import read_json, write_json
from auditdm_jax.scenes.zoo_paths import same_model

KEY = "answer_key.json"
"""The file in a planted target's directory."""
ENOUGH = 10
"""Questions that a type needs, in the audit and in the key, for its rate to be compared."""


@dataclass(frozen=True)
class ScoreConfig:
    """Compare the audit in `run` with the weaknesses planted in `target`."""

    target: tyro.conf.Positional[Path]
    """The planted target's directory."""
    run: tyro.conf.Positional[Path]
    """The run's folder, with `audit/summary.json` in it."""


def hits(reported: str, gap: str) -> bool:
    """Whether a reported weakness is this gap, or a part of it: "clock/sunny background" of "clock"; never the
    reverse."""
    return reported == gap or reported.startswith(f"{gap}/")


def spearman(x: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where all of one are the same."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(scipy.stats.spearmanr(x, y).statistic)


def score(key: Mapping[str, Any], reported: Sequence[str], types: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """reported: the audit's weaknesses; types: its failure types.

    recall: share of the gaps hit, None if there are none; precision: share of the reported that hit one, None if none
    is. Rates are those of all types asked about often enough, of a skill without conditions its own: the audit's is of
    verified failures, the true one of wrong answers to test questions. within: share of the audit's 95 % intervals
    that hold the true rate; error: the mean of audit - true.
    """
    gaps = [gap["name"] for gap in key["gaps"]]
    false = [name for name in reported if not any(hits(name, gap) for gap in gaps)]
    found = [gap for gap in gaps if any(hits(name, gap) for name in reported)]
    true = {kind["name"].removesuffix("/any"): kind["rate"] for kind in key["types"] if kind["n"] >= ENOUGH}
    asked = [(kind, kind["name"].removesuffix("/any")) for kind in types if kind["n"] >= ENOUGH]
    both = [(kind, true[name]) for kind, name in asked if name in true]
    errors = np.array([kind["rate"] - rate for kind, rate in both])
    return {
        "gaps": gaps,
        "found": found,
        "missed": [gap for gap in gaps if gap not in found],
        "false_discoveries": false,
        "recall": len(found) / len(gaps) if gaps else None,
        "precision": 1 - len(false) / len(reported) if reported else None,
        "types_compared": len(both),
        "rank_correlation": spearman(*np.array([(kind["rate"], rate) for kind, rate in both]).reshape(-1, 2).T),
        "calibration": {
            "within": float(np.mean([kind["ci_low"] <= rate <= kind["ci_high"] for kind, rate in both])),
            "error": float(errors.mean()),
            "absolute_error": float(np.abs(errors).mean()),
        }
        if both
        else None,
    }


def _check(key: Mapping[str, Any], reported: Any, types: Sequence[Mapping[str, Any]]) -> None:
    """Raises KeyError, TypeError or ValueError for what is no key, or no audit."""
    known = [*key["gaps"], *key["types"]]
    names = [kind["name"] for kind in (*known, *types)]
    numbers = [kind[field] for kind in known for field in ("rate", "n")]
    numbers += [kind[field] for kind in types for field in ("rate", "n", "ci_low", "ci_high")]
    lists = isinstance(reported, list) and isinstance(types, list)
    if not (lists and all(map(is_number, numbers)) and all(isinstance(name, str) for name in (*reported, *names))):
        raise ValueError


def score_run(config: ScoreConfig) -> dict[str, Any]:
    """Scores an audit, writes `<run>/audit/planted_score.json`, prints a table. Raises UserError if there is no key, or
    no audit of this target that says what it found."""
    if not (config.target / KEY).exists():
        raise UserError(f"{one_line(config.target)} has no {KEY}; give the directory of a planted target")
    key, path = read_json(config.target / KEY), config.run / "audit" / "summary.json"
    summary = read_json(path)
    try:
        audited, reported, types = (summary[name] for name in ("models", "weaknesses", "failure_types"))
        target = str(audited["target"])
    except (KeyError, TypeError):
        raise UserError(f"{one_line(path)} does not say what was found of which model; run audit.py again") from None
    if not same_model(target, str(config.target)):
        raise UserError(f"{one_line(path)} is of {one_line(target)}; audit {one_line(config.target)}")
    try:
        _check(key, reported, types)
        result = score(key, list(dict.fromkeys(reported)), types)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{one_line(config.target / KEY)} or {one_line(path)} is damaged; make it again") from None
    if path.stat().st_mtime < (config.target / KEY).stat().st_mtime:
        print(f"{one_line(config.target)} is newer than the audit: if it was planted anew since, run audit.py again")
    for gap in key["gaps"]:
        state = "found" if gap["name"] in result["found"] else "missed"
        print(f"{gap['name']:<32}{gap['rate']:>6.2f} wrong   {state}")
    for name in result["false_discoveries"]:
        print(f"{one_line(name, 32):<32}{'':>12}   false discovery")
    numbers = {name: result[name] for name in ("recall", "precision", "rank_correlation")}
    numbers |= {f"calibration, {name}": value for name, value in (result["calibration"] or {}).items()}
    for name, value in numbers.items():
        print(f"{name.replace('_', ' '):<32}{'-' if value is None else format(value, '>6.2f')}")
    write_json(config.run / "audit" / "planted_score.json", result)
    return result
