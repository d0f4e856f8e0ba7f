"""health.py: shares worked out by hand, planted clones are found, who errs apart is none."""

import numpy as np
import pytest

from auditdm_jax.health import health_lines, reference_health, weight_warnings
from auditdm_jax.outcomes import Answers, Asked, examine
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.world import sample_scene

WEATHER, DOT, NONSENSE = "what is the weather?", "what color is the tiny dot?", "zebra zebra"
SCENES = [sample_scene("test", seed) for seed in range(400)]
RED, NAMES = "red", ("a", "b", "c")


def row(question: str, scene, target: str, *references: str, verifier: str = ""):
    return examine(Asked("", question), Answers(target, references, verifier), 1.0, scene)


def with_dot(wanted: bool):
    return next(scene for scene in SCENES if (scene.special("dot") is not None) == wanted)


def health(rows, names=NAMES, oracle=True, agreement=1.0):
    return reference_health(rows, "target", names, agreement, oracle)


def test_how_often_the_oracle_contradicts_what_the_references_share():
    scene, truth = SCENES[0], SCENES[0].weather
    rows = [
        row(WEATHER, scene, "x", truth, truth, truth),
        row(WEATHER, scene, "x", "foggy", "foggy", "foggy"),  # another answer
        row(DOT, with_dot(False), "x", RED, RED, RED),  # there is none
        row(NONSENSE, scene, "x", RED, RED, RED),  # nothing was asked
        row(WEATHER, scene, "x", truth, truth, "foggy"),  # nothing is shared
        row(DOT, with_dot(False), "x", "unclear", "", "unclear"),  # nor is there an answer
        row("", scene, "x", RED, RED, RED),  # counts for nothing
    ]
    found = health(rows)
    assert (found["consensus_wrong"]["count"], found["consensus_wrong"]["n"]) == (3, 4)
    assert (found["unanswerable"], found["unparsable"]) == (1, 1)
    line = next(health_lines(found))
    assert (
        "the oracle contradicts 3 of 4 shared answers, 0.750 [0.301, 0.954] (questions: 1 unanswerable, 1 unparsable)"
        in line
    )


def test_the_verifier_judges_where_there_is_no_oracle():
    rows = [row("how many dogs?", None, "1", "2", "2", "2", verifier=said) for said in ("two", "3", "unclear")]
    found = health(rows, oracle=False)
    assert (found["judged_by"], found["consensus_wrong"]["count"], found["consensus_wrong"]["n"]) == ("verifier", 2, 3)
    assert found["unanswerable"] == found["unparsable"] == 0


def test_leaving_one_out():
    scene = SCENES[0]
    rows = [
        row(WEATHER, scene, "x", "1", "1", "1"),
        row(WEATHER, scene, "x", "2", "1", "1"),  # b and c agree against a; for b and c the others do not agree
        row(WEATHER, scene, "x", "unclear", "", "1"),  # a and b agree that there is no answer
    ]
    shares = {each["name"]: (each["count"], each["n"]) for each in health(rows)["leave_one_out"]}
    assert shares == {"a": (1, 2), "b": (1, 1), "c": (1, 2)}
    assert health([row(WEATHER, scene, "x", "1")], ("a",))["leave_one_out"] == []


def panel(clone_of: str, share: float, count: int = 400):
    """Models that are right in 85 % of the questions and else err each for itself; reference c repeats another model's
    answer with a probability."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        scene = SCENES[number % len(SCENES)]
        truth = judge(WEATHER, scene).answer
        said = {name: truth if rng.random() < 0.85 else f"w{rng.integers(4)}" for name in ("target", *NAMES)}
        if clone_of and rng.random() < share:
            said["c"] = said[clone_of]
        rows.append(row(WEATHER, scene, *said.values()))
    return rows


@pytest.mark.parametrize(
    ("clone_of", "share", "found"),
    [
        ("a", 1.0, [["a", "c"]]),
        ("target", 1.0, [["target", "c"]]),
        ("b", 0.97, [["b", "c"]]),
        ("a", 0.5, []),
        ("", 0, []),
    ],
)
def test_a_planted_clone_is_found(clone_of, share, found):
    result = health(panel(clone_of, share))
    assert [pair["models"] for pair in result["pairs"] if pair["clones"]] == found
    assert sum("answer alike" in line for line in health_lines(result)) == len(found)


@pytest.mark.parametrize(("silent", "mistaken"), [(0.3, 0.0), (0.0, 0.3)])
def test_a_poor_verifier_makes_no_clones(silent, mistaken):
    """References that err in 2 %, each for itself, and a true clone of one of them."""
    rng = np.random.default_rng(0)

    def said(error: float) -> str:
        return f"w{rng.integers(9)}" if rng.random() < error else "1"

    rows = []
    for _ in range(1500):
        a, b = said(0.02), said(0.02)
        judge = "unclear" if rng.random() < silent else said(mistaken)
        rows.append(row("how many dogs?", None, said(0.1), a, b, a, verifier=judge))
    assert [pair["models"] for pair in health(rows, oracle=False)["pairs"] if pair["clones"]] == [["a", "c"]]


def test_nobody_errs_where_the_oracle_cannot_read_the_question():
    rows = [row(NONSENSE, SCENES[0], "x", RED, RED, RED)] * 30
    assert [pair["same_where_wrong"]["n"] for pair in health(rows)["pairs"]] == [0] * 6


def test_models_that_are_always_right_are_no_clones():
    rows = [row(WEATHER, scene, "foggy", *[scene.weather] * 3) for scene in SCENES[:100]]
    result = health(rows)
    same = {tuple(pair["models"]): pair["same"]["rate"] for pair in result["pairs"]}
    assert same["a", "b"] == 1.0
    assert not any(pair["clones"] for pair in result["pairs"])


def test_a_model_named_twice_is_a_clone():
    rows = [row(WEATHER, scene, "x", "foggy", "foggy") for scene in SCENES[:30]]
    assert [pair["models"] for pair in health(rows, ("a", "a"))["pairs"] if pair["clones"]] == [["a", "a"]]


def test_equal_weights_are_told():
    one = {"x": np.ones(3), "y": np.zeros((2, 2))}
    other, wider = {"x": np.ones(3), "y": np.eye(2)}, {"x": np.ones(3), "y": np.zeros((2, 3))}
    lines = list(weight_warnings(("t", "a", "b", "c"), (one, other, {**one}, wider)))
    assert lines == ["warning: t and b have the same weights: they count as one model, replace one of them"]
