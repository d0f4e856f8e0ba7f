"""[host] A transformers configuration -> `VLMConfig`, and the JSON side of a checkpoint directory.

transformers itself reads the files, so old and new spellings of RoPE and sliding-window fields both work.
"""

import copy
import os
from pathlib import Path
from typing import Any

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.models.gemma import GemmaConfig
from auditdm_jax.models.multimodal import VLMConfig
from auditdm_jax.models.siglip import SiglipConfig

TEXT_MODELS = {"paligemma": "gemma2", "gemma3": "gemma3_text"}
ARCHITECTURES = {"paligemma": "PaliGemmaForConditionalGeneration", "gemma3": "Gemma3ForConditionalGeneration"}


def config_from_hf(config: Any, processor: Any = None, generation: Any = None) -> VLMConfig:
    """Our configuration of a PaliGemma 2 or Gemma 3 model.

    config: a transformers `PaliGemmaConfig` or `Gemma3Config`. processor, generation: its processor and
    `GenerationConfig` if known; they decide the end tokens and how pixels are normalised.
    Raises UserError for another architecture or an unsupported variant.
    """
    family = getattr(config, "model_type", None)
    if family not in TEXT_MODELS:
        raise UserError(f"model_type {family!r} is not supported; use a PaliGemma 2 or Gemma 3 vision-language model")
    text, vision = config.text_config, config.vision_config
    if text.model_type != TEXT_MODELS[family]:
        raise UserError(
            f"a {family} model with {text.model_type!r} text is not supported; use one with {TEXT_MODELS[family]!r}"
        )
    _check_supported(text, vision)
    tokenizer = getattr(processor, "tokenizer", None)
    grid = vision.image_size // vision.patch_size
    image_processor = getattr(processor, "image_processor", None)
    placeholders = [config.image_token_id]
    if family == "gemma3":
        placeholders += [config.boi_token_id, config.eoi_token_id]
    return VLMConfig(
        family=family,
        vision=SiglipConfig(
            width=vision.hidden_size,
            mlp_width=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            norm_eps=vision.layer_norm_eps,
        ),
        text=_text(family, text),
        image_token_id=config.image_token_id,
        num_image_tokens=config.mm_tokens_per_image if family == "gemma3" else grid * grid,
        pad_token_id=_first(getattr(tokenizer, "pad_token_id", None), text.pad_token_id, 0),
        bos_token_id=_first(getattr(tokenizer, "bos_token_id", None), text.bos_token_id, 2),
        eos_token_ids=_end_tokens(family, text, tokenizer, generation),
        forbidden_token_ids=tuple(i for i in placeholders if i < text.vocab_size),
        image_mean=tuple(getattr(image_processor, "image_mean", None) or (0.5, 0.5, 0.5)),
        image_std=tuple(getattr(image_processor, "image_std", None) or (0.5, 0.5, 0.5)),
    )


def _text(family: str, text: Any) -> GemmaConfig:
    rope = text.rope_parameters
    # Gemma 3 keeps one set of parameters per kind of layer, Gemma 2 a single flat one.
    kinds = [rope.get(kind, rope) for kind in ("full_attention", "sliding_attention")]
    if any(kind["rope_type"] not in ("default", "linear") for kind in kinds):
        raise UserError(f"RoPE of type {[kind['rope_type'] for kind in kinds]} is not supported; use default or linear")
    gemma2 = family == "paligemma"
    return GemmaConfig(
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        mlp_width=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        query_scale=text.query_pre_attn_scalar**-0.5,
        local_layers=tuple(kind == "sliding_attention" for kind in text.layer_types),
        sliding_window=text.sliding_window,
        rope_theta=(float(kinds[0]["rope_theta"]), float(kinds[1]["rope_theta"])),
        rope_factor=(float(kinds[0].get("factor") or 1.0), float(kinds[1].get("factor") or 1.0)),
        # Gemma 3 has these two fields as well, but its vision-language model does not read them.
        attention_softcap=text.attn_logit_softcapping if gemma2 else None,
        final_softcap=text.final_logit_softcapping if gemma2 else None,
        qk_norm=not gemma2,
        norm_eps=text.rms_norm_eps,
    )


def _check_supported(text: Any, vision: Any) -> None:
    wanted = [
        (vision.model_type == "siglip_vision_model", f"vision model {vision.model_type!r}"),
        (vision.hidden_act == "gelu_pytorch_tanh", f"vision activation {vision.hidden_act!r}"),
        (text.hidden_activation == "gelu_pytorch_tanh", f"text activation {text.hidden_activation!r}"),
        (not text.attention_bias, "attention_bias"),
        (text.tie_word_embeddings, "an output head that is not tied to the embedding"),
        (isinstance(vision.image_size, int) and isinstance(vision.patch_size, int), "images that are not square"),
    ]
    for supported, what in wanted:
        if not supported:
            raise UserError(f"config.json asks for {what}, which is not supported; use a published checkpoint's values")


def _end_tokens(family: str, text: Any, tokenizer: Any, generation: Any) -> tuple[int, ...]:
    """Tokens that end a completion, the one that closes an answer last."""
    ids = _first(getattr(generation, "eos_token_id", None), text.eos_token_id, getattr(tokenizer, "eos_token_id", 1))
    ids = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    if family == "gemma3" and tokenizer is not None:
        turn = tokenizer.get_vocab().get("<end_of_turn>")
        ids = [i for i in ids if i != turn] + ([turn] if turn is not None else [])
    return tuple(ids)


def _first(*candidates: Any) -> Any:
    return next(c for c in candidates if c is not None)


def directory_of(path_or_hub_id: str | Path) -> Path:
    """A local checkpoint directory: the path itself, or a snapshot of the hub id "owner/name".

    Raises UserError if there is neither.
    """
    path = Path(os.path.expanduser(path_or_hub_id))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{path} has no config.json; give a Hugging Face checkpoint directory")
        return path
    name = str(path_or_hub_id)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"no checkpoint directory {name}; give an existing directory or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client has many error types, and each message is long
        reason = one_line(error, 160) or type(error).__name__
        raise UserError(f"cannot fetch {name} ({reason}); check the name, the network and your access") from None


def load_configs(directory: Path) -> tuple[Any, Any]:
    """The transformers configuration of a checkpoint directory, and its `GenerationConfig` or None."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        has_generation = (directory / "generation_config.json").exists()
        generation = GenerationConfig.from_pretrained(directory) if has_generation else None
    except Exception as error:  # unknown model types and damaged JSON come as several error types
        raise UserError(
            f"the configuration in {directory} cannot be read ({one_line(error, 160)}); "
            "give a PaliGemma 2 or Gemma 3 checkpoint with intact JSON files"
        ) from None
    return config, generation


def load_processor(directory: Path) -> Any:
    """The processor (tokenizer and image processor), always with the PIL backend: it needs no torchvision."""
    from transformers import AutoImageProcessor, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
        # Asked for on its own: given to the processor, the backend would end up in the tokenizer's settings.
        processor.image_processor = AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False
        )
        return processor
    except Exception as error:  # as above
        raise UserError(
            f"{directory} has no usable processor ({one_line(error, 160)}); copy its tokenizer and JSON files too"
        ) from None


def save_configs(directory: Path, config: Any, ours: VLMConfig, dtype: str) -> None:
    """Write config.json and generation_config.json for weights stored as `dtype`."""
    from transformers import GenerationConfig

    config = copy.deepcopy(config)
    config.dtype = dtype
    config.architectures = [ARCHITECTURES[ours.family]]
    config.vision_config.vision_use_head = False  # the pooling head is neither used nor stored
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=ours.bos_token_id, eos_token_id=list(ours.eos_token_ids), pad_token_id=ours.pad_token_id
    ).save_pretrained(directory)
