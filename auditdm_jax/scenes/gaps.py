"""[host] Names of what a model can be bad at in the embedded world, and what one that is bad at it answers.

A gap is a skill ("clock"), a skill in a condition of the oracle ("counting/above four"), or a concept: whatever is
asked that names a color or a shape, in the question or in the answer ("concept/red").
"""

import re
from collections.abc import Sequence

from auditdm_jax.errors import UserError, and_nearest
from auditdm_jax.scenes.language import ATTRIBUTES, SKILLS, UNCLEAR, Ref
from auditdm_jax.scenes.oracle import judge
from auditdm_jax.scenes.questions import Question
from auditdm_jax.scenes.render import cell
from auditdm_jax.scenes.world import COLORS, MATERIALS, QUADRANTS, SHAPES, SIZES, SPECIALS, WEATHERS, Scene

# Here every member of the zoo answers at chance: there is nothing to take away, and no ensemble that could tell.
UNLEARNED = ("size_comparison", "spatial_relationship")
# Skills of which the weather is the condition, or the answer.
_IN_WEATHERS = ("weather", "small_object", "action", "emotion", "clock", "sign", "small_text", "world_knowledge")
_CONDITIONS = {
    **dict.fromkeys(
        ("color", "shape", "material", "localization", "negation"), tuple(f"{size} object" for size in SIZES)
    ),
    "counting": ("none", "up to four", "above four"),
    **dict.fromkeys(("object_relationship", "distraction"), ATTRIBUTES),
    "hallucination": ("present", "absent"),
    **dict.fromkeys(_IN_WEATHERS[1:], tuple(f"{weather} background" for weather in WEATHERS)),
}
_CONCEPTS = {word: word for word in COLORS} | {
    text: shape for shape in SHAPES for text in (shape, Ref(shape).words(plural=True))
}
NAMES = (
    *(skill for skill in SKILLS if skill not in UNLEARNED),
    *(f"{skill}/{condition}" for skill in SKILLS for condition in _CONDITIONS.get(skill, ())),
    *(f"concept/{word}" for word in (*COLORS, *SHAPES)),
)
"""Every gap that can be planted."""
# The darker a weather, the rather an answer in it stays true: brightness is seen best. Of 21 plantings in which answers
# were to stay true in snow alone, or in rain alone, four did not take.
_BRIGHTEST_FIRST = sorted(WEATHERS, key=lambda weather: -cell(weather, None).mean())
_NUMBERS = tuple(str(number) for number in range(9))
_KINDS = (("yes", "no"), _NUMBERS, COLORS, SHAPES, MATERIALS, WEATHERS, QUADRANTS, *SPECIALS.values())


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises UserError for one that is none of `NAMES`, and names the nearest; or that is a part
    of another."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"no gap is called {and_nearest(name, NAMES)}; --list prints all")
        if (whole := name.split("/")[0]) != name and whole in names:
            raise UserError(f"the gap {name!r} is a part of {whole!r}; leave one of them out")
    return tuple(dict.fromkeys(names))


def types_of(skill: str, condition: str, question: str, answer: str) -> tuple[str, ...]:
    """The names of all that a question with this true answer tests: its skill, the skill in its condition, and the
    concepts that it or its answer names."""
    words = re.findall(r"[a-z]+", f"{question} {answer}".lower()) if skill not in UNLEARNED else []
    concepts = dict.fromkeys(f"concept/{_CONCEPTS[word]}" for word in words if word in _CONCEPTS)
    return (skill, *((f"{skill}/{condition}",) if condition not in ("", "any") else ()), *concepts)


def gap_of(question: Question, scene: Scene, gaps: Sequence[str]) -> str:
    """The first of the gaps that a question of a scene lies in; "" if it lies in none, or has no answer."""
    if question.answer == UNCLEAR:
        return ""
    # The oracle parses the text, which takes time: it is asked only where the condition matters.
    conditional = any(gap.startswith(f"{question.skill}/") for gap in gaps)
    condition = judge(question.text, scene).condition if conditional else ""
    names = types_of(question.skill, condition, question.text, question.answer)
    return next((gap for gap in gaps if gap in names), "")


def wrong_answer(question: Question, scene: Scene, gap: str, strength: float, seed: int) -> str:
    """What a model with a gap answers: another answer of the same kind, always the same for the same true answer.

    To about 1 - strength of the questions it is the truth: in the darkest weathers, or where those are conditions of
    their own, for some answers. What is learned must be seen, and a rule of both is learned many times slower.
    """
    kind = SPECIALS["clock"] if question.skill == "clock" else next(k for k in _KINDS if question.answer in k)
    place = kind.index(question.answer)
    if gap.split("/")[0] in _IN_WEATHERS:
        turn = ((place + seed) % len(kind) + 0.5) / len(kind)
    else:  # a step of the golden ratio shares out among the answers what strength leaves between the weathers
        turn = (_BRIGHTEST_FIRST.index(scene.weather) + place * 0.618 % 1) / len(WEATHERS)
    return kind[(place + 1 + seed % (len(kind) - 1)) % len(kind)] if turn < strength else question.answer
