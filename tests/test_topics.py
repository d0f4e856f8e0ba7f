"""topics.py: chances worked out by hand, questions put together, and a step whose groups go on from a topic."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_zoo import save_tiny_zoo

from auditdm_jax import training
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.prompts import QUESTION_INSTRUCTION, instruction_prompts, texts_of
from auditdm_jax.reward import Reward
from auditdm_jax.sampling import Completions
from auditdm_jax.step import make_step
from auditdm_jax.topics import DECAY, TOPICS, Topics, counted, read_weights, topic_weights, topics_of, whole_questions

BEGINNINGS = ("how many", "is there any", "where")


def test_chances_by_hand():
    # Asked 8, found 7: rate 0.8, share 7/8; asked 3, found 1: 0.4, 1/8; asked 18, found 0: 0.05, 0.
    counts = jnp.array([[8.0, 3, 18], [7, 1, 0]])
    earns = np.array([0.8 / (1 + 2 * 7 / 8), 0.4 / (1 + 2 / 8), 0.05])
    np.testing.assert_allclose(topic_weights(counts, 2.0, 0.25), [0.75, *(0.25 * earns / earns.sum())], rtol=1e-6)


@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0, 100), st.floats(0.01, 1))
def test_every_topic_keeps_a_chance(topics, seed, c, share):
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, 500, topics)
    weights = topic_weights(jnp.array([asked, rng.integers(0, asked + 1)], jnp.float32), c, share)
    assert (weights[1:] > 0).all()
    np.testing.assert_allclose([weights.sum(), weights[1:].sum()], [1, share], rtol=1e-5)
    nothing = topic_weights(jnp.zeros((2, topics)), c, share)
    np.testing.assert_allclose(nothing[1:], share / topics, rtol=1e-5)


def test_counts_by_hand():
    claimed = jnp.array([[True, False, True], [True, True, True], [False, True, False]])
    counts = counted(jnp.array([[10.0, 20], [1, 2]]), jnp.array([2, 0, 2]), claimed)
    np.testing.assert_allclose(counts, [[10 * DECAY, 20 * DECAY + 6], [DECAY, 2 * DECAY + 3]])


def test_questions_are_put_together_without_gaps():
    topics = Topics(None, jnp.array([[0, 0], [7, 8], [9, 0]]), jnp.array([[False, False], [True, True], [True, False]]))
    ids = jnp.array([[[1, 2, 3]], [[1, 2, 0]], [[1, 2, 3]]])
    written = Completions(ids, ids > 0, -ids.astype(jnp.float32))
    whole = whole_questions(topics, jnp.array([0, 1, 2]), written, 4)
    assert whole.ids.tolist() == [[[1, 2, 3, 0]], [[7, 8, 1, 2]], [[9, 1, 2, 3]]]
    assert whole.mask.tolist() == [[[True] * 3 + [False]], [[True] * 4], [[True] * 4]]
    assert whole.logps.tolist() == [[[-1, -2, -3, 0]], [[0, 0, -1, -2]], [[0, -1, -2, -3]]]
    cut = whole_questions(topics, jnp.array([0, 1, 2]), written, 3)
    assert cut.ids.tolist() == [[[1, 2, 3]], [[7, 8, 1]], [[9, 1, 2]]]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    zoo = save_tiny_zoo(tmp_path_factory.mktemp("zoo"))
    return TrainConfig(
        images_per_step=4, models=Models(zoo["auditor"], zoo["target"], (zoo["a"],)), grpo=GRPO(num_generations=2),
        reward=Reward(topics=BEGINNINGS, topic_share=1.0), max_question_tokens=6,
    )  # fmt: skip


@pytest.fixture(scope="module")
def players(config):
    return training.load_players(config)


def test_the_prompt_ends_with_the_topic(players):
    topics = topics_of(players.auditor, QUESTION_INSTRUCTION, BEGINNINGS, 6)
    plain = instruction_prompts(players.auditor, [QUESTION_INSTRUCTION])
    for row, beginning in enumerate(("", *BEGINNINGS)):
        ids = topics.prompts.input_ids[row][topics.prompts.attention_mask[row]]
        added = ids[plain.input_ids.shape[1] :]
        np.testing.assert_array_equal(ids[: plain.input_ids.shape[1]], plain.input_ids[0])
        np.testing.assert_array_equal(added, topics.ids[row][topics.mask[row]])
        assert players.auditor.tokenizer.decode(added) == beginning
    assert topics_of(players.auditor, QUESTION_INSTRUCTION, (), 6) is None
    with pytest.raises(UserError, match="'is there any' has 3 of a question's 4 tokens"):
        topics_of(players.auditor, QUESTION_INSTRUCTION, BEGINNINGS, 4)


@pytest.mark.parametrize("max_resamples", [0, 1])
def test_groups_of_a_step_go_on_from_a_topic(config, players, max_resamples):
    grpo = dataclasses.replace(config.grpo, max_resamples=max_resamples)
    settings = training.step_settings(dataclasses.replace(config, grpo=grpo))
    topics = topics_of(players.auditor, config.instruction, BEGINNINGS, config.max_question_tokens)
    cast = training.cast_of(players, [config.instruction], topics)
    state = training.initial_state(config, players, settings.optimizer)
    images = next(training.open_source(config, 64, "train"))["image"]
    state, metrics, record = make_step(cast, settings)(state, images)
    texts = texts_of(players.auditor.tokenizer, record["question_ids"], record["question_mask"])
    begun = [next((b for b in BEGINNINGS if text.startswith(b)), None) for text in texts]
    assert None not in begun
    assert begun[::2] == begun[1::2]  # the two of a group alike
    expected = [[begun.count(b) for b in BEGINNINGS], [0] * 3]
    np.testing.assert_allclose(state.trained.topics[0], expected[0])
    assert state.trained.topics[1].sum() == pytest.approx(8 * float(metrics["outcome/claimed"]))
    # The update scores what was written behind the same beginning.
    assert float(metrics["sampling/drift_max"]) < 1e-4


@pytest.mark.parametrize(
    "written",
    [
        '{"": 0.75, "how many": 0.25}',  # one is missing
        '{"": 0.7, "how many": 0.1, "where": 0.1, "who": 0.1}',
        '{"": 0.7, "how many": -0.1, "where": 0.4}',
        '{"": 0.7, "how many": NaN, "where": 0.3}',
        '{"": 0.7, "how many": "0.1", "where": 0.2}',
        '{"": 0, "how many": 0, "where": 0}',
        "[0.7, 0.1, 0.2]",
        '{"": 0.7',
    ],
)
def test_chances_that_were_edited_are_one_line(tmp_path, written):
    (tmp_path / TOPICS).write_text(written)
    with pytest.raises(UserError, match=r"topics.json does not give each topic .*; train.py --resume"):
        read_weights(tmp_path, ("how many", "where"))


def test_a_finished_run_that_is_resumed_writes_its_chances_anew(config, tmp_path):
    config = dataclasses.replace(config, name="r", out=str(tmp_path), steps=1)
    run = training.train(config)
    kept = read_weights(run, BEGINNINGS)
    assert sum(kept.values()) == pytest.approx(1)
    (run / TOPICS).unlink()
    with pytest.raises(UserError, match=r"topics.json is missing; train.py --resume"):
        read_weights(run, BEGINNINGS)
    training.train(dataclasses.replace(config, resume=True))
    assert read_weights(run, BEGINNINGS) == kept
