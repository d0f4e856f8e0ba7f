"""Claimed and verified success on held-out images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax import heldout
from auditdm_jax.answers import text_answer_id
from auditdm_jax.heldout import BATCHES, for_probe, probe, verified
from auditdm_jax.prompts import padded
from auditdm_jax.scenes.parser import scenes_in
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import WEATHERS, sample_scene
from auditdm_jax.state import AuditState, Frozen, Trained


def test_the_oracle_names_the_reward_of_questions_without_an_answer():
    auditor = tiny("m", "gemma3", 0)
    scene = next(s for s in map(sample_scene, ["test"] * 99, range(99)) if s.special("dot") is None)
    asked = ["what is the weather?", "what color is the tiny dot?", "star star", "what is the weather?"]
    ids, mask = padded(auditor.tokenizer(asked, add_special_tokens=False)["input_ids"], 8, 0)
    truth, foggy = text_answer_id(scene.weather), text_answer_id("foggy")
    record = {
        "question_ids": ids[None],
        "question_mask": mask[None],
        "target_id": np.array([[foggy, foggy, foggy, truth]], np.uint32),
        "consensus_id": np.full((1, 4), truth, np.uint32),
        "claimed": np.array([[True, True, True, False]]),
        "reward": np.array([[1.0, 0.5, 0.5, 0.0]], np.float32),
    }
    shares = verified(record, {"scene": [scene]}, auditor)
    assert (shares["oracle/verified"], shares["oracle/unanswerable"], shares["oracle/unparsable"]) == (0.25,) * 3
    assert shares["oracle/gap"] == 0.5
    assert (shares["oracle/reward_unanswerable"], shares["oracle/reward_unparsable"]) == (0.25, 0.25)
    nothing = verified(record | {"reward": np.zeros((1, 4))}, {"scene": [scene]}, auditor)
    assert (nothing["oracle/reward_unanswerable"], nothing["oracle/reward_unparsable"]) == (0, 0)


def test_new_images_are_read_back_and_the_others_are_what_they_were(monkeypatch):
    """Of four probes of one scene two kept its image, one shows another scene, one none at all; only the last two are
    read."""
    auditor = tiny("m", "gemma3", 0)
    scene, other = sample_scene("test", 1), sample_scene("test", 2)
    other = other._replace(weather=next(each for each in WEATHERS if each != scene.weather))
    images = np.stack([render(scene), render(scene), render(other), np.full_like(render(scene), 90)])
    ids, mask = padded(auditor.tokenizer(["what is the weather?"] * 4, add_special_tokens=False)["input_ids"], 8, 0)
    record = {
        "question_ids": ids[None],
        "question_mask": mask[None],
        "target_id": np.array([[0, 0, 0, 0]], np.uint32),
        "consensus_id": np.array([[text_answer_id(s.weather) for s in (scene, other, other, scene)]], np.uint32),
        "claimed": np.full((1, 4), True),
        "reward": np.ones((1, 4), np.float32),
        "images": images,
    }
    read = []
    monkeypatch.setattr(heldout, "scenes_in", lambda new: (read.append(len(new)), scenes_in(new))[1])
    shares = verified(record, {"scene": [scene], "image": render(scene)[None]}, auditor)
    assert (shares["oracle/verified"], shares["oracle/unreadable"], shares["oracle/gap"]) == (0.5, 0.25, 0.25)
    assert read == [2]
    kept = record | {"images": images[:1].repeat(4, axis=0)}
    assert verified(kept, {"scene": [scene], "image": render(scene)[None]}, auditor)["oracle/unreadable"] == 0


def state_of(seed):
    return AuditState(Trained({}, (), jax.random.key(seed), jnp.array(3), *[jnp.zeros(1)] * 3), Frozen({}, {}, ()))


class Numbered:
    """Batches that hold their own number, and count how many were drawn."""

    def __init__(self, first):
        self.number = first

    def __next__(self):
        self.number += 1
        return {"image": np.full((2, 4, 4, 3), self.number, np.uint8)}


def test_a_probe_is_the_mean_over_its_batches_of_each_run():
    keys = []

    def step(states, images):
        keys.append([jax.random.key_data(state.trained.key).tolist() for state in states])
        return [(state, {"outcome/claimed": image.mean()}, {}) for state, image in zip(states, images, strict=True)]

    sources = [Numbered(0), Numbered(100)]
    rows = probe(step, [state_of(0), state_of(1)], sources, auditor=None)
    assert rows == [{"heldout/claimed": pytest.approx((BATCHES + 1) / 2 + first)} for first in (0, 100)]
    assert [source.number for source in sources] == [BATCHES, 100 + BATCHES]
    # Each batch has draws of its own, and none has those of the step that comes next.
    seen = {tuple(key) for batch in keys for key in batch} | {tuple(jax.random.key_data(jax.random.key(0)).tolist())}
    assert len(seen) == 2 * BATCHES + 1


def test_a_probe_gives_the_step_a_copy():
    state = state_of(0)
    assert for_probe(state).trained.step is not state.trained.step
