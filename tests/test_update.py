"""step.py and training.py: what an update makes of a batch, against the gradient written out; its rates and bounds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from auditdm_jax import finetune, training
from auditdm_jax.collect import auditor_params, collect
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.rollout import question_logps
from auditdm_jax.step import update

RATE, B, G, T = 0.5, 2, 4, 4
# Rewards 0, 1, 2, 3 in each group: their mean is 1.5.
ADVANTAGES = jnp.tile(jnp.array([-1.5, -0.5, 0.5, 1.5]), (B, 1))[..., None]


@pytest.fixture(scope="module", params=[0, 2], ids=["all parameters", "adapters"])
def parts(zoo, request):
    models = Models(zoo["auditor"], zoo["target"], (zoo["a"],))
    grpo = GRPO(num_generations=G, beta=0.0)
    config = TrainConfig(images_per_step=B, models=models, grpo=grpo, max_question_tokens=T, lora_rank=request.param)
    players = training.load_players(config)
    settings = replace(training.step_settings(config), optimizer=optax.sgd(RATE))
    state = training.initial_state(config, players, settings.optimizer)
    images = next(training.open_source(config, 64, "train"))["image"]
    cast = training.cast_of(players, [config.instruction])
    given = (state.trained, state.frozen, images, jax.random.key(0))
    batch, *_ = collect(*given, cast=cast, settings=settings, translate=None)
    rewards = jnp.tile(jnp.arange(float(G)), (B, 1))
    return state, cast.auditor.config, settings, batch._replace(rewards=rewards)


def climbed(parts, trainable, objective):
    """Plain gradient ascent: trainable + RATE * d/d trainable of sum over tokens of objective(logps) / (B G T)."""
    state, config, _, batch = parts

    def value(trainable):
        params = auditor_params(trainable, state.frozen.auditor)
        given = (batch.prompt, batch.images, [(batch.questions.ids, batch.questions.mask)])
        (logps,) = question_logps(params, config, *given, temperature=1.0)
        return jnp.where(batch.questions.mask, objective(logps), 0.0).sum() / (B * G * T)

    return jax.tree.map(lambda x, slope: x + RATE * slope, trainable, jax.jit(jax.grad(value))(trainable))


def assert_same_move(start, got, want):
    moves = [np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (end, start)), strict=True)])
             for end in (got, want)]  # fmt: skip
    assert np.linalg.norm(moves[1]) > 1e-3
    np.testing.assert_allclose(moves[0], moves[1], rtol=1e-3, atol=1e-6)


def test_an_update_climbs_the_policy_gradient(parts):
    state, config, settings, batch = parts
    trained, metrics = update(state.trained, state.frozen, config, batch, settings)
    start = state.trained.auditor
    assert_same_move(start, trained.auditor, climbed(parts, start, lambda logps: ADVANTAGES * logps))
    assert int(trained.step) == int(state.trained.step) + 1
    slope = [(a - b) / RATE for a, b in zip(*map(jax.tree.leaves, (trained.auditor, start)), strict=True)]
    assert float(metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(slope)), rel=1e-2)


def test_a_second_iteration_weighs_by_the_ratio_to_the_auditor_that_asked(parts):
    state, config, settings, batch = parts
    wide = replace(settings, grpo=replace(settings.grpo, num_iterations=2, epsilon=0.99, epsilon_high=1e3))
    trained, _ = update(state.trained, state.frozen, config, batch, wide)
    first = climbed(parts, state.trained.auditor, lambda logps: ADVANTAGES * logps)
    second = climbed(parts, first, lambda logps: ADVANTAGES * jnp.exp(logps - batch.questions.logps))
    assert_same_move(state.trained.auditor, trained.auditor, second)
    once = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained.auditor, first)
    assert max(jax.tree.leaves(once)) > 1e-4


def test_the_kl_pulls_back_to_the_auditor_before_training(parts):
    """k2, whose gradient is d times that of the log-prob; d is 0 before the first update, so after one."""
    state, config, settings, batch = parts
    moved, _ = update(state.trained, state.frozen, config, batch, settings)
    pulled = replace(settings, grpo=replace(settings.grpo, beta=5.0))
    trained, _ = update(moved, state.frozen, config, batch, pulled)

    def objective(logps):
        return ADVANTAGES * logps - 5.0 * (logps - batch.questions.logps) ** 2 / 2

    assert_same_move(moved.auditor, trained.auditor, climbed(parts, moved.auditor, objective))


def steps_of(optimizer, gradients):
    """What an optimizer adds to one parameter."""
    state, steps = optimizer.init({"kernel": jnp.zeros(1)}), []
    for gradient in gradients:
        step, state = optimizer.update({"kernel": jnp.full(1, gradient)}, state, {"kernel": jnp.zeros(1)})
        steps.append(float(step["kernel"][0]))
    return np.array(steps)


def cosine(peak, warmup, count):
    """0 to the peak in a line, then a half cosine down to a twentieth."""
    rest = np.arange(count - warmup) / (count - warmup)
    falling = peak * (0.05 + 0.95 * (1 + np.cos(np.pi * rest)) / 2)
    return np.concatenate([peak * np.arange(warmup) / warmup, falling])


@pytest.mark.parametrize(
    ("optimizer", "warmup"),
    [
        (training.step_settings(TrainConfig(steps=40, grpo=GRPO(learning_rate=0.01))).optimizer, 4),
        (training.step_settings(TrainConfig(steps=20, grpo=GRPO(learning_rate=0.01, num_iterations=2))).optimizer, 4),
        (finetune.make_optimizer("adamw", 0.01, 40), 2),
    ],
)
def test_the_rate_rises_and_falls_and_gradients_are_clipped(optimizer, warmup):
    """Under a constant gradient each of Adam's steps is the rate; so it is under any that is clipped to the same."""
    rates = cosine(0.01, warmup, 40)
    np.testing.assert_allclose(steps_of(optimizer, [1.0] * 40), -rates, rtol=1e-3)
    np.testing.assert_allclose(steps_of(optimizer, [1.0, 50.0] * 20), -rates, rtol=1e-3)
    assert not np.allclose(steps_of(optimizer, [1.0, 0.2] * 20), -rates, rtol=0.1)
