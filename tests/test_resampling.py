"""Dynamic sampling: what replaces groups without signal, when it stops, and that it compiles once."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax import step as step_module
from auditdm_jax import training
from auditdm_jax.collect import Batch
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.sampling import Completions, Prompt
from auditdm_jax.step import make_step, refill, resampling_step, update


def labelled(signal, first):
    """A batch whose images, questions and rewards all bear the number of their group."""
    number = first + jnp.arange(len(signal))
    ids = jnp.tile(number[:, None, None], (1, 2, 3))
    questions = Completions(ids, ids > -1, ids.astype(jnp.float32), ids.astype(jnp.float32))
    rewards = jnp.tile(number[:, None], (1, 2)).astype(jnp.float32)
    images = jnp.tile(number.astype(jnp.uint8)[:, None, None, None], (1, 2, 2, 3))
    prompt = Prompt(ids[:, 0], ids[:, 0] > -1)
    return Batch(images, prompt, questions, questions.mask, jnp.full(len(signal), 3), rewards, jnp.array(signal))


@pytest.mark.parametrize(
    ("signal", "other", "groups"),
    [
        ([True, False, True, False], [False, True, True, True], [0, 2, 5, 6]),
        ([False, False, False, True], [False, True, False, False], [3, 5, 0, 1]),
        ([False, False], [False, False], [0, 1]),
    ],
)
def test_groups_with_signal_replace_those_without(signal, other, groups):
    both = refill(labelled(signal, 0), labelled(other, len(signal)))
    for part in (both.images, both.questions.ids, both.questions.logps, both.rewards):
        np.testing.assert_array_equal(part.reshape(len(groups), -1)[:, 0], groups)
    np.testing.assert_array_equal(both.signal, [(signal + other)[group] for group in groups])


@pytest.fixture(scope="module")
def parts(zoo):
    config = TrainConfig(
        images_per_step=2, models=Models(zoo["auditor"], zoo["target"], (zoo["a"],)),
        grpo=GRPO(num_generations=2, max_resamples=3), max_question_tokens=4,
    )  # fmt: skip
    players = training.load_players(config)
    settings = training.step_settings(config)
    images = next(training.open_source(config, 64, "train"))["image"]
    return training.cast_of(players, [config.instruction]), settings, config, players, images


def state_of(parts):
    _, settings, config, players, _ = parts
    return training.initial_state(config, players, settings.optimizer)


@pytest.mark.parametrize(
    ("signals", "batches", "given"),
    [
        ([[True, True]], 1, [True, True]),
        ([[False, True], [False, False], [True, False]], 3, [True, True]),
        ([[False, False], [False, True], [False, False], [False, False]], 4, [True, False]),
    ],
)
def test_it_stops_when_the_batch_is_full_or_at_the_cap(parts, monkeypatch, signals, batches, given):
    cast, settings, _, _, images = parts
    drawn, seen = [], []

    def ask_once(trained, frozen, images, key):
        drawn.append(jax.random.key_data(key).tolist())
        batch = labelled(signals[len(drawn) - 1], 2 * len(drawn))
        return batch, {"archive": trained.archive + 1}, {"reward/mean": float(len(drawn))}, {"number": len(drawn)}

    def learn(trained, frozen, auditor, batch, settings):
        seen.append(batch)
        return trained, {}

    monkeypatch.setattr(step_module, "update", learn)
    state, metrics, record = resampling_step(
        state_of(parts), images, lambda: images, ask_once=ask_once, cast=cast, settings=settings
    )
    assert len(drawn) == batches == metrics["sampling/batches"]
    assert len({tuple(key) for key in drawn}) == batches  # other questions each time
    assert metrics["reward/mean"] == pytest.approx(np.mean(range(1, batches + 1)))
    assert record == {"number": 1}
    assert (state.trained.archive == batches).all()
    # Groups that stay without signal have lost their rewards, and nothing else.
    np.testing.assert_array_equal(~jnp.isnan(seen[0].rewards).any(-1), given)
    assert metrics["sampling/groups_with_signal"] == np.mean(given)
    assert metrics["frac_reward_missing"] == 0  # none was missing: some were put aside


def test_without_further_images_there_is_one_batch(parts):
    cast, settings, _, _, images = parts
    state, metrics, _ = make_step(cast, settings)(state_of(parts), images)
    assert metrics["sampling/batches"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    plain = dataclasses.replace(settings, grpo=dataclasses.replace(settings.grpo, max_resamples=0))
    other, usual, _ = make_step(cast, plain)(state_of(parts), images)
    for name, value in usual.items():
        if name.startswith(("outcome/", "question/", "reward/")):
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert int(state.trained.step) == int(other.trained.step) == 1


@pytest.fixture
def compilations():
    """How often each function was compiled during the test, by its name."""
    counts = Counter()

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("translate", [None, lambda text, reader, writer: text])
def test_any_number_of_batches_is_compiled_once(parts, compilations, translate):
    """With a translation, what asks is compiled in parts, and the rest is still compiled once."""
    cast, settings, _, _, images = parts
    ask_once, counts = make_step(cast, settings, translate).keywords["ask_once"], []
    update.clear_cache()
    refill.clear_cache()
    state = state_of(parts)
    for full_after in (3, 1, 2):
        calls = iter(range(1, 5))

        def ask(*arguments, calls=calls, full_after=full_after):
            batch, *rest = ask_once(*arguments)
            return batch._replace(signal=jnp.full(2, next(calls) >= full_after)), *rest

        state, metrics, _ = resampling_step(state, images, lambda: images, ask_once=ask, cast=cast, settings=settings)
        counts.append(metrics["sampling/batches"])
    assert counts == [3, 1, 2]
    assert [compilations[f"jit({name})"] for name in ("ask", "collect")] == ([0, 1] if translate is None else [1, 0])
    assert [compilations[f"jit({name})"] for name in ("refill", "update")] == [1, 1]
