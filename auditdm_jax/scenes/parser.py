"""Scenes read back from pixels: what a picture shows, cell by cell, by the nearest of all pictures of a cell."""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from auditdm_jax.scenes.render import cell
from auditdm_jax.scenes.world import (
    CELL,
    COLORS,
    GRID,
    MATERIALS,
    SHAPES,
    SIZE,
    SIZES,
    SPECIALS,
    WEATHERS,
    Scene,
    Thing,
)

READABLE = 1500.0
"""Mean squared distance per value (0-255) up to which a cell counts as read. Two things are about 160 apart at the
median, noise of sigma 12 costs 144, a light blur up to about 1,000; a cell of noise is at 5,000 or more."""
# Of one pixel's three values together: beyond it, a pixel is no background, however far it is.
_NO_BACKGROUND = 3000.0
_CELLS = GRID * GRID


class Reading(NamedTuple):
    """scene: what is seen; distances: float32 [16], of each cell from the picture of what was read there."""

    scene: Scene
    distances: np.ndarray

    def readable(self) -> np.ndarray:
        """bool [16]: which cells show anything of this world."""
        return self.distances <= READABLE


@lru_cache(maxsize=1)
def things() -> tuple[Thing | None, ...]:
    """Everything that may stand in a cell, nothing first."""
    marks: tuple[dict, ...] = ({}, {"framed": True}, {"barred": True})
    shapes = product(COLORS, SHAPES, SIZES, MATERIALS, marks)
    return (
        None,
        *(Thing("shape", color, shape, size, material, **mark) for color, shape, size, material, mark in shapes),
        *(Thing(kind, value=value) for kind, values in SPECIALS.items() for value in values),
    )


@lru_cache(maxsize=len(WEATHERS))
def pictures(weather: str) -> np.ndarray:
    """uint8 [things, 768]: the pictures of `things()` in a weather, pixel by pixel."""
    return np.stack([cell(weather, thing).ravel() for thing in things()])


def images_of(weathers: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """int [B] into `WEATHERS` and int [B, 16] into `things()` -> uint8 [B, 64, 64, 3], as `render` draws them."""
    cells = np.stack([pictures(WEATHERS[weather])[row] for weather, row in zip(weathers, indices, strict=True)])
    return cells.reshape(-1, GRID, GRID, CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, SIZE, SIZE, 3)


def cells_of(images: np.ndarray) -> np.ndarray:
    """[B, 64, 64, 3] -> [B, 16, 768]: the cells row by row."""
    grid = images.reshape(-1, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, _CELLS, CELL * CELL * 3)


def scenes_in(images: np.ndarray) -> list[Scene | None]:
    """uint8 [B, 64, 64, 3] -> the scene each shows; None where a cell is unreadable, or where a special thing comes
    twice, which no question can name."""

    def known(reading: Reading) -> bool:
        kinds = [thing.kind for thing in reading.scene.cells if thing is not None and thing.kind != "shape"]
        return bool(reading.readable().all()) and len(kinds) == len(set(kinds))

    return [reading.scene if known(reading) else None for reading in read_scenes(images)]


def read_scenes(images: np.ndarray) -> list[Reading]:
    """uint8 [B, 64, 64, 3] -> the scene each shows: first its weather, then its cells among those of that weather."""
    assert images.shape[1:] == (SIZE, SIZE, 3), images.shape
    cells = cells_of(images).astype(np.float32)
    weathers = _weathers(cells)
    indices, distances = np.zeros((len(cells), _CELLS), int), np.zeros((len(cells), _CELLS), np.float32)
    for number, weather in enumerate(WEATHERS):
        rows = np.flatnonzero(weathers == number)
        if len(rows):
            indices[rows], distances[rows] = _nearest(cells[rows], weather)
    known = things()
    return [
        Reading(Scene(WEATHERS[weather], tuple(known[index] for index in row)), distance)
        for weather, row, distance in zip(weathers, indices, distances, strict=True)
    ]


def _weathers(cells: np.ndarray) -> np.ndarray:
    """int [B]: by the background of each pixel, where there is one to be seen."""
    scores = []
    for weather in WEATHERS:
        squares = (cells - pictures(weather)[0]) ** 2
        pixels = squares.reshape(*cells.shape[:2], CELL * CELL, 3).sum(-1)
        scores.append(np.minimum(pixels, _NO_BACKGROUND).sum((1, 2)))
    return np.argmin(scores, axis=0)


@lru_cache(maxsize=len(WEATHERS))
def _table(weather: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [things, 768], and half the squared length of each."""
    table = pictures(weather).astype(np.float32)
    return table, (table * table).sum(1) / 2


def _nearest(cells: np.ndarray, weather: str) -> tuple[np.ndarray, np.ndarray]:
    """The index of the nearest picture, and its mean squared distance; both [B, 16]."""
    table, halves = _table(weather)
    indices = (halves - cells @ table.T).argmin(-1)
    return indices, ((cells - table[indices]) ** 2).mean(-1)
