"""Our sampling beside transformers' `generate`, on the same weights and device: `python benchmarks/sampling.py`.

8 prompts x 8 completions x 16 tokens. transformers computes the prompt once for each completion
(`num_return_sequences=8` expands the batch), we compute it once. Timings alternate, and the ratio is of medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from transformers import AutoModelForImageTextToText

from auditdm_jax.models.vlm import VLM, encode_images
from auditdm_jax.sampling import Prompt, sample
from auditdm_jax.scenes.members import MEMBERS, new_model

PROMPTS, COMPLETIONS, TOKENS = 8, 8, 16
DEVICE = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Config:
    """Which sizes to measure, and how often."""

    sizes: tuple[str, ...] = ("zoo", "50m")
    repeats: int = 5


def model(size: str) -> VLM:
    """The auditor's architecture at zoo size, or about 50 M parameters with 256 image tokens."""
    member = MEMBERS["auditor"]
    if size == "zoo":
        return new_model(member)
    big = replace(member, width=512, text_layers=11, heads=8, mlp=2048, vision_width=512, vision_layers=6)
    return new_model(big, image_size=256)


def measure(size: str, repeats: int) -> None:
    vlm = model(size)
    count = sum(x.size for x in jax.tree.leaves(vlm.params))
    with tempfile.TemporaryDirectory() as folder:
        vlm.save(folder)
        peer = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval().to(DEVICE)
    config = vlm.config
    ids = np.array([[config.bos_token_id] + [config.image_token_id] * config.num_image_tokens + [20, 21, 22, 23]])
    pixels = np.random.default_rng(0).normal(size=(PROMPTS, 3, config.vision.image_size, config.vision.image_size))
    pixels = pixels.astype(np.float32)
    # A token that is never sampled: all completions have their full length, as the peer is told to.
    never_ends = replace(config, eos_token_ids=(config.image_token_id,))
    batch = np.repeat(ids, PROMPTS, axis=0)
    prompt = Prompt(jnp.asarray(batch), jnp.ones(batch.shape, bool))

    @jax.jit
    def run(params, key):
        features = encode_images(params, config, jnp.asarray(pixels))
        settings = dict(num_generations=COMPLETIONS, max_new_tokens=TOKENS, temperature=1.0)
        return sample(params, never_ends, prompt, features, key, **settings).ids

    inputs = dict(
        input_ids=torch.tensor(batch),
        attention_mask=torch.ones(batch.shape, dtype=torch.long),
        token_type_ids=torch.tensor((batch == config.image_token_id).astype(int)),
        pixel_values=torch.tensor(pixels),
    )
    inputs = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}

    def ours() -> None:
        jax.block_until_ready(run(vlm.params, jax.random.key(0)))

    def theirs() -> None:
        with torch.inference_mode():
            done = peer.generate(**inputs, do_sample=True, top_k=0, num_return_sequences=COMPLETIONS,
                                 max_new_tokens=TOKENS, min_new_tokens=TOKENS)  # fmt: skip
        assert done.cpu().shape == (PROMPTS * COMPLETIONS, batch.shape[1] + TOKENS)  # waits for the GPU

    for function in (ours, theirs):
        function()  # compilation and warm-up
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("transformers", theirs)):
            seconds[name].append(timed(function))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    total = PROMPTS * COMPLETIONS * TOKENS
    print(f"{size}: {count / 1e6:.2f} M parameters, {config.num_image_tokens} image tokens")
    for name, median in medians.items():
        print(f"  {name:13} {median:7.3f} s  {total / median:9.0f} tokens/s")
    print(f"  ratio         {medians['transformers'] / medians['ours']:.2f}")


def timed(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    arguments = tyro.cli(Config)
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX multiplies on a GPU unless told otherwise
    for one in arguments.sizes:
        measure(one, arguments.repeats)
