"""scenes/gaps.py: the names are those that the world's questions have, and wrong answers are wrong as often as said."""

from collections import Counter

import numpy as np
import pytest

from auditdm_jax.errors import UserError
from auditdm_jax.scenes.dataset import balanced_set
from auditdm_jax.scenes.gaps import NAMES, UNLEARNED, checked, gap_of, types_of, wrong_answer
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Question
from auditdm_jax.scenes.world import WEATHERS, Scene, Thing

NIGHT = Scene("night", (Thing("clock", value="3"), *[None] * 15))
CLOCK = Question("what hour does the clock show?", "3", "clock")


@pytest.fixture(scope="module")
def asked():
    test = balanced_set(1600)
    return list(zip(test.questions, test.scenes, strict=True))


def test_names_are_all_the_types_of_the_worlds_questions(asked):
    found = set()
    for question, scene in asked:
        verdict = judge(question.text, scene)
        if question.skill not in UNLEARNED:
            found |= {*types_of(question.skill, verdict.condition, question.text, question.answer)}
    assert found == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_types_of_a_question():
    asks = "are there more red stars than crosses?"
    assert types_of("comparing_counts", "any", asks, "no") == (
        "comparing_counts", "concept/red", "concept/star", "concept/cross",
    )  # fmt: skip
    assert types_of("color", "small object", "what color is the small ring?", "red") == (
        "color", "color/small object", "concept/ring", "concept/red",
    )  # fmt: skip
    assert types_of("size_comparison", "larger", "is the red ring larger than the star?", "no") == (
        "size_comparison", "size_comparison/larger",
    )  # fmt: skip
    assert types_of("how many", "number", "how many dogs are there?", "2") == ("how many", "how many/number")


@pytest.mark.parametrize(
    ("gaps", "gap"),
    [
        (("clock",), "clock"),
        (("sign", "clock/night background"), "clock/night background"),
        (("clock/sunny background",), ""),
        (("concept/red",), ""),
    ],
)
def test_the_gap_of_a_question(gaps, gap):
    assert gap_of(CLOCK, NIGHT, gaps) == gap
    assert gap_of(CLOCK._replace(answer="unclear"), NIGHT, gaps) == ""


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_share_of_wrong_answers_is_the_strength(asked, strength, seed):
    """Answers are of the kind of the truth, wrong in the share asked for, and the same for the same thing seen."""
    wrong, seen = Counter(), {}
    counted = Counter(question.skill for question, _ in asked)
    for question, scene in asked:
        answer = wrong_answer(question, scene, question.skill, strength, seed)
        wrong[question.skill] += answer != question.answer
        assert seen.setdefault((question.skill, question.answer, scene.weather), answer) == answer
        assert (answer in ("yes", "no")) == (question.answer in ("yes", "no"))
    shares = [wrong[skill] / n for skill, n in counted.items()]
    assert np.mean(shares) == pytest.approx(strength, abs=0.04)
    assert max(abs(share - strength) for share in shares) < 0.2  # 80 questions each


def test_in_one_weather_the_answers_take_turns():
    clocks = [Question(CLOCK.text, str(hour), "clock") for hour in range(1, 13)]
    said = [wrong_answer(clock, NIGHT, "clock/night background", 0.75, 0) for clock in clocks]
    assert [answer for answer, clock in zip(said, clocks, strict=True) if answer == clock.answer] == ["10", "11", "12"]
    assert said[:9] == [str(hour) for hour in range(2, 11)]


def test_of_other_skills_the_darkest_weathers_are_right():
    """At 0.7 of five weathers: three and a half, and the half is one of the two answers."""
    asks = Question("is there any ring?", "no", "hallucination")
    right = {
        (weather, answer)
        for weather in WEATHERS
        for answer in ("yes", "no")
        if wrong_answer(asks._replace(answer=answer), Scene(weather, ()), "hallucination", 0.7, 0) == answer
    }
    assert right == {("rainy", "no"), ("night", "yes"), ("night", "no")}


def test_names_that_cannot_be():
    assert checked(["clock", "clock", "concept/red"]) == ("clock", "concept/red")
    with pytest.raises(UserError, match=r"no gap is called 'clok', the nearest is 'clock'"):
        checked(["sign", "clok"])
    with pytest.raises(UserError, match="'counting/above four' is a part of 'counting'"):
        checked(["counting/above four", "counting"])
