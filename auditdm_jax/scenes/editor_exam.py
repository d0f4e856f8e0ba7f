"""What an editor can do: its pictures of unseen scenes and phrasings are read back and compared with the scenes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Bool

from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.evals import wilson
from auditdm_jax.scenes.captions import sample_caption
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.editor_parts import CAPTION_TOKENS
from auditdm_jax.scenes.edits import KINDS, Edit, sample_edit
from auditdm_jax.scenes.parser import Reading, read_scenes
from auditdm_jax.scenes.world import SIZE, Scene


@dataclass(frozen=True)
class Exam:
    """Of every edit whether it was carried out, in all and by kind; of every cell that an edit should have left alone
    whether it changed; of every captioned thing whether it was drawn at its place. seconds: of 64 edits."""

    done: Bool[np.ndarray, "N"]
    by_kind: dict[str, Bool[np.ndarray, "_"]]
    spoiled: Bool[np.ndarray, "C"]
    present: Bool[np.ndarray, "T"]
    seconds: float

    def lines(self) -> list[str]:
        return [
            f"edits carried out: {share(self.done)}",
            f"untouched cells changed: {share(self.spoiled)}",
            f"captioned things drawn: {share(self.present)}",
            f"64 edits took {self.seconds:.1f} s",
        ]


def share(hits: Bool[np.ndarray, "N"]) -> str:
    low, high = wilson(hits.sum(), hits.size)
    return f"{hits.mean():.3f} (95 % {low:.3f} to {high:.3f})"


def headline(exam: Exam) -> str:
    return f"edits {exam.done.mean():.3f} spoiled {exam.spoiled.mean():.3f} captioned {exam.present.mean():.3f}"


@torch.no_grad()
def cells_read(pipeline: Any, count: int) -> float:
    """Share of the cells of test scenes, other than empty ones, that survive the autoencoder."""
    scenes, images = scenes_of("test", 0, count)
    pixels = torch.from_numpy(images).to(pipeline.device).permute(0, 3, 1, 2) / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mode()
    decoded = (pipeline.vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
    return float(_present(scenes, read_scenes(decoded.round().byte().permute(0, 2, 3, 1).cpu().numpy())).mean())


def examine(renderer: Renderer, count: int) -> Exam:
    """The edits of `count` test scenes and the captions of half as many, in unseen phrasings; deterministic."""
    scenes, images = scenes_of("test", 0, count)
    rng = np.random.default_rng(0)
    edits = [sample_edit(scene, rng, "test") for scene in scenes]
    started = time.monotonic()
    edited = renderer.edit(jnp.asarray(images), [edit.command for edit in edits], range(count))
    seconds = (time.monotonic() - started) / count * 64
    readings = read_scenes(np.asarray(edited))
    cases = list(zip(scenes, edits, readings, strict=True))
    done = np.array([carried_out(*case) for case in cases])
    kinds = np.array([edit.kind for edit in edits])
    told, captions = zip(
        *[sample_caption(scene, rng, CAPTION_TOKENS - 1) for scene in scenes[: count // 2]], strict=True
    )
    drawn = renderer.generate(captions, range(count // 2), SIZE)
    return Exam(
        done=done,
        by_kind={kind: done[kinds == kind] for kind in KINDS},
        spoiled=np.concatenate([spoilt(*case) for case in cases]),
        present=_present(told, read_scenes(np.asarray(drawn))),
        seconds=seconds,
    )


def carried_out(before: Scene, edit: Edit, after: Reading) -> bool:
    """Whether all cells that the edit is about, or the weather, read as in its scene."""
    told = zip(before.cells, edit.scene.cells, after.scene.cells, after.readable(), strict=True)
    return after.scene.weather == edit.scene.weather and all(
        seen == wanted and readable for old, wanted, seen, readable in told if wanted != old
    )


def spoilt(before: Scene, edit: Edit, after: Reading) -> list[bool]:
    """Of each cell that the edit is not about, whether something else is seen there."""
    told = zip(before.cells, edit.scene.cells, after.scene.cells, after.readable(), strict=True)
    return [seen != wanted or not readable for old, wanted, seen, readable in told if wanted == old]


def _present(scenes: Sequence[Scene], readings: list[Reading]) -> Bool[np.ndarray, "T"]:
    """Of each thing of the scenes, whether it is read at its place."""
    right = [
        seen == wanted and readable
        for scene, reading in zip(scenes, readings, strict=True)
        for wanted, seen, readable in zip(scene.cells, reading.scene.cells, reading.readable(), strict=True)
        if wanted is not None
    ]
    return np.array(right)
