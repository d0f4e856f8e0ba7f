"""The embedded editor: a tiny FluxKontextPipeline that carries out the world's edit commands and draws its captions.

    python -m auditdm_jax.scenes.editor         # builds what is missing, resumes what was stopped

First its autoencoder learns pictures of random cells, with noise on its latents so that it forgives what the
transformer gets wrong; then its encoder stays as it is and the decoder alone goes on. All cells are encoded once, and
the transformer and both text encoders learn by flow matching: half of the work edits, half captions. The loss is that
of the latents which the predicted velocity leads to, changed cells weighing more. Everything is computed in bfloat16,
on the GPU if torch sees one.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import mse_loss

from auditdm_jax.config import RenderSettings
from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.errors import UserError, at_least_one, run_cli
from auditdm_jax.files import atomic_folder, write_json
from auditdm_jax.pipelines import FAMILIES, SETTINGS_FILE, quiet
from auditdm_jax.scenes.editor_exam import Exam, cells_read, examine, headline
from auditdm_jax.scenes.editor_lessons import pictures_of_cells, scene_lessons
from auditdm_jax.scenes.editor_optimizer import Muon, restore, save
from auditdm_jax.scenes.editor_parts import CAPTION_TOKENS, COMMAND_TOKENS, EditorSize, new_pipeline
from auditdm_jax.scenes.parser import images_of, things
from auditdm_jax.scenes.world import GRID, WEATHERS
from auditdm_jax.scenes.zoo_paths import ZOO

# What it is trained for; written beside it.
RENDERING: dict[str, Any] = {"steps": 1, "guidance": 1.0, "max_command_tokens": COMMAND_TOKENS, "micro_batch_size": 32}
FAMILY = replace(FAMILIES["FluxKontextPipeline"], **RENDERING)
_CELLS = GRID * GRID
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What the decoder must forgive, and the price that keeps the latents from outgrowing it.
LATENT_NOISE, LATENT_PRICE = 0.1, 1e-4


@dataclass(frozen=True)
class EditorTraining:
    """The data and the training of the editor."""

    seed: int = 8
    vae_steps: int = 1200
    """Steps of the whole autoencoder."""
    decoder_steps: int = 12000
    """Steps of its decoder alone."""
    vae_images: int = 8
    vae_rate: float = 0.02
    steps: int = 8500
    """Steps of the transformer and the text encoders."""
    edits: int = 64
    """Edits in a step."""
    captions: int = 8
    """Captions in a step; one costs about as much as two edits, as its text is long."""
    rate: float = 0.005
    log_every: int = 500
    """Steps between checkpoints."""
    examined: int = 1000
    """Test scenes whose edits the card counts; an eighth of them at each checkpoint."""
    size: EditorSize = field(default_factory=EditorSize)

    def __post_init__(self) -> None:
        at_least_one(self, "log_every")
        if self.examined < 16:
            raise UserError(f"examined is {self.examined}: it must be at least 16, two of them for a checkpoint")


def _generator(training: EditorTraining, stage: int, step: int) -> torch.Generator:
    """Of the torch draws of one step."""
    return torch.Generator().manual_seed((training.seed * 2 + stage) * 10_000_000 + step)


def _as_input(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, 64, 64, 3] -> float32 [B, 3, 64, 64] in -1..1."""
    pixels = torch.from_numpy(images).to(_DEVICE).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def _packed(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """[B, C, 8, 8] -> [B, 16, 4C]: a token a cell."""
    return pipeline._pack_latents(latents, *latents.shape)


def autoencoder_loss(pipeline: Any, training: EditorTraining, step: int) -> torch.Tensor:
    """Squared error of pictures of random cells, and the price of their latents."""
    draw = _generator(training, 0, step)
    images = _as_input(pictures_of_cells(training.seed, step, training.vae_images))
    with torch.autocast(_DEVICE, torch.bfloat16):
        latents = pipeline.vae.encode(images).latent_dist.mode()
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=draw).to(_DEVICE)
        decoded = pipeline.vae.decode(noisy).sample
    return mse_loss(decoded.float(), images) + LATENT_PRICE * latents.float().square().mean()


@torch.no_grad()
def encode_cells(pipeline: Any, seed: int, copies: int = 4) -> tuple[torch.Tensor, float]:
    """The latents of every cell in every weather, float32 [5, things, 4C], normalised, each the mean over `copies`
    among other neighbours; and how far a neighbourhood moves them (its standard deviation).

    Sets the pipeline's scaling and shift factors, by which the latents have mean 0 and variance 1.
    """
    rng = np.random.default_rng(seed)
    count = len(things())
    padded = -(-2 * count // _CELLS) * _CELLS  # half of the cells are empty, as they are in scenes
    found = torch.zeros(copies, len(WEATHERS), padded, 4 * pipeline.vae.config.latent_channels)
    for copy in range(copies):
        for weather in range(len(WEATHERS)):
            order = rng.permutation(padded)
            indices = np.where(order < count, order, 0).reshape(-1, _CELLS)
            images = images_of(np.full(len(indices), weather), indices)
            latents = [pipeline.vae.encode(_as_input(part)).latent_dist.mode() for part in np.array_split(images, 8)]
            found[copy, weather, torch.from_numpy(order)] = _packed(pipeline, torch.cat(latents)).flatten(0, 1).cpu()
    found = found[:, :, :count]
    shift, scale = float(found.mean()), 1 / float(found.std())
    pipeline.vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    found = (found - shift) * scale
    return found.mean(0), float((found - found.mean(0)).square().mean().sqrt())


def flow_loss(pipeline: Any, table: torch.Tensor, spread: float, training: EditorTraining, step: int) -> torch.Tensor:
    """Of one batch of edits and one of captions: the mean error of the latents that the velocity leads to."""
    draw = _generator(training, 1, step)
    losses = []
    for edits, count, tokens in ((True, training.edits, COMMAND_TOKENS), (False, training.captions, CAPTION_TOKENS)):
        lessons = scene_lessons(training.seed, step, count, edits)
        before, after = table[lessons.weathers[:, :, None], lessons.cells]
        noise = torch.randn(after.shape, generator=draw)
        # Half of nothing but noise, and more of the noisiest in the rest: there the text must say what to draw, later
        # the latents themselves do.
        sigma = torch.rand(count, 1, 1, generator=draw).sqrt()
        sigma[: count // 2] = 1.0
        noisy = (1 - sigma) * after + sigma * noise
        states = [noisy] + [before + spread * torch.randn(before.shape, generator=draw)] * edits
        place = [pipeline._prepare_latent_image_ids(count, GRID, GRID, _DEVICE, torch.float32) for _ in states]
        for number, ids in enumerate(place):
            ids[:, 0] = number
        # CLIP reads the beginning of a caption only, and says so each time.
        with quiet(), torch.autocast(_DEVICE, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            words, pooled, word_ids = pipeline.encode_prompt(lessons.texts, max_sequence_length=tokens)
            velocity = pipeline.transformer(
                hidden_states=torch.cat(states, 1).to(_DEVICE),
                timestep=sigma[:, 0, 0].to(_DEVICE),
                pooled_projections=pooled,
                encoder_hidden_states=words,
                txt_ids=word_ids,
                img_ids=torch.cat(place),
                return_dict=False,
            )[0]
        error = (noisy - sigma * velocity[:, :_CELLS].float().cpu() - after).square().mean(-1)
        losses.append((error * torch.from_numpy(lessons.weights)).mean())
    return (losses[0] + losses[1]) / 2


def fit(
    name: str,
    modules: dict[str, torch.nn.Module],
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
    training: EditorTraining,
    work: Path,
    headline: Callable[[], str],
) -> None:
    """Minimises a loss with Muon, from the last checkpoint in `work`. The rate rises for a twentieth of the steps,
    and falls to 0 over the last four fifths."""
    optimizer = Muon(modules.values(), rate)
    file = work / f"{name}.safetensors"
    first = restore(file, modules, optimizer, asdict(training))
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(20 * (step + 1) / steps, 1.0, 1.25 * (steps - step) / steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of {name} is {loss.item()} at step {step}")
        optimizer.step()
        losses.append(loss.item())
        done = step + 1
        if done % training.log_every == 0 or done == steps:
            seconds = (time.monotonic() - started) / (done - first)
            save(file, modules, optimizer, asdict(training), done)
            shown = f"loss {sum(losses) / len(losses):.4f} {headline()} {seconds:.3f} s a step"
            print(f"{name} {done}/{steps} {shown}", flush=True)
            losses = []


def train(training: EditorTraining, out: Path, work: Path) -> None:
    """Trains both stages, resuming from the last checkpoints, and writes the pipeline directory and its card."""
    pipeline = new_pipeline(training.size, training.seed).to(_DEVICE)
    pipeline.vae.to(memory_format=torch.channels_last)

    def learn_pictures(name: str, part: torch.nn.Module, steps: int, first: int) -> None:
        fit(
            name,
            {name: part},
            lambda step: autoencoder_loss(pipeline, training, first + step),
            steps,
            training.vae_rate,
            training,
            work,
            lambda: f"cells read {cells_read(pipeline, 64):.3f}",
        )
        part.to(torch.bfloat16).float().requires_grad_(False)  # as it is shipped

    learn_pictures("autoencoder", pipeline.vae, training.vae_steps, 0)
    learn_pictures("decoder", pipeline.vae.decoder.requires_grad_(True), training.decoder_steps, training.vae_steps)
    table, spread = encode_cells(pipeline, training.seed)
    print(f"latents of a cell differ by {spread:.3f} among other neighbours", flush=True)
    fit(
        "transformer",
        {name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")},
        lambda step: flow_loss(pipeline, table, spread, training, step),
        training.steps,
        training.rate,
        training,
        work,
        lambda: headline(examine(Renderer(pipeline, RenderSettings(), _DEVICE, FAMILY), training.examined // 8)),
    )
    with atomic_folder(out / "editor") as folder:
        write_pipeline(pipeline, folder)
        result = examine(Renderer.load(folder, device=_DEVICE, dtype="float32"), training.examined)
        (folder / "README.md").write_text(card(training, pipeline, result))


def write_pipeline(pipeline: Any, folder: Path) -> None:
    """The pipeline directory, in bfloat16, with the settings it was trained for."""
    with quiet():
        pipeline.to(torch.bfloat16).save_pretrained(folder)
    pipeline.to(torch.float32)
    write_json(folder / SETTINGS_FILE, RENDERING)


def card(training: EditorTraining, pipeline: Any, result: Exam) -> str:
    """The model card: how it was made, and what it can do with unseen scenes and phrasings."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    count = sum(weight.numel() for part in parts for weight in part.parameters())
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        "# editor: a tiny FluxKontextPipeline of the embedded world",
        "",
        f"It carries out edit commands in 64x64 scenes, and draws scenes from captions. {count:,} parameters, "
        "bfloat16, trained from nothing.",
        "",
        f"- Autoencoder: {training.vae_steps} steps of {training.vae_images} pictures of random cells, "
        f"{training.decoder_steps} more of its decoder alone.",
        f"- Transformer and text encoders: {training.steps} steps of {training.edits} edits and {training.captions} "
        f"captions, Muon, peak rate {training.rate}, seed {training.seed}.",
        f"- Defaults, in {SETTINGS_FILE}: {', '.join(f'{name} {value}' for name, value in RENDERING.items())}.",
        "- Made again by: `python -m auditdm_jax.scenes.editor --out zoo`",
        "",
        f"## Measured on {result.done.size} unseen test scenes, read back from the pixels",
        "",
        *[f"- {line}" for line in result.lines()],
        "",
        "| edit | carried out |",
        "|---|---|",
        *[f"| {kind} | {done.mean() if done.size else 0:.3f} |" for kind, done in result.by_kind.items()],
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class EditorConfig:
    """Build the embedded editor, unless it is in `out` already."""

    out: Path = ZOO
    """Where the pipeline directory goes, as `editor`."""
    work: Path = Path("runs/editor")
    """Where unfinished training is kept; run again to resume."""
    training: EditorTraining = field(default_factory=EditorTraining)


def main() -> None:
    config = tyro.cli(EditorConfig, description=EditorConfig.__doc__)
    if not (config.out / "editor" / "README.md").exists():
        train(config.training, config.out, config.work)


if __name__ == "__main__":
    run_cli(main)
