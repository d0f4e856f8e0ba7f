"""choice.py: the likeliest candidate, topics where they are worth it, and as many as bring what they are to bring."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax import choice as choice_module
from auditdm_jax.choice import CHEAP, DOUBT, VARIETY, WORTH, Choice, Guide, share_out
from auditdm_jax.sampling import Completions
from auditdm_jax.topics import Topics

TOPICS = Topics(jnp.array([[7, 8], [9, 0]]), jnp.array([[True, True], [True, False]]))
QUESTIONS = np.zeros(3, int)


def written(chances: np.ndarray) -> Completions:
    """Candidates whose chances are these under a critic that looks at the first feature alone; ids tell them apart."""
    logit = np.log(chances / (1 - chances))
    states = np.stack([logit, np.sqrt(np.maximum(100 - logit**2, 0))], -1)  # of one length: features scale them
    ids = np.broadcast_to(np.arange(chances.shape[1])[:, None], (*chances.shape, 4))
    fill = jnp.ones(ids.shape)
    return Completions(jnp.asarray(ids), fill > 0, fill, jnp.asarray(states, jnp.float32))


# Undoes the unit mean square of states of length 10; a head of the channel, and one of each topic that is as good.
CRITIC = np.array([[np.sqrt(50.0), 0, 0]] * 3)


def choice(candidates: int, share: float = 0.0) -> Choice:
    return Choice(Guide(CRITIC, candidates, ("how many", "who") if share else (), share), TOPICS if share else None)


def picked(choice: Choice, chances: list, asks=(True, True, True), asked=1.0) -> list[int]:
    found = choice.pick(written(np.array(chances)), QUESTIONS, np.array(asks), jax.random.key(0), asked)
    assert found.ids.shape == (3, 1, 4)
    return found.ids[:, 0, 0].tolist()


def test_the_likeliest_is_asked():
    assert picked(choice(3), [[0.2, 0.9, 0.3], [0.8, 0.1, 0.3], [0.4, 0.4, 0.3]]) == [1, 0, 0]


@pytest.fixture
def at_any_cost(monkeypatch):
    monkeypatch.setattr(choice_module, "COST", np.inf)


def test_a_topic_is_asked_where_it_is_worth_it(at_any_cost):
    """Of 3 images 6 failures are to come from topics, more than there are: whatever is worth it has one."""
    always = choice(2, 2.0)
    rows = [[0.9, 0.9, 0.6, 0.01], [0.9, 0.9, 0.2, 0.01], [0.3, 0.3, 0.2, 0.01]]
    assert picked(always, rows) == [2, 0, 2]  # of the second image it is less than a third as likely
    assert picked(always, rows, (False, True, True)) == [0, 0, 2]  # the first one is not asked about


def test_topics_are_asked_for_images_of_other_channels_too(monkeypatch):
    """Where half of an audit's images are asked about as they are, topics bring twice as many failures of these, and
    may cost twice as much of them."""
    chance, beside = np.full((300, 1), 0.5), np.full(300, 0.75)
    for share, topical in ((1.0, 0), (0.5, 36)):  # 18 failures, of which each costs half as much: 0.04 of 225
        chosen, costs = share_out(np.random.default_rng(0), 18.0, np.array([18.0]), chance, beside, asked=share)
        assert (float(costs.of[0]), costs.failures) == pytest.approx((9, 225 / share))
        assert (chosen == 0).sum() == topical
    monkeypatch.setattr(choice_module, "COST", np.inf)
    for share, topical in ((1.0, 1), (0.5, 2)):  # of each topic 0.2 failures an image
        rows = [[0.9, 0.9, 0.59, 0.01]] * 3
        assert picked(choice(2, 0.4), rows, asked=share).count(2) == topical


def test_a_likely_candidate_among_unlikely_ones_is_not_believed(at_any_cost):
    """The first image's topic is worth less than 0.9, but not than what the middle one of its candidates says."""
    rows = [[0.9, 0.1, 0.1, 0.2, 0.01], [0.9, 0.9, 0.1, 0.2, 0.01], [0.9, 0.9, 0.9, 0.2, 0.01]]
    assert picked(choice(3, 2.0), rows) == [3, 0, 0]


def test_a_topic_costs_what_the_best_other_would_bring(at_any_cost):
    """Both topics fail more often than what is asked without one, but of the second image one four times the other."""
    chance = np.array([[0.5, 0.9], [0.22, 0.9], [0.5, 0.3]])
    rng = np.random.default_rng(0)
    assert share_out(rng, 9.0, np.full(2, 9.0), chance, np.full(3, 0.2))[0].tolist() == [0, 1, 0]


def test_a_topic_has_a_head_of_its_own(at_any_cost):
    """Of the second topic nothing is known: its chance is a half, whatever the state."""
    known = choice(1, 2.0)
    unknown = Choice(known.guide._replace(critic=CRITIC * np.array([[1], [1], [0]])), TOPICS)
    rows = [[0.9, 0.01, 0.9], [0.7, 0.01, 0.01], [0.6, 0.01, 0.01]]
    assert picked(known, rows) == [2, 0, 0]
    assert picked(unknown, rows) == [2, 2, 2]


def test_candidates_begin_with_every_topic():
    begun = choice(2, 0.1).begun(np.array([True, False]), 4)
    assert begun.ids.shape == (2, 4, 4)
    assert begun.mask[0].sum(-1).tolist() == [0, 0, 2, 1]
    assert begun.ids[0, 2, :2].tolist() == [7, 8]
    assert not begun.mask[1].any()
    assert choice(2).begun(np.array([True]), 4) is None


@given(st.integers(0, 30), st.integers(1, 4), st.floats(0, 5), st.integers(0, 10_000))
def test_topics_go_where_they_are_worth_most(images, topics, quota, seed):
    rng = np.random.default_rng(seed)
    chance, beside = rng.uniform(0.01, 1, (images, topics)), rng.uniform(0.01, 1, images)
    with mock.patch.object(choice_module, "COST", np.inf):
        chosen, _ = share_out(rng, quota, np.full(topics, quota), chance, beside)
    worth = np.empty_like(chance)
    for topic in range(topics):
        worth[:, topic] = chance[:, topic] / np.maximum(beside, np.delete(chance, topic, axis=1).max(1, initial=0))
    for topic in range(topics):
        mine = np.flatnonzero(chosen == topic)
        assert (worth[mine, topic] >= WORTH).all()
        free = (worth[mine, topic] >= CHEAP).all() and len(mine) < VARIETY * images / (topics + 1) + 1
        assert chance[mine, topic].sum() < quota + 1 or free
        left = np.flatnonzero((chosen < 0) & (worth[:, topic] >= WORTH))
        if len(left):  # then its quota was filled, but for one image, and with the best of what was free
            assert chance[mine, topic].sum() > quota - 1
            assert not len(mine) or worth[mine, topic].min() >= worth[left, topic].max()


def test_a_topic_that_costs_little_has_a_share_of_what_all_would_have_alike():
    rng = np.random.default_rng(0)
    chance = np.full((120, 2), [0.9 * CHEAP + 0.001, 0.9 * CHEAP - 0.001])
    chosen, _ = share_out(rng, 0.0, np.zeros(2), chance, np.full(120, 0.9))
    assert np.bincount(chosen + 1).tolist() == [120 - (of_one := round(VARIETY * 40)), of_one]  # alike: 40 of each


def test_the_cheapest_topics_are_asked_as_long_as_they_cost_little():
    """Three failures take 4 images of 0.9 or 0.85 or 0.8, 5 of 0.6, 10 of 0.3; of 100 images 2 may be lost."""
    rng, beside = np.random.default_rng(0), np.full(100, 0.95)

    def asked(*chances: float) -> list[int]:
        owed = np.full(len(chances), 3.0)
        found, _ = share_out(rng, 3.0, owed, np.full((100, len(chances)), chances), beside)
        return [topic for topic in range(len(chances)) if (found == topic).any()]

    assert asked(0.3) == []  # 10 x 0.65
    assert asked(0.6) == [0]  # 5 x 0.35 = 1.75
    assert asked(0.6, 0.85) == [1]  # 4 x 0.1 first: both together would cost 2.15
    assert asked(0.8, 0.6, 0.9) == [0, 2]  # 4 x 0.05 and 4 x 0.15 first


def test_the_same_topics_are_dear_in_every_batch():
    """Of two topics that cost 1.75 and 1.8 failures of 100 images one may be asked; and the same of the next images,
    though there it is the dearer one."""
    rng, beside, owed = np.random.default_rng(0), np.full(100, 0.95), np.full(2, 2.9)
    first, costs = share_out(rng, 2.9, owed, np.full((100, 2), [0.6, 0.59]), beside)
    assert ((first == 0).any(), (first == 1).any(), costs.failures) == (True, False, pytest.approx(95))
    np.testing.assert_allclose(costs.of, [5 * 0.35, 5 * 0.36])
    now = np.full((100, 2), [0.59, 0.6])
    assert (share_out(rng, 2.9, owed, now, beside)[0] == 1).any()
    then, costs = share_out(rng, 2.9, owed, now, beside, costs._replace(of=np.array([1.75, 2.0])))
    assert (then == 0).any()
    assert not (then == 1).any()


def test_what_is_owed_is_asked_whatever_a_batch_costs():
    """Costs are those of a batch's own share, whatever a topic still has to bring: nothing, or three batches' share."""
    chance, beside = np.full((100, 1), 0.6), np.full(100, 0.95)
    for owed, asked in ((0.0, 0), (2.4, 4), (9.0, 15)):
        chosen, costs = share_out(np.random.default_rng(0), 3.0, np.array([owed]), chance, beside)
        np.testing.assert_allclose(costs.of, [5 * 0.35])
        assert (chosen == 0).sum() == asked


def test_topics_bring_as_many_failures_as_they_should(at_any_cost):
    """On average over draws, however few images there are at a time."""
    rng = np.random.default_rng(0)
    chance, beside = np.full((10, 2), [0.6, 0.7]), np.ones(10)
    found = [
        np.bincount(share_out(rng, 0.6, np.full(2, 0.6), chance, beside)[0] + 1, minlength=3)[1:] for _ in range(4000)
    ]
    np.testing.assert_allclose(np.mean(found, 0) * [0.6, 0.7], [0.6, 0.6], atol=0.02)


def test_what_came_of_questions_is_counted(at_any_cost):
    """One failure of three images is to come from the second topic, whose questions fail in 0.6: two are asked, and 0.6
    times one more. If both bring one, that pays for the next three images, too; if none does, two failures are owed."""
    rows = [[0.9, 0.9, 0.01, 0.6]] * 3
    for brings, then in ((True, 0), (False, 3)):
        some = choice(2, 2 / 3)
        assert picked(some, rows).count(3) == 2
        for _ in range(2):  # what is told twice is not counted twice
            some.learn(np.full(3, brings))
        np.testing.assert_allclose([some.expected, some.found], [[0, 1.2], [0, 2 * brings]])
        assert picked(some, rows).count(3) == then


def test_a_critic_that_expects_too_much_of_a_topic_is_believed_less_and_less(at_any_cost):
    """0.6 beside 0.956 is worth it; after 15 questions without a failure it is 0.6 x 8 / (8 + 9), which is not."""
    some, rows = choice(2, 2.0), [[0.9, 0.9, 0.6, 0.01]] * 3
    for asked in range(0, 30, 3):
        assert some.expected[0] == pytest.approx(0.6 * asked)
        worth = 0.6 * DOUBT / (DOUBT + some.expected[0]) / 0.956
        assert picked(some, rows) == ([2] * 3 if worth >= WORTH else [0] * 3)
        if worth < WORTH:
            break
        some.learn(np.zeros(3, bool))
    assert asked == 15
