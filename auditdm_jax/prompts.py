"""Prompt formats: how each family is asked about an image, as strings [host] and as token arrays [jit].

PaliGemma 2 reads the image's tokens, a begin token, `answer en <question>` and a line break; Gemma 3 its chat
template with the image before the question. `PromptTemplate` holds the same format as tokens around a
question, so that a sampled question becomes a prompt on the device, without a string.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from jinja2 import TemplateError

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.models.multimodal import VLMConfig
from auditdm_jax.sampling import Prompt

if TYPE_CHECKING:
    from auditdm_jax.models.vlm import VLM

# Stands where the question goes; no tokenizer sees it.
_QUESTION = "\x00question\x00"


class PromptTemplate(NamedTuple):
    """A prompt with a hole: token ids before it, the image's placeholders included, and after it."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    def shares_image(self, config: VLMConfig) -> bool:
        """Whether questions about one image may share what a model computed of it: it is first, and sees none of
        them."""
        return config.sees_past_alone and config.image_token_id not in self.suffix_ids


def answer_text(family: str, processor: Any, question: str) -> str:
    """The text to give to the family's processor with one image.

    Raises UserError if a Gemma 3 processor has no chat template.
    """
    if family == "paligemma":
        return f"{processor.image_token}answer en {question}"
    if getattr(processor, "chat_template", None) is None and processor.tokenizer.chat_template is None:
        raise UserError(f"{_named(processor)} has no chat template; add chat_template.jinja to its directory")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    # A template kept by the tokenizer alone is an older layout; both read the same turns.
    owner = processor if getattr(processor, "chat_template", None) is not None else processor.tokenizer
    try:
        return owner.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(
            f"the chat template of {_named(processor)} is broken ({one_line(error, 80)}); copy it from the model's page"
        ) from None


def _named(processor: Any) -> str:
    return one_line(processor.tokenizer.name_or_path or "the Gemma 3 processor", 120)


def expanded_text(family: str, processor: Any, text: str) -> str:
    """The string that the processor tokenizes for `text`: with all placeholders of the image."""
    if family == "paligemma":
        question = text.removeprefix(processor.image_token)
        return f"{processor.image_token * processor.image_seq_length}{processor.tokenizer.bos_token}{question}\n"
    return text.replace(processor.boi_token, processor.full_image_sequence)


def token_ids(tokenizer: Any, text: str) -> np.ndarray:
    """Tokens of an expanded text, int32; the begin token is written in the text and is not added twice."""
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def padded(rows: list[list[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as int32 ids and bool mask, each [len(rows), width], padded on the right; longer rows are cut."""
    rows = [row[:width] for row in rows]
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    ids = np.full(mask.shape, pad_id, np.int32)
    ids[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return ids, mask


def texts_of(tokenizer: Any, ids: Any, mask: Any) -> list[str]:
    """The text of each row of ids `[..., T]`, as one list: of its tokens on the mask, special ones left out."""
    ids, mask = (np.asarray(x).reshape(-1, x.shape[-1]) for x in (ids, mask))
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def template_for(vlm: "VLM") -> PromptTemplate:
    """The model's answering format around a question.

    The two sides are tokenized apart. With a word-level tokenizer, a filled template equals the tokenized
    string; others may cut the word at the seam differently, the text being the same.
    """
    text = answer_text(vlm.config.family, vlm.processor, _QUESTION)
    prefix, _, suffix = expanded_text(vlm.config.family, vlm.processor, text).partition(_QUESTION)
    return _with_image(vlm, PromptTemplate(*(tuple(token_ids(vlm.tokenizer, x).tolist()) for x in (prefix, suffix))))


def _with_image(vlm: "VLM", template: PromptTemplate) -> PromptTemplate:
    """The template, if it shows the image: a chat template without a place for it would leave the model blind."""
    shown = (template.prefix_ids + template.suffix_ids).count(vlm.config.image_token_id)
    if shown != vlm.config.num_image_tokens:
        raise UserError(
            f"the prompt of {_named(vlm.processor)} has {shown} image tokens where the model needs "
            f"{vlm.config.num_image_tokens}: its chat template leaves the image out or repeats it; "
            "copy chat_template.jinja from the model's page"
        )
    return template


def fill(
    template: PromptTemplate, question_ids: Int[Array, "B T"], question_mask: Bool[Array, "B T"], pad_id: int
) -> Prompt:
    """Prefix, question and suffix without gaps, padded on the right to P = prefix + T + suffix.

    question_ids: padded on the right; question_mask: True on the question's own tokens (not on an end token).

    Example: prefix (7,), suffix (8, 9), question (4, 5, pad) -> 7 4 5 8 9 pad, mask 1 1 1 1 1 0.
    """
    batch, width = question_ids.shape
    before, after = len(template.prefix_ids), len(template.suffix_ids)
    prefix = jnp.broadcast_to(jnp.array(template.prefix_ids, jnp.int32), (batch, before))
    suffix = jnp.broadcast_to(jnp.array(template.suffix_ids, jnp.int32), (batch, after))
    source = jnp.concatenate([prefix, question_ids.astype(jnp.int32), suffix], axis=1)
    question_end = before + question_mask.sum(axis=1, keepdims=True)
    place = jnp.arange(before + width + after)
    # Beyond the question's end, jump over its padding to the suffix.
    index = jnp.where(place < question_end, place, place + (before + width - question_end))
    mask = place < question_end + after
    ids = jnp.take_along_axis(source, jnp.minimum(index, source.shape[1] - 1), axis=1)
    return Prompt(input_ids=jnp.where(mask, ids, pad_id), attention_mask=mask)


QUESTION_INSTRUCTION = "Ask a short question about this image that is hard to answer."
"""p_q, what the auditor is told by default (the paper's wording is not known)."""
COMMAND_INSTRUCTION = "Write a command to change this image so that a question about it is hard to answer."
"""p_e, for a command that an image editor carries out."""
CAPTION_INSTRUCTION = "Write a short caption for this image with a change that is hard to see."
"""p_c, for a caption from which an image is made anew."""


def instruction_template(vlm: "VLM", instruction: str) -> PromptTemplate:
    """An auditor's prompt, the image and the instruction: all prefix, no hole."""
    if vlm.config.family == "paligemma":
        text = f"{vlm.processor.image_token}{instruction}"
    else:
        text = answer_text(vlm.config.family, vlm.processor, instruction)
    expanded = expanded_text(vlm.config.family, vlm.processor, text)
    return _with_image(vlm, PromptTemplate(tuple(token_ids(vlm.tokenizer, expanded).tolist()), ()))


def instruction_prompts(vlm: "VLM", instructions: Sequence[str]) -> Prompt:
    """An auditor's prompts, an image and one instruction each: [C, P], padded on the left to the longest."""
    rows = [np.array(instruction_template(vlm, instruction).prefix_ids, np.int32) for instruction in instructions]
    width = max(map(len, rows))
    ids = np.stack([np.pad(row, (width - len(row), 0), constant_values=vlm.config.pad_token_id) for row in rows])
    lengths = np.array([len(row) for row in rows])
    return Prompt(jnp.asarray(ids), jnp.asarray(np.arange(width) >= width - lengths[:, None]))
