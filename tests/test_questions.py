"""scenes/questions.py: true answers, balanced within a skill, from two distributions over skills."""

from collections import Counter

import numpy as np
import pytest

from auditdm_jax.scenes.dataset import balanced_set as make_test_set
from auditdm_jax.scenes.language import ALWAYS_ANSWERABLE, FORMS, NATURAL_WEIGHTS, SKILLS, UNCLEAR, plain
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import DISTRIBUTIONS, Asker, Question
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import (
    COLORS,
    MATERIALS,
    QUADRANTS,
    SHAPES,
    SPECIALS,
    SPLITS,
    WEATHERS,
    Scene,
    Thing,
    sample_scene,
    split_of,
)

YES_NO = ("size_comparison", "spatial_relationship", "hallucination", "comparing_counts", "negation")
VALUES = {
    "color": COLORS,
    "shape": SHAPES,
    "material": MATERIALS,
    "small_object": COLORS,
    "action": SPECIALS["person"],
    "emotion": SPECIALS["face"],
    "clock": SPECIALS["clock"],
    "sign": SPECIALS["sign"],
    "small_text": SPECIALS["label"],
    "world_knowledge": SPECIALS["flag"],
    "weather": WEATHERS,
    "localization": QUADRANTS,
    **dict.fromkeys(YES_NO, ("yes", "no")),
}
MARKED = ("object_relationship", "distraction")


def askers(split: str, count: int) -> list[Asker]:
    return [Asker(sample_scene(split, seed), np.random.default_rng((9, seed))) for seed in range(count)]


@pytest.fixture(scope="module")
def many() -> list[Asker]:
    """Scenes enough to count answers by."""
    return askers("train", 400)


def ask_all(many: list[Asker], skill: str, unanswerable: bool = False) -> list[Question]:
    asked = [asker.ask(skill, "train", unanswerable) for asker in many]
    return [question for question in asked if question is not None]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_oracle_agrees_with_every_answer(split, distribution):
    for asker in askers(split, 60):
        for _ in range(8):
            text, answer, skill = asker.draw(distribution, split)
            assert judge(text, asker.scene)[:3] == ("answered", answer, skill)


@pytest.mark.parametrize("skill", SKILLS)
def test_unanswerable_questions_have_no_answer(skill, many):
    asked = [(asker, asker.ask(skill, "test", unanswerable=True)) for asker in many]
    found = [(asker, question) for asker, question in asked if question is not None]
    for asker, question in found:
        assert judge(question.text, asker.scene)[:3] == ("unanswerable", "", skill)
        assert question.answer == UNCLEAR
    if skill in ALWAYS_ANSWERABLE:
        assert not found
    else:
        assert len(found) > 0.2 * len(many)


@pytest.mark.parametrize("skill", VALUES)
def test_answers_are_balanced_within_a_skill(skill, many):
    shares = Counter(question.answer for question in ask_all(many, skill))
    total, fair = shares.total(), 1 / len(VALUES[skill])
    assert set(shares) == set(VALUES[skill])
    # A guesser who knows the skill alone is right at most a little more often than chance.
    assert max(shares.values()) / total < min(1.3 * fair + 0.06, 0.65)
    assert min(shares.values()) / total > 0.4 * fair


def test_counts_are_balanced_as_far_as_scenes_permit(many):
    shares = Counter(question.answer for question in ask_all(many, "counting") + ask_all(many, "counting"))
    total = shares.total()
    assert {"0", "1", "2", "3", "4", "5"} <= set(shares) <= {str(n) for n in range(9)}
    # A sparse scene cannot be asked for many, so one is the commonest answer.
    assert max(shares.values()) / total < 0.4
    assert all(shares[str(n)] / total > 0.04 for n in range(5))


@pytest.mark.parametrize("skill", MARKED)
def test_what_is_marked_is_asked_about_in_every_way(skill, many):
    questions = ask_all(many, skill)
    for word, values in (("color", COLORS), ("shape", SHAPES), ("pattern", MATERIALS)):
        shares = Counter(question.answer for question in questions if word in question.text)
        assert set(shares) == set(values)
        assert 0.25 < shares.total() / len(questions) < 0.42
        assert max(shares.values()) / shares.total() < 2.2 / len(values)


def test_answers_are_not_given_away(many):
    for skill in ("color", "shape", "material"):
        for question in ask_all(many, skill):
            assert question.answer not in question.text.split()


def frequencies(asked: list[Asker], distribution: str, draws: int) -> dict[str, float]:
    drawn = Counter(asker.draw(distribution, "train").skill for asker in asked for _ in range(draws))
    return {skill: drawn[skill] / drawn.total() for skill in SKILLS}


@pytest.fixture(scope="module")
def crowded() -> list[Asker]:
    """Scenes with something to ask for every skill, so that no skill stands in for another."""
    scenes = [sample_scene("train", seed) for seed in range(1500)]
    full = [
        scene
        for scene in scenes
        if all(scene.special(kind) for kind in SPECIALS)
        and any(thing.framed for _, thing in scene.shapes())
        and any(thing.barred for _, thing in scene.shapes())
    ]
    assert len(full) >= 10
    return [Asker(scene, np.random.default_rng((8, i))) for i, scene in enumerate(full[:20])]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_crowded_scenes_are_asked_about_by_the_distributions_weights(distribution, crowded):
    weights = NATURAL_WEIGHTS if distribution == "natural" else dict.fromkeys(SKILLS, 1.0)
    draws = 8000 // len(crowded)
    total = draws * len(crowded)
    for skill, got in frequencies(crowded, distribution, draws).items():
        wanted = weights[skill] / sum(weights.values())
        assert abs(got - wanted) < 4 * np.sqrt(wanted / total) + 0.06 * wanted, skill


def test_the_natural_distribution_has_a_long_tail(many):
    got = frequencies(many, "natural", 16)
    total = sum(NATURAL_WEIGHTS.values())
    rare = [skill for skill in SKILLS if NATURAL_WEIGHTS[skill] < 1.5]
    assert len(rare) == 9
    for skill in SKILLS:
        ratio = got[skill] / (NATURAL_WEIGHTS[skill] / total)
        # Many scenes lack what a rare skill asks for, and a question of another skill takes its place.
        assert (0.25 < ratio < 1.2) if skill in rare else (0.5 < ratio < 1.3), skill
    assert sum(got[skill] for skill in rare) < 0.08
    assert sum(sorted(got.values())[-4:]) > 0.6


def test_the_uniform_distribution_asks_of_everything_often(many):
    got = frequencies(many, "uniform", 8)
    assert min(got.values()) > 0.35 / len(SKILLS)
    assert max(got.values()) < 1.7 / len(SKILLS)


def test_shares_of_unanswerable_questions_and_descriptions(many):
    plain = [asker.draw("uniform", "train") for asker in many]
    assert not {UNCLEAR, "description"} & {word for question in plain for word in question}
    mixed = [asker.draw("uniform", "train", 0.3, 0.2) for asker in many for _ in range(4)]
    described = sum(question.skill == "description" for question in mixed)
    assert abs(described / len(mixed) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(mixed))
    unclear = sum(question.answer == UNCLEAR for question in mixed)
    assert abs(unclear / len(mixed) - 0.24) < 4 * np.sqrt(0.24 * 0.76 / len(mixed))
    hopeless = [asker.draw("natural", "train", unanswerable_share=1.0, nonsense_share=0.4) for asker in many]
    assert {question.answer for question in hopeless} == {UNCLEAR}
    nonsense = sum(question.skill == "nonsense" for question in hopeless) / len(hopeless)
    assert abs(nonsense - 0.4) < 4 * np.sqrt(0.4 * 0.6 / len(hopeless))


def test_nonsense_is_near_a_question_and_none(many):
    asked = [(asker, asker.nonsense("uniform", "train")) for asker in many]
    for asker, question in asked:
        assert judge(question.text, asker.scene).status == "unparsable"
        assert (question.answer, question.skill) == (UNCLEAR, "nonsense")
        assert len(plain(question.text).split()) < 12
    words = {word for form in FORMS.values() for text in form for word in plain(text).split()}
    assert all(words & set(plain(question.text).split()) for _, question in asked if len(question.text.split()) > 3)
    assert len({question.text for _, question in asked}) > 0.9 * len(asked)


def test_descriptions_say_what_stands_where():
    ring = Thing("shape", "pink", "ring", "small", "dotted", barred=True)
    cells = (None, Thing("flag", value="belmar"), *(None,) * 9, ring, *(None,) * 4)
    asker = Asker(Scene("rainy", cells), np.random.default_rng(0))
    told = {asker.describe(everything=True)[:2] for _ in range(3000)}
    places = {f"describe {row} {column}": "nothing" for row in range(1, 5) for column in range(1, 5)}
    places |= {"describe 1 2": "flag belmar", "describe 3 4": "small pink dotted ring"}
    words = ("ring", "pink ring", "pink object", "small ring", "small pink object", "dotted object")
    places |= {f"describe {ref}": "3 4" for ref in (*words, "pink dotted object", "dotted ring")}
    assert told == set(places.items())
    # Natural data seldom show what is rare: special things are left out.
    common = {asker.describe(everything=False)[:2] for _ in range(3000)}
    assert common == told - {("describe 1 2", "flag belmar")}


def test_the_generator_decides_everything():
    scene = sample_scene("train", 5)
    runs = [[Asker(scene, np.random.default_rng(seed)).draw("natural", "train") for _ in range(3)] for seed in (1, 1)]
    assert runs[0] == runs[1]
    first, other = (
        [asker.draw("natural", "train") for _ in range(20)]
        for asker in (Asker(scene, np.random.default_rng(seed)) for seed in (1, 2))
    )
    assert first != other


@pytest.mark.parametrize("unanswerable", [False, True])
def test_a_test_set_asks_every_skill_equally_often(unanswerable):
    examples = make_test_set(96 if unanswerable else 100, unanswerable=unanswerable)
    skills = Counter(question.skill for question in examples.questions)
    expected = [skill for skill in SKILLS if not (unanswerable and skill in ALWAYS_ANSWERABLE)]
    assert skills == dict.fromkeys(expected, 6 if unanswerable else 5)
    status = "unanswerable" if unanswerable else "answered"
    for picture, scene, question in zip(*examples, strict=True):
        assert split_of(scene) == "test"
        assert np.array_equal(picture, render(scene))
        assert judge(question.text, scene).status == status
    assert len(set(examples.scenes)) == len(examples.scenes)
