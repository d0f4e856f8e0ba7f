"""Scene graphs of the embedded world: what can stand in a picture, and how one is drawn at random.

A scene is a background and a 4x4 grid of cells, each empty or holding one thing. Everything that can be asked
is a function of this graph alone, so every answer is known. Scenes are deterministic by (split, seed), and the
three splits never share a scene: each graph belongs to exactly one split by a hash of its content.
"""

import zlib
from typing import NamedTuple

import numpy as np

GRID = 4
CELL = 16
SIZE = GRID * CELL

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
SIZES = ("small", "medium", "large")
MATERIALS = ("solid", "striped", "dotted", "checkered")
WEATHERS = ("sunny", "cloudy", "rainy", "snowy", "night")

# Things of which a scene holds at most one, with the values that can be asked for.
SPECIALS = {
    "person": ("standing", "jumping", "running", "waving", "sitting"),
    "face": ("happy", "sad", "angry", "surprised"),
    "clock": tuple(str(hour) for hour in range(1, 13)),
    "sign": ("stop", "yield", "parking", "hospital", "crossing"),
    "label": ("cat", "dog", "sun", "map", "key", "tea", "box", "hat"),
    "flag": ("arvonia", "belmar", "cordia", "dravik", "estora", "fenwick"),
    "dot": COLORS,
}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
SPLITS = ("train", "validation", "test")


class Thing(NamedTuple):
    """One thing in one cell.

    kind: "shape", or a key of `SPECIALS`. A shape has color, shape, size and material, and may stand in a frame
    or behind bars; a special thing has only its value (its pose, mood, hour, meaning, word, country or color).
    """

    kind: str
    color: str = ""
    shape: str = ""
    size: str = ""
    material: str = ""
    framed: bool = False
    barred: bool = False
    value: str = ""

    def words(self) -> str:
        """What it is, without its frame or bars: "large red striped star", "face happy"."""
        shape = f"{self.size} {self.color} {self.material} {self.shape}"
        return shape if self.kind == "shape" else f"{self.kind} {self.value}"


class Scene(NamedTuple):
    """weather: one of `WEATHERS`; cells: 16 things or None, row by row from the top left."""

    weather: str
    cells: tuple[Thing | None, ...]

    def shapes(self) -> list[tuple[int, Thing]]:
        """All (cell, thing) pairs of kind "shape"."""
        return [(i, thing) for i, thing in enumerate(self.cells) if thing is not None and thing.kind == "shape"]

    def special(self, kind: str) -> Thing | None:
        """The scene's one thing of a special kind, if there is one."""
        return next((thing for thing in self.cells if thing is not None and thing.kind == kind), None)


def quadrant(cell: int) -> str:
    """Which corner of the picture a cell (0-15) lies in."""
    row, column = divmod(cell, GRID)
    return QUADRANTS[2 * (row >= GRID // 2) + (column >= GRID // 2)]


def split_of(scene: Scene) -> str:
    """The split a scene belongs to, by a hash of its content: one in eight validation, one in eight test."""
    bucket = zlib.crc32(repr(tuple(scene)).encode()) % 8
    return {0: "validation", 1: "test"}.get(bucket, "train")


def sample_scene(split: str, seed: int) -> Scene:
    """The scene of a split (one of `SPLITS`) with a given seed (>= 0). Deterministic."""
    rng = np.random.default_rng((SPLITS.index(split), seed))
    while True:
        scene = _draw(rng)
        if split_of(scene) == split:
            return scene


def _draw(rng: np.random.Generator) -> Scene:
    """Few kinds of shapes and colors a scene, so that counting above one and ambiguity both happen."""
    # One draw of uniforms for the whole scene: a generator call costs more than the arithmetic.
    u = iter(rng.random(96).tolist())

    def pick(options):
        return options[int(next(u) * len(options))]

    # From nearly empty to crowded: a model that learns to see begins with the sparse ones.
    crowd = next(u)
    num_shapes = 1 + int(next(u) * (1 + 7 * crowd))
    palette = [pick(COLORS) for _ in range(4)]
    kinds = [pick(SHAPES) for _ in range(5)]
    things = [Thing("shape", pick(palette), pick(kinds), pick(SIZES), pick(MATERIALS)) for _ in range(num_shapes)]
    if next(u) < 0.75:
        things[0] = things[0]._replace(framed=True)
    if next(u) < 0.75 and num_shapes > 1:
        things[1] = things[1]._replace(barred=True)
    for kind, values in SPECIALS.items():
        if next(u) < 0.15 + 0.65 * crowd:
            things.append(Thing(kind, value=pick(values)))
    order = rng.permutation(GRID * GRID)
    cells: list[Thing | None] = [None] * (GRID * GRID)
    for cell, thing in zip(order, things, strict=False):
        cells[cell] = thing
    return Scene(pick(WEATHERS), tuple(cells))


def caption(scene: Scene) -> str:
    """A sentence that names everything in the scene with its place, from which it could be drawn again."""
    parts = [f"{scene.weather} weather"]
    for cell, thing in enumerate(scene.cells):
        if thing is None:
            continue
        mark = " in a frame" if thing.framed else " behind bars" if thing.barred else ""
        row, column = divmod(cell, GRID)
        parts.append(f"{thing.words()}{mark} at {row + 1} {column + 1}")
    return ", ".join(parts)
