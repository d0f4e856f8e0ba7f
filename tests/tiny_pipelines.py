"""Tiny random pipelines of every class the renderer takes, of their own components, saved as diffusers saves them."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from auditdm_jax.pipelines import StillImageProcessor

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CLIP_TOKENS, T5_TOKENS = 24, 32
QWEN_WORDS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def loud(model: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """Every parameter random, norms and biases too: as they are made, models hardly pass their inputs on."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and "weight" in name else 0.0
                parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(scale * torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model.eval()


def clip(width: int = 32, projected: bool = False):
    """A text encoder of letters, and its tokenizer."""
    words = [*BYTES, *(letter + "</w>" for letter in BYTES), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=CLIP_TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return loud((CLIPTextModelWithProjection if projected else CLIPTextModel)(config)), tokenizer


def t5():
    """As above."""
    letters = [(chr(code), -2.0) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *letters]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=T5_TOKENS)
    config = T5Config(
        vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return loud(T5EncoderModel(config)), tokenizer


def qwen():
    """A vision-language encoder, its tokenizer and its processor."""
    tokenizer = Qwen2Tokenizer({letter: i for i, letter in enumerate(BYTES)}, [], model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": QWEN_WORDS})
    ids = tokenizer.convert_tokens_to_ids(QWEN_WORDS)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 16,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=ids[2],
        vision_end_token_id=ids[3],
        image_token_id=ids[4],
        video_token_id=ids[5],
    )
    images = Qwen2VLImageProcessorPil(patch_size=8, min_pixels=256, max_pixels=1024)
    return loud(Qwen2_5_VLForConditionalGeneration(config)), tokenizer, StillImageProcessor(images, tokenizer)


def autoencoder() -> torch.nn.Module:
    """Shrinks by 8."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4] * 4,
        norm_num_groups=2,
        latent_channels=4,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    return loud(vae)


def flux(kind: type, guidance_embeds: bool = True):
    """FluxPipeline or FluxKontextPipeline."""
    text_encoder, tokenizer = clip()
    text_encoder_2, tokenizer_2 = t5()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return kind(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=loud(transformer),
    )


def stable_diffusion(kind: type):
    """StableDiffusionPipeline or StableDiffusionInstructPix2PixPipeline, without a safety checker."""
    edits = kind is StableDiffusionInstructPix2PixPipeline
    text_encoder, tokenizer = clip()
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=8 if edits else 4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    return kind(
        vae=autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=loud(unet),
        # One that draws noise at every step too, and one that does not.
        scheduler=EulerAncestralDiscreteScheduler() if edits else DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
    )


def stable_diffusion_3():
    """StableDiffusion3Pipeline with all three text encoders."""
    (text_encoder, tokenizer), (text_encoder_2, tokenizer_2) = clip(16, True), clip(16, True)
    text_encoder_3, tokenizer_3 = t5()
    transformer = SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=loud(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def qwen_edit():
    """QwenImageEditPipeline. It looks at a megapixel whatever the image's size, so its autoencoder shrinks by 32."""
    text_encoder, tokenizer, processor = qwen()
    vae = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=4,
        dim_mult=[1] * 6,
        num_res_blocks=0,
        temperal_downsample=[True] * 5,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=loud(vae),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        processor=processor,
        transformer=loud(transformer),
    )


BUILDERS = {
    "FluxKontextPipeline": lambda: flux(FluxKontextPipeline),
    "QwenImageEditPipeline": qwen_edit,
    "StableDiffusionInstructPix2PixPipeline": lambda: stable_diffusion(StableDiffusionInstructPix2PixPipeline),
    "FluxPipeline": lambda: flux(FluxPipeline),
    "StableDiffusionPipeline": lambda: stable_diffusion(StableDiffusionPipeline),
    "StableDiffusion3Pipeline": stable_diffusion_3,
}


def save(name: str, directory) -> None:
    """A pipeline directory of the class `name`."""
    torch.manual_seed(0)
    BUILDERS[name]().save_pretrained(directory)
    index = directory / "model_index.json"
    fields = json.loads(index.read_text())
    if "processor" in fields:  # as published; our own class stands in for it where torchvision is not installed
        fields["processor"] = ["transformers", "Qwen2VLProcessor"]
    index.write_text(json.dumps(fields))
