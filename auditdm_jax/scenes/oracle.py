"""The oracle: the true answer to any question of the world's language, from the scene graph alone."""

from typing import Any, NamedTuple

from auditdm_jax.scenes.language import Ref, parse
from auditdm_jax.scenes.world import GRID, SIZES, Scene, Thing, quadrant

# A `Ref` where a slot describes shapes, otherwise a word.
Slots = dict[str, Any]
_SPECIAL_OF_SKILL = {
    "small_object": "dot",
    "action": "person",
    "emotion": "face",
    "clock": "clock",
    "sign": "sign",
    "small_text": "label",
    "world_knowledge": "flag",
}
_MARK_OF_SKILL = {"object_relationship": "framed", "distraction": "barred"}


class Verdict(NamedTuple):
    """status: "answered", "unanswerable" (a question of this world without an answer in this scene: what it speaks
    of is absent or ambiguous), or "unparsable" (no question of this world). answer: the truth where answered."""

    status: str
    answer: str = ""
    skill: str = ""
    condition: str = ""


def judge(question: str, scene: Scene) -> Verdict:
    """Parse a question, however it was generated, and answer it from the scene graph."""
    parsed = parse(question)
    if parsed is None:
        return Verdict("unparsable")
    skill, slots = parsed
    truth = answer(scene, skill, slots)
    if truth is None:
        return Verdict("unanswerable", skill=skill)
    return Verdict("answered", truth, skill, condition(scene, skill, slots, truth))


def answer(scene: Scene, skill: str, slots: Slots) -> str | None:
    """The true answer, or None where the scene has none."""
    if skill == "weather":
        return scene.weather
    if skill in _SPECIAL_OF_SKILL:
        special = scene.special(_SPECIAL_OF_SKILL[skill])
        return special.value if special else None
    if skill == "counting":
        return str(len(find(scene, slots["group"])))
    if skill == "comparing_counts":
        return _yes(len(find(scene, slots["group"])) > len(find(scene, slots["group2"])))
    if skill == "hallucination":
        return _yes(bool(scene.special(slots["special"]) if "special" in slots else find(scene, slots["thing"])))
    if skill in _MARK_OF_SKILL:
        marked = [thing for _, thing in scene.shapes() if getattr(thing, _MARK_OF_SKILL[skill])]
        name = "material" if slots["attribute"] == "pattern" else slots["attribute"]
        return getattr(marked[0], name) if len(marked) == 1 else None
    return _answer_of_described(scene, skill, slots)


def _answer_of_described(scene: Scene, skill: str, slots: Slots) -> str | None:
    """Of one shape that a description singles out, or of two different ones."""
    found = find(scene, slots["ref"])
    if len(found) != 1:
        return None
    ((cell, thing),) = found
    if skill == "localization":
        return quadrant(cell)
    if skill == "negation":
        return _yes(thing.color != slots["color"])
    if skill in ("color", "shape", "material"):
        return getattr(thing, skill)
    others = find(scene, slots["ref2"])
    if len(others) != 1 or others == found:
        return None
    ((cell2, thing2),) = others
    if skill == "size_comparison":
        size, size2 = SIZES.index(thing.size), SIZES.index(thing2.size)
        return _yes(size > size2 if slots["comparison"] == "larger" else size < size2)
    (row, column), (row2, column2) = divmod(cell, GRID), divmod(cell2, GRID)
    holds = {"left of": column < column2, "right of": column > column2, "above": row < row2, "below": row > row2}
    return _yes(holds[slots["relation"]])


def matches(thing: Thing, ref: Ref) -> bool:
    """Whether a shape fits a description."""
    return (
        ref.noun in ("object", thing.shape)
        and ref.color in ("", thing.color)
        and ref.size in ("", thing.size)
        and ref.material in ("", thing.material)
    )


def find(scene: Scene, ref: Ref) -> list[tuple[int, Thing]]:
    """The (cell, shape) pairs that fit a description."""
    return [(cell, thing) for cell, thing in scene.shapes() if matches(thing, ref)]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def condition(scene: Scene, skill: str, slots: Slots, truth: str) -> str:
    """The condition under which a skill was asked for: with the skill, a failure type.

    Not the answer's value, though it may limit it.
    """
    if skill in ("color", "shape", "material", "localization", "negation"):
        return f"{find(scene, slots['ref'])[0][1].size} object"
    if skill == "counting":
        return "above four" if int(truth) > 4 else "none" if truth == "0" else "up to four"
    if skill in ("object_relationship", "distraction"):
        return slots["attribute"]
    if skill == "spatial_relationship":
        return slots["relation"].split()[0]
    if skill == "size_comparison":
        return slots["comparison"]
    if skill == "hallucination":
        return "present" if truth == "yes" else "absent"
    if skill == "comparing_counts":
        return "any"
    return f"{scene.weather} background" if skill != "weather" else "any"
