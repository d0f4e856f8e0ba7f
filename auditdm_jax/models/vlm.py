"""[host] `VLM`: a model with its processor, for loading, asking and saving; its mathematics is `multimodal.py`.

Example:
    vlm = VLM.load("google/paligemma2-3b-mix-224", dtype=jnp.bfloat16)
    vlm.answer(["cat.jpg"], ["what animal is this?"])
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from PIL import Image

from auditdm_jax import prompts, sampling
from auditdm_jax.errors import UserError, disk_full, is_disk_full
from auditdm_jax.images import BadImage, open_rgb, to_rgb
from auditdm_jax.models import convert
from auditdm_jax.models.hf_config import config_from_hf, directory_of, load_configs, load_processor, save_configs
from auditdm_jax.models.layers import Params
from auditdm_jax.models.multimodal import VLMConfig, encode_images, hidden_states, init_params, unembed


class VLM:
    """A vision-language model of one of the two families.

    params: pytree of arrays. config: static `VLMConfig`. processor: the Hugging Face processor (images and
    text). hf_config: the transformers configuration, written back by `save`.
    """

    def __init__(self, params: Params, config: VLMConfig, processor: Any, hf_config: Any):
        self.params = params
        self.config = config
        self.processor = processor
        self.hf_config = hf_config

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @classmethod
    def from_config(cls, hf_config: Any, processor: Any, key: Array) -> "VLM":
        """A new model with random weights for a transformers `PaliGemmaConfig` or `Gemma3Config`."""
        config = config_from_hf(hf_config, processor)
        params = jax.jit(init_params, static_argnums=1)(key, config)
        return cls(params, config, processor, hf_config)

    @classmethod
    def load(cls, path_or_hub_id: str | Path, dtype: Any = jnp.float32) -> "VLM":
        """Load a checkpoint directory, or a hub id "owner/name", with parameters in `dtype`.

        Raises UserError, in one line, if it is missing, damaged or of another architecture.
        """
        directory = directory_of(path_or_hub_id)
        hf_config, generation = load_configs(directory)
        config_from_hf(hf_config)  # names an unsupported architecture before its processor fails to load
        processor = load_processor(directory)
        config = config_from_hf(hf_config, processor, generation)
        template = jax.eval_shape(partial(init_params, config=config), jax.random.key(0))
        params = convert.load_params(directory, config.family, template, jnp.dtype(dtype))
        return cls(params, config, processor, hf_config)

    def save(self, directory: str | Path) -> None:
        """Write a checkpoint directory that transformers, and `load`, read with the same logits.

        Other files of the directory are left alone, weights of an earlier model are replaced. Everything is
        written beside its goal first: a full disk (UserError) leaves the old checkpoint whole.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
                new = Path(scratch)
                convert.save_params(new, self.config.family, self.params)
                dtype = str(jax.tree.leaves(self.params)[0].dtype)
                save_configs(new, self.hf_config, self.config, dtype)
                if self.processor is not None:
                    self.processor.save_pretrained(new)
                names = {path.name for path in new.iterdir()}
                for path in new.iterdir():
                    path.replace(directory / path.name)
        except Exception as error:
            if is_disk_full(error):
                raise disk_full(directory) from None
            raise
        for path in [*directory.glob("*.safetensors"), directory / convert.INDEX]:
            if path.name not in names:
                path.unlink(missing_ok=True)

    def logits(
        self,
        input_ids: Int[np.ndarray, "B T"],
        pixel_values: Float[np.ndarray, "B 3 H W"],
        attention_mask: Int[np.ndarray, "B T"] | None = None,
        token_type_ids: Int[np.ndarray, "B T"] | None = None,
    ) -> Float32[Array, "B T V"]:
        """Logits for the arrays the processor returns; meaningless where attention_mask is 0.

        token_type_ids: PaliGemma's 1 marks a causal suffix; without it every token is prefix.
        Raises UserError if a row does not hold exactly one image's placeholder tokens.
        """
        input_ids = np.asarray(input_ids)
        counts = (input_ids == self.config.image_token_id).sum(axis=1)
        wanted = self.config.num_image_tokens
        if (counts != wanted).any():
            found = int(counts[counts != wanted][0])
            raise UserError(
                f"a prompt has {found} image tokens where the model needs {wanted}; "
                "give each row one image, untruncated"
            )
        mask = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask)
        if self.config.family == "gemma3":
            token_type_ids = None  # its image blocks are found from the placeholders
        # NumPy's for torch's, which the processor returns when asked to.
        pixels = pixel_values if isinstance(pixel_values, jax.Array) else np.asarray(pixel_values)
        types = None if token_type_ids is None else np.asarray(token_type_ids)
        return _logits(self.params, self.config, input_ids, pixels, mask != 0, types)

    def answer(
        self,
        images: Sequence[np.ndarray | Image.Image | str | Path],
        questions: Sequence[str],
        max_new_tokens: int = 16,
        *,
        batch_size: int = 32,
    ) -> list[str]:
        """Greedy answers, one a question, each about the image at the same place.

        images: uint8 `[H, W, 3]`, PIL images or paths, of any size.
        Raises UserError for unequal counts, an image that cannot be read, or a missing chat template.
        """
        if len(images) != len(questions):
            raise UserError(f"{len(images)} images for {len(questions)} questions; give one image a question")
        texts = [prompts.answer_text(self.config.family, self.processor, question) for question in questions]
        texts = [prompts.expanded_text(self.config.family, self.processor, text) for text in texts]
        rows = [prompts.token_ids(self.tokenizer, text).tolist() for text in texts]
        answers: list[str] = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            answers += self._answer_batch(images[part], rows[part], max_new_tokens)
        return answers

    def _answer_batch(self, images: Sequence[Any], rows: list[list[int]], max_new_tokens: int) -> list[str]:
        # Few distinct shapes, so that few are compiled: widths in steps of 16, row counts in powers of two.
        count, width = 1 << (len(rows) - 1).bit_length(), -(-max(map(len, rows)) // 16) * 16
        ids, mask = prompts.padded([*rows, *rows[-1:] * (count - len(rows))], width, self.config.pad_token_id)
        pixels = self.pixel_values(images)
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], count - len(rows), axis=0)])
        done = sampling.sample(
            self.params,
            self.config,
            sampling.Prompt(jnp.asarray(ids), jnp.asarray(mask)),
            _encode(self.params, self.config, pixels),
            jax.random.key(0),
            num_generations=1,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
        )
        return [text.strip() for text in prompts.texts_of(self.tokenizer, done.ids, done.mask)][: len(rows)]

    def pixel_values(self, images: Sequence[np.ndarray | Image.Image | str | Path]) -> Float32[np.ndarray, "B 3 H W"]:
        """Images as the model takes them, prepared by the Hugging Face processor (no pan-and-scan crops)."""
        settings = {"do_pan_and_scan": False} if self.config.family == "gemma3" else {}
        opened = [_as_pil(image) for image in images]
        return self.processor.image_processor(images=opened, return_tensors="np", **settings)["pixel_values"]


def _as_pil(image: np.ndarray | Image.Image | str | Path) -> Image.Image:
    """An upright RGB image."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise UserError(f"an image array is {image.dtype} {image.shape}; give uint8 [height, width, 3]")
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    try:
        return open_rgb(image)
    except BadImage as error:
        raise UserError(f"{image} cannot be read as an image ({error}); give another file") from None


@partial(jax.jit, static_argnums=1)
def _encode(params, config, pixel_values):
    return encode_images(params, config, pixel_values)


@partial(jax.jit, static_argnums=1)
def _logits(params, config, input_ids, pixel_values, attention_mask, token_type_ids):
    features = encode_images(params, config, pixel_values)
    return unembed(params, config, hidden_states(params, config, input_ids, features, attention_mask, token_type_ids))
