"""audit.py on folders of images and on models that are loaded: which images, which models, and the shipped zoo."""

import pyarrow as pa
import pytest
import tiny_vlm
from PIL import Image
from tiny_zoo import save_pictures

from auditdm_jax import discoveries
from auditdm_jax.audit import main, open_unseen
from auditdm_jax.config import AuditConfig, Models, TrainConfig
from auditdm_jax.data import held_out_ids, open_images
from auditdm_jax.errors import UserError
from auditdm_jax.files import write_parquet
from auditdm_jax.image_files import find_images
from auditdm_jax.scenes import zoo_paths
from auditdm_jax.scenes.zoo_paths import load_model, zoo_names


def seen_file(spec, held_out):
    return next(r.image_id for r in find_images(spec) if r.image_id not in held_out).rpartition("/")[2]


def test_images_that_training_saw_are_left_out(tmp_path):
    spec = (str(save_pictures(tmp_path / "photos", 60)),)
    seen = [i for batch in open_unseen(spec, (), 8, 16, seed=0) for i in batch["image_id"]]
    assert len(set(seen)) == 60
    (tmp_path / "x").mkdir()
    batches = list(open_unseen(spec, (str(tmp_path / "x" / ".." / "photos"),), 8, 256, seed=0))
    unseen = [i for batch in batches for i in batch["image_id"]]
    assert sorted(unseen) == sorted(held_out_ids(seen))
    # Named in another way, and beside a new image.
    Image.new("RGB", (20, 10)).save(tmp_path / "photos" / "new.png")
    trained_on = (str(tmp_path / "photos" / "0*.png"),)
    batches = list(open_unseen(spec, trained_on, 8, 256, seed=0))
    unseen = {i.rpartition("/")[2] for batch in batches for i in batch["image_id"]}
    held_out = held_out_ids([record.image_id for record in find_images(trained_on)])
    assert unseen == {name.rpartition("/")[2] for name in held_out} | {"new.png"}
    with pytest.raises(UserError, match="training saw every one"):
        open_unseen((str(tmp_path / "photos" / f"{seen_file(trained_on, held_out)}"),), trained_on, 8, 16, seed=0)


def test_no_image_is_audited_that_training_saw_however_both_are_named(tmp_path, monkeypatch):
    """Every image has a color of its own; what training saw is told by it."""
    a, b = (save_pictures(tmp_path / name / "images", 40, first) for name, first in (("one", 0), ("two", 40)))
    table = tmp_path / "table" / "train.parquet"
    write_parquet(table, pa.table({"image": [path.read_bytes() for path in sorted(a.glob("*.png"))]}))
    monkeypatch.chdir(tmp_path)

    def seen(**of) -> set:
        source = open_images(size=8, batch_size=8, seed=0, num_epochs=1, **of)
        return {tuple(image[0, 0]) for batch in source for image in batch["image"][batch["valid"]]}

    specs = [
        ((a, b), (b,), 4), ((a,), (b, a), 44), ((a, b), (b, a), 8), ((table,), (table.parent,), 4),
        ((table,), (f"{table.parent}/*.parquet",), 4), ((a, "gone"), (f"{a}/*.png",), 4),
        (("one/images",), (str(a),), 4), ((b, a), (a, b), 8),
    ]  # fmt: skip
    for trained_on, audited, about in specs:
        trained_on = TrainConfig(images=tuple(map(str, trained_on))).images
        there = tuple(item for item in trained_on if not item.endswith("gone"))
        monkeypatch.chdir("/")  # whatever the audit's directory is
        batches = open_unseen(tuple(map(str, audited)), trained_on, 8, 8, seed=0)
        unseen = {tuple(image[0, 0]) for batch in batches for image in batch["image"][batch["valid"]]}
        monkeypatch.chdir(tmp_path)
        assert not unseen & seen(spec=there, split="train")
        assert about - 4 <= len(unseen) <= about + 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Directories of tiny random models, a folder for each name."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, family) in enumerate({"one": "paligemma", "two": "gemma3", "asker": "gemma3"}.items()):
        tiny_vlm.save(tiny_vlm.hf_model(tiny_vlm.hf_config(family), seed), folder / name)
    return folder


def test_main_with_models_from_directories(checkpoints, tmp_path, monkeypatch, capsys):
    """Without a run: any folder of images, random models of two families."""
    monkeypatch.setattr(zoo_paths, "ZOO", checkpoints)
    folder = save_pictures(tmp_path / "photos", 5)
    (folder / "bad.png").write_bytes(b"not an image")
    config = AuditConfig(
        out=str(tmp_path / "runs"),
        images=(str(folder),),
        auditor="asker",
        target=str(checkpoints / "one"),
        references=("two",),
        verifier="asker",
    )
    summary = main(config)
    assert summary["images"] == 5
    assert sum(summary["outcomes"].values()) == 5
    assert summary["skipped_images"] == {"unknown format": 1}
    assert summary["auditor"] == {"name": "asker", "trained": False}
    assert summary["prompt_only"]["verified"] == summary["verified"]
    printed = capsys.readouterr().out
    assert "there is no run" in printed
    assert "untrained auditor 'asker'" in printed
    assert "images skipped: 1 unknown format" in printed


def test_names_of_models(checkpoints, monkeypatch):
    monkeypatch.setattr(zoo_paths, "ZOO", checkpoints)
    assert zoo_names() == ["asker", "one", "two"]
    assert load_model("one").config.family == "paligemma"
    with pytest.raises(UserError, match=r"no model is called 'tow' \(the zoo has asker, one, two\)"):
        load_model("tow")
    with pytest.raises(UserError, match=r"no checkpoint directory \./one"):
        load_model("./one")
    monkeypatch.setattr(zoo_paths, "ZOO", checkpoints / "nothing")
    with pytest.raises(UserError, match="has not been built"):
        load_model("one")


@pytest.fixture
def zoo():
    """The shipped checkpoints."""
    models = Models()
    if not {models.auditor, models.target, models.verifier, *models.references} <= set(zoo_names()):
        pytest.skip("the zoo has not been built")


@pytest.mark.slow
class TestZoo:
    def test_the_untrained_auditor_on_scenes(self, zoo, tmp_path, capsys):
        summary = main(AuditConfig(out=str(tmp_path), questions=256, temperature=0.6))
        assert summary["outcomes"]["unparsable"] < 0.05 * 256
        assert 0.03 < summary["verified_success_rate"] <= summary["claimed_success_rate"] < 0.6
        assert len(summary["skills"]) >= 8
        found = discoveries.read(tmp_path / "default" / "audit" / "discoveries.parquet", 64)
        assert len(found.rows) == summary["claimed"]["count"]
