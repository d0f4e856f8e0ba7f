"""runs.py: a run's settings come back as they were written; damaged and unfinished runs are told of."""

import dataclasses

import pytest

from auditdm_jax.config import AuditConfig, Models, Probing, TrainConfig
from auditdm_jax.errors import UserError
from auditdm_jax.files import write_json
from auditdm_jax.reward import Reward
from auditdm_jax.runs import audit_settings, audited_settings, trained_auditor, training_settings

CHANGED = TrainConfig(
    name="r",
    seed=3,
    models=Models(target="target-l", references=("reference-a", "org/name")),
    reward=Reward(agreement=0.5, diversity=2),
    images=("photos", "more/*.png"),
)


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    write_json(tmp_path / "r" / "config.json", dataclasses.asdict(CHANGED))
    write_json(tmp_path / "r" / "auditor" / "config.json", {})
    return tmp_path / "r"


def test_settings_round_trip(run):
    assert training_settings(run) == CHANGED


def test_missing_fields_have_defaults_and_unknown_ones_are_left_out(run):
    write_json(run / "config.json", {"seed": 4, "of_another_version": 1, "models": {"target": "t"}})
    assert training_settings(run) == TrainConfig(seed=4, models=Models(target="t"))


@pytest.mark.parametrize(
    ("saved", "problem"),
    [
        ([], "TrainConfig is no object"),
        ({"models": "x"}, "Models is no object"),
        ({"models": {"references": "reference-a"}}, "references is 'reference-a'"),
        ({"max_question_tokens": "16"}, "max_question_tokens is '16'"),
    ],
)
def test_damaged_settings(run, saved, problem):
    write_json(run / "config.json", saved)
    with pytest.raises(UserError, match=f"no settings of a run \\({problem}"):
        training_settings(run)


def test_trained_auditor(run):
    assert trained_auditor(run) == str(run / "auditor")
    assert trained_auditor(run.parent / "other") == ""
    (run / "auditor" / "config.json").unlink()
    with pytest.raises(UserError, match=r"did not finish; go on with train\.py --resume"):
        trained_auditor(run)


def test_audit_takes_the_runs_models_unless_it_names_others(run):
    config = AuditConfig(out=str(run.parent), name="r")
    assert audit_settings(config) == (CHANGED, str(run / "auditor"))
    named = dataclasses.replace(config, target="mine", verifier="judge", auditor="a/b")
    settings, trained = audit_settings(named)
    assert trained == "a/b"
    assert settings.models == dataclasses.replace(CHANGED.models, target="mine", verifier="judge")


def test_another_auditor_is_audited_though_the_runs_own_is_not_done(run):
    (run / "auditor" / "config.json").unlink()
    assert audit_settings(AuditConfig(out=str(run.parent), name="r", auditor="a/b"))[1] == "a/b"


def test_audit_without_a_run(tmp_path):
    assert audit_settings(AuditConfig(out=str(tmp_path))) == (TrainConfig(), "")


def test_models_that_cannot_stand_together(run):
    config = AuditConfig(out=str(run.parent), name="r")
    with pytest.raises(UserError, match="references contain the target 'reference-a'"):
        audit_settings(dataclasses.replace(config, target="reference-a"))
    with pytest.raises(UserError, match=r"verifier 'reference-a' is also .* judge itself"):
        audit_settings(dataclasses.replace(config, verifier="reference-a"))


def test_who_reads_new_images_back_is_no_reference(tmp_path):
    """In the world of scenes the verifier judges new images that show none: it must not be one of those it judges."""
    config = AuditConfig(out=str(tmp_path), references=("reference-a", "verifier"))
    assert audited_settings(TrainConfig(), config, False).models.references == ("reference-a", "verifier")
    channels = TrainConfig(probing=Probing(channels=("question", "edit")))
    with pytest.raises(UserError, match="judge itself"):
        audited_settings(channels, config, False)
