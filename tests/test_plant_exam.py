"""plant_exam.py: what the examination of a planted target counts, and what it refuses."""

from collections import Counter

import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax import plant_exam
from auditdm_jax.errors import UserError
from auditdm_jax.evals import Answerer
from auditdm_jax.plant_exam import AT_CHANCE, GAP_QUESTIONS, Asked, Exam, losses, near, refusal
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.gaps import UNLEARNED, gap_of
from auditdm_jax.scenes.language import SKILLS
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Asker, Question
from auditdm_jax.scenes.world import COLORS

GAPS = ("counting/above four", "concept/red")


def test_near_a_gap():
    scenes, _ = scenes_of("train", 0, 60)
    rng = np.random.default_rng(0)
    drawn = [(near(Asker(scene, rng), GAPS[0], "train"), scene) for scene in scenes]
    assert {question.skill for question, _ in drawn} == {"counting"}
    within = sum(gap_of(question, scene, GAPS) == GAPS[0] for question, scene in drawn)
    assert 0 < within < 60
    plain = [Asker(scene, rng).ask("counting", "train") for scene in scenes]
    assert within > sum(gap_of(question, scene, GAPS) == GAPS[0] for question, scene in zip(plain, scenes, strict=True))


@pytest.fixture(scope="module")
def exam():
    return Exam(GAPS, 60)


def test_the_examination_asks_enough_in_each_gap(exam):
    assert len(exam.images) == len(exam.asked)
    for gap in GAPS:
        assert exam.of_gap(gap).sum() == GAP_QUESTIONS
    types = exam.types()
    assert all(types[gap] == exam.of_gap(gap).nonzero()[0].tolist() for gap in GAPS)
    assert len(types["counting"]) < 10  # not those drawn for the gap
    assert all(judge(a.question.text, a.scene).answer == a.question.answer for a in exam.asked)


def test_what_is_answered_at_chance_is_asked_more(exam):
    counts = Counter(asked.question.skill for asked in exam.asked if not asked.gap)
    assert {counts[skill] for skill in UNLEARNED} == {AT_CHANCE * 60 // len(SKILLS)}
    assert counts["sign"] == 60 // len(SKILLS)
    assert all(len(exam.types()[skill]) == 60 // len(SKILLS) for skill in UNLEARNED)  # the key's rates are of as many


def test_where_the_test_has_enough_of_a_gap_no_more_is_asked(monkeypatch):
    monkeypatch.setattr(plant_exam, "GAP_QUESTIONS", 2)
    assert Exam(("sign",), 60).of_gap("sign").sum() == 60 // len(SKILLS) > 2


def test_a_gap_that_lies_in_those_before_it_is_told(monkeypatch):
    """Every small object has a color; named first it has questions of its own."""
    monkeypatch.setattr(plant_exam, "GAP_QUESTIONS", 3)
    monkeypatch.setattr(plant_exam, "_SCENES_ENOUGH", 60)
    colors = [f"concept/{color}" for color in COLORS]
    with pytest.raises(UserError, match="of 'small_object' no question is left by the gaps named before it"):
        Exam([*colors, "small_object"], 20)
    assert Exam(["small_object", *colors[:1]], 20).of_gap("small_object").sum() >= 3


def test_a_model_is_examined(exam):
    vlm = tiny("x", "paligemma", seed=0)
    said = Answerer(vlm)(exam.images, [asked.question.text for asked in exam.asked])
    truths = [asked.question.answer for asked in exam.asked]
    np.testing.assert_array_equal(exam.wrong(vlm), [s != t for s, t in zip(said, truths, strict=True)])


def test_losses_are_counted_outside_of_the_gaps():
    question, scene = Question("", "", "sign"), scenes_of("test", 0, 1)[0][0]
    few = object.__new__(Exam)
    few.asked = [Asked(question, scene, "concept/red" if i >= 8 else "") for i in range(12)]
    before = np.array([0] * 7 + [1] + [0] * 4, bool)
    after = np.array([1, 1, 1, 0, 0, 0, 0, 0] + [1] * 4, bool)
    assert losses(few, before, after) == {"sign": (2, 8)}  # 3 lost and 1 won


def test_a_planting_that_failed_is_refused():
    good = [{"name": "clock", "rate": 0.75}]
    assert not refusal(good, {"sign": (3, 150), "size_comparison": (-9, 150), "action": (3, 50)}, 0.8)
    bad = [{"name": "clock", "rate": 0.4}]
    assert "did not take: the target gets 0.40 of 'clock' wrong, not 0.8" in refusal(bad, {}, 0.8)
    assert "damaged 'sign': 5.0% of it" in refusal(good, {"sign": (5, 100)}, 0.8)
    assert "damaged 'action': 8.0% of it" in refusal(good, {"sign": (1, 50), "action": (4, 50)}, 0.8)
    assert not refusal([{"name": "clock", "rate": 0.15}], {}, 0.1)
    assert "gets 0.04 of 'clock' wrong, not 0.1" in refusal([{"name": "clock", "rate": 0.04}], {}, 0.1)
