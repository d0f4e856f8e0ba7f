"""Whatever is wrong with a checkpoint or an input: one line that names it, and how to mend it."""

import errno
import json

import numpy as np
import pytest
import tiny_vlm
from one_line import expect
from safetensors.numpy import load_file, save_file

from auditdm_jax.errors import UserError
from auditdm_jax.models import convert
from auditdm_jax.models.vlm import VLM


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm.ours("gemma3")


@pytest.fixture
def directory(vlm, tmp_path):
    """A whole checkpoint, to be damaged."""
    vlm.save(tmp_path / "model")
    return tmp_path / "model"


def expect_load(path, *words: str) -> None:
    expect(lambda: VLM.load(path), *words)


def change_tensors(directory, change) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_config(directory, **fields) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_missing_tensor(directory):
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    change_tensors(directory, lambda tensors: tensors.pop(name))
    expect_load(directory, name, "complete checkpoint")


def test_misshapen_tensor(directory):
    name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"

    def cut(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name][:-1])

    change_tensors(directory, cut)
    expect_load(directory, name, "(31, 32)", "(32, 32)")


def test_untied_head(directory):
    def add(tensors):
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1

    change_tensors(directory, add)
    expect_load(directory, "language_model.lm_head.weight", "tied")


def test_damaged_file(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    expect_load(directory, "model.safetensors", "copy the checkpoint again")


def test_missing_shard_and_damaged_index(vlm, directory, monkeypatch):
    monkeypatch.setattr(convert, "SHARD_BYTES", 50_000)
    vlm.save(directory)
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    shard.unlink()
    expect_load(directory, shard.name)
    (directory / convert.INDEX).write_text("{}")
    expect_load(directory, convert.INDEX)


def test_a_checkpoints_own_code_is_not_run(directory, monkeypatch):
    """Nor is the user asked whether it may be."""
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    change_config(directory, model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    expect_load(directory, "cannot be read", "PaliGemma 2 or Gemma 3")


def test_pickled_weights_are_not_read(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    expect_load(directory, "only pickled weights", "safetensors")
    (directory / "pytorch_model.bin").unlink()
    expect_load(directory, "no weights")


def test_unknown_architectures(directory):
    change_config(directory, model_type="llava")
    expect_load(directory, "llava", "Gemma 3")
    change_config(directory, model_type="no such thing")
    expect_load(directory, "no such thing")


def test_first_paligemma(tmp_path):
    config = tiny_vlm.hf_config("paligemma", text={"model_type": "gemma"})
    config.save_pretrained(tmp_path)
    expect_load(tmp_path, "'gemma'", "'gemma2'")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("attention_bias", True, "attention_bias"),
        ("hidden_activation", "relu", "relu"),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_unsupported_variants(directory, field, value, word):
    text = json.loads((directory / "config.json").read_text())["text_config"]
    change_config(directory, text_config=text | {field: value})
    expect_load(directory, word)


def test_missing_directory_or_parts(directory, tmp_path):
    expect_load(tmp_path / "nowhere", "nowhere", "owner/name")
    expect_load(tmp_path, "config.json")
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    expect_load(directory, "processor")
    (directory / "config.json").write_text("{")
    expect_load(directory, "configuration")


def test_hub_without_network(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("first line\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    expect_load("owner/name", "owner/name", "first line second line")


def test_full_disk_leaves_the_old_checkpoint(vlm, directory, monkeypatch):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        vlm.save(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_wrong_number_of_image_tokens(vlm):
    batch = tiny_vlm.inputs(vlm.hf_config)
    batch["input_ids"][1, 3] = 9
    with pytest.raises(UserError, match="3 image tokens where the model needs 4"):
        vlm.logits(**batch)


def test_wrong_images(vlm, tmp_path):
    good = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "text.png").write_text("not an image")
    for image, word in (
        (tmp_path / "missing.png", "missing.png"),
        (tmp_path / "text.png", "text.png"),
        (good.astype(np.float32), "float32"),
        (good[..., 0], "(8, 8)"),
    ):
        with pytest.raises(UserError) as caught:
            vlm.answer([image], ["what ?"])
        assert word in str(caught.value)
    with pytest.raises(UserError, match="2 images for 1 questions"):
        vlm.answer([good, good], ["what ?"])
