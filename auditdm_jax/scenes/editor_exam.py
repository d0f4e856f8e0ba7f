"""What an editor can do: its pictures of unseen scenes and phrasings are read back and compared with the scenes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from auditdm_jax.counterfactuals import Renderer
from auditdm_jax.evals import wilson
from auditdm_jax.scenes.captions import sample_caption
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.editor_parts import CAPTION_TOKENS
from auditdm_jax.scenes.edits import KINDS, Edit, sample_edit
from auditdm_jax.scenes.parser import Reading, read_scenes
from auditdm_jax.scenes.world import SIZE, Scene


@dataclass(frozen=True)
class Share:
    """hits of n."""

    hits: int
    n: int

    @property
    def rate(self) -> float:
        return self.hits / self.n if self.n else 0.0

    def __str__(self) -> str:
        low, high = wilson(self.hits, self.n)
        return f"{self.rate:.3f} (95 % {low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Exam:
    """commands: how many were tried. Shares: edits carried out, in all and by kind; cells that an edit should have
    left alone and changed; captioned things that were drawn at their place. seconds: of 64 edits."""

    commands: int
    done: Share
    by_kind: dict[str, Share]
    spoiled: Share
    present: Share
    seconds: float

    def lines(self) -> list[str]:
        return [
            f"edits carried out: {self.done}",
            f"untouched cells changed: {self.spoiled}",
            f"captioned things drawn: {self.present}",
            f"64 edits took {self.seconds:.1f} s",
        ]


def headline(exam: Exam) -> str:
    return f"edits {exam.done.rate:.3f} spoiled {exam.spoiled.rate:.3f} captioned {exam.present.rate:.3f}"


@torch.no_grad()
def cells_read(pipeline: Any, count: int) -> float:
    """Share of the cells of test scenes, other than empty ones, that survive the autoencoder."""
    scenes, images = scenes_of("test", 0, count)
    pixels = torch.from_numpy(images).to(pipeline.device).permute(0, 3, 1, 2) / 127.5 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mode()
    decoded = (pipeline.vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
    return _present(scenes, read_scenes(decoded.round().byte().permute(0, 2, 3, 1).cpu().numpy())).rate


def examine(renderer: Renderer, count: int) -> Exam:
    """The edits of `count` test scenes and the captions of half as many, in unseen phrasings; deterministic."""
    scenes, images = scenes_of("test", 0, count)
    rng = np.random.default_rng(0)
    edits = [sample_edit(scene, rng, "test") for scene in scenes]
    started = time.monotonic()
    edited = renderer.edit(jnp.asarray(images), [edit.command for edit in edits], range(count))
    seconds = (time.monotonic() - started) / count * 64
    readings = read_scenes(np.asarray(edited))
    done = np.array([carried_out(*case) for case in zip(scenes, edits, readings, strict=True)])
    kinds = np.array([edit.kind for edit in edits])
    spoiled = np.concatenate([spoilt(*case) for case in zip(scenes, edits, readings, strict=True)])
    told, captions = zip(
        *[sample_caption(scene, rng, CAPTION_TOKENS - 1) for scene in scenes[: count // 2]], strict=True
    )
    drawn = renderer.generate(captions, range(count // 2), SIZE)
    return Exam(
        commands=count,
        done=Share(int(done.sum()), count),
        by_kind={kind: Share(int(done[kinds == kind].sum()), int((kinds == kind).sum())) for kind in KINDS},
        spoiled=Share(int(spoiled.sum()), len(spoiled)),
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


def _present(scenes: Sequence[Scene], readings: list[Reading]) -> Share:
    """Of the things of the scenes, those that are read at their places."""
    right = [
        bool(seen == wanted and readable)
        for scene, reading in zip(scenes, readings, strict=True)
        for wanted, seen, readable in zip(scene.cells, reading.scene.cells, reading.readable(), strict=True)
        if wanted is not None
    ]
    return Share(sum(right), len(right))
