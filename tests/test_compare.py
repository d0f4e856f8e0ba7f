"""compare.py: intervals and tests by hand, and a rate of false statements that is what it should be."""

import math

import numpy as np
import pytest

from auditdm_jax.compare import MEASURES, difference, differences, holm, measures_of, t_interval, table

RESULT = dict.fromkeys(MEASURES, 0.0)


def results(**cells):
    """Cells by label with their verified success by seed."""
    return {
        label: {seed: RESULT | {"verified": value} for seed, value in enumerate(values)}
        for label, values in cells.items()
    }


def test_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.30265
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), abs=1e-5)
    assert all(map(math.isnan, t_interval([1, 2])))


def test_paired_difference_by_hand():
    found = difference({0: 11.0, 1: 22.0, 2: 33.0, 7: 5.0}, {2: 30.0, 1: 20.0, 0: 10.0, 9: 1.0})
    assert (found.n, found.mean) == (3, 2.0)
    assert (found.low, found.high) == pytest.approx(t_interval([1, 2, 3]))
    # With 2 degrees of freedom p = 1 - t / sqrt(2 + t^2), and t = 2 / (1 / sqrt(3)).
    assert found.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))


def test_nothing_is_said_where_nothing_can_be():
    assert math.isnan(difference({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}).p)  # two seeds
    assert math.isnan(difference({0: 1.1, 1: 1.3, 2: 1.7}, {0: 0.1, 1: 0.3, 2: 0.7}).p)  # the same in each
    assert difference({0: 1.0}, {1: 1.0}).n == 0
    assert "Nothing can be said" in table(results(a=[0.1, 0.2], b=[0.8, 0.9]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_false_statements_are_rare():
    """Cells that differ in nothing but noise, with images that make some seeds harder for all."""
    rng, sweeps = np.random.default_rng(0), 400
    wrong = alone = 0
    for _ in range(sweeps):
        hard = rng.normal(size=3)
        found = differences(results(**{name: hard + rng.normal(size=3) / 10 for name in "abcd"}))
        tested = [d for d in found.values() if not math.isnan(d.p)]
        assert len(tested) == 3  # the other measures are the same everywhere
        wrong += any(d.corrected < 0.05 for d in tested)
        alone += sum(d.p < 0.05 for d in tested)
    assert wrong / sweeps < 0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps)
    assert alone / (3 * sweeps) == pytest.approx(0.05, abs=0.03)


def test_a_true_difference_is_found_in_spite_of_hard_seeds():
    hard = np.array([0.3, 0.6, 0.4, 0.8])
    cells = results(a=hard, b=hard + 0.1 + np.array([0, 1, -1, 0]) / 300, c=hard + np.array([2, -1, 1, -2]) / 100)
    found = differences(cells)
    assert found["b", "verified"].corrected < 0.05 < found["c", "verified"].p
    said = table(cells)
    assert "- b: verified +0.100 [+0.096, +0.104]**" in said
    assert "comparisons that can be made): 1." in said
    assert "| b | 4 |" in said


def test_labels_cannot_break_the_table():
    assert "| a\\|b x | 0 |" in table({"a|b\nx": {0: RESULT}})
    assert "| &lt;b&gt; \\[x\\](y) \\*z\\* | 0 |" in table({"<b> [x](y) *z*": {0: RESULT}})


def test_measures_of_a_summary():
    types = [{"failures": n} for n in (3, 9, 10, 40)]
    summary = {"claimed": {"rate": 0.5}, "verified": {"rate": 0.4}, "skills_found": 6, "failure_types": types}
    assert measures_of(summary) == {"claimed": 0.5, "verified": 0.4, "skills": 6, "types": 2}
