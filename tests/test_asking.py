"""asking.py: the models of a run as an audit speaks to them."""

import shutil
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax.asking import load_panel, make_ask
from auditdm_jax.checks import Faults
from auditdm_jax.choice import Choice, Guide
from auditdm_jax.config import Models, Probing, TrainConfig
from auditdm_jax.critic import num_features
from auditdm_jax.errors import UserError
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.zoo_paths import load_model


def test_a_reference_that_is_the_target_under_another_name_is_told(zoo, tmp_path, capsys):
    copy = shutil.copytree(zoo["target"], tmp_path / "copy")
    load_panel("", TrainConfig(models=Models(zoo["auditor"], zoo["target"], (str(copy),), zoo["b"])), 1.0, 4)
    assert "have the same weights" in capsys.readouterr().out


def test_the_trained_auditor_is_guided_and_the_other_is_not(zoo):
    settings = TrainConfig(
        models=Models(zoo["auditor"], zoo["target"], (zoo["a"],), zoo["b"]),
        reward=Reward(topics=("how many", "is there any"), topic_share=0.1),
        max_question_tokens=6,
    )
    images = np.asarray(scenes_of("validation", 0, 4)[1])
    width = load_model(zoo["auditor"]).config.text.width
    critic = np.zeros((3, width + 1), np.float32)  # it takes all for equally likely: topics go where they are drawn

    def panel_of(guide):
        return load_panel(zoo["auditor"], settings, 1.0, 4, guide)

    panel, size = panel_of(Guide(critic, 2, settings.topics, 1.0))
    told, untold = (ask(images, jax.random.key(0)) for ask in (panel.auditor, panel.prompt_only))
    # All chances are a half, and four failures are expected of two topics: all images have one.
    assert all(asked.question.startswith(settings.topics) for asked in told.asked)
    assert not any(asked.question.startswith(settings.topics) for asked in untold.asked)
    np.testing.assert_array_equal(told.images, images)
    # One topic took them all. As nothing comes of that, the other is asked.
    assert all(asked.question.startswith("how many") for asked in told.asked)
    told.learn([False] * 4)
    again = panel.auditor(images, jax.random.key(1)).asked
    assert all(asked.question.startswith("is there any") for asked in again)
    questions = [asked.question for asked in told.asked]
    assert [len(answer(images, questions)) for answer in (panel.target, *panel.references, panel.verifier)] == [4] * 3
    assert size == 64

    # Without topics the first of equals is asked, and it is no other than without a critic where one is drawn.
    alone, drawn = (panel_of(guide)[0].auditor(images, jax.random.key(0)) for guide in (Guide(critic, 1, (), 0), None))
    assert alone.asked == drawn.asked
    with pytest.raises(UserError, match="critic is of another auditor"):
        panel_of(Guide(critic[:, :-1], 2, (), 0))


def test_topics_are_counted_by_the_share_of_the_batch_that_is_asked_about(zoo, monkeypatch):
    """Of three images through two channels two are asked about as they are; of 24, 22."""
    settings = TrainConfig(
        models=Models(zoo["auditor"], zoo["target"], (zoo["a"],), zoo["b"]),
        probing=Probing(("question", "edit")), reward=Reward(topics=("how many",), topic_share=0.1),
    )  # fmt: skip
    auditor, shares = load_model(zoo["auditor"]), []
    critic = np.zeros((4, num_features(auditor.config.text.width)), np.float32)
    real = Choice.pick
    monkeypatch.setattr(Choice, "pick", lambda self, *given: shares.append(given[-1]) or real(self, *given))

    def render(channel, images, texts, seeds):  # nothing is changed
        return images, Faults(*[jnp.zeros(len(images), bool)] * 3)

    studio = SimpleNamespace(editor=SimpleNamespace(counts=Counter()), render=render)
    ask = make_ask(auditor, auditor, settings, 1.0, studio, Guide(critic, 2, settings.topics, 1.0))
    for count in (3, 24):
        ask(np.asarray(scenes_of("validation", 0, count)[1]), jax.random.key(0))
    assert shares[0] == 2 / 3
    assert 22 / 24 in shares
