"""scenes/language.py: every question of the world is read as it was meant, and nothing else is read."""

import re
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from auditdm_jax.scenes.language import (
    ATTRIBUTES,
    COMPARISONS,
    FORMS,
    LEADS,
    NATURAL_WEIGHTS,
    NOUNS,
    RELATIONS,
    SKILLS,
    Ref,
    fill,
    parse,
    plain,
)
from auditdm_jax.scenes.world import COLORS, MATERIALS, SIZES, SPECIALS

REFS = st.builds(Ref, st.sampled_from(NOUNS), *(st.sampled_from(("", *words)) for words in (COLORS, SIZES, MATERIALS)))
WORDS = {"relation": RELATIONS, "comparison": COMPARISONS, "attribute": ATTRIBUTES, "color": COLORS}


@st.composite
def slots_of(draw, skill: str) -> dict:
    """Values of all slots of a skill's forms."""
    names = set(re.findall(r"{(\w+)}", FORMS[skill][0]))
    slots = {name: draw(st.sampled_from(WORDS[name]) if name in WORDS else REFS) for name in sorted(names)}
    if "thing" in slots and draw(st.booleans()):
        slots = {"special": draw(st.sampled_from(list(SPECIALS)))}
    return slots


@st.composite
def questions(draw) -> str:
    skill = draw(st.sampled_from(SKILLS))
    return fill(draw(st.sampled_from(LEADS)), draw(st.sampled_from(FORMS[skill])), draw(slots_of(skill)))


def test_the_papers_skills_are_among_twenty():
    paper = {"color", "shape", "counting", "size_comparison", "spatial_relationship", "object_relationship"}
    paper |= {"small_object", "hallucination", "material", "action", "emotion", "weather", "clock", "sign"}
    paper |= {"small_text", "world_knowledge"}
    assert len(SKILLS) >= 20
    assert paper < set(SKILLS)
    assert set(NATURAL_WEIGHTS) == set(SKILLS)


@pytest.mark.parametrize("skill", SKILLS)
@settings(max_examples=20)
@given(data=st.data())
def test_every_phrasing_is_read_as_its_skill_and_slots(skill, data):
    slots = data.draw(slots_of(skill))
    for lead in LEADS:
        for form in FORMS[skill]:
            assert parse(fill(lead, form, slots)) == (skill, slots)


@settings(max_examples=60)
@given(question=questions(), data=st.data())
def test_case_punctuation_and_spacing_do_not_matter(question, data):
    gaps = st.text(string.punctuation + " \t\n", max_size=3)
    words = plain(question).split()
    shown = [word.upper() if data.draw(st.booleans()) else word.capitalize() for word in words]
    text = data.draw(gaps) + "".join(f"{word} {data.draw(gaps)}" for word in shown)
    assert parse(text) == parse(question) is not None


@given(st.text(max_size=200) | st.text(string.ascii_lowercase + " ", max_size=80))
def test_any_text_is_safe_to_read(text):
    assert parse(text) is None


@given(st.lists(st.sampled_from(sorted({w for fs in FORMS.values() for f in fs for w in plain(f).split()}))))
def test_words_of_the_world_in_any_order_are_safe_to_read(words):
    parsed = parse(" ".join(words))
    # Should chance make a question of them, it must be one that says the same when written out.
    if parsed is not None:
        skill, slots = parsed
        written = {plain(fill(lead, form, slots)) for lead in LEADS for form in FORMS[skill]}
        assert " ".join(words) in written


@settings(max_examples=60)
@given(question=questions(), data=st.data())
def test_a_garbled_question_is_none(question, data):
    words = plain(question).split()
    i = data.draw(st.integers(0, len(words) - 1))
    assert parse(" ".join([*words[: i + 1], *words[i:]])) is None  # a word said twice
    assert parse(" ".join([*words[:i], words[i] + "x", *words[i + 1 :]])) is None  # a word misspelt
    assert parse(" ".join([*words, "and", *words])) is None  # two questions in one
    shuffled = data.draw(st.permutations(words))
    assume(shuffled != words)
    again = parse(" ".join(shuffled))
    assert again is None or again != parse(question)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n?!",
        "\x00\ud800\U0001f600",
        "unclear",
        "what",
        "what color is the",
        "what color is the red",
        "what color is the {ref}?",
        "what color is the (?:red|blue)* circle?",
        "what color is the circle" + " circle" * 20_000,
        "(" * 20_000,
        "red " * 20_000 + "circle",
        "what color is the red small circle?",  # size, color, material: in this order only
        "what color is the circles?",
        "how many circle are there?",
        "how many crosss are there?",
        "is there any small dot?",  # special things take no adjectives
        "is there any flags?",
        "is the clock left of the circle?",  # pairs are of shapes
        "is the circle larger then the square?",
        "is the circle red?",  # negation asks with "not" or "lack"
        "what size is the circle?",
        "what's the weather?",
        "what is the weath\u0435r?",  # a Cyrillic letter
        "say please what is the weather?",
        "what is the weather? say",
        "describe 1 1",
        "where is the top left?",
    ],
)
def test_what_is_no_question_of_this_world(text):
    assert parse(text) is None


def test_plurals_and_every_kind_of_slot_by_hand():
    assert fill("", FORMS["counting"][0], {"group": Ref("cross", "red", "small", "dotted")}) == (
        "how many small red dotted crosses are there?"
    )
    assert parse("Say: how many small red dotted CROSSES are there") == (
        "counting",
        {"group": Ref("cross", "red", "small", "dotted")},
    )
    assert parse("is the circle left of the object") == (
        "spatial_relationship",
        {"ref": Ref("circle"), "ref2": Ref(), "relation": "left of"},
    )
    assert parse("can you see any dot") == ("hallucination", {"special": "dot"})
    assert parse("is the red star not blue") == ("negation", {"ref": Ref("star", "red"), "color": "blue"})
    assert parse("what is the weather") == ("weather", {})
