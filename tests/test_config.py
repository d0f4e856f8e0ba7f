"""The settings, as they are typed."""

from pathlib import Path

import pytest
import tyro

from auditdm_jax.ablate import AblateConfig
from auditdm_jax.config import AuditConfig, Models, Probing, RectifyConfig, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.errors import UserError
from auditdm_jax.image_files import find_images
from auditdm_jax.plant import PlantConfig
from auditdm_jax.reward import Reward
from auditdm_jax.scenes.zoo_paths import ZOO


def test_models_are_named_without_a_prefix():
    typed = ["--auditor", "a", "--target", "folder/b", "--references", "c", "google/d", "--grpo.beta", "0.5"]
    config = tyro.cli(TrainConfig, args=typed)
    assert (config.models.auditor, config.models.target) == ("a", "folder/b")
    assert config.models.references == ("c", "google/d")
    assert config.grpo.beta == 0.5


def test_a_reference_that_is_the_target_is_refused():
    with pytest.raises(UserError, match=r"references contain the target 'b'.*--references"):
        tyro.cli(TrainConfig, args=["--target", "b", "--references", "a", "b"])


def test_one_model_under_two_names_is_one_model(zoo, monkeypatch, tmp_path):
    """A zoo name and its directory, a relative path and an absolute one."""
    for target, reference in (("target-s", str(ZOO / "target-s")), (zoo["target"], zoo["target"] + "/")):
        with pytest.raises(UserError, match="contain the target"):
            Models(target=target, references=(reference,))
    monkeypatch.chdir(Path(zoo["target"]).parent)
    with pytest.raises(UserError, match="contain the target"):
        Models(target="./target", references=(zoo["target"],))


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (TrainConfig, {"seed": -1}),
        (TrainConfig, {"seed": 2**31}),
        (TrainConfig, {"lora_rank": -1}),
        (GRPO, {"temperature": float("nan")}),
        (GRPO, {"temperature": float("inf")}),
        (GRPO, {"learning_rate": float("nan")}),
        (GRPO, {"learning_rate": float("inf")}),
        (GRPO, {"max_grad_norm": 0.0}),
        (GRPO, {"num_generations": 2.5}),
        (GRPO, {"max_resamples": 1.5}),
        (AuditConfig, {"seed": -1}),
        (AuditConfig, {"questions": 0}),
        (AuditConfig, {"prompt_only_questions": 0}),
        (AuditConfig, {"batch_size": 0}),
        (AuditConfig, {"temperature": -1}),
        (AuditConfig, {"temperature": float("nan")}),
        (RectifyConfig, {"seed": -1}),
        (RectifyConfig, {"lora_rank": -1}),
        (RectifyConfig, {"images_per_step": 0}),
        (RectifyConfig, {"test_questions": 0}),
        (RectifyConfig, {"pool": 3}),
        (RectifyConfig, {"learning_rate": 0.0}),
        (RectifyConfig, {"learning_rate": float("inf")}),
    ],
)
def test_numbers_that_cannot_be_are_named(config, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=f"{name.replace('_', '-')} is {value}"):
        config(**wrong)


@pytest.mark.parametrize("config", [TrainConfig, AuditConfig, RectifyConfig])
@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_run_has_a_folder_of_its_own(config, name):
    with pytest.raises(UserError, match=r"^name is empty: [^\n]+$"):
        config(name=name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"agreement": 0.0}, "agreement is 0.0"),
        ({"agreement": float("nan")}, "agreement is nan"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"diversity": -1.0}, "diversity is -1.0"),
        ({"ngram": 0}, "ngram is 0"),
        ({"disagreement": "Share"}, "reward.disagreement is 'Share': choose one of binary"),
        ({"novelty": "ngram"}, "reward.novelty is 'ngram'"),
        ({"scope": "batch"}, "reward.scope is 'batch'"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"floor": 1.5}, "floor is 1.5"),
        ({"topic_share": 1.5}, "topic-share is 1.5"),
        ({"topics": ()}, "reward.topics is empty"),
        ({"topics": ("how many", " "), "topic_share": 0.1}, "empty or stands twice"),
        ({"topics": ("how many", "how many"), "topic_share": 0.1}, "empty or stands twice"),
    ],
)
def test_rewards_that_cannot_be_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Reward(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": ()}, "channels is empty"),
        ({"channels": ("edit", "edit")}, "edit edit: name each of"),
        ({"channels": ("edit",), "channel_weights": (1.0, 2.0)}, "2 numbers for 1 channels"),
        ({"channels": ("edit",), "channel_weights": (0.0,)}, "above 0"),
        ({"channels": ("edit",), "channel_weights": (float("nan"),)}, "above 0"),
        ({"old_questions": 1.5}, "from 0 to 1"),
        ({"channels": ("edit",), "new_images_every": 2}, "needs the channel question"),
        ({"new_images_every": 2}, "and one that makes new images"),
        ({"new_images_every": 0}, "new-images-every is 0"),
        ({"max_command_tokens": 0}, "max-command-tokens is 0"),
    ],
)
def test_channels_that_cannot_be_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Probing(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward": Reward(disagreement="share"), "models": Models(references=("reference-a",))}, "two or more"),
        ({"grpo": GRPO(soft_punish_cache=12)}, "soft-punish-cache is above max-question-tokens"),
    ],
)
def test_rewards_that_clash_with_the_run_are_one_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        TrainConfig(**settings)
    assert "\n" not in str(error.value)


def test_what_is_local_is_found_from_another_directory_too(tmp_path, monkeypatch):
    """A relative directory would be a hub id there; a zoo name or a hub id stays what it is."""
    here = tmp_path / "w[1]"
    for name in ("ckpts/target", "verifier", "photos"):
        (here / name).mkdir(parents=True)
    (here / "photos" / "a.jpg").touch()
    monkeypatch.chdir(here)
    models = Models(target="ckpts/target", references=("./verifier", "org/model"), verifier="verifier")
    images = TrainConfig(images=("photos/*.jpg", "photos")).images
    probing = Probing(editor="ckpts/target", generator="editor")
    monkeypatch.chdir(tmp_path)
    assert models.target == AuditConfig(target="w[1]/ckpts/target").target == str(here / "ckpts/target")
    assert models.references == (str(here / "verifier"), "org/model")
    assert (models.verifier, models.auditor) == ("verifier", "auditor")
    assert (probing.editor, probing.generator) == (str(here / "ckpts/target"), "editor")
    assert [[record.file.name for record in find_images([item])] for item in images] == [["a.jpg"]] * 2


def test_a_home_is_written_out_wherever_a_path_is_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/some")
    assert TrainConfig(out="~/runs/").out == AblateConfig(Path("s.toml"), out="~/runs").out == "/home/some/runs"
    assert PlantConfig("clock", out="~/planted").out == "/home/some/planted"
    assert RectifyConfig(discoveries="~/d.parquet").discoveries == "/home/some/d.parquet"
    assert TrainConfig(out="~nosuchuser_x/runs").out == "~nosuchuser_x/runs"
    assert (PlantConfig("clock").out, RectifyConfig().discoveries) == ("", "")
