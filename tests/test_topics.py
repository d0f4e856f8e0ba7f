"""topics.py: chances and counts worked out by hand, and a step whose questions begin so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax import collect, training
from auditdm_jax.config import Models, Probing, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.prompts import texts_of
from auditdm_jax.reward import BEGINNINGS as BEGINNINGS_OF_QUESTIONS
from auditdm_jax.reward import Reward
from auditdm_jax.step import make_step
from auditdm_jax.topics import DECAY, Topics, counted, draw_topics, topic_weights, topics_of, unpaid

BEGINNINGS = ("how many", "is there any", "where")


def test_chances_by_hand():
    # Asked 8, found 7: rate 0.8, share 7/8; asked 3, found 1: 0.4, 1/8; asked 18, found 0: 0.05, 0.
    counts = jnp.array([[8.0, 3, 18], [7, 1, 0]])
    earns = np.array([0.64 / (1 + 3 * 7 / 8), 0.16 / (1 + 3 / 8), 0.0025])
    np.testing.assert_allclose(topic_weights(counts), earns / earns.sum(), rtol=1e-6)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_every_topic_keeps_a_chance(topics, seed):
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, 500, topics)
    weights = topic_weights(jnp.array([asked, rng.integers(0, asked + 1)], jnp.float32))
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(topic_weights(jnp.zeros((2, topics))), 1 / topics, rtol=1e-5)


def test_topics_are_drawn_as_often_as_their_chances():
    drawn = np.asarray(draw_topics(jax.random.key(0), jnp.array([0.1, 0.0, 0.3]), (100, 200)))
    shares = np.bincount(drawn.reshape(-1) + 1, minlength=4) / drawn.size
    np.testing.assert_allclose(shares, [0.6, 0.1, 0, 0.3], atol=0.015)


def test_counts_by_hand():
    claimed = jnp.array([[True, False, True], [True, True, True], [False, True, False]])
    topic = jnp.array([[1, 1, -1], [-1, -1, -1], [1, 1, 0]])
    counts = counted(jnp.array([[10.0, 20], [1, 2]]), topic, claimed)
    np.testing.assert_allclose(counts, [[10 * DECAY + 1, 20 * DECAY + 4], [DECAY, 2 * DECAY + 2]])


def test_a_beginning_is_learned_where_it_paid():
    begun = jnp.array([[[True, True, False], [True, False, False]], [[False] * 3, [True, True, False]]])
    left_out = unpaid(begun, jnp.array([[1.0, 0.0], [0.0, 0.2]]))
    assert left_out.tolist() == [[[False] * 3, [True, False, False]], [[False] * 3] * 2]


def test_beginnings_stand_where_they_are_told():
    topics = Topics(jnp.array([[7, 8], [9, 0]]), jnp.array([[True, True], [True, False]]))
    begun = topics.begun(jnp.array([[0, -1], [1, 1]]), 4)
    assert (begun.ids * begun.mask).tolist() == [[[7, 8, 0, 0], [0] * 4], [[9, 0, 0, 0]] * 2]
    assert begun.mask.sum() == 4


@pytest.fixture(scope="module")
def config(zoo):
    return TrainConfig(
        images_per_step=4, models=Models(zoo["auditor"], zoo["target"], (zoo["a"],)), grpo=GRPO(num_generations=2),
        reward=Reward(topics=BEGINNINGS, topic_share=1.0), max_question_tokens=6,
    )  # fmt: skip


@pytest.fixture(scope="module")
def players(config):
    return training.load_players(config)


def test_topics_are_the_beginnings_in_tokens(players):
    topics = topics_of(players.auditor, BEGINNINGS, 6)
    assert texts_of(players.auditor.tokenizer, topics.ids, topics.mask) == list(BEGINNINGS)
    assert topics_of(players.auditor, (), 6) is None
    with pytest.raises(UserError, match="'is there any' has 3 of a question's 4 tokens"):
        topics_of(players.auditor, BEGINNINGS, 4)


@pytest.mark.parametrize("max_resamples", [0, 1])
def test_questions_of_a_step_begin_with_a_topic(config, players, max_resamples, monkeypatch):
    claimed = np.tile([True, False], (4, 1))  # of random models hardly any is: the first of each image counts as such
    examine = collect.examine
    monkeypatch.setattr(collect, "examine", lambda *given: examine(*given).replace(claimed=jnp.asarray(claimed)))
    grpo = dataclasses.replace(config.grpo, max_resamples=max_resamples)
    settings = training.step_settings(dataclasses.replace(config, grpo=grpo))
    topics = topics_of(players.auditor, BEGINNINGS, config.max_question_tokens)
    cast = training.cast_of(players, [config.instruction], topics)
    state = training.initial_state(config, players, settings.optimizer)
    images = next(training.open_source(config, 64, "train"))["image"]
    state, metrics, record = make_step(cast, settings)(state, images)
    texts = texts_of(players.auditor.tokenizer, record["question_ids"], record["question_mask"])
    begun = [next((b for b in BEGINNINGS if text.startswith(b)), None) for text in texts]
    assert None not in begun
    assert len(set(begun)) > 1
    np.testing.assert_allclose(state.trained.topics[0], [begun.count(b) for b in BEGINNINGS])
    found = [b for b, failed in zip(begun, claimed.ravel(), strict=True) if failed]
    np.testing.assert_allclose(state.trained.topics[1], [found.count(b) for b in BEGINNINGS])
    # The critic's first head is the channel's, in which no question was asked; then come those of the topics.
    moved = np.asarray(state.trained.critic.weights).any(-1)
    assert moved.tolist() == [False, *(b in begun for b in BEGINNINGS)]
    # What was given has the log-prob of the auditor, in the loop and in the update.
    assert float(metrics["sampling/drift_max"]) < 1e-4


def test_who_has_no_topics_begins_as_it_likes():
    assert TrainConfig().topics == BEGINNINGS_OF_QUESTIONS
    assert TrainConfig(reward=Reward(topic_share=0)).topics == ()
    assert TrainConfig(probing=Probing(channels=("question", "edit"))).topics == BEGINNINGS_OF_QUESTIONS
    assert TrainConfig(probing=Probing(channels=("edit", "caption"))).topics == ()  # none is asked of an image as it is
