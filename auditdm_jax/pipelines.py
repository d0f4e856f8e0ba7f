"""[host] Diffusion pipelines of the supported classes: their defaults, and loading one from a directory or the hub.

No code that comes with a checkpoint is run, no pickled weights are read, and the network is used for a hub id only.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from auditdm_jax.config import RenderSettings
from auditdm_jax.errors import UserError, is_out_of_memory, one_line
from auditdm_jax.files import read_json


@dataclass(frozen=True)
class Family:
    """What a pipeline class does, and its defaults: those of its `__call__` in diffusers, unless another is named."""

    steps: int
    guidance: float
    max_tokens: int
    """Longest prompt; a tokenizer that declares less has its way."""
    max_command_tokens: int | None = None
    """Longest prompt of an edit, where that is less: Flux reads padding too, and it costs time."""
    edits: bool = False
    generates: bool = False
    image_guidance: float | None = None
    micro_batch_size: int = 4
    alone: str = ""
    """Why a batch would not give what batches of one give; the latter are made then."""


FAMILIES = {
    # Guidance as in the example of its documentation.
    "FluxKontextPipeline": Family(28, 2.5, 512, edits=True, generates=True),
    "QwenImageEditPipeline": Family(
        50, 4.0, 512, edits=True, alone="it shows its text encoder several images at another size than one"
    ),
    "StableDiffusionInstructPix2PixPipeline": Family(100, 7.5, 77, edits=True, image_guidance=1.5, micro_batch_size=8),
    "FluxPipeline": Family(28, 3.5, 512, generates=True),
    "StableDiffusionPipeline": Family(50, 7.5, 77, generates=True, micro_batch_size=8),
    "StableDiffusion3Pipeline": Family(28, 7.0, 256, generates=True),
}
# FluxPipeline without guidance embeddings is the distilled FLUX.1-schnell; values of its documentation.
SCHNELL = Family(4, 0.0, 256, generates=True)
SETTINGS_FILE = "render_settings.json"
"""A pipeline directory may state its own defaults in this file beside model_index.json: whole numbers for any of
steps, max_tokens, max_command_tokens and micro_batch_size, a number for guidance."""
_OWN_SETTINGS = {"steps", "guidance", "max_tokens", "max_command_tokens", "micro_batch_size"}
# Where a pipeline's parts may come from; "stable_diffusion" is diffusers' own name for its safety checker.
LIBRARIES = {"diffusers", "transformers", "stable_diffusion", None}


class StillImageProcessor(transformers.Qwen2VLProcessor):
    """The processor of QwenImageEdit without its part for videos, which is not used and would need torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any):
        super().__init__(image_processor, tokenizer, None, chat_template)


def family_of(pipeline: Any) -> Family:
    """The defaults of a loaded pipeline: those of its class, and before them those of its directory.

    Raises UserError if the directory's `SETTINGS_FILE` holds anything else.
    """
    name = type(pipeline).__name__
    distilled = name == "FluxPipeline" and not pipeline.transformer.config.guidance_embeds
    family = SCHNELL if distilled else FAMILIES[name]
    file = Path(pipeline.config.get("_name_or_path") or "") / SETTINGS_FILE
    if not file.exists():
        return family
    own = read_json(file)
    if not (
        isinstance(own, dict)
        and set(own) <= _OWN_SETTINGS
        and all(
            type(value) in ((int, float) if key == "guidance" else (int,)) and value >= (key != "guidance")
            for key, value in own.items()
        )
    ):
        raise UserError(
            f"{file} holds more than positive numbers for {', '.join(sorted(_OWN_SETTINGS))}; mend or remove it"
        )
    return replace(family, **own)


def load_pipeline(path_or_hub_id: str | Path, settings: RenderSettings) -> tuple[Any, str]:
    """The pipeline in a directory, or of the hub id "owner/name", and the device it works on.

    Raises UserError, in one line, if it is missing, damaged, of a class that is not in `FAMILIES`, or too large for
    the memory.
    """
    gpu = torch.cuda.is_available()
    device = settings.device or ("cuda" if gpu else "cpu")
    if device.startswith("cuda") and not gpu:
        raise UserError(
            f"device is {one_line(device, 40)}, and this torch sees no GPU; leave it out to render on the CPU"
        )
    if settings.cpu_offload and not (device.startswith("cuda") and find_spec("accelerate")):
        raise UserError("cpu_offload needs a GPU that torch sees, and the package accelerate; leave it out")
    dtype = getattr(torch, settings.dtype or ("float32" if device == "cpu" else "bfloat16"))
    directory = _directory_of(path_or_hub_id)
    name = _check_index(directory)
    messages: list[str] = []
    try:
        with quiet(messages):
            parts = {}
            if name == "QwenImageEditPipeline":
                parts["processor"] = StillImageProcessor.from_pretrained(directory / "processor")
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                directory, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **parts
            )
            pipeline.set_progress_bar_config(disable=True)
            # Without accelerate, diffusers leaves StableDiffusion3's in the dtype of its file.
            (pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer).to(dtype)
            if settings.cpu_offload:
                pipeline.enable_model_cpu_offload(device=device)
            else:
                pipeline.to(device)
    except Exception as error:  # a missing file, a damaged one and a wrong shape come as many error types
        if is_out_of_memory(error):
            raise UserError(f"not enough memory to load {directory}; set cpu_offload or a smaller dtype") from None
        _check_weights(directory, messages)
        raise UserError(
            f"the pipeline in {directory} cannot be loaded ({one_line(error, 200)}); copy all of its files again"
        ) from None
    _check_weights(directory, messages)
    return pipeline, device


def _check_weights(directory: Path, messages: Sequence[str]) -> None:
    """Raises UserError if weights are missing: both libraries would only log this, and render noise."""
    for message in messages:
        if "newly initialized" in message:
            report = one_line(message.replace(str(directory), ""), 200)
            raise UserError(f"weights are missing in {directory} ({report}); copy all of its files again") from None


def check_pipeline(path_or_hub_id: str | Path) -> None:
    """Raises UserError for a path without a pipeline that is supported; of a hub id nothing is fetched."""
    if directory := _local(path_or_hub_id):
        _check_index(directory)


def _local(path_or_hub_id: str | Path) -> Path | None:
    """The directory, None of a hub id. Raises UserError for what is neither."""
    path = Path(os.path.expanduser(path_or_hub_id))
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"no pipeline directory {one_line(name, 80)}; give an existing directory or a hub id such as owner/name"
        )
    return None


def _directory_of(path_or_hub_id: str | Path) -> Path:
    """The path itself, or a snapshot of the hub id. Raises UserError if there is neither."""
    if directory := _local(path_or_hub_id):
        return directory
    name = str(path_or_hub_id)
    from huggingface_hub import hf_hub_download

    try:
        _check_index(Path(hf_hub_download(name, "model_index.json")).parent)  # before gigabytes are fetched
        return Path(diffusers.DiffusionPipeline.download(name, use_safetensors=True))
    except UserError:
        raise
    except Exception as error:  # the hub client has many error types, and each message is long
        reason = one_line(error, 160) or type(error).__name__
        raise UserError(
            f"cannot fetch {one_line(name, 80)} ({reason}); check the name, the network and your access"
        ) from None


def _check_index(directory: Path) -> str:
    """The pipeline class of a directory. Raises UserError for one that is not supported, or brings its own code."""
    file = directory / "model_index.json"
    if not file.exists():
        raise UserError(f"{directory} has no model_index.json; give the directory of a diffusers pipeline")
    try:
        index = json.loads(file.read_text())
        name = index["_class_name"]
        libraries = {part[0] for part in index.values() if isinstance(part, list)}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error, 160)}); copy it again") from None
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{one_line(name, 80)} is not supported; use one that takes text, and an image to edit: "
            + ", ".join(FAMILIES)
        )
    if foreign := libraries - LIBRARIES:
        raise UserError(f"{file} names parts from {one_line(foreign, 80)}, which are not run; use a stock pipeline")
    return name


@contextmanager
def quiet(messages: list[str] | None = None) -> Iterator[None]:
    """Holds back what diffusers and transformers log, warn of and draw; the logged messages go to the list."""
    messages = [] if messages is None else messages
    keeper = logging.Handler(logging.WARNING)
    keeper.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    handlers = [logger.handlers for logger in loggers]
    drawing = [library for library in (diffusers.logging, transformers.logging) if library.is_progress_bar_enabled()]
    try:
        for logger in loggers:
            logger.handlers = [keeper]
        for library in drawing:
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in zip(loggers, handlers, strict=True):
            logger.handlers = before
        for library in drawing:
            library.enable_progress_bar()
