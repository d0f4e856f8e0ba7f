"""joint.py and training.py: seeds that train together train as they would alone."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from auditdm_jax import training
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.files import read_jsonl
from auditdm_jax.joint import make_joint_step
from auditdm_jax.models.vlm import VLM
from auditdm_jax.step import make_step

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def configs(zoo):
    models = Models(zoo["auditor"], zoo["target"], (zoo["a"], zoo["b"]))
    config = TrainConfig(
        steps=4, images_per_step=2, models=models, grpo=GRPO(num_generations=4), probe_every=2, checkpoint_every=2,
        max_question_tokens=5,
    )  # fmt: skip
    return [dataclasses.replace(config, name=f"seed{seed}", seed=seed) for seed in SEEDS]


def test_a_step_of_three_seeds_equals_three_steps(configs, paying):
    players = training.load_players(configs[0])
    # The first step of a run has a rate of 0.
    settings = dataclasses.replace(training.step_settings(configs[0]), optimizer=optax.sgd(0.5))
    cast = training.cast_of(players, [configs[0].instruction])
    states = [training.initial_state(config, players, settings.optimizer) for config in configs]
    images = [next(training.open_source(config, 64, "train"))["image"] for config in configs]
    before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(states[0].frozen)]
    copies = [dataclasses.replace(s, trained=jax.tree.map(jnp.copy, s.trained)) for s in states]
    together = make_joint_step(cast, settings)(copies, images)
    step = make_step(cast, settings)
    alone = [step(state, batch) for state, batch in zip(states, images, strict=True)]
    for (state, metrics, record), (other, other_metrics, other_record) in zip(together, alone, strict=True):
        # The models that are frozen are shared, not copied.
        assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.frozen)] == before
        jax.tree.map(np.testing.assert_array_equal, record, other_record)
        for name in metrics:
            np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)  # noqa: E731
        jax.tree.map(close, state.trained.archive, other.trained.archive)
        jax.tree.map(close, state.trained.auditor, other.trained.auditor)
        np.testing.assert_array_equal(*(jax.random.key_data(s.trained.key) for s in (state, other)))
        assert not np.allclose(
            state.trained.auditor["text"]["embedding"], state.frozen.auditor["text"]["embedding"], atol=1e-4
        )
    ids = [np.asarray(record["question_ids"]) for _, _, record in together]
    assert not np.array_equal(ids[0], ids[1])


@pytest.mark.slow
def test_killed_and_resumed_together_or_alone_each_seed_has_its_run(configs, tmp_path, monkeypatch, paying):
    alone = [training.train(dataclasses.replace(config, out=str(tmp_path / "alone"))) for config in configs]
    joint = [dataclasses.replace(config, out=str(tmp_path / "joint")) for config in configs]
    write = training.Log.step

    def killed(self, number, metrics):
        if number == 3:
            raise KeyboardInterrupt
        write(self, number, metrics)

    monkeypatch.setattr(training.Log, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train_jointly(joint)
    monkeypatch.setattr(training.Log, "step", write)
    resumed = [dataclasses.replace(config, resume=True) for config in joint]
    first = training.train(resumed[0])  # one goes on alone
    assert training.train_jointly(resumed[1:]) == [Path(config.out) / config.name for config in joint[1:]]
    for folder, other in zip([first, *(tmp_path / "joint" / f"seed{n}" for n in SEEDS[1:])], alone, strict=True):
        for row, other_row in zip(
            read_jsonl(folder / "metrics.jsonl"), read_jsonl(other / "metrics.jsonl"), strict=True
        ):
            assert row == pytest.approx(other_row, rel=1e-3, abs=1e-4)
        params, other_params = (VLM.load(path / "auditor").params for path in (folder, other))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), params, other_params)


def test_what_has_no_step_in_common_is_trained_in_turn(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", lambda config: Path(config.name))
    resampling = GRPO(num_generations=4, max_resamples=2)
    changed = [dataclasses.replace(config, out=str(tmp_path), grpo=resampling) for config in configs]
    assert training.train_jointly(changed) == [Path("seed0"), Path("seed1"), Path("seed2")]
