"""Whole runs through the channels: which step takes which, what is resumed, what is audited."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_zoo import save_tiny_zoo

from auditdm_jax import audit, training
from auditdm_jax.config import CHANNELS, AuditConfig, Models, Probing, RenderSettings, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.models.vlm import VLM
from auditdm_jax.step import update

ALL = Probing(channels=CHANNELS)


@pytest.mark.slow
def test_between_steps_of_new_images_questions_are_asked(tmp_path):
    """Of three steps the second goes through all channels, as probes do; all three compile once. A run that was stopped
    between goes on the same."""
    zoo = save_tiny_zoo(tmp_path / "zoo")
    whole = TrainConfig(
        name="whole",
        out=str(tmp_path),
        steps=3,
        images_per_step=3,
        models=Models("auditor", zoo["target"], (zoo["a"], zoo["b"]), zoo["b"]),
        probing=replace(ALL, new_images_every=2, render=RenderSettings(steps=1)),
        grpo=GRPO(num_generations=2),
        checkpoint_every=1,
        probe_every=3,
    )
    update.clear_cache()
    training.train(whole)
    assert update._cache_size() == 1
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    through = [row["step"] for row in rows if "edit/claimed" in row]
    asked = [row["step"] for row in rows if "outcome/claimed" in row]
    assert (through, asked) == ([2], [1, 2, 3])
    halves = replace(whole, name="halves")
    training.train(replace(halves, steps=1))
    training.train(replace(halves, resume=True))
    weights = [VLM.load(tmp_path / name / "auditor").params for name in ("whole", "halves")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.slow
def test_a_run_through_all_channels_audits_and_resumes_exactly(tmp_path):
    """Two steps at once, or one and, from its checkpoint, another: the same auditor. Its audit has all channels."""
    zoo = save_tiny_zoo(tmp_path / "zoo")
    whole = TrainConfig(
        name="whole",
        out=str(tmp_path),
        steps=2,
        images_per_step=3,
        models=Models("auditor", zoo["target"], (zoo["a"], zoo["b"]), zoo["b"]),
        probing=replace(ALL, render=RenderSettings(steps=1)),
        grpo=GRPO(num_generations=2),
        checkpoint_every=1,
    )
    training.train(whole)
    halves = replace(whole, name="halves")
    training.train(replace(halves, steps=1))
    training.train(replace(halves, resume=True))
    weights = [VLM.load(tmp_path / name / "auditor").params for name in ("whole", "halves")]
    jax.tree.map(np.testing.assert_array_equal, *weights)

    summary = audit.main(AuditConfig(name="whole", out=str(tmp_path), questions=9, batch_size=6))
    assert {name: part["images"] for name, part in summary["channels"].items()} == dict.fromkeys(CHANNELS, 3)
    assert summary["prompt_only"]["images"] == 9
    assert set(summary["files"]) == {"discoveries", "questions", "sensitivity"}
    assert sum(summary["outcomes"].values()) == 9
