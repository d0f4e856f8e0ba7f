"""One training step through an editor of full size: what it takes of one GPU, and where its time goes.

    python benchmarks/full_size_step.py            # one GPU with 48 GB or more
    python benchmarks/full_size_step.py --tiny     # the same classes, small enough for a CPU

A FluxKontextPipeline of the published sizes of FLUX.1-Kontext-dev, with random weights made on the GPU in bfloat16:
nothing is fetched. The zoo's auditor writes commands, the editor carries them out, and the zoo's target and references
are asked about the new images. These show nothing of what was commanded; their faults are counted as in any run.
"""

import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read when JAX is imported; the editor needs the rest

import jax
import torch
import tyro
from counterfactual_step import prepared, print_shares
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from auditdm_jax import channels
from auditdm_jax.config import Probing, RenderSettings, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.scenes.zoo_paths import ZOO
from auditdm_jax.studio import Studio

# As published. The texts are padded to these lengths, whatever their words.
CLIP_TOKENS, T5_TOKENS = 77, 512
TRANSFORMER: dict[str, Any] = dict(
    in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128, num_attention_heads=24,
    joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
)  # fmt: skip
AUTOENCODER: dict[str, Any] = dict(
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
    scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip
CLIP = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=CLIP_TOKENS,
)  # fmt: skip
T5: dict[str, Any] = dict(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
    tie_word_embeddings=False, decoder_start_token_id=0,
)  # fmt: skip
SCHEDULER: dict[str, Any] = dict(
    use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
    max_image_seq_len=4096,
)  # fmt: skip
# What replaces the above for --tiny.
TINY: dict[str, dict[str, Any]] = dict(
    transformer=dict(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
    ),
    autoencoder=dict(block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1),
    clip=dict(hidden_size=32, intermediate_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=2),
    t5=dict(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The batch, the editor's work, and how long to measure."""

    images: int = 2
    """Images a step."""
    generations: int = 4
    """Commands for each image."""
    size: int = 512
    """Height and width at which the editor works."""
    denoising: int = 8
    """Denoising steps."""
    warmup: int = 2
    """Steps before: the first compiles, and the second may once more, for arrays that are now bound to a device."""
    steps: int = 2
    tiny: bool = False
    """A small editor of the same classes."""


def random_pipeline(device: str, dtype: torch.dtype, tiny: bool) -> FluxKontextPipeline:
    """The editor with random weights, made where and as they are used: there is never a second copy."""
    smaller = TINY if tiny else {part: {} for part in TINY}
    clip = CLIPTokenizer.from_pretrained(ZOO / "editor" / "tokenizer", model_max_length=CLIP_TOKENS)
    t5 = T5TokenizerFast.from_pretrained(ZOO / "editor" / "tokenizer_2", model_max_length=T5_TOKENS)
    # The summary of a text is read where its end token stands.
    marks = dict(bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id, pad_token_id=clip.pad_token_id)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = dict(
                transformer=FluxTransformer2DModel(**TRANSFORMER | smaller["transformer"]),
                vae=AutoencoderKL(**AUTOENCODER | smaller["autoencoder"]),
                text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP | smaller["clip"] | marks)),
                text_encoder_2=T5EncoderModel(T5Config(**T5 | smaller["t5"])),
            )
    finally:
        torch.set_default_dtype(before)
    for part in parts.values():
        part.eval().requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    pipeline = FluxKontextPipeline(scheduler=scheduler, tokenizer=clip, tokenizer_2=t5, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main(config: Config) -> None:
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    started = time.perf_counter()
    pipeline = random_pipeline(device, dtype, config.tiny)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        count = sum(weight.numel() for weight in getattr(pipeline, name).parameters())
        print(f"{name:<16} {count / 1e6:10,.1f} M parameters")
    name = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"made in {time.perf_counter() - started:.1f} s, {dtype}; torch on {name}, JAX on {jax.devices()[0]}")

    run = TrainConfig(
        images_per_step=config.images,
        grpo=GRPO(num_generations=config.generations),
        probing=Probing(channels=("edit",), render=RenderSettings(steps=config.denoising, size=config.size)),
    )
    editor = Renderer(pipeline, run.probing.render, device)
    editor.progress = False
    spent = defaultdict[str, float](float)
    one_step, state, source = prepared(run, Studio(editor, None), spent)
    for _ in range(config.warmup):
        state, _, _ = one_step(state, next(source)["image"])

    spent.clear()
    editor.counts.clear()
    faults: Counter[str] = Counter()
    started = time.perf_counter()
    for _ in range(config.steps):
        state, metrics, _ = one_step(state, next(source)["image"])
        faults.update({fault: int(metrics[f"edit/{fault}"]) for fault in (*channels.FAULTS, "not_a_number")})
    jax.block_until_ready(state.trained)
    total = time.perf_counter() - started
    new = config.steps * config.images * config.generations - editor.counts["empty prompt"]
    print(f"{total / config.steps:.2f} s a step of {config.images} images x {config.generations}, edited at", end=" ")
    print(f"{config.size}x{config.size} in {config.denoising} denoising steps")
    print_shares(spent, total, config.steps)
    print(f"{spent['renderer'] / max(new, 1):.3f} s an edited image")
    print(f"of {new} new images: {', '.join(f'{count} {fault}' for fault, count in faults.items())}")
    if gpu:
        print(f"torch took {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most", end=", ")
        used = jax.devices()[0].memory_stats() or {}
        print(f"JAX {used.get('peak_bytes_in_use', 0) / 2**30:.2f} GiB ({used.get('bytes_in_use', 0) / 2**30:.2f} now)")


if __name__ == "__main__":
    main(tyro.cli(Config, description=Config.__doc__))
