"""Tiny random models of both families, as transformers builds them, and inputs for them."""

import jax
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from auditdm_jax.models.vlm import VLM

IMAGE, BEGIN_IMAGE, END_IMAGE = 50, 51, 52
VOCABULARY = 60


def hf_config(family: str, *, text: dict | None = None, vision: dict | None = None, image_tokens: int = 4):
    """A transformers configuration of a few thousand parameters; text and vision override single fields."""
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    } | (vision or {})
    text = {
        "model_type": "gemma2" if family == "paligemma" else "gemma3_text",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
    } | (text or {})
    if family == "paligemma":
        return PaliGemmaConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=text["hidden_size"],
            hidden_size=text["hidden_size"],
            image_token_index=IMAGE,
        )
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=image_tokens,
        image_token_index=IMAGE,
        boi_token_index=BEGIN_IMAGE,
        eoi_token_index=END_IMAGE,
    )


def hf_model(config, seed: int = 1):
    """The transformers model, every parameter random (norms and biases too), so that none is forgotten."""
    torch.manual_seed(seed)
    paligemma = config.model_type == "paligemma"
    model = (PaliGemmaForConditionalGeneration if paligemma else Gemma3ForConditionalGeneration)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            if "embed_tokens" in name:
                scale /= 8  # or the tied head would only repeat the last token
            center = 1.0 if "layer_norm" in name or ("layernorm.weight" in name and "vision" in name) else 0.0
            parameter.copy_(center + scale * torch.randn_like(parameter))
    return model


def inputs(config, lengths=(9, 5), side: str = "right", suffix: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """What a processor returns for an image and `lengths` text tokens a row, the last `suffix` causal."""
    rng = np.random.default_rng(seed)
    vision = config.vision_config
    paligemma = config.model_type == "paligemma"
    count = (vision.image_size // vision.patch_size) ** 2 if paligemma else config.mm_tokens_per_image
    rows = []
    for length in lengths:
        text = list(rng.integers(3, 50, length))
        image = [IMAGE] * count if paligemma else [2, BEGIN_IMAGE] + [IMAGE] * count + [END_IMAGE]
        rows.append(image + text)
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], mask[i, place] = row, 1
        row_types = [0] * (len(row) - suffix) + [1] * suffix
        types[i, place] = row_types if paligemma else [int(t == IMAGE) for t in row]
    pixels = rng.uniform(-1, 1, (len(rows), 3, vision.image_size, vision.image_size))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "pixel_values": pixels.astype(np.float32),
    }


WORDS = "answer en user model what color is the red blue star circle how many are two yes no ?"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def processor(config):
    """A word-level tokenizer and an image processor; the ids of placeholders agree with `hf_config`."""
    image_word = "<image>" if config.model_type == "paligemma" else "<image_soft_token>"
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", *WORDS.split()]
    words += [f"filler{i}" for i in range(len(words), VOCABULARY)]
    words[IMAGE : END_IMAGE + 1] = [image_word, "<start_of_image>", "<end_of_image>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece()
    special = {"image_token": image_word}
    if config.model_type == "gemma3":
        special |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>", "\n"]})
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    half = [0.5, 0.5, 0.5]
    if config.model_type == "paligemma":
        images = SiglipImageProcessorPil(size=size, image_mean=half, image_std=half)
        images.image_seq_length = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return PaliGemmaProcessor(images, tokenizer)
    images = Gemma3ImageProcessorPil(size=size, image_mean=half, image_std=half)
    return Gemma3Processor(images, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=config.mm_tokens_per_image)


def save(model, directory) -> None:
    """A checkpoint directory as transformers writes it."""
    model.save_pretrained(directory)
    processor(model.config).save_pretrained(directory)


def ours(family: str, **fields) -> VLM:
    """Our model with random weights and a processor."""
    config = hf_config(family, **fields)
    return VLM.from_config(config, processor(config), jax.random.key(0))
