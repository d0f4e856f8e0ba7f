"""Edit commands of the world: what they may say, what each does to a scene, and how one is drawn at random.

A command names its object as a question does ("the small striped star"), and a place by row and column from the top
left ("row 2 column 3"). It changes one thing (or swaps two, or changes the background), never the rest of the scene;
a shape keeps its frame or bars.
"""

from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from auditdm_jax.scenes.captions import DEFAULTS, parse_thing
from auditdm_jax.scenes.language import Ref, Rules, fill, match, one_of, phrasings, ref_pattern, rules
from auditdm_jax.scenes.oracle import Slots, find
from auditdm_jax.scenes.world import COLORS, GRID, MATERIALS, SHAPES, SIZES, SPECIALS, SPLITS, WEATHERS, Scene, Thing

# Slots: {ref} one shape, {any} one shape or special thing, {one} a new thing with its article.
FORMS: dict[str, tuple[str, ...]] = {
    "recolor": ("make the {ref} {color}", "paint the {ref} {color}", "change the color of the {ref} to {color}"),
    "reshape": ("turn the {ref} into a {shape}", "make the {ref} a {shape}", "change the {ref} into a {shape}"),
    "resize": ("make the {ref} {size}", "turn the {ref} {size}", "replace the {ref} with a {size} one"),
    "change material": (
        "make the {ref} {material}",
        "turn the {ref} {material}",
        "change the pattern of the {ref} to {material}",
    ),
    "add": (
        "add {one} in row {row} column {column}",
        "put {one} in row {row} column {column}",
        "add {one} at {row} {column}",
    ),
    "remove": ("remove the {any}", "hide the {any}", "make the cell of the {any} empty"),
    "move": (
        "move the {any} to row {row} column {column}",
        "put the {any} in row {row} column {column}",
        "move the {any} to {row} {column}",
    ),
    "swap": ("swap the {any} and the {any2}", "swap the {any} with the {any2}", "make the {any} and the {any2} swap"),
    "change background": (
        "change the background to {weather}",
        "make the weather {weather}",
        "make the scene {weather}",
    ),
    "change value": ("make the {special} {value}", "change the {special} to {value}", "turn the {special} {value}"),
}
KINDS = tuple(FORMS)
# Edits that set one attribute of a shape, its name in `Thing` and in the form, and its values.
_ATTRIBUTES = {
    "recolor": ("color", COLORS),
    "reshape": ("shape", SHAPES),
    "resize": ("size", SIZES),
    "change material": ("material", MATERIALS),
}
_PLACES = tuple(str(number + 1) for number in range(GRID))
_VALUES = tuple(dict.fromkeys(value for values in SPECIALS.values() for value in values))
_PHRASINGS = {(kind, split): phrasings(FORMS[kind], split) for kind in KINDS for split in SPLITS}


class Edited(NamedTuple):
    """status: "done", "impossible" (an object is absent or ambiguous, the cell is taken, nothing would change), or
    "unparsable" (no command of this world). scene: the new one where done, otherwise the given one."""

    status: str
    scene: Scene
    kind: str = ""


class Edit(NamedTuple):
    """A command drawn for a scene, the scene after it, and its kind."""

    command: str
    scene: Scene
    kind: str


def _any_pattern(name: str) -> str:
    return f"(?:{one_of(SPECIALS, f'{name}special')}|{ref_pattern(name)})"


@lru_cache(maxsize=1)
def _grammar() -> Rules:
    slots = {name: one_of(words, name) for name, words in _ATTRIBUTES.values()}
    slots |= {name: one_of(_PLACES, name) for name in ("row", "column")}
    slots |= {"ref": ref_pattern("ref"), "any": _any_pattern("any"), "any2": _any_pattern("any2")}
    slots |= {"special": one_of(SPECIALS, "special"), "value": one_of(_VALUES, "value")}
    slots |= {"weather": one_of(WEATHERS, "weather"), "one": r"(?P<one>(?:a|an|one) [a-z0-9 ]+?)"}
    return rules(FORMS, slots)


def parse(command: str) -> tuple[str, Slots] | None:
    """Kind and slots of a command in the world's language, whoever wrote it; None if it is not one."""
    return match(command, _grammar())


def apply(command: str, scene: Scene) -> Edited:
    """Carry out a command, however it was generated, in the scene graph."""
    parsed = parse(command)
    if parsed is None:
        return Edited("unparsable", scene)
    kind, slots = parsed
    if kind == "add" and parse_thing(slots["one"]) is None:
        return Edited("unparsable", scene)
    edited = carry_out(scene, kind, slots)
    if edited is None or edited == scene:
        return Edited("impossible", scene, kind)
    return Edited("done", edited, kind)


def carry_out(scene: Scene, kind: str, slots: Slots) -> Scene | None:
    """The scene after an edit; None where it cannot be done."""
    if kind == "change background":
        return scene._replace(weather=slots["weather"])
    if kind == "add":
        thing, place = parse_thing(slots["one"]), _place(slots)
        if thing is None or scene.cells[place] is not None or (thing.kind != "shape" and scene.special(thing.kind)):
            return None
        return _with(scene, {place: thing})
    name = "ref" if kind in _ATTRIBUTES else "" if kind == "change value" else "any"
    cell = _cell_of(scene, slots, name)
    if cell is None:
        return None
    thing = scene.cells[cell]
    assert thing is not None  # it was found
    if kind in _ATTRIBUTES:
        attribute = _ATTRIBUTES[kind][0]
        return _with(scene, {cell: thing._replace(**{attribute: slots[attribute]})})
    if kind == "change value":
        has = slots["value"] in SPECIALS[thing.kind]
        return _with(scene, {cell: thing._replace(value=slots["value"])}) if has else None
    if kind == "remove":
        return _with(scene, {cell: None})
    other = _cell_of(scene, slots, "any2") if kind == "swap" else _place(slots)
    if other is None or (kind == "move" and scene.cells[other] is not None):
        return None
    return _with(scene, {cell: scene.cells[other], other: thing})


def _place(slots: Slots) -> int:
    return (int(slots["row"]) - 1) * GRID + int(slots["column"]) - 1


def _with(scene: Scene, changes: dict[int, Thing | None]) -> Scene:
    return scene._replace(cells=tuple(changes.get(cell, thing) for cell, thing in enumerate(scene.cells)))


def _cell_of(scene: Scene, slots: Slots, name: str) -> int | None:
    """Where the one thing that a slot describes stands; None if there is none, or more than one."""
    special = slots.get(f"{name}special")
    if special:
        return next((cell for cell, thing in enumerate(scene.cells) if thing and thing.kind == special), None)
    found = find(scene, slots[name])
    return found[0][0] if len(found) == 1 else None


class _Draw:
    """Draws the slots of an edit of one scene."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.random() * len(options))]

    def slots(self, kind: str) -> Slots | None:
        """Slots with which the edit can be done; None where this scene allows none."""
        things = [(cell, thing) for cell, thing in enumerate(self.scene.cells) if thing is not None]
        if kind == "change background":
            return {"weather": self.other(WEATHERS, self.scene.weather)}
        if kind == "change value":
            specials = [thing for _, thing in things if thing.kind != "shape"]
            if not specials:
                return None
            thing = self.pick(specials)
            return {"special": thing.kind, "value": self.other(SPECIALS[thing.kind], thing.value)}
        if kind in _ATTRIBUTES:
            name, values = _ATTRIBUTES[kind]
            found = self.objects("ref", [cell for cell, _ in self.scene.shapes()], 1)
            return found and found[1] | {name: self.other(values, getattr(self.scene.cells[found[0][0]], name))}
        empty = [cell for cell, thing in enumerate(self.scene.cells) if thing is None]
        if kind in ("add", "move") and not empty:
            return None
        row, column = divmod(self.pick(empty), GRID) if empty else (0, 0)
        place = {"row": str(row + 1), "column": str(column + 1)}
        if kind == "add":
            return {"one": self.new_thing()} | place
        found = self.objects("any", [cell for cell, _ in things], 2 if kind == "swap" else 1)
        return found and found[1] | (place if kind == "move" else {})

    def other(self, values: tuple[str, ...], value: str) -> str:
        return self.pick([other for other in values if other != value])

    def objects(self, name: str, cells: list[int], number: int) -> tuple[list[int], Slots] | None:
        """Different cells of the given ones whose things can be told from all others, and their descriptions."""
        taken: list[int] = []
        slots: Slots = {}
        for index in self.rng.permutation(len(cells)):
            slot = name if not taken else f"{name}2"
            thing = self.scene.cells[cells[index]]
            assert thing is not None  # its cell was chosen for it
            if thing.kind != "shape":
                slots |= {slot: thing.kind, f"{slot}special": thing.kind}
            else:
                words = product((thing.shape, "object"), (thing.color, ""), (thing.size, ""), (thing.material, ""))
                refs = [ref for ref in (Ref(*four) for four in words) if len(find(self.scene, ref)) == 1]
                if not refs:
                    continue
                slots[slot] = self.pick(refs)
            taken.append(cells[index])
            if len(taken) == number:
                return taken, slots
        return None

    def new_thing(self) -> str:
        """A thing that the scene may hold, in words: "a large red star", "one orange star", "a happy face"."""
        absent = [kind for kind in SPECIALS if self.scene.special(kind) is None]
        if absent and self.rng.random() < 0.3:
            kind = self.pick(absent)
            words = f"{self.pick(SPECIALS[kind])} {kind}"
        else:
            size, material = self.pick(SIZES), self.pick(MATERIALS)
            # What goes without saying is said half of the time.
            size = "" if size == DEFAULTS["size"] and self.rng.random() < 0.5 else size
            material = "" if material == DEFAULTS["material"] and self.rng.random() < 0.5 else material
            words = Ref(self.pick(SHAPES), self.pick(COLORS), size, material).words()
        # The vocabulary has no "an".
        return ("one " if words[0] in "aeiou8" or words.startswith("11 ") else "a ") + words


def sample_edit(scene: Scene, rng: np.random.Generator, split: str) -> Edit:
    """An edit of a scene in a phrasing of a split, uniform over the kinds that the scene allows."""
    draw = _Draw(scene, rng)
    for kind in (KINDS[index] for index in rng.permutation(len(KINDS))):
        slots = draw.slots(kind)
        if slots is not None:
            break
    assert slots is not None  # the background can always be changed
    edited = carry_out(scene, kind, slots)
    assert edited is not None
    lead, form = draw.pick(_PHRASINGS[kind, split])
    return Edit(fill(lead, form, slots), edited, kind)
