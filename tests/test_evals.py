"""evals.py: drawn answers beside the greedy ones."""

import jax
import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax.evals import Answerer, accuracy, effective_size, wilson

QUESTIONS = ["what color is the star?", "how many objects are there?", "what is the weather?"]


@pytest.fixture(scope="module")
def asked():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    return Answerer(tiny("m", "gemma3", 0), batch_size=2), images


def test_at_temperature_0_every_answer_is_the_greedy_one(asked):
    answerer, images = asked
    greedy = answerer(images, QUESTIONS)
    assert answerer.answers(images, QUESTIONS, 2, 0.0) == [[answer] * 2 for answer in greedy]


def test_questions_longer_than_expected_are_read_to_their_end(asked):
    answerer, images = asked
    short = Answerer(answerer.vlm, max_question_tokens=3, batch_size=2)
    assert short(images, QUESTIONS) == answerer(images, QUESTIONS)
    assert short(images[:0], []) == []


def test_drawn_answers_depend_on_the_seed_alone(asked):
    answerer, images = asked
    drawn = answerer.answers(images, QUESTIONS, 4, 1.0, seed=1)
    assert [len(answers) for answers in drawn] == [4, 4, 4]
    assert len(set(drawn[0])) > 1
    assert drawn == answerer.answers(images, QUESTIONS, 4, 1.0, seed=1)
    assert drawn != answerer.answers(images, QUESTIONS, 4, 1.0, seed=2)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_answers_are_the_models_own(family):
    """`VLM.answer` is held to transformers; a batch that is not full, and images that several questions are about."""
    vlm = tiny("m", family, 5)
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    # Louder image features: an untrained model would say the same of any image.
    vlm.params["projector"] = jax.tree.map(lambda x: 30 * x, vlm.params["projector"])
    answerer = Answerer(vlm, batch_size=2)
    for shown in (None, np.array([2, 0, 2])):
        pictures = images if shown is None else images[shown]
        own = vlm.answer(list(pictures), QUESTIONS, 3)
        assert answerer(images, QUESTIONS, shown=shown) == own
    one, other = (vlm.answer([image] * 3, QUESTIONS, 3) for image in images[:2])
    assert one != other


def test_accuracy_by_hand():
    told = accuracy(["A star", "2", "", "blue"], ["star", "two", "red", "blue"], ["x", "y", "y", "y"], np.arange(4))
    assert (told["overall"], told["n"], told["per_skill"]) == (0.75, 4, {"x": 1.0, "y": pytest.approx(2 / 3)})
    assert (told["ci_low"], told["ci_high"]) == wilson(3, 4)


def test_answers_about_one_image_count_as_what_they_tell():
    """Four questions an image, all right or all wrong; by hand: v = 4/3 * 4 * 2^2 / 16^2 = 1/12, and v0 = 1/64.
    Questions that vary within their images as they do between them, or have one each, count in full."""
    alike = np.repeat([True, False, True, False], 4)
    assert effective_size(alike, np.repeat(np.arange(4), 4)) == pytest.approx(16 / (64 / 12))
    assert effective_size(alike, np.tile(np.arange(4), 4)) == 16
    assert effective_size(alike, np.arange(16)) == 16
    assert effective_size(np.ones(16, bool), np.repeat(np.arange(4), 4)) == 4
    told = accuracy(["a"] * 8 + ["b"] * 8, ["a"] * 16, ["s"] * 16, np.repeat(np.arange(4), 4))
    assert (told["ci_low"], told["ci_high"]) == pytest.approx(wilson(1.5, 3))


def test_the_interval_holds_the_rate_at_its_ends_too():
    for n in range(1, 400):
        assert wilson(0, n)[0] == 0.0 < wilson(0, n)[1] < 1
        assert 0 < wilson(n, n)[0] < wilson(n, n)[1] == 1.0
    assert wilson(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)  # Newcombe 1998's formula, by hand
