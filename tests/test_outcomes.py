"""outcomes.py: consensus and verdicts, worked out by hand on a scene and on images without a truth."""

from itertools import permutations

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.answers import normalize, text_answer_id
from auditdm_jax.outcomes import OUTCOMES, Answers, Asked, consensus_of, examine, shared_answer
from auditdm_jax.reward import consensus
from auditdm_jax.scenes.world import Scene, Thing

SCENE = Scene("rainy", (Thing("shape", "red", "star", "small", "solid"), Thing("clock", value="3"), *[None] * 14))


@pytest.mark.parametrize(
    ("answers", "agreement", "consensus"),
    [
        (("red", "Red.", "the red"), 1.0, "red"),
        (("two", "2"), 1.0, "two"),
        (("red", "red", "blue"), 1.0, ""),
        (("red", "red", "blue"), 0.667, "red"),
        (("red", "red", "blue"), 0.7, ""),
        (("red", "blue"), 0.5, ""),  # a tie
        (("unclear",) * 3, 1.0, ""),
        (("", "", "red"), 0.3, ""),  # most say nothing
        (("unclear", "red", "red"), 0.5, "red"),
        (("unclear", "red", "red"), 1.0, ""),
        (("red",), 1.0, "red"),
        (("", "unclear", "red", "red"), 0.5, ""),  # silence and abstention are one vote: a tie
    ],
)
def test_consensus(answers, agreement, consensus):
    for order in permutations(answers):
        assert normalize(consensus_of(order, agreement)) == normalize(consensus)


def test_consensus_on_text_is_that_of_the_reward_on_ids():
    words = ("red", "Red!", "2", "two", "blue", "", "unclear")
    rng = np.random.default_rng(0)
    for agreement in (0.3, 0.5, 0.66, 0.667, 0.67, 1.0):
        panels = [tuple(rng.choice(words, size=4)) for _ in range(50)]
        ids = np.array([[text_answer_id(word) or text_answer_id("unclear") for word in row] for row in panels])
        winners, shared = consensus(jnp.asarray(ids.T.astype(np.uint32)), agreement)
        for row, winner, is_shared in zip(panels, winners.tolist(), shared.tolist(), strict=True):
            answer = shared_answer(row, agreement)
            assert (answer is not None) == is_shared
            if answer is not None:
                assert text_answer_id(answer) == winner


def of_scene(question: str, target: str, reference: str, ended: bool = True):
    answers = Answers(target, (reference,) * 3, verifier="never asked")
    return examine(Asked("test-0", question, ended), answers, 1.0, SCENE)


@pytest.mark.parametrize(
    ("question", "target", "reference", "outcome", "verified"),
    [
        ("what color is the star?", "blue", "red", "claimed", True),
        ("what color is the star?", "the red", "red", "agreed", False),
        ("what color is the star?", "blue", "green", "claimed", False),  # all are wrong
        ("what color is the star?", "red", "green", "claimed", False),  # only the target is right
        ("what color is the star?", "unclear", "red", "target_unanswered", False),
        ("what color is the star?", " ", "red", "target_unanswered", False),
        ("what color is the star?", "blue", "unclear", "abstained", False),
        ("what color is the star?", "blue", "", "abstained", False),
        ("what color is the star?", "blue", "Unanswerable.", "abstained", False),
        ("what color is the star?", "I don't know", "red", "target_unanswered", False),
        ("what color is the circle?", "blue", "red", "claimed", False),  # no answer in this scene
        ("what hour does the clock show?", "4", "three", "claimed", True),
        ("who painted this?", "blue", "red", "unparsable", False),
        ("", "blue", "red", "empty", False),
        ("?", "blue", "red", "empty", False),
    ],
)
def test_scene_outcomes(question, target, reference, outcome, verified):
    row = of_scene(question, target, reference)
    assert (row.outcome, row.verified, row.claimed) == (outcome, verified, outcome == "claimed")
    assert row.outcome in OUTCOMES
    assert row.answerable == (question in ("what color is the star?", "what hour does the clock show?"))


def test_overlong_question_is_never_wrong():
    row = of_scene("what color is the star?", "blue", "red", ended=False)
    assert (row.outcome, row.verified, row.answerable) == ("overlong", False, False)


def test_skill_condition_and_truth_come_from_the_oracle():
    row = of_scene("what color is the star?", "blue", "red")
    assert (row.skill, row.condition, row.oracle_answer) == ("color", "small object", "red")
    assert of_scene("what color is the circle?", "blue", "red")[6:9] == ("", "color", "")


@pytest.mark.parametrize(
    ("question", "target", "reference", "verifier", "outcome", "verified"),
    [
        ("how many dogs are there?", "3", "two", "2", "claimed", True),
        ("how many dogs are there?", "3", "two", "3", "claimed", False),
        ("how many dogs are there?", "3", "two", "unclear", "claimed", False),
        ("how many dogs are there?", "2", "two", "2", "agreed", False),
        ("many dogs.", "3", "two", "2", "unparsable", False),
    ],
)
def test_the_verifier_judges_where_no_oracle_can(question, target, reference, verifier, outcome, verified):
    row = examine(Asked("a.png", question), Answers(target, (reference,) * 2, verifier), 1.0)
    assert (row.outcome, row.verified, row.answerable) == (outcome, verified, outcome != "unparsable")
    if outcome == "claimed":
        assert (row.skill, row.condition, row.oracle_answer) == ("how many", "number", "")


def test_a_spoiled_image_is_an_outcome_of_its_own():
    asked = Asked("1", "what color is the star?", channel="edit", written="make the ring blue", spoiled="drifted")
    row = examine(asked, Answers("blue", ("red",), "red"), 1.0)
    assert (row.outcome, row.claimed, row.verified, row.answerable) == ("spoiled", False, False, False)
