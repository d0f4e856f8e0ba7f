"""Captions of a limited length, and captions read back: the inverse of `world.caption`, for those of a model too."""

import re

import numpy as np

from auditdm_jax.scenes.world import COLORS, GRID, MATERIALS, SHAPES, SIZES, SPECIALS, WEATHERS, Scene, Thing, caption

# Of a shape whose words leave them out, and of a scene that names no weather.
DEFAULTS = {"size": "medium", "material": "solid"}
DEFAULT_WEATHER = "sunny"
_ATTRIBUTES = {"size": SIZES, "color": COLORS, "material": MATERIALS, "shape": SHAPES}
_MARKS = ("in a frame", "behind bars")


def parse_caption(text: str) -> Scene | None:
    """The scene a caption describes: its parts in any order, and what it does not name is not there.

    A size, a material and the weather may be left out (`DEFAULTS`), a color may not. None if a part is no thing at a
    place, or if one place holds two things or a special thing comes twice.
    """
    weathers: list[str] = []
    cells: list[Thing | None] = [None] * (GRID * GRID)
    for part in filter(None, (" ".join(part.split()) for part in re.split(r"[,.;]", text.lower()))):
        words = part.split()
        if len(words) == 2 and words[0] in WEATHERS and words[1] == "weather":
            weathers.append(words[0])
            continue
        place = re.fullmatch(r"(.+) at ([1-4]) ([1-4])", part)
        thing = parse_thing(place[1]) if place else None
        if place is None or thing is None:
            return None
        cell = (int(place[2]) - 1) * GRID + int(place[3]) - 1
        if cells[cell] is not None or (thing.kind != "shape" and any(t and t.kind == thing.kind for t in cells)):
            return None
        cells[cell] = thing
    if len(weathers) > 1 or not (weathers or any(cells)):
        return None
    return Scene(weathers[0] if weathers else DEFAULT_WEATHER, tuple(cells))


def parse_thing(text: str) -> Thing | None:
    """The thing that words in any order describe, as a caption or a command to add it does, with or without an
    article; None if they describe none."""
    mark = next((mark for mark in _MARKS if text.endswith(f" {mark}")), "")
    words = re.sub(r"^(a|an|one) ", "", text.removesuffix(mark)).split()
    if len(words) == 2 and not mark:
        for kind, value in (words, words[::-1]):
            if value in SPECIALS.get(kind, ()):
                return Thing(kind, value=value)
    fields = {name: word for word in words for name, options in _ATTRIBUTES.items() if word in options}
    if len(fields) < len(words) or not {"color", "shape"} <= set(fields):
        return None
    return Thing("shape", **(DEFAULTS | fields), framed=mark == "in a frame", barred=mark == "behind bars")


def sample_caption(scene: Scene, rng: np.random.Generator, max_words: int) -> tuple[Scene, str]:
    """A caption of at most `max_words` words, and the scene that it tells of: where there is too much to tell, without
    some things. What goes without saying (`DEFAULTS`) is said in half of the captions."""
    cells = list(scene.cells)
    for cell in rng.permutation(len(cells)):
        if len(caption(scene).split()) <= max_words:
            break
        cells[cell] = None
        scene = scene._replace(cells=tuple(cells))
    text = caption(scene)
    if rng.random() < 0.5:
        text = re.sub(rf"\b({'|'.join(DEFAULTS.values())}) ", "", text)
    return scene, text
