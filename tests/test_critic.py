"""critic.py: a batch by hand, against a fit of all at once, head by head, and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy.optimize import minimize

from auditdm_jax.critic import (
    FILE,
    MEMORY,
    PRIOR,
    WIDTH,
    Critic,
    chances,
    features,
    ignorant,
    num_features,
    read_critic,
    taught,
    write_critic,
)
from auditdm_jax.errors import UserError

ONE = jnp.zeros((4, 5), int)
BOTH = ONE.at[1:3].set(1)


def batch(seed: int, images: int = 4, width: int = 3, generations: int = 5):
    """Hidden states, and failures that they foretell with a known slope."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(images, generations, width))
    slope = np.array([2.0, -1.0, 0.0, 0.5])
    chance = 1 / (1 + np.exp(-np.asarray(features(jnp.asarray(states))) @ slope))
    return jnp.asarray(states, jnp.float32), jnp.asarray(rng.random(chance.shape) < chance), chance


def test_a_first_batch_by_hand():
    states, claimed, _ = batch(0)
    x, y = np.asarray(features(states), np.float64).reshape(-1, 4), np.asarray(claimed, float).reshape(-1)
    precision = 3 * PRIOR * np.eye(4) + 0.25 * x.T @ x  # nothing is known yet: every chance is a half
    found = taught(ignorant(1, 3), states, ONE, claimed)
    np.testing.assert_allclose(found.precision[0], precision, rtol=1e-5)
    np.testing.assert_allclose(found.weights[0], np.linalg.solve(precision, x.T @ (y - 0.5)), rtol=1e-4)


def test_a_stream_ends_near_the_fit_of_all_that_is_remembered():
    """The penalised likelihood with fading weights, minimised at once by another's optimiser."""
    critic, many = ignorant(1, 3), 400
    batches = [batch(seed) for seed in range(many)]
    for states, claimed, _ in batches:
        critic = taught(critic, states, ONE, claimed)
    x = np.concatenate([np.asarray(features(states), np.float64).reshape(-1, 4) for states, _, _ in batches])
    y = np.concatenate([np.asarray(claimed).reshape(-1) for _, claimed, _ in batches])
    weight = np.repeat(MEMORY ** np.arange(many)[::-1], 20)

    def loss(w):
        return (weight * np.logaddexp(0, np.where(y, -1, 1) * (x @ w))).sum() + 3 * PRIOR / 2 * w @ w

    np.testing.assert_allclose(critic.weights[0], minimize(loss, np.zeros(4), tol=1e-10).x, atol=0.03)
    states, _, chance = batch(1000, images=64)
    np.testing.assert_allclose(chances(critic.weights, states, jnp.zeros((64, 5), int)), chance, atol=0.08)


def test_heads_are_told_apart():
    states, claimed, _ = batch(0)
    both, first = taught(ignorant(2, 3), states, BOTH, claimed), taught(ignorant(2, 3), states, ONE, claimed)
    mine = jnp.array([0, 3])
    alone = taught(ignorant(1, 3), states[mine], ONE[mine], claimed[mine])
    np.testing.assert_allclose(both.weights[0], alone.weights[0], rtol=1e-4)
    np.testing.assert_array_equal(first.weights[1], 0)  # nothing was seen of it
    found = chances(both.weights, states, BOTH)
    for head, images in ((0, [0, 3]), (1, [1, 2])):
        expected = chances(both.weights[head : head + 1], states, ONE)
        np.testing.assert_allclose(found[jnp.array(images)], expected[jnp.array(images)], rtol=1e-6)


def test_the_scale_of_hidden_states_does_not_matter():
    states, _, _ = batch(0)
    np.testing.assert_allclose(features(100 * states), features(states), rtol=1e-4)
    assert features(states.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("width", [96, 512])
def test_a_head_that_sees_little_is_hardly_worse_than_the_share(width):
    """Two examples a step, of which one of twelve directions tells a little: a trained auditor's states have nine
    tenths of their variance in so many."""
    rng, critic, errors, zeros = np.random.default_rng(0), ignorant(1, width), [], jnp.zeros((1, 2), int)
    ways = rng.normal(size=(12, width))
    for step in range(300):
        along = rng.normal(size=(1, 2, 12))
        claimed = rng.random((1, 2)) < 1 / (1 + np.exp(-1.0 - along[..., 0]))
        states = jnp.asarray(along @ ways + 0.1 * rng.normal(size=(1, 2, width)), jnp.float32)
        if step >= 200:
            errors.append(np.square(np.asarray(chances(critic.weights, states, zeros)) - claimed).mean())
        critic = taught(critic, states, zeros, jnp.asarray(claimed))
    assert critic.weights.shape == (1, num_features(width))
    assert np.mean(errors) < 0.22  # 0.25 is that of a coin, 0.21 of the share


def test_wide_states_are_projected_to_what_tells_them_apart():
    states = jax.random.normal(jax.random.key(1), (40, 2304))
    narrow = np.asarray(features(states))[:, :-1]
    assert narrow.shape == (40, WIDTH)
    angles, before = (x @ x.T / np.linalg.norm(x, axis=1) ** 2 for x in (narrow, np.asarray(states)))
    assert np.abs(angles - before).max() < 0.3


def test_what_was_kept_is_read_and_nothing_else(tmp_path):
    with pytest.raises(UserError, match=r"critic.safetensors is missing; train again, or .* --candidates 1"):
        read_critic(tmp_path)
    weights = jnp.arange(8.0).reshape(2, 4)
    write_critic(tmp_path, Critic(weights, jnp.zeros((2, 4, 4))))
    np.testing.assert_array_equal(read_critic(tmp_path), weights)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:20])
    with pytest.raises(UserError, match="is no critic's file"):
        read_critic(tmp_path)


def shapes_of(primitive: str, jaxpr) -> list[tuple[int, ...]]:
    """Of what is given to a primitive, wherever it stands in a program."""
    found = [eqn.invars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == primitive]
    inner = [inside for eqn in jaxpr.eqns for inside in jaxprs_in_params(eqn.params)]
    return found + [shape for inside in inner for shape in shapes_of(primitive, inside)]


@pytest.mark.parametrize("runs", [None, 3])
def test_matrices_are_decomposed_one_after_the_other(runs):
    """Several in one call have hung on two cores, beside several of a probe: of one run, and of some together."""
    states, claimed, _ = batch(0)
    critic = ignorant(2, 3)
    if runs is None:
        program = jax.make_jaxpr(taught)(critic, states, BOTH, claimed)
    else:
        many = jax.tree.map(lambda x: jnp.stack([x] * runs), (critic, states, BOTH, claimed))
        program = jax.make_jaxpr(jax.vmap(taught))(*many)
    assert shapes_of("cholesky", program.jaxpr) == [(4, 4)]
