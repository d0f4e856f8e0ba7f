"""Whole runs through the channels: which step takes which, what is resumed, what is audited."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from auditdm_jax import audit, training
from auditdm_jax.channels import Prober, instructions_of
from auditdm_jax.choice import Choice
from auditdm_jax.collect_probes import judged_compiled
from auditdm_jax.config import CHANNELS, AuditConfig, Models, Probing, RenderSettings, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.files import read_jsonl
from auditdm_jax.models.vlm import VLM
from auditdm_jax.scenes.dataset import SceneSource
from auditdm_jax.step import make_step, update
from auditdm_jax.studio import Studio


@pytest.fixture
def whole(zoo, tmp_path):
    """Two steps through all channels: the zoo's auditor and editor, tiny random models beside them."""
    return TrainConfig(
        name="whole",
        out=str(tmp_path),
        steps=2,
        images_per_step=3,
        models=Models("auditor", zoo["target"], (zoo["a"], zoo["b"]), zoo["auditor"]),
        probing=Probing(CHANNELS, (1, 1, 1), new_images_every=1, old_questions=0.5, render=RenderSettings(steps=1)),
        grpo=GRPO(num_generations=2),
        checkpoint_every=1,
    )


def assert_resumes_exactly(whole: TrainConfig) -> None:
    """One step and, from its checkpoint, the others: the same auditor as of the run that is there."""
    halves = replace(whole, name="halves")
    training.train(replace(halves, steps=1))
    training.train(replace(halves, resume=True))
    weights = [VLM.load(Path(whole.out) / name / "auditor").params for name in ("whole", "halves")]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.slow
def test_between_steps_of_new_images_questions_are_asked(whole, tmp_path):
    """Of three steps the second goes through all channels, as probes do, with one compiled update: that which was
    compiled ahead with blank images. A run that was stopped between goes on the same."""
    whole = replace(whole, steps=3, probing=replace(whole.probing, new_images_every=2), probe_every=3)
    compiled = update, judged_compiled
    for function in compiled:
        function.clear_cache()
    training.train(whole)
    assert [function._cache_size() for function in compiled] == [1, 1]
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    through = [row["step"] for row in rows if "edit/claimed" in row]
    asked = [row["step"] for row in rows if "outcome/claimed" in row]
    assert (through, asked) == ([2], [1, 2, 3])
    assert_resumes_exactly(whole)


@pytest.mark.slow
def test_a_run_through_all_channels_audits_and_resumes_exactly(whole, tmp_path, monkeypatch):
    """Two steps at once, or one and, from its checkpoint, another: the same auditor. Its audit has all channels, and
    learns of the questions of each batch, which are two of six."""
    training.train(whole)
    assert_resumes_exactly(whole)

    learned = []
    monkeypatch.setattr(Choice, "learn", lambda self, claimed: learned.append(claimed.tolist()))
    summary = audit.main(AuditConfig(name="whole", out=str(tmp_path), questions=9, batch_size=6))
    assert {name: part["images"] for name, part in summary["channels"].items()} == dict.fromkeys(CHANNELS, 3)
    assert summary["prompt_only"]["images"] == 9
    assert [len(claimed) for claimed in learned] == [2, 2]
    assert sum(learned[0]) + learned[1][0] == summary["channels"]["question"]["claimed"]["count"]
    assert set(summary["files"]) == {"discoveries", "questions", "sensitivity"}
    assert sum(summary["outcomes"].values()) == 9


def test_steps_are_compiled_ahead(whole, caplog):
    """The renderer's images are bound to a device, and what a step returns with them: its first state must be too, and
    the blank images that all is compiled with."""
    players, settings = training.load_players(whole), training.step_settings(whole)
    cast = training.cast_of(players, instructions_of(whole))
    prober = Prober.of_run(whole, players.auditor, cast.auditor.prompts, 1.0, Studio.load(whole.probing))
    state = training.initial_state(whole, players, settings.optimizer)
    step, asking = make_step(cast, settings, None, prober), make_step(cast, settings)
    update.clear_cache(), judged_compiled.clear_cache()
    source = SceneSource("train", 0, whole.images_per_step)

    def compiled():
        done = [re.match(r"Finished XLA compilation of jit\((\w+)\)", message) for message in caplog.messages]
        caplog.clear()
        return sorted({"audit_step", "update", "judged", "_write", "_follow"} & {found[1] for found in done if found})

    caplog.set_level(logging.DEBUG, "jax._src.dispatch")  # of all threads
    training.compile_ahead(step, asking, state, np.zeros_like(next(source)["image"]))
    assert compiled() == ["_follow", "_write", "audit_step", "judged", "update"]
    for now in (step, asking, step, asking, step):
        state, _, _ = now(state, next(source)["image"])
    assert compiled() == []
