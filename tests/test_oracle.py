"""scenes/oracle.py: answers worked out by hand on one small scene, and what has no answer."""

from collections import defaultdict

import numpy as np
import pytest

from auditdm_jax.scenes.language import ALWAYS_ANSWERABLE, FORMS, SKILLS
from auditdm_jax.scenes.oracle import Verdict, judge
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.world import Scene, Thing, sample_scene

CIRCLE = Thing("shape", "red", "circle", "small", "solid")
SQUARE = Thing("shape", "blue", "square", "large", "striped", framed=True)
YELLOW = Thing("shape", "yellow", "triangle", "medium", "solid")
GREEN = Thing("shape", "green", "triangle", "medium", "dotted")
STAR = Thing("shape", "red", "star", "large", "checkered", barred=True)
HEART = Thing("shape", "blue", "heart", "small", "solid")
SCENE = Scene(
    "night",
    (
        *(CIRCLE, SQUARE, YELLOW, Thing("person", value="jumping")),
        *(GREEN, None, Thing("face", value="sad"), Thing("clock", value="7")),
        *(None, Thing("sign", value="yield"), STAR, Thing("label", value="tea")),
        *(Thing("flag", value="cordia"), HEART, Thing("dot", value="pink"), None),
    ),
)
EMPTY = Scene("snowy", (None,) * 16)

BY_HAND = {
    "color": {
        "what color is the circle?": "red",
        "which color does the large striped object have?": "blue",
        "what color is the small blue object?": "blue",
    },
    "shape": {"what shape is the green object?": "triangle", "which shape does the checkered object have?": "star"},
    "counting": {
        "how many triangles are there?": "2",
        "how many objects are there?": "6",  # shapes: neither the person nor the dot is an object
        "what number of red objects is there?": "2",
        "how many small solid objects are there?": "2",
        "how many blue triangles are there?": "0",
    },
    "size_comparison": {
        "is the circle larger than the star?": "no",
        "is the circle smaller than the star?": "yes",
        "does the square look larger than the green triangle?": "yes",
        "is the green triangle larger than the yellow triangle?": "no",
        "is the green triangle smaller than the yellow triangle?": "no",
    },
    "spatial_relationship": {
        "is the circle left of the square?": "yes",
        "is the circle right of the square?": "no",
        "is the circle above the square?": "no",  # side by side
        "is the circle below the square?": "no",
        "does the heart lie below the star?": "yes",
        "does the heart lie left of the star?": "yes",
        "does the star lie right of the heart?": "yes",
        "does the star lie above the heart?": "yes",
        "is the square left of the heart?": "no",  # one above the other
    },
    "object_relationship": {
        "what shape is inside the frame?": "square",
        "what color is inside the frame?": "blue",
        "which pattern does the frame contain?": "striped",
    },
    "small_object": {"what color is the tiny dot?": "pink"},
    "hallucination": {
        "is there any person?": "yes",
        "is there any red star?": "yes",
        "can you see any ring?": "no",
        "can you see any blue star?": "no",
        "is there any medium dotted triangle?": "yes",
        "is there any large dotted triangle?": "no",
    },
    "material": {"what pattern does the heart have?": "solid", "which pattern is on the green object?": "dotted"},
    "action": {"what is the person doing?": "jumping"},
    "emotion": {"how does the face feel?": "sad"},
    "weather": {"what is the weather?": "night"},
    "clock": {"what hour does the clock show?": "7"},
    "sign": {"what does the sign mean?": "yield"},
    "small_text": {"what does the label say?": "tea"},
    "world_knowledge": {"which country has this flag?": "cordia"},
    "distraction": {
        "what shape is behind the bars?": "star",
        "what color is behind the bars?": "red",
        "which pattern do the bars hide?": "checkered",
    },
    "comparing_counts": {
        "are there more triangles than stars?": "yes",
        "are there more stars than triangles?": "no",
        "are there more circles than stars?": "no",  # as many
        "do the blue objects outnumber the pink objects?": "yes",
        "do the rings outnumber the hearts?": "no",
    },
    "negation": {
        "is the circle not red?": "no",
        "is the circle not blue?": "yes",
        "does the star lack red?": "no",
        "does the star lack pink?": "yes",
    },
    "localization": {
        "where is the circle?": "top left",
        "where is the yellow triangle?": "top right",
        "in which corner is the heart?": "bottom left",
        "in which corner is the star?": "bottom right",
    },
}


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_by_hand(skill):
    for question, truth in BY_HAND[skill].items():
        status, answer, told_skill, _ = judge(question, SCENE)
        assert (status, answer, told_skill) == ("answered", truth, skill), question


@pytest.mark.parametrize(
    "question",
    [
        "what color is the ring?",  # absent
        "what color is the triangle?",  # two of them
        "what shape is the object?",
        "what shape is the red object?",
        "what pattern does the blue object have?",
        "where is the pink heart?",
        "is the triangle not red?",
        "is the ring not red?",
        "is the circle larger than the triangle?",
        "is the ring smaller than the circle?",
        "is the circle left of the red circle?",  # one and the same
        "is the small red object above the circle?",
        "does the triangle lie above the heart?",
    ],
)
def test_absent_and_ambiguous_things_are_unanswerable(question):
    verdict = judge(question, SCENE)
    assert (verdict.status, verdict.answer, verdict.condition) == ("unanswerable", "", "")
    assert verdict.skill in SKILLS


@pytest.mark.parametrize("skill", SKILLS)
def test_in_an_empty_scene_only_what_is_always_answerable_has_an_answer(skill):
    verdicts = {judge(question, EMPTY)[:3] for question in BY_HAND[skill]}
    truth = {"counting": "0", "hallucination": "no", "comparing_counts": "no", "weather": "snowy"}
    assert set(truth) == set(ALWAYS_ANSWERABLE)
    if skill in truth:
        assert verdicts == {("answered", truth[skill], skill)}
    else:
        assert verdicts == {("unanswerable", "", skill)}


@pytest.mark.parametrize(("mark", "skill"), [("framed", "object_relationship"), ("barred", "distraction")])
def test_two_frames_or_bars_are_ambiguous(mark, skill):
    cells = (CIRCLE._replace(**{mark: True}), HEART._replace(**{mark: True}), *EMPTY.cells[2:])
    for form in FORMS[skill]:
        assert judge(form.format(attribute="color"), EMPTY._replace(cells=cells)).status == "unanswerable"


def test_other_text_is_unparsable_not_wrong():
    for text in ("", "hello", "what color is the sky?", "describe 1 1"):
        assert judge(text, SCENE) == Verdict("unparsable")


@pytest.mark.parametrize(
    ("question", "condition"),
    [
        ("what color is the circle?", "small object"),
        ("is the star not red?", "large object"),
        ("where is the green triangle?", "medium object"),
        ("how many rings are there?", "none"),
        ("how many triangles are there?", "up to four"),
        ("how many objects are there?", "above four"),
        ("what pattern is inside the frame?", "pattern"),
        ("is the circle left of the square?", "left"),
        ("is the circle smaller than the star?", "smaller"),
        ("is there any dot?", "present"),
        ("is there any ring?", "absent"),
        ("are there more rings than hearts?", "any"),
        ("what hour does the clock show?", "night background"),
        ("what is the weather?", "any"),
    ],
)
def test_conditions_by_hand(question, condition):
    assert judge(question, SCENE).condition == condition


def test_condition_names_hold_no_value_of_their_skill():
    answers, conditions = defaultdict(set), defaultdict(set)
    for seed in range(300):
        scene = sample_scene("train", seed)
        asker = Asker(scene, np.random.default_rng(seed))
        for skill in SKILLS:
            question = asker.ask(skill, "train")
            if question is not None:
                verdict = judge(question.text, scene)
                answers[skill] |= set(verdict.answer.split())
                conditions[skill].add(verdict.condition)
    for skill in SKILLS:
        assert "" not in conditions[skill]
        assert not {word for name in conditions[skill] for word in name.split()} & answers[skill], skill
        assert len(conditions[skill]) <= 5, "too many failure types to count well"
