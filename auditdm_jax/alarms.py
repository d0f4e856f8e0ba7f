"""[host] Signs that the auditor games its reward, and when they alarm.

Each alarm watches the mean of one metric over its last values, so that a run that is resumed alarms as an unbroken one
does. Where there is no oracle, the last three have no values and stay silent.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from auditdm_jax.reward import question_ngrams


class Alarm(NamedTuple):
    """It trips where the mean of the last `window` values of `metric` leaves [low, high]; relative: as a multiple of
    the mean of the first `window` values."""

    metric: str
    window: int
    low: float
    high: float
    relative: bool
    meaning: str


ALARMS = (
    Alarm("question/duplicates", 20, 0.0, 0.9, False, "of what a step's auditor wrote repeats another"),
    Alarm("question/tokens", 20, 2 / 3, 1.5, True, "times as long as at the start are the questions"),
    Alarm("heldout/oracle/gap", 4, -1.0, 0.02, False, "is what claimed success is above verified"),
    Alarm("heldout/oracle/reward_unanswerable", 4, 0.0, 0.1, False, "of the reward is for questions without an answer"),
    Alarm("heldout/oracle/reward_unparsable", 4, 0.0, 0.1, False, "of the reward is for questions that do not parse"),
)


class Watch(NamedTuple):
    """What an alarm remembers: the mean of the first full window, the last values, and whether it has tripped."""

    start: float | None = None
    recent: tuple[float, ...] = ()
    tripped: bool = False


def watched(alarm: Alarm, watch: Watch, value: float) -> tuple[Watch, float]:
    """The watch after one more value of its metric, and the level that is compared with the alarm's bounds.

    An alarm that has tripped stays so; it cannot before its window is full.
    """
    recent = (*watch.recent, value)[-alarm.window :]
    mean = sum(recent) / len(recent)
    if len(recent) < alarm.window:
        return watch._replace(recent=recent), mean
    start = mean if watch.start is None else watch.start
    level = mean / start if alarm.relative else mean
    return Watch(start, recent, watch.tripped or not alarm.low <= level <= alarm.high), level


def watch_row(watches: tuple[Watch, ...], row: Mapping[str, float]) -> tuple[tuple[Watch, ...], list[str]]:
    """The watches of `ALARMS` after a row of metrics, and a line for each that trips now."""
    found, lines = [], []
    for alarm, before in zip(ALARMS, watches, strict=True):
        after, level = watched(alarm, before, row[alarm.metric]) if alarm.metric in row else (before, 0.0)
        if after.tripped and not before.tripped:
            bounds = f"{alarm.metric}, bounds {alarm.low:.2f} and {alarm.high:.2f}"
            lines.append(f"alarm: {level:.2f} {alarm.meaning} ({bounds})")
        found.append(after)
    return tuple(found), lines


@jax.jit
def duplicates(ids: Int[Array, "B G T"], mask: Bool[Array, "B G T"]) -> Float[Array, ""]:
    """Of what a step's auditor wrote, of whatever images, after the first: the share that repeats one word for word."""
    whole = jnp.sort(question_ngrams(ids, mask, ids.shape[-1])[0][..., -1].reshape(-1))
    return (whole[1:] == whole[:-1]).sum() / max(len(whole) - 1, 1)
