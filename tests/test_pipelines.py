"""Loading diffusion pipelines: each class loads, and whatever is wrong with a directory is one line that names it."""

import inspect
import json
import logging
import socket
from dataclasses import replace

import diffusers
import pytest
import tiny_pipelines
import torch
import transformers
from one_line import expect
from safetensors.torch import load_file, save_file

from auditdm_jax.config import RenderSettings
from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.errors import UserError, is_out_of_memory
from auditdm_jax.pipelines import FAMILIES, SCHNELL, SETTINGS_FILE, family_of, load_pipeline, quiet

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def directory(tmp_path):
    """A whole pipeline directory, to be damaged."""
    tiny_pipelines.save("StableDiffusionPipeline", tmp_path / "pipeline")
    return tmp_path / "pipeline"


def expect_load(path, *words: str, **settings) -> None:
    expect(lambda: Renderer.load(path, **settings), *words)


def change_index(directory, **fields) -> None:
    file = directory / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_class_loads_from_a_directory_in_silence_and_without_network(name, tmp_path, monkeypatch, capfd):
    tiny_pipelines.save(name, tmp_path)
    capfd.readouterr()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    reached = []

    def no_network(*address, **_):
        reached.append(address)
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    pipeline, device = load_pipeline(tmp_path, RenderSettings(dtype="bfloat16", device="cpu"))
    assert (type(pipeline).__name__, device) == (name, "cpu")
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}
    assert family_of(pipeline) is FAMILIES[name]
    assert capfd.readouterr() == ("", "")
    assert reached == []
    expect_load("owner/name", "network")
    assert reached  # or the line before it would say nothing


def test_defaults_are_those_of_the_pipelines():
    def default(name, argument):
        arguments = inspect.signature(getattr(diffusers, name).__call__).parameters
        return arguments[argument].default if argument in arguments else "absent"

    for name, family in FAMILIES.items():
        assert family.steps == default(name, "num_inference_steps")
        guidance = "true_cfg_scale" if name == "QwenImageEditPipeline" else "guidance_scale"
        if name != "FluxKontextPipeline":  # its documentation uses another than its signature
            assert family.guidance == default(name, guidance)
        if name != "QwenImageEditPipeline":
            assert family.max_tokens == default(name, "max_sequence_length") or family.max_tokens == 77
        assert family.edits == (default(name, "image") != "absent")
        if family.image_guidance:
            assert family.image_guidance == default(name, "image_guidance_scale")


def test_flux_without_guidance_is_the_distilled_one():
    assert family_of(tiny_pipelines.flux(diffusers.FluxPipeline, guidance_embeds=False)) is SCHNELL
    kontext = tiny_pipelines.flux(diffusers.FluxKontextPipeline, guidance_embeds=False)
    assert family_of(kontext) is FAMILIES["FluxKontextPipeline"]


def test_a_directory_may_state_its_own_settings(directory):
    (directory / SETTINGS_FILE).write_text(json.dumps({"steps": 3, "guidance": 1, "max_command_tokens": 9}))
    renderer = Renderer.load(directory, device="cpu")
    assert renderer.family == replace(FAMILIES[renderer.name], steps=3, guidance=1, max_command_tokens=9)
    assert (renderer.max_command_tokens, renderer.max_tokens) == (9, tiny_pipelines.CLIP_TOKENS)
    for wrong in ("[]", '{"steps": 0}', '{"steps": 1.5}', '{"steps": true}', '{"guidance": "1"}', '{"alone": ""}', "{"):
        (directory / SETTINGS_FILE).write_text(wrong)
        expect_load(directory, SETTINGS_FILE)


def test_a_hub_id_is_looked_up_in_the_cache(directory, tmp_path, monkeypatch):
    repository = tmp_path / "cache" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    directory.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert Renderer.load("owner/name", device="cpu").name == "StableDiffusionPipeline"
    change_index(repository / "snapshots" / ("0" * 40), _class_name="DDPMPipeline")
    expect_load("owner/name", "DDPMPipeline")


def test_missing_directories(directory, tmp_path):
    expect_load("owner/nothing-cached", "owner/nothing-cached", "network")
    expect_load(tmp_path / "nowhere", "nowhere", "owner/name")
    expect_load("../nowhere/at", "nowhere", "owner/name")
    expect_load("name-only", "name-only", "owner/name")
    expect_load(directory / UNET, "owner/name")
    expect_load(tmp_path, "no model_index.json")


def test_damaged_index(directory):
    for text in ("{", "[]", "{}"):
        (directory / "model_index.json").write_text(text)
        expect_load(directory, "model_index.json", "copy it again")


def test_unsupported_classes(directory):
    for name in ("DDPMPipeline", "StableDiffusionXLPipeline", ["own.py", "OwnPipeline"], None):
        change_index(directory, _class_name=name)
        expect_load(directory, "not supported", "takes text", *FAMILIES)


def test_code_of_a_checkpoint_is_not_run(directory):
    ran = directory / "ran"
    (directory / "scheduler" / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass")
    change_index(directory, scheduler=["own", "Own"])
    expect_load(directory, "own", "not run")
    assert not ran.exists()


def test_missing_and_damaged_weights(directory):
    whole = (directory / UNET).read_bytes()
    tensors = load_file(directory / UNET)
    name = "conv_in.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, directory / UNET)
    expect_load(directory, "weights are missing", name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, directory / UNET)
    expect_load(directory, "cannot be loaded")
    (directory / UNET).write_bytes(whole[:-100])
    expect_load(directory, "cannot be loaded")
    (directory / UNET).unlink()
    expect_load(directory, "cannot be loaded", "diffusion_pytorch_model.safetensors")
    (directory / UNET).write_bytes(whole)
    (directory / "text_encoder" / "model.safetensors").unlink()
    expect_load(directory, "cannot be loaded", "text_encoder")


def test_missing_weights_of_a_text_encoder(directory):
    file = directory / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "final_layer_norm" in name))
    save_file(tensors, file, metadata={"format": "pt"})
    expect_load(directory, "weights are missing", "final_layer_norm")


def test_pickled_weights_are_not_read(directory):
    torch.save(load_file(directory / UNET), directory / "unet" / "diffusion_pytorch_model.bin")
    (directory / UNET).unlink()
    expect_load(directory, "cannot be loaded", "safetensors")


def test_settings(directory):
    for name in ("steps", "micro_batch_size"):
        with pytest.raises(UserError, match=f"{name.replace('_', '-')} is 0: it must be at least 1"):
            Renderer.load(directory, **{name: 0})
    expect_load(directory, "no image guidance", image_guidance=1.5)
    with pytest.raises(TypeError, match="stepz"):
        Renderer.load(directory, stepz=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
def test_a_gpu_that_is_not_there(directory):
    expect_load(directory, "device is cuda:1", device="cuda:1")
    expect_load(directory, "cpu_offload needs a GPU", cpu_offload=True)


def test_quiet_puts_everything_back():
    def state():
        loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
        bars = [library.logging.is_progress_bar_enabled() for library in (diffusers, transformers)]
        return [list(logger.handlers) for logger in loggers], bars

    def fail():
        logging.getLogger("diffusers.pipelines").warning("%s told", "once")
        raise ZeroDivisionError

    before = state()
    messages: list[str] = []
    with pytest.raises(ZeroDivisionError), quiet(messages):
        fail()
    assert messages == ["once told"]
    assert state() == before


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
