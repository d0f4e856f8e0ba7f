"""asking.py: the models of a run as an audit speaks to them."""

import jax
import numpy as np
import pytest
from tiny_zoo import save_tiny_zoo

from auditdm_jax.asking import load_panel
from auditdm_jax.config import Models, TrainConfig
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.dataset import scenes_of


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return save_tiny_zoo(tmp_path_factory.mktemp("zoo"))


def test_the_trained_auditor_draws_the_topics_it_is_told(zoo):
    settings = TrainConfig(
        models=Models(zoo["auditor"], zoo["target"], (zoo["a"],), zoo["b"]),
        reward=Reward(topics=("how many", "is there any"), topic_share=0.1),
        max_question_tokens=6,
    )
    chances = {"how many": 0.0, "is there any": 1.0}
    panel, size = load_panel(zoo["auditor"], settings, 1.0, 4, chances)
    images = np.asarray(scenes_of("validation", 0, 4)[1])
    told, untold = (ask(images, jax.random.key(0)) for ask in (panel.auditor, panel.prompt_only))
    assert all(asked.question.startswith("is there any") for asked in told.asked)
    assert not any(asked.question.startswith("is there any") for asked in untold.asked)
    np.testing.assert_array_equal(told.images, images)
    questions = [asked.question for asked in told.asked]
    assert [len(answer(images, questions)) for answer in (panel.target, *panel.references, panel.verifier)] == [4] * 3
    assert size == 64
