"""The settings, as they are typed."""

import pytest
import tyro

from auditdm_jax.config import AuditConfig, RectifyConfig, TrainConfig
from auditdm_jax.errors import UserError


def test_models_are_named_without_a_prefix():
    typed = ["--auditor", "a", "--target", "folder/b", "--references", "c", "google/d", "--grpo.beta", "0.5"]
    config = tyro.cli(TrainConfig, args=typed)
    assert (config.models.auditor, config.models.target) == ("a", "folder/b")
    assert config.models.references == ("c", "google/d")
    assert config.grpo.beta == 0.5


def test_a_reference_that_is_the_target_is_refused():
    with pytest.raises(UserError, match=r"references contain the target 'b'.*--references"):
        tyro.cli(TrainConfig, args=["--target", "b", "--references", "a", "b"])


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (TrainConfig, {"seed": -1}),
        (AuditConfig, {"seed": -1}),
        (RectifyConfig, {"seed": -1}),
        (RectifyConfig, {"images_per_step": 0}),
        (RectifyConfig, {"test_questions": 0}),
        (RectifyConfig, {"pool": 3}),
    ],
)
def test_numbers_that_cannot_be_are_named(config, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=f"{name.replace('_', '-')} is {value}"):
        config(**wrong)
