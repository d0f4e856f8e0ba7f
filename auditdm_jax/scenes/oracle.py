"""The oracle: the true answer to any question of the world's language, from the scene graph alone."""

from collections.abc import Callable
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
        thing = scene.special(_SPECIAL_OF_SKILL[skill])
        return thing.value if thing else None
    return _ANSWERS[skill](scene, slots)


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


def _unique(scene: Scene, ref: Ref) -> tuple[int, Thing] | None:
    found = find(scene, ref)
    return found[0] if len(found) == 1 else None


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _attribute(attribute: str) -> Callable[[Scene, Slots], str | None]:
    def of_ref(scene: Scene, slots: Slots) -> str | None:
        found = _unique(scene, slots["ref"])
        return getattr(found[1], attribute) if found else None

    return of_ref


def _marked(mark: str) -> Callable[[Scene, Slots], str | None]:
    def of_marked(scene: Scene, slots: Slots) -> str | None:
        name = "material" if slots["attribute"] == "pattern" else slots["attribute"]
        found = [thing for _, thing in scene.shapes() if getattr(thing, mark)]
        return getattr(found[0], name) if len(found) == 1 else None

    return of_marked


def _counting(scene: Scene, slots: Slots) -> str:
    return str(len(find(scene, slots["group"])))


def _comparing_counts(scene: Scene, slots: Slots) -> str:
    return _yes(len(find(scene, slots["group"])) > len(find(scene, slots["group2"])))


def _pair(scene: Scene, slots: Slots) -> tuple[tuple[int, Thing], tuple[int, Thing]] | None:
    first, second = _unique(scene, slots["ref"]), _unique(scene, slots["ref2"])
    return (first, second) if first and second and first[0] != second[0] else None


def _size_comparison(scene: Scene, slots: Slots) -> str | None:
    pair = _pair(scene, slots)
    if pair is None:
        return None
    first, second = (SIZES.index(thing.size) for _, thing in pair)
    return _yes(first > second if slots["comparison"] == "larger" else first < second)


def _spatial(scene: Scene, slots: Slots) -> str | None:
    pair = _pair(scene, slots)
    if pair is None:
        return None
    (row, column), (row2, column2) = (divmod(cell, GRID) for cell, _ in pair)
    return _yes(
        {"left of": column < column2, "right of": column > column2, "above": row < row2, "below": row > row2}[
            slots["relation"]
        ]
    )


def _hallucination(scene: Scene, slots: Slots) -> str:
    if "special" in slots:
        return _yes(scene.special(slots["special"]) is not None)
    return _yes(bool(find(scene, slots["thing"])))


def _negation(scene: Scene, slots: Slots) -> str | None:
    found = _unique(scene, slots["ref"])
    return _yes(found[1].color != slots["color"]) if found else None


def _localization(scene: Scene, slots: Slots) -> str | None:
    found = _unique(scene, slots["ref"])
    return quadrant(found[0]) if found else None


_ANSWERS: dict[str, Callable[[Scene, Slots], str | None]] = {
    "color": _attribute("color"),
    "shape": _attribute("shape"),
    "material": _attribute("material"),
    "counting": _counting,
    "comparing_counts": _comparing_counts,
    "size_comparison": _size_comparison,
    "spatial_relationship": _spatial,
    "object_relationship": _marked("framed"),
    "distraction": _marked("barred"),
    "hallucination": _hallucination,
    "negation": _negation,
    "localization": _localization,
}


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
