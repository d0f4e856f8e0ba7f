"""reward.py: outcomes against a plain vote count; novelty worked out by hand."""

import math
from collections import Counter
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.config import TrainConfig
from auditdm_jax.reward import (
    Reward,
    consensus,
    disagreement,
    diversified,
    likelihood_gap,
    likelihood_reward,
    novelty_weights,
    question_ngrams,
    share_reward,
)
from auditdm_jax.training import step_settings

UNCLEAR, RED, BLUE, GREEN = 4_000_000_000, 1, 2, 3
OUTCOMES = ("empty", "overlong", "spoiled", "abstained", "no_consensus", "target_unanswered", "agreed", "claimed")


def judge(target, references, agreement=1.0, target_empty=False, reference_empty=False, **faults):
    """The outcome of one question."""
    outcome = disagreement(
        jnp.full((1, 1), target, jnp.uint32),
        jnp.full((1, 1), target_empty),
        jnp.array(references, jnp.uint32).reshape(-1, 1, 1),
        jnp.broadcast_to(jnp.array(reference_empty).reshape(-1, 1, 1), (len(references), 1, 1)),
        UNCLEAR,
        agreement,
        **{name: jnp.full((1, 1), value) for name, value in faults.items()},
    )
    return jax.tree.map(lambda x: x[0, 0].item(), outcome)


@pytest.mark.parametrize(
    ("target", "references", "agreement", "name"),
    [
        (BLUE, [RED, RED, RED], 1.0, "claimed"),
        (RED, [RED, RED, RED], 1.0, "agreed"),
        (BLUE, [RED, RED, GREEN], 1.0, "no_consensus"),
        (BLUE, [RED, RED, GREEN], 0.667, "claimed"),
        (BLUE, [RED, RED, GREEN], 0.7, "no_consensus"),
        (BLUE, [RED, GREEN], 0.5, "no_consensus"),  # a tie
        (BLUE, [RED, UNCLEAR, RED], 1.0, "no_consensus"),
        (BLUE, [RED, UNCLEAR, RED], 0.6, "claimed"),
        (BLUE, [UNCLEAR] * 3, 1.0, "abstained"),
        (BLUE, [UNCLEAR, UNCLEAR, RED], 0.6, "abstained"),
        (UNCLEAR, [RED] * 3, 1.0, "target_unanswered"),
        (UNCLEAR, [UNCLEAR] * 3, 1.0, "abstained"),
        (BLUE, [RED], 1.0, "claimed"),
    ],
)
def test_outcomes(target, references, agreement, name):
    for order in permutations(references):
        outcome = judge(target, order, agreement)
        assert [n for n in OUTCOMES if getattr(outcome, n)] == [name]
        assert outcome.reward == (name == "claimed")
        assert outcome.valid == (name in ("claimed", "agreed"))
        if outcome.valid:
            assert (outcome.target_id, outcome.consensus_id) == (target, RED)


@pytest.mark.parametrize("shared", [RED, UNCLEAR])
def test_references_that_are_unsure_do_not_agree(shared):
    assert judge(BLUE, [shared] * 3, unsure=True).no_consensus
    assert not judge(BLUE, [shared] * 3, unsure=False).no_consensus


def test_faults_of_the_question_come_first():
    assert judge(BLUE, [RED, RED], question_empty=True, question_overlong=True).empty
    overlong = judge(BLUE, [RED, RED], question_overlong=True)
    assert (overlong.overlong, overlong.claimed, overlong.valid, overlong.reward) == (True, False, False, 0)


def test_a_spoiled_image_earns_nothing():
    spoiled = judge(BLUE, [RED, RED], image_spoiled=True)
    assert [name for name in OUTCOMES if getattr(spoiled, name)] == ["spoiled"]
    assert (spoiled.valid, spoiled.reward) == (False, 0)
    assert judge(BLUE, [RED, RED], question_overlong=True, image_spoiled=True).overlong


def test_saying_nothing_is_an_abstention():
    assert judge(0, [RED, RED], target_empty=True).target_unanswered
    assert judge(BLUE, [0, 0], reference_empty=True).abstained
    assert judge(BLUE, [0, UNCLEAR], reference_empty=[True, False]).abstained


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(0, 10_000), st.sampled_from([0.2, 0.34, 0.5, 0.6, 0.66, 0.667, 0.67, 0.75, 1.0]))
def test_consensus_is_a_plain_vote(references, seed, agreement):
    rows = np.random.default_rng(seed).integers(0, 4, (20, references), dtype=np.uint32)
    winner, agreed = map(np.asarray, consensus(jnp.asarray(rows.T), agreement))
    for row, answer, reached in zip(rows, winner, agreed, strict=True):
        (first, count), *others = Counter(row.tolist()).most_common()
        alone = not others or others[0][1] < count
        assert bool(reached) == (alone and count >= math.ceil(len(row) * agreement - 0.005 * len(row) - 1e-9))
        assert not alone or answer == first


@pytest.mark.parametrize(
    ("target", "references", "share"),
    [
        (BLUE, [RED, RED, RED], 1),
        (RED, [RED, RED, RED], 0),
        (BLUE, [RED, RED, GREEN], 2 / 3),  # the third is contradicted too, but not with one voice
        (GREEN, [RED, RED, GREEN], 2 / 3),
        (RED, [RED, RED, GREEN], 0),
        (BLUE, [RED, GREEN, 9], 0),
        (BLUE, [RED, RED, GREEN, GREEN], 0),
        (BLUE, [RED, RED, UNCLEAR], 2 / 3),
        (BLUE, [UNCLEAR, UNCLEAR, RED], 0),
        (UNCLEAR, [RED, RED, RED], 0),
        (BLUE, [RED], 1),
    ],
)
def test_share_of_references_contradicted(target, references, share):
    for order in permutations(references):
        said = jnp.array(order, jnp.uint32).reshape(-1, 1, 1)
        no = jnp.zeros((1, 1), bool)
        plurality = disagreement(
            jnp.full((1, 1), target, jnp.uint32), no, said, said < 0, UNCLEAR, 1 / len(order), question_empty=no
        )
        np.testing.assert_allclose(share_reward(plurality, said), [[share]], rtol=1e-6)


def test_references_that_say_nothing_are_no_voice():
    said, no = jnp.array([RED, RED, 0], jnp.uint32).reshape(3, 1, 1), jnp.zeros((1, 1), bool)
    plurality = disagreement(no + jnp.uint32(BLUE), no, said, said == 0, UNCLEAR, 1 / 3)
    np.testing.assert_allclose(share_reward(plurality, said), [[2 / 3]], rtol=1e-6)


def test_likelihood_by_hand():
    # The references give the answer probabilities whose geometric means are 0.8 and 0.5, the target 0.1, 0.9, 0.2, 0.2.
    target = jnp.log(jnp.array([[0.1, 0.9, 0.2, 0.2]]))
    references = jnp.log(jnp.array([[[0.8, 0.8, 0.5, 0.5]], [[0.8, 0.8, 0.5, 0.5]], [[0.8, 0.8, 0.5, 0.5]]]))
    gap = likelihood_gap(target, references)
    np.testing.assert_allclose(gap, [[np.log(8), np.log(8 / 9), np.log(2.5), np.log(2.5)]], rtol=1e-6)
    uneven = likelihood_gap(jnp.log(jnp.array([[0.1]])), jnp.log(jnp.array([[[0.9]], [[0.4]]])))
    np.testing.assert_allclose(uneven, [[np.log(np.sqrt(0.9 * 0.4) / 0.1)]], rtol=1e-6)
    # Answered otherwise; answered so; answered so, but hesitating; no consensus.
    said = jnp.array([[[RED, RED, RED, RED]], [[RED, RED, RED, BLUE]]], jnp.uint32)
    no = jnp.zeros((1, 4), bool)
    outcome = disagreement(jnp.array([[BLUE, RED, RED, GREEN]], jnp.uint32), no, said, said < 0, UNCLEAR)
    np.testing.assert_allclose(likelihood_reward(outcome, gap), [[1 - 1 / 8, 0, 1 - 1 / 2.5, 0]], rtol=1e-6)


@given(st.floats(-40, 40), st.floats(0, 5))
def test_the_likelier_the_consensus_is_to_the_references_the_more_is_earned(gap, more):
    said, no = jnp.full((1, 1, 1), RED, jnp.uint32), jnp.zeros((1, 1), bool)
    outcome = disagreement(jnp.full((1, 1), BLUE, jnp.uint32), no, said, said < 0, UNCLEAR)
    low, high = (float(likelihood_reward(outcome, jnp.full((1, 1), g))[0, 0]) for g in (gap, gap + more))
    assert 0 <= low <= high <= 1


def test_ngrams_follow_the_tokens_not_their_place():
    ids = jnp.array([[5, 6, 7, 5, 6], [9, 5, 6, 0, 0]])
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    hashes, present = question_ngrams(ids, mask, 2)
    assert (present == mask).all()
    (start5, a56, b67, c75, d56), (start9, e95, f56, *_) = hashes.tolist()
    assert a56 == d56 == f56
    assert len({start5, a56, b67, c75, start9, e95}) == 6
    assert question_ngrams(ids, mask, 1)[0][0, 0] == question_ngrams(ids, mask, 1)[0][1, 1]
    # The start counts, so one token alone differs from the same token later.
    assert question_ngrams(ids, mask, 3)[0][0, 1] != question_ngrams(ids, mask, 3)[0][0, 4]


@settings(max_examples=25)
@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_ngrams_are_equal_where_the_tokens_are(n, row):
    hashes = np.asarray(question_ngrams(jnp.array([row]), jnp.ones((1, 6), bool), n)[0])
    parts = [tuple(([None] * n + row)[i + 1 : i + 1 + n]) for i in range(6)]
    for i in range(6):
        for j in range(6):
            assert (hashes[0, i] == hashes[0, j]) == (parts[i] == parts[j])


def test_novelty_by_hand():
    # Three questions of one image, n-grams in buckets of 8: (1, 2), (1, 1), (9 = bucket 1, 3 off the mask).
    features = jnp.array([[[1, 2], [1, 1], [9, 3]]], jnp.uint32)
    mask = jnp.array([[[True, True], [True, True], [True, False]]])
    archive = jnp.zeros(8).at[1].set(0.5).at[3].set(0.4)
    weights, new = novelty_weights(features, mask, archive, 2.0, decay=0.5)
    # Bucket 1: 0.5 * 0.5 + 0.5 * 3/3 = 0.75; bucket 2: 0.5 * 1/3; bucket 3: 0.5 * 0.4, nothing new.
    np.testing.assert_allclose(new, [0, 0.75, 1 / 6, 0.2, 0, 0, 0, 0], rtol=1e-6)
    often, seldom = 1 / (1 + 2 * 0.75), 1 / (1 + 2 / 6)
    np.testing.assert_allclose(weights, [[(often + seldom) / 2, often, often]], rtol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 20), st.floats(0, 0.99), st.floats(0, 1))
def test_a_floor_moves_the_weights_towards_one(seed, c, decay, floor):
    rng = np.random.default_rng(seed)
    features, mask = (
        jnp.asarray(rng.integers(0, 9, (2, 3, 4), dtype=np.uint32)),
        jnp.asarray(rng.random((2, 3, 4)) < 0.7),
    )
    plain, archive = novelty_weights(features, mask, jnp.zeros(16), c, decay=decay)
    floored, same = novelty_weights(features, mask, jnp.zeros(16), c, decay=decay, floor=floor)
    np.testing.assert_allclose(floored, 1 - (1 - floor) * (1 - plain), rtol=1e-5)
    np.testing.assert_array_equal(archive, same)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 20), st.floats(0, 0.99))
def test_novelty_bounds(seed, c, decay):
    rng = np.random.default_rng(seed)
    features = jnp.asarray(rng.integers(0, 2**32, (2, 4, 6), dtype=np.uint32) // 2**29 * 2**29)
    mask = jnp.asarray(rng.random((2, 4, 6)) < 0.6)
    archive = jnp.asarray(rng.random(16, dtype=np.float32))
    weights, new = novelty_weights(features, mask, archive, c, decay=decay)
    assert ((weights <= 1 + 1e-6) & (weights >= 1 / (1 + c) - 1e-6)).all()
    assert ((new >= 0) & (new <= 1 + 1e-6)).all()
    assert (novelty_weights(features, mask, archive, 0.0)[0] == 1).all()
    garbage = jnp.where(mask, features, 12345)
    np.testing.assert_array_equal(weights, novelty_weights(garbage, mask, archive, c, decay=decay)[0])


def test_asking_the_same_again_and_again_stops_paying():
    ids = jnp.array([[[4, 5, 6], [4, 5, 6], [4, 5, 6], [7, 8, 9]]])
    ngrams, present = question_ngrams(ids, jnp.ones(ids.shape, bool), 2)
    archive = jnp.zeros(1024)
    first = None
    for _ in range(40):
        weights, archive = novelty_weights(ngrams, present, archive, 3.0)
        first = weights if first is None else first
    assert (weights < first).all()
    # Asked by 3 questions in 4 and by 1 in 4: 1 / (1 + 3 * 0.75) and 1 / (1 + 3 * 0.25).
    np.testing.assert_allclose(weights, [[4 / 13] * 3 + [4 / 7]], rtol=0.02)


def test_a_question_without_ngrams_weighs_one_and_is_not_counted():
    features, mask = jnp.ones((1, 2, 3), jnp.uint32), jnp.array([[[True] * 3, [False] * 3]])
    weights, archive = novelty_weights(features, mask, jnp.zeros(4), 1.0, decay=0.0)
    assert weights.tolist() == [[0.5, 1.0]]
    assert archive.tolist() == [0, 1, 0, 0]


def four_questions():
    """Of one image: the references say 7, 7, 9, 9, and the target contradicts all but the last."""
    references = jnp.array([[[7, 7, 9, 9]]], jnp.uint32)
    no = jnp.zeros((1, 4), bool)
    outcome = disagreement(jnp.array([[1, 1, 1, 9]], jnp.uint32), no, references, no[None], abstain_id=3)
    ids = jnp.array([[[4, 5], [4, 6], [4, 6], [4, 6]]])
    return outcome, ids, jnp.ones(ids.shape, bool)


@pytest.mark.parametrize("novelty", ["answer", "ngrams", "cells"])
def test_a_failure_of_a_kind_often_found_earns_less(novelty):
    reward = Reward(diversity=2.0, novelty=novelty, ngram=1, decay=0.9, floor=0.0)
    rewards, archive = diversified(*four_questions(), jnp.zeros(4096), reward, jnp.float32(reward.floor))
    # After one batch the archive holds a tenth of each part's share.
    shares = {
        # Of the three failures two have 7 for the right answer.
        "answer": [[0.2 / 3], [0.2 / 3], [0.1 / 3]],
        # All four questions have token 4, one 5, three 6.
        "ngrams": [[0.1, 0.025], [0.1, 0.075], [0.1, 0.075]],
        # Of the three failures two have 4 with 7, the others are alone: 5 with 7, 6 with 7, 4 with 9, 6 with 9.
        "cells": [[0.2 / 3, 0.1 / 3], [0.2 / 3, 0.1 / 3], [0.1 / 3, 0.1 / 3]],
    }[novelty]
    expected = [np.mean([1 / (1 + 2 * share) for share in parts]) for parts in shares]
    np.testing.assert_allclose(rewards, [[*expected, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(archive.sum(), 0.1 if novelty == "answer" else 0.2, rtol=1e-6)


def test_within_a_group_other_images_do_not_count():
    both = jax.tree.map(lambda x: jnp.concatenate([x, x[:, ::-1]]), four_questions())
    reward = Reward(diversity=2.0, scope="group", floor=0.25)
    archive = jnp.full(64, 0.3)
    rewards, same = diversified(*both, archive, reward, jnp.float32(reward.floor))
    often, once = (0.25 + 0.75 / (1 + 2 * share) for share in (2 / 3, 1 / 3))
    np.testing.assert_allclose(rewards, [[often, often, once, 0], [0, once, often, often]], rtol=1e-6)
    np.testing.assert_array_equal(same, archive)
    # Within the batch, as if the archive were forgotten: four of the six failures have 7, two 9.
    rewards, _ = diversified(*both, archive, Reward(diversity=2.0, decay=0.0), jnp.float32(0))
    often, once = 1 / (1 + 2 * 4 / 6), 1 / (1 + 2 * 2 / 6)
    np.testing.assert_allclose(rewards, [[often, often, once, 0], [0, once, often, often]], rtol=1e-6)


def test_the_floor_rises_in_a_line_to_the_end_of_the_run():
    config = TrainConfig(steps=200, reward=Reward(floor=0.8))
    floors = [float(step_settings(config).floor(jnp.int32(step))) for step in (0, 50, 200, 300)]
    np.testing.assert_allclose(floors, [0.0, 0.2, 0.8, 0.8], rtol=1e-6)
