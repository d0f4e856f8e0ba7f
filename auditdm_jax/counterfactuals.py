"""[host] Counterfactual images: a frozen diffusion pipeline carries out editing commands, or regenerates captions.

Example:
    editor = Renderer.load("timbrooks/instruct-pix2pix", steps=20)
    edited = editor.edit(images, ["make the cat black"] * len(images), seeds=range(len(images)))

Sizes. An edit comes back at the size of its input. The pipeline works at that size too, or at `size` where that is
set: large editors do best near the size they were trained at (FluxKontext 1024, InstructPix2Pix 512), so their input
is resized to it and their output back. FluxKontext is told not to choose a size of its own. QwenImageEdit cannot be
told: it looks at its input resized to a megapixel. Unless `size` is set it draws at that size too, so that what it
draws and what it sees lie on the same grid, and the result is resized back.

Seeds. Each image has a generator of its own, on the CPU, so that its noise depends neither on the images beside it nor
on the device. A pipeline whose batches differ from batches of one all the same (`Family.alone`) renders one at a time.

Skips. `Renderer.counts` has how many images were not rendered: "empty prompt", "not a number" (the decoder failed),
"unsafe" (blanked by the safety checker, where one was saved with the pipeline); and "truncated prompt", rendered from
its beginning. A skipped edit is its input, a skipped generation is black.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, UInt8
from PIL import Image
from torch.nn.functional import interpolate
from tqdm import tqdm
from transformers import T5Tokenizer

from auditdm_jax.bridge import to_jax, to_torch
from auditdm_jax.config import RenderSettings
from auditdm_jax.errors import UserError, is_out_of_memory
from auditdm_jax.pipelines import FAMILIES, Family, family_of, load_pipeline, quiet

Size = tuple[int, int]  # height and width


class Renderer:
    """A diffusion pipeline with its settings. family: its defaults, if not those that `family_of` finds.

    progress: whether a bar is shown. counts: images skipped and prompts truncated so far, by the names at the top of
    this module.
    """

    progress = True

    def __init__(self, pipeline: Any, settings: RenderSettings, device: str, family: Family | None = None):
        self.pipeline = pipeline
        self.settings = settings
        self.device = device
        self.name = type(pipeline).__name__
        self.family = family or family_of(pipeline)
        if settings.image_guidance is not None and self.family.image_guidance is None:
            raise UserError(f"{self.name} has no image guidance; leave image_guidance out")
        self.micro_batch_size = settings.micro_batch_size or self.family.micro_batch_size
        if self.family.alone:
            if settings.micro_batch_size not in (None, 1):
                warnings.warn(f"{self.name} renders one image at a time: {self.family.alone}", stacklevel=3)
            self.micro_batch_size = 1
        self.chooses_size = self.name == "QwenImageEditPipeline" and settings.size is None
        # Of several text encoders, the last takes the longest prompt: what it does not see, none does.
        encoders = [end for end in ("", "_2", "_3") if getattr(pipeline, "text_encoder" + end, None) is not None]
        self.tokenizer = getattr(pipeline, "tokenizer" + encoders[-1])
        self.max_tokens = min(self.tokenizer.model_max_length, self.family.max_tokens)
        self.max_command_tokens = min(self.max_tokens, self.family.max_command_tokens or self.max_tokens)
        self.counts: Counter[str] = Counter()

    @classmethod
    def load(cls, path_or_hub_id: str | Path, **settings: Any) -> "Renderer":
        """A pipeline directory, or the hub id "owner/name", with fields of `RenderSettings`.

        Raises UserError as `load_pipeline` does, and for settings that the pipeline does not have.
        """
        chosen = RenderSettings(**settings)
        pipeline, device = load_pipeline(path_or_hub_id, chosen)
        return cls(pipeline, chosen, device)

    def edit(
        self, images: UInt8[Array, "B H W 3"], commands: Sequence[str], seeds: Sequence[int]
    ) -> UInt8[Array, "B H W 3"]:
        """The images after their commands were carried out, on the device they came from.

        Raises UserError for a pipeline that takes no image, unequal counts, a size the pipeline cannot work at, or
        too little memory.
        """
        self.require("edits")
        if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"the images are {images.dtype} {images.shape}; give uint8 [images, height, width, 3]")
        size = _pair(images.shape[1:3] if self.settings.size is None else self.settings.size)
        with self._memory(len(images), size):
            return self._render(images, commands, seeds, size, edit=True)

    def generate(
        self, captions: Sequence[str], seeds: Sequence[int], size: int | Size | None = None
    ) -> UInt8[Array, "B H W 3"]:
        """New images of the captions, on JAX's default device.

        size: height and width; None = that of the settings, else the pipeline's own. Raises UserError as `edit` does.
        """
        self.require("generates")
        size = self.settings.size if size is None else size
        height, width = self._own_size() if size is None else _pair(size)
        with self._memory(len(captions), (height, width)):
            black = jnp.zeros((len(captions), height, width, 3), jnp.uint8)
            return self._render(black, captions, seeds, (height, width), edit=False)

    def require(self, ability: Literal["edits", "generates"]) -> None:
        """Raises UserError, naming pipelines that have the ability, if this one has not."""
        if not getattr(self.family, ability):
            lack = {"edits": "takes no image", "generates": "only edits images"}[ability]
            others = ", ".join(name for name, family in FAMILIES.items() if getattr(family, ability))
            raise UserError(f"{self.name} {lack}; use one of {others}")

    def _own_size(self) -> Size:
        sample = getattr(self.pipeline, "default_sample_size", None) or self.pipeline.unet.config.sample_size
        height, width = _pair(sample)
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    def check_size(self, size: int | Size) -> None:
        """Raises UserError for a size, height and width, that the pipeline cannot work at."""
        size = _pair(size)
        factor = self.pipeline.vae_scale_factor
        # A transformer takes the latents in patches of 2; a UNet's pipeline insists on 8 pixels.
        needed = math.lcm(factor, 8) if hasattr(self.pipeline, "unet") else factor * 2
        if not self.chooses_size and any(length < 1 or length % needed for length in size):
            raise UserError(f"{self.name} cannot work at {size[0]}x{size[1]} pixels; set size to multiples of {needed}")

    def _render(self, canvas: Array, prompts: Sequence[str], seeds: Sequence[int], size: Size, edit: bool) -> Array:
        """The canvas with each image that can be rendered in its place."""
        if not len(canvas) == len(prompts) == len(seeds):
            counts = f"{len(canvas)} images, {len(prompts)} prompts and {len(seeds)} seeds"
            raise UserError(f"{counts}; give one of each an image")
        self.check_size(size)
        max_tokens = self.max_command_tokens if edit else self.max_tokens
        texts = [self._cut(prompt, max_tokens) for prompt in prompts]
        todo = [row for row, text in enumerate(texts) if text]
        self.counts["empty prompt"] += len(texts) - len(todo)
        if not todo:
            return jax.device_put(canvas, canvas.sharding)  # bound to its device, as where there is something to do
        before = to_torch(canvas).to(self.device)
        after = before.clone()  # what came over the bridge may be JAX's own memory
        name = "editing" if edit else "generating"
        with tqdm(total=len(todo), desc=name, unit="image", leave=False, disable=not self.progress) as bar:
            for start in range(0, len(todo), self.micro_batch_size):
                rows = todo[start : start + self.micro_batch_size]
                images, unsafe = self._call(
                    before[rows] if edit else None,
                    [texts[row] for row in rows],
                    [seeds[row] for row in rows],
                    size,
                    max_tokens,
                )
                finite = images.isfinite().flatten(1).all(1)
                good = finite & ~unsafe
                pixels = (_resized(images, _pair(canvas.shape[1:3]))[good] * 255).round().to(torch.uint8)
                after[torch.tensor(rows, device=good.device)[good]] = pixels.permute(0, 2, 3, 1)
                self.counts["not a number"] += int((~finite).sum())
                self.counts["unsafe"] += int((finite & unsafe).sum())
                bar.update(len(rows))
        return jax.device_put(to_jax(after), canvas.sharding)

    def _cut(self, prompt: str, max_tokens: int) -> str:
        """The part of a prompt that the text encoder takes, "" for white space. Counts what it cuts, and warns once."""
        # "<|image_pad|>" in a command would not be read as text: QwenImageEdit would look for a second image.
        prompt = prompt.replace("<|", "< |").strip()
        encoded = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        limit = max_tokens - self.tokenizer.num_special_tokens_to_add()
        if len(encoded["input_ids"]) <= limit:
            return prompt
        if not self.counts["truncated prompt"]:
            warnings.warn(
                f"a prompt is longer than the {limit} tokens that {self.name} takes: its end is not rendered "
                "(further ones are only counted)",
                stacklevel=4,
            )
        self.counts["truncated prompt"] += 1
        return prompt[: encoded["offset_mapping"][limit - 1][1]]

    def _call(
        self, pixels: torch.Tensor | None, prompts: list[str], seeds: list[int], size: Size, max_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One call of the pipeline: float32 images [b, 3, h, w] in 0..1 or NaN, and whether each was blanked [b].

        pixels: uint8 [b, H, W, 3] for an edit.
        """
        settings, family = self.settings, self.family
        guidance = family.guidance if settings.guidance is None else settings.guidance
        arguments: dict[str, Any] = {
            "prompt": prompts,
            "num_inference_steps": settings.steps or family.steps,
            "guidance_scale": guidance,
            "generator": [torch.Generator().manual_seed(int(seed)) for seed in seeds],
            "output_type": "pt",
        }
        if family.image_guidance is not None:  # InstructPix2Pix: the size is that of its image
            given = settings.image_guidance
            arguments["image_guidance_scale"] = family.image_guidance if given is None else given
        elif not self.chooses_size:
            arguments |= {"height": size[0], "width": size[1]}
        if isinstance(self.tokenizer, T5Tokenizer):
            arguments["max_sequence_length"] = max_tokens
        if self.name == "FluxKontextPipeline":  # or it would scale its image and its output to a megapixel
            arguments |= {"max_area": size[0] * size[1], "_auto_resize": False}
        if pixels is not None and self.name == "QwenImageEditPipeline":
            # Guidance takes another name and a text to lead away from. The size is read off the image as PIL has it,
            # so this one image goes by way of the host.
            arguments |= {"true_cfg_scale": arguments.pop("guidance_scale"), "prompt": prompts[0]}
            arguments |= {"negative_prompt": " "} if guidance > 1 else {}
            arguments["image"] = Image.fromarray(pixels[0].cpu().numpy())
        elif pixels is not None:
            image = _resized(pixels.permute(0, 3, 1, 2).float() / 255, size)
            arguments["image"] = self._latents(image) if self.name == "FluxKontextPipeline" else image
        with quiet():
            result = self.pipeline(**arguments)
        images = result.images.float()
        unsafe = getattr(result, "nsfw_content_detected", None) or [False] * len(images)
        return images, torch.tensor(unsafe, device=images.device)

    @torch.no_grad()
    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        """What FluxKontext makes of its images [b, 3, h, w] in 0..1 and takes in their place, [b, C, h / 8, w / 8].

        It encodes one image at a time, and would each of a group's, which are one image with several commands: here a
        repeated image is encoded once.
        """
        first = torch.ones(len(images), dtype=torch.bool, device=images.device)
        first[1:] = (images[1:] != images[:-1]).flatten(1).any(1)
        distinct = self.pipeline.image_processor.preprocess(images[first]).to(self.pipeline.vae.dtype)
        encoded = [self.pipeline._encode_vae_image(image, generator=None) for image in distinct.split(1)]
        return torch.cat(encoded)[first.cumsum(0) - 1]

    @contextmanager
    def _memory(self, count: int, size: Size) -> Iterator[None]:
        """Turns a lack of memory into one line that says what would need less."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            count = min(count, self.micro_batch_size)
            offload = self.device != "cpu" and not self.settings.cpu_offload
            ways = ["cpu_offload"] * offload + [f"micro_batch_size={count // 2}"] * (count > 1) + ["a smaller size"]
            raise UserError(
                f"not enough memory for a batch of {count} at {size[0]}x{size[1]} pixels; set {' or '.join(ways)}"
            ) from None


def _pair(size: Any) -> Size:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _resized(images: torch.Tensor, size: Size) -> torch.Tensor:
    """Images [b, 3, h, w] in 0..1 at another size, or themselves."""
    if images.shape[2:] == size:
        return images
    return interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
