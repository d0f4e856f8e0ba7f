"""answering.py: log-probabilities of answers against scoring one string at a time; graded rewards of real answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax import answering, training
from auditdm_jax.answering import Answer, answer, answer_logps, consensus_words, examine
from auditdm_jax.answers import ABSTENTIONS, normalize, text_answer_id
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.prompts import PromptTemplate, answer_text, expanded_text, padded, texts_of, token_ids
from auditdm_jax.reward import Reward, disagreement
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.state import Frozen

QUESTIONS = [
    ["what hour does the clock show?", "what color is the tiny dot?", "how many objects are there?"],
    ["what does the sign mean?", "how many objects are there?", "what is the weather?"],
]
FLAWS = dict.fromkeys(("question_empty", "question_overlong"), jnp.zeros((2, 3), bool))


@pytest.fixture(scope="module")
def players():
    return training.load_players(TrainConfig(models=Models(references=("reference-a", "reference-b"))))


@pytest.fixture(scope="module")
def images():
    return scenes_of("validation", 3, 2)[1]


def tokens_of(vlm, texts, width=13):
    rows = vlm.tokenizer([text for row in texts for text in row], add_special_tokens=False)["input_ids"]
    return tuple(jnp.asarray(x.reshape(len(texts), -1, width)) for x in padded(rows, width, vlm.config.pad_token_id))


def scored_alone(vlm, image, question, answer):
    """Mean log-probability of the answer's tokens and its end: one string, all its logits, nothing shared."""
    text = expanded_text(vlm.config.family, vlm.processor, answer_text(vlm.config.family, vlm.processor, question))
    before = token_ids(vlm.tokenizer, text)
    after = np.append(token_ids(vlm.tokenizer, answer), vlm.config.eos_token_ids[-1])
    types = np.repeat([0, 1], [len(before), len(after)])
    logits = vlm.logits(np.append(before, after)[None], vlm.pixel_values([image]), None, types[None])[0]
    logits = logits.at[:, list(vlm.config.forbidden_token_ids)].set(-jnp.inf)
    logps = jax.nn.log_softmax(logits[len(before) - 1 : -1])
    return float(logps[np.arange(len(after)), after].mean())


def asked_twice(vlm, answers):
    return tokens_of(vlm, QUESTIONS[:1] * 2), tokens_of(vlm, answers[:1] * 2, 3)


def member_of(players, member):
    cast = training.cast_of(players, ["?"])
    return (players.target, *players.references)[member], (cast.target, *cast.references)[member]


@pytest.mark.parametrize("member", [0, 1])
def test_an_image_is_shared_where_it_stands_before_what_it_cannot_see(players, member):
    vlm, role = member_of(players, member)
    assert role.template.shares_image(role.config) == (vlm.config.family == "gemma3")
    template = PromptTemplate(role.template.suffix_ids, role.template.prefix_ids)
    assert not template.shares_image(role.config)


@pytest.mark.parametrize("member", [0, 1])  # of both families
def test_answers_are_scored_as_one_by_one(players, images, member):
    vlm, role = member_of(players, member)
    answers = [["3", "top left", "red"], ["stop", "no", "bottom right"]]
    found = answer_logps(vlm.params, role, images, tokens_of(vlm, QUESTIONS), tokens_of(vlm, answers, 3))
    again = answer_logps(vlm.params, role, images[:1], *asked_twice(vlm, answers), np.array([0, 0]))
    np.testing.assert_allclose(again[1], found[0], rtol=1e-4, atol=1e-4)  # as shown the first image
    alone = [[scored_alone(vlm, images[i], QUESTIONS[i][j], answers[i][j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("member", [0, 1])  # of both families
def test_an_answer_has_the_probability_of_the_same_answer_scored_alone(players, images, member):
    vlm, role = member_of(players, member)
    found = answer(vlm.params, role, jnp.asarray(images), tokens_of(vlm, QUESTIONS), 3)
    for i, row in enumerate(QUESTIONS):
        for j, (said, question) in enumerate(zip(vlm.answer([images[i]] * len(row), row, 3), row, strict=True)):
            expected = scored_alone(vlm, images[i], question, said) * (len(token_ids(vlm.tokenizer, said)) + 1)
            np.testing.assert_allclose(found.logp[i, j], expected, rtol=1e-3, atol=1e-3)


def test_references_that_hesitate_have_no_consensus(players, images):
    cast, models = training.cast_of(players, ["?"]), (players.target, *players.references)
    frozen = Frozen(None, models[0].params, tuple(vlm.params for vlm in models[1:]))
    questions, images = tokens_of(players.auditor, QUESTIONS), jnp.asarray(images)
    said = [
        answer(vlm.params, role, images, questions, 3) for vlm, role in zip(models[1:], cast.references, strict=True)
    ]
    sure = np.exp([each.logp for each in said]).mean(0)
    examined = partial(examine, frozen, cast, images, questions, FLAWS, max_answer_tokens=3, translate=None)
    plain = examined(reward=Reward())
    agreed = ~np.asarray(plain.no_consensus)
    bound = float(np.sort(sure[agreed])[1])  # the least sure of those that agree falls below it, the others do not
    found = examined(reward=Reward(confidence=bound - 1e-6))
    np.testing.assert_array_equal(found.no_consensus, np.asarray(plain.no_consensus) | (sure < bound - 1e-6))
    assert found.no_consensus.sum() == plain.no_consensus.sum() + 1


def test_the_consensus_is_written_as_its_first_reference_writes_it():
    ids, no = jnp.array([[[7, 8]], [[9, 8]]], jnp.uint32), jnp.zeros((1, 2), bool)
    said = [
        Answer(ids[0], no, jnp.array([[[1, 2], [3, 4]]]), jnp.ones((1, 2, 2), bool), jnp.zeros((1, 2))),
        Answer(ids[1], no, jnp.array([[[5, 0], [6, 0]]]), jnp.zeros((1, 2, 2), bool), jnp.zeros((1, 2))),
    ]
    shared = jnp.tile(ids[1], (2, 1, 1))  # the consensus is 9 and 8
    outcome = disagreement(ids[0] * 0, no, shared, shared < 0, abstain_id=3)
    ids, words = consensus_words(said, outcome, 0, None)
    assert ids.tolist() == [[[5, 0], [3, 4]]]
    assert words.tolist() == [[[False, False], [True, True]]]

    def translate(text, number, writer):
        return text[0] + 100 * writer + 1000 * number, text[1]

    assert consensus_words(said, outcome, 2, translate)[0].tolist() == [[[2205, 2200], [2103, 2104]]]


@pytest.mark.parametrize("through_text", [False, True])
def test_likelihood_rewards_are_those_of_answers_scored_alone(players, images, through_text):
    """In one compiled function, and through the host as where tokenizers differ."""
    cast = training.cast_of(players, ["?"])
    models = (players.target, *players.references)
    frozen = Frozen(None, models[0].params, tuple(vlm.params for vlm in models[1:]))
    translate = training.retokenizer(players) if through_text else None
    examined = partial(
        examine, cast=cast, flaws=FLAWS, reward=Reward(disagreement="likelihood"), max_answer_tokens=3,
        translate=translate,
    )  # fmt: skip
    examined = examined if through_text else jax.jit(examined)
    outcome = examined(frozen, images=jnp.asarray(images), questions=tokens_of(players.auditor, QUESTIONS))
    assert outcome.claimed.any()
    assert outcome.agreed.any()
    for i, row in enumerate(QUESTIONS):
        for j, question in enumerate(row):
            if not outcome.valid[i, j]:
                assert outcome.reward[i, j] == 0
                continue
            (shared,) = models[1].answer([images[i]], [question], 3)
            target, *references = (scored_alone(vlm, images[i], question, shared) for vlm in models)
            expected = max(0.0, 1 - np.exp(target - np.mean(references)))
            np.testing.assert_allclose(outcome.reward[i, j], expected, rtol=1e-3, atol=1e-4)


def test_the_text_of_an_answer_survives_its_translation(players):
    ids, words = tokens_of(players.target, [["top left", "3"]], 3)
    moved = training.retokenizer(players)((ids, words), 1, 0)
    assert texts_of(players.references[0].tokenizer, *moved) == ["top left", "3"]


@pytest.mark.parametrize("word", ABSTENTIONS)
def test_whatever_the_word_an_abstention_is_no_answer(players, images, monkeypatch, word):
    """The target abstains, then a reference, then both references, each in a word of its own."""
    said = [[word, "red", "blue"], ["red", word, word], ["red", "red", "unclear"]]
    assert normalize(word) == word
    ids = iter([jnp.array([[text_answer_id(text) for text in row]] * 2, jnp.uint32) for row in said])
    monkeypatch.setattr(
        answering, "answer", lambda *_: Answer(next(ids), jnp.zeros((2, 3), bool), None, None, jnp.zeros((2, 3)))
    )
    cast = training.cast_of(players, ["?"])
    frozen = Frozen(players.auditor.params, players.target.params, tuple(vlm.params for vlm in players.references))
    outcome = examine(frozen, cast, images, tokens_of(players.auditor, QUESTIONS), FLAWS, Reward(), 3, None)
    assert outcome.target_unanswered.tolist() == [[True, False, False]] * 2
    assert outcome.no_consensus.tolist() == [[False, True, False]] * 2
    assert outcome.abstained.tolist() == [[False, False, True]] * 2
