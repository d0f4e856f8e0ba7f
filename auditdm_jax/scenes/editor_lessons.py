"""What the embedded editor learns from: random cells for its autoencoder, then edits and captions of training scenes.

Batch i depends on (seed, i) alone, so a resumed training goes on exactly where it stopped. Scenes are given as indices
into `parser.things()`: there are so few cells that each is encoded once.
"""

from typing import NamedTuple

import numpy as np

from auditdm_jax.scenes.captions import sample_caption
from auditdm_jax.scenes.editor_parts import CAPTION_TOKENS
from auditdm_jax.scenes.edits import Edit, sample_edit
from auditdm_jax.scenes.parser import images_of, things
from auditdm_jax.scenes.world import GRID, SPECIALS, WEATHERS, Scene, sample_scene

# Weight of a cell that the text changes (in a caption: that it fills) against one that stays as it was.
CHANGED_WEIGHT = 7.0
# What is learned first; of four draws of it three are drawn again.
_EASY = {"add", "remove", "change background", "change value"}
# Where the training scenes of the editor begin: beyond those of the zoo's other members.
_FIRST_SCENE = 500


class Lessons(NamedTuple):
    """weathers: int [2, B] and cells: int [2, B, 16], before and after; texts: B commands or captions;
    weights: float32 [B, 16], of the cells in the loss, with a mean of 1 in each scene."""

    weathers: np.ndarray
    cells: np.ndarray
    texts: list[str]
    weights: np.ndarray


def pictures_of_cells(seed: int, batch: int, count: int) -> np.ndarray:
    """uint8 [count, 64, 64, 3]: anything anywhere, from crowded to nearly empty. Half of the things are special, as in
    scenes: they are few kinds, hard to draw, and would else be met too seldom."""
    rng = np.random.default_rng((seed, batch, 0))
    specials = sum(map(len, SPECIALS.values()))  # the last of all things
    shapes = rng.integers(len(things()) - specials, size=(count, GRID * GRID))
    indices = np.where(
        rng.random(shapes.shape) < 0.5, shapes, len(things()) - 1 - rng.integers(specials, size=shapes.shape)
    )
    indices[rng.random(indices.shape) < rng.uniform(0, 0.8, (count, 1))] = 0
    return images_of(rng.integers(len(WEATHERS), size=count), indices)


def scene_lessons(seed: int, batch: int, count: int, edits: bool) -> Lessons:
    """Edits of training scenes in training phrasings, or captions of such scenes (before = after), from one thing to
    as many as fit: of few it is easiest to learn which words tell of a place."""
    rng = np.random.default_rng((seed, batch, 1 + edits))
    first = (_FIRST_SCENE + 2 * seed + edits) * 100_000_000 + batch * count
    before = [sample_scene("train", first + row) for row in range(count)]
    if edits:
        drawn = [_edit(scene, rng) for scene in before]
        after, texts = [edit.scene for edit in drawn], [edit.command for edit in drawn]
    else:
        told = [sample_caption(_thinned(scene, rng), rng, CAPTION_TOKENS - 1) for scene in before]
        before, texts = [scene for scene, _ in told], [text for _, text in told]
        after = before
    weathers = np.array([[WEATHERS.index(scene.weather) for scene in scenes] for scenes in (before, after)])
    known = {thing: index for index, thing in enumerate(things())}
    cells = np.array([[[known[thing] for thing in scene.cells] for scene in scenes] for scenes in (before, after)])
    changed = (cells[0] != cells[1]) | (weathers[0] != weathers[1])[:, None] if edits else cells[1] > 0
    weights = np.where(changed, CHANGED_WEIGHT, 1.0)
    return Lessons(weathers, cells, texts, (weights / weights.mean(1, keepdims=True)).astype(np.float32))


def _edit(scene: Scene, rng: np.random.Generator) -> Edit:
    edit = sample_edit(scene, rng, "train")
    return sample_edit(scene, rng, "train") if edit.kind in _EASY and rng.random() < 0.75 else edit


def _thinned(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with some of its things, any number from one equally often."""
    filled = [cell for cell, thing in enumerate(scene.cells) if thing is not None]
    kept = rng.permutation(filled)[: rng.integers(1, max(2, len(filled) + 1))]
    return scene._replace(cells=tuple(thing if cell in kept else None for cell, thing in enumerate(scene.cells)))
