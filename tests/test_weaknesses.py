"""weaknesses.py: by hand; the level by simulation where the target is no worse; what is found where it is."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.choice import DOUBT
from auditdm_jax.outcomes import Answers, Asked, Examined, examine
from auditdm_jax.weaknesses import Paired, Weakness, compared, evidence, find, tarone, weaknesses


def answers(target_wrong, *references_wrong) -> Paired:
    """Everybody says something."""
    target, references = np.array(target_wrong, bool), np.array(references_wrong, bool)
    return Paired(~target, target, ~references, references)


def simulated(rng, names: dict[str, int], rate, reference_rates=(0.05, 0.08)) -> tuple[Paired, dict]:
    """Questions of types "skill/condition" in the numbers given; rate: the target's failure rate by type."""
    types = np.repeat(list(names), list(names.values()))
    target = rng.random(len(types)) < np.array([rate(name) for name in types])
    references = [rng.random(len(types)) < each for each in reference_rates]
    members = {name: types == name for name in names}
    for skill in {name.split("/")[0] for name in names}:
        members[skill] = np.array([name.startswith(f"{skill}/") for name in types])
    return answers(target, *references), members


TYPES = {f"s{i}/{condition}": 12 * (i + 1) for i in range(10) for condition in "abc"}


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_the_p_value_is_exact(b, c, ties):
    """b questions that the target alone gets wrong, c that the reference alone does."""
    test, discordant = compared(
        answers([1] * b + [0] * c + [1] * ties, [0] * b + [1] * c + [1] * ties), np.ones(b + c + ties, bool)
    )
    m = b + c
    exact = Fraction(sum(comb(m, i) for i in range(b, m + 1)), 2**m)
    assert test.p_value == pytest.approx(float(exact), rel=1e-9)
    assert (test.n, test.failures, discordant) == (m + ties, b + ties, m)
    assert test.excess == pytest.approx((b - c) / (m + ties) if m + ties else 0)


def test_the_target_must_be_worse_than_the_worst_reference():
    paired = answers([1] * 9 + [0], [0] * 10, [1] * 8 + [0] * 2)
    test, discordant = compared(paired, np.ones(10, bool))
    assert (test.p_value, discordant) == (0.5, 9)  # 9 to 0 against one, 1 to 0 against the other
    assert test.excess == pytest.approx(0.1)


def test_silence_is_neither_right_nor_wrong():
    target = np.zeros(9, bool)
    silent = Paired(target, target, np.ones((1, 9), bool), np.zeros((1, 9), bool))
    assert compared(silent, np.ones(9, bool)) == (Weakness("", 9, 0, 0.0, 1.0), 0)


def test_only_types_that_could_reach_the_level_count_as_tested():
    assert tarone([], 0.05) == 1
    assert tarone([0, 1, 2, 3, 4], 0.05) == 1  # 2^-4 is above 0.05
    assert tarone([5], 0.05) == 1
    assert tarone([5, 5, 5], 0.05) == 2  # three reach 0.05 and more than one; none reaches 0.025
    assert tarone([20] * 7 + [1] * 100, 0.05) == 7


def test_evidence_is_a_poisson_likelihood_ratio():
    log_pmf = lambda count, mean: count * np.log(mean) - mean  # noqa: E731
    assert evidence(Weakness("", 50, 20, 0.4, 0.0), 0.05) == pytest.approx(log_pmf(20, 20) - log_pmf(20, 2.5))
    assert evidence(Weakness("", 50, 2, 0.04, 0.0), 0.05) == 0


@pytest.mark.parametrize(("rate", "size"), [(0.05, 40), (0.1, 20), (0.2, 10)])
def test_level_where_the_target_is_as_good_as_one_of_the_references(rate, size):
    """With the margin off, and another reference that is never wrong: the chance of any false weakness is at most
    alpha. Were K that of the fewest discordant answers, it would be 0.12 to 0.18 here."""
    rng = np.random.default_rng(0)
    sizes = {f"s{i}/x": size for i in range(45)}  # and as many skills, of the same questions
    runs = [find(*simulated(rng, sizes, lambda _: rate, (rate, 0.0)), material=0.0) for _ in range(300)]
    assert sum(map(bool, runs)) <= 0.05 * 300


def test_level_where_some_types_are_hard_for_all():
    rng = np.random.default_rng(0)
    hard = lambda name: 0.5 if name.startswith("s9") else 0.08  # noqa: E731
    rates = (0.02, [hard(name) for name in np.repeat(list(TYPES), list(TYPES.values()))])
    runs = [find(*simulated(rng, TYPES, hard, rates), material=0.0) for _ in range(300)]
    assert sum(map(bool, runs)) <= 0.05 * 300


@pytest.mark.parametrize("differ", [0.2, 0.5, 1.0])
def test_level_where_what_was_found_decides_how_much_is_asked(differ):
    """Of a type 14.5 failures are to come in eight batches, as `choice` has it; as often the reference is wrong."""
    rng, p_values = np.random.default_rng(0), []
    for _ in range(2000):
        b, c, asked = 0, 0, 0
        for batch in range(1, 9):
            chance = min(differ / 2 * (b + DOUBT) / (differ / 2 * asked + DOUBT), 1)
            now = int(max(14.5 * batch / 8 - b, 0) / chance + rng.random())
            both = rng.multinomial(now, [differ / 2, differ / 2, 1 - differ])
            b, c, asked = b + both[0], c + both[1], asked + now
        test, _ = compared(answers([1] * b + [0] * c, [0] * b + [1] * c), np.ones(b + c, bool))
        p_values.append(test.p_value)
    for level in (0.1, 0.05, 0.01):
        assert np.mean(np.array(p_values) <= level) <= level


def test_power_and_the_right_grain():
    """A whole skill, one condition of another, each in 19 of 20 runs at least, and seldom anything else."""
    rng = np.random.default_rng(1)
    planted = lambda name: 0.8 if name.startswith("s2/") or name == "s6/b" else 0.05  # noqa: E731
    runs = [{w.name for w in find(*simulated(rng, TYPES, planted))} for _ in range(100)]
    assert sum({"s2", "s6/b"} <= run for run in runs) >= 95
    assert sum(len(run - {"s2", "s6/b"}) for run in runs) <= 5


def test_a_small_excess_is_no_weakness_however_certain():
    rng = np.random.default_rng(2)
    paired, members = simulated(rng, {"s/a": 4000}, lambda _: 0.12, (0.05,))
    assert not find(paired, members)
    assert [w.name for w in find(paired, members, material=0.0)] == ["s/a"]


def test_what_one_gap_explains_is_not_named_again():
    """All failures name red; "color" and its condition fail only where they do."""
    red = np.arange(300) % 3 == 0
    color = np.arange(300) < 150
    paired = answers(red, np.zeros(300, bool))
    found = find(paired, {"color": color, "color/small object": color & (np.arange(300) < 75), "concept/red": red})
    assert [w.name for w in found] == ["concept/red"]


def row(target: str, oracle: str = "red", references=("red", "red"), **changes) -> Examined:
    asked = Asked("", "what color is the small ring?")
    made = examine(asked, Answers(target, references, oracle), 1.0)
    return made._replace(oracle_answer=oracle, skill="color", condition="small object", answerable=True)._replace(
        **changes
    )


def test_an_audits_rows():
    right = [row("red")] * 20
    failures = [row("blue")] * 30
    assert weaknesses([], True) == weaknesses(right, True) == []
    (found,) = weaknesses(right + failures, True)
    assert (found.n, found.failures, found.excess) == (50, 30, 0.6)
    assert found.name in ("color", "color/small object", "concept/ring", "concept/red")
    assert weaknesses(right + [row("unclear")] * 30, True) == []
    assert weaknesses(right + [row("blue", references=("blue", "red"))] * 30, True) == []
    assert weaknesses(right + [row("blue", oracle_answer="")] * 30, True) == []
    assert weaknesses(right + [row("blue", outcome="overlong")] * 30, True) == []
    judged = [each._replace(oracle_answer="", verifier_answer="red") for each in right + failures]
    assert [w.failures for w in weaknesses(judged, False)] == [30]
    assert weaknesses(judged, True) == []
    assert weaknesses([each._replace(verifier_answer="unclear") for each in judged], False) == []


@pytest.mark.parametrize("errors", [(0.2, 0.2), (0.15, 0.3)])
def test_level_where_a_verifier_judges(errors):
    """Photos: target and references err each for itself, the target no more often. Where the references agree they are
    nearly always right: were only such questions compared, each of these audits would name a weakness."""
    rng = np.random.default_rng(0)
    rates = (errors[0], *[errors[1]] * 3)

    def audit() -> list[Examined]:
        said = [[f"w{rng.integers(9)}" if rng.random() < rate else "red" for rate in rates] for _ in range(500)]
        asked = Asked("", "what color is the car?")
        return [examine(asked, Answers(target, tuple(others), "red"), 1.0) for target, *others in said]

    assert sum(bool(weaknesses(audit(), False)) for _ in range(20)) <= 2
