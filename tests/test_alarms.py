"""alarms.py: alarms trip where they should, once, and not before; a log that is resumed knows what was before."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.alarms import ALARMS, Alarm, Watch, duplicates, watch_row, watched
from auditdm_jax.files import read_jsonl
from auditdm_jax.log import Log

GAP = "heldout/oracle/gap"


def after(alarm: Alarm, values):
    watch = Watch()
    tripped = []
    for value in values:
        watch, _ = watched(alarm, watch, value)
        tripped.append(watch.tripped)
    return tripped


def test_the_mean_of_a_full_window_counts():
    alarm = Alarm("m", 3, 0.0, 0.5, False, "")
    assert after(alarm, [0.9, 0.9]) == [False, False]  # not full
    assert after(alarm, [0.5, 0.5, 0.5, 0.5]) == [False] * 4  # a bound is within
    assert after(alarm, [0.0, 0.6, 0.6, 0.6, 0.0]) == [False, False, False, True, True]  # it stays tripped


def test_lengths_are_compared_with_the_start():
    alarm = Alarm("m", 2, 0.5, 2.0, True, "")
    assert after(alarm, [4, 6, 10, 10, 10.1]) == [False, False, False, False, True]  # the start is 5
    assert after(alarm, [4, 6, 2, 2]) == [False, False, False, True]


@given(st.lists(st.floats(0.0, 1.0), max_size=20), st.floats(0.0, 1.0))
def test_no_alarm_while_every_value_is_within_its_bounds(values, high):
    alarm = Alarm("m", 4, 0.0, high + 1e-9, False, "")
    assert not any(after(alarm, [value for value in values if value <= high]))


def test_each_alarm_speaks_once():
    rows = [{GAP: 0.03, "heldout/oracle/reward_unanswerable": 0.0}] * 8 + [{"question/duplicates": 1.0}] * 30
    watches, spoken = (Watch(),) * len(ALARMS), []
    for number, row in enumerate(rows):
        watches, lines = watch_row(watches, row)
        spoken += [(number, line) for line in lines]
    assert [number for number, _ in spoken] == [3, 27]
    assert "alarm: 0.03 is what claimed success is above verified" in spoken[0][1]
    assert "alarm: 1.00 of what a step's auditor wrote repeats another" in spoken[1][1]


@pytest.mark.parametrize(
    ("metric", "window", "within", "beyond"),
    [
        ("heldout/oracle/gap", 4, 0.0199, 0.0201),
        ("heldout/oracle/reward_unanswerable", 4, 0.099, 0.101),
        ("heldout/oracle/reward_unparsable", 4, 0.099, 0.101),
        ("question/duplicates", 20, 0.899, 0.901),
        ("question/tokens", 20, 1.499, 1.501),
        ("question/tokens", 20, 0.667, 0.666),
    ],
)
def test_the_bounds_are_those_of_the_readme(metric, window, within, beyond):
    (alarm,) = (alarm for alarm in ALARMS if alarm.metric == metric)
    start = [1.0] * window if alarm.relative else []
    assert after(alarm, start + [within] * window)[-1] is False
    tripped = after(alarm, start + [beyond] * window)
    assert tripped[-1] is True
    assert not any(tripped[:-1])


def test_questions_that_repeat_others():
    ids = jnp.array([[[3, 4, 1], [3, 4, 1], [4, 3, 1]], [[3, 4, 1], [3, 1, 7], [3, 1, 9]]])
    mask = jnp.array([[[1, 1, 1]] * 3, [[1, 1, 1], [1, 1, 0], [1, 1, 0]]], bool)
    assert float(duplicates(ids, mask)) == pytest.approx(3 / 5)  # "3 4" twice again, "3" once
    distinct = jnp.arange(12).reshape(2, 3, 2)
    assert float(duplicates(distinct, jnp.ones_like(distinct, bool))) == 0
    # All the same are 1, however few they are, so that the alarm can trip.
    assert float(duplicates(jnp.zeros_like(distinct), jnp.ones_like(distinct, bool))) == 1


def probe(gap: float):
    return {"heldout/claimed": 0.5, "heldout/oracle/verified": 0.5 - gap, GAP: gap}


def test_a_resumed_log_alarms_as_an_unbroken_one(tmp_path, capsys):
    gaps = [0.0, 0.0, 0.03, 0.03, 0.03, 0.03]
    for name, parts in {"whole": [range(6)], "broken": [range(4), range(3, 6)]}.items():
        for part in parts:
            with Log(tmp_path / name, part[0], 6) as log:
                for number in part:
                    log.write(number + 1, probe(gaps[number]))
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    assert rows[0] == rows[1]
    np.testing.assert_array_equal([row["alarms"] for row in rows[0]], [0, 0, 0, 0, 1, 1])
    printed = capsys.readouterr().out
    assert "step 3: held-out success 0.500 claimed, 0.470 verified by the oracle, 3.0 points apart" in printed
    assert printed.count("step 5: alarm:") == 2
    assert printed.count("alarm:") == 2  # once a run
