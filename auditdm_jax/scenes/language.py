"""The world's language: leads, the forms of every skill's question, and the words that fill their slots.

A phrasing is a lead and a form. Leads and forms are shared by the splits, but no phrasing (their combination) is:
a model tested on unseen phrasings must put together parts it knows.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from auditdm_jax.scenes.world import COLORS, MATERIALS, SHAPES, SIZES, SPECIALS

LEADS = ("", "say", "look", "now", "so", "please", "well")
RELATIONS = ("left of", "right of", "above", "below")
COMPARISONS = ("larger", "smaller")
ATTRIBUTES = ("shape", "color", "pattern")
UNCLEAR = "unclear"

# Slots: {ref} a definite description of one shape, {group} a plural one, {thing} anything that may exist.
FORMS: dict[str, tuple[str, ...]] = {
    "color": ("what color is the {ref}?", "which color does the {ref} have?"),
    "shape": ("what shape is the {ref}?", "which shape does the {ref} have?"),
    "counting": ("how many {group} are there?", "what number of {group} is there?"),
    "size_comparison": (
        "is the {ref} {comparison} than the {ref2}?",
        "does the {ref} look {comparison} than the {ref2}?",
    ),
    "spatial_relationship": ("is the {ref} {relation} the {ref2}?", "does the {ref} lie {relation} the {ref2}?"),
    "object_relationship": ("what {attribute} is inside the frame?", "which {attribute} does the frame contain?"),
    "small_object": ("what color is the tiny dot?", "which color does the tiny dot have?"),
    "hallucination": ("is there any {thing}?", "can you see any {thing}?"),
    "material": ("what pattern does the {ref} have?", "which pattern is on the {ref}?"),
    "action": ("what is the person doing?", "which action does the person perform?"),
    "emotion": ("how does the face feel?", "what emotion does the face show?"),
    "weather": ("what is the weather?", "which weather does the image show?"),
    "clock": ("what hour does the clock show?", "which hour is it on the clock?"),
    "sign": ("what does the sign mean?", "which meaning does the sign have?"),
    "small_text": ("what does the label say?", "which word is on the label?"),
    "world_knowledge": ("which country has this flag?", "what country does the flag stand for?"),
    "distraction": ("what {attribute} is behind the bars?", "which {attribute} do the bars hide?"),
    "comparing_counts": ("are there more {group} than {group2}?", "do the {group} outnumber the {group2}?"),
    "negation": ("is the {ref} not {color}?", "does the {ref} lack {color}?"),
    "localization": ("where is the {ref}?", "in which corner is the {ref}?"),
}  # fmt: skip
SKILLS = tuple(FORMS)
ALWAYS_ANSWERABLE = ("counting", "hallucination", "comparing_counts", "weather")

# How often each skill is asked about in the natural distribution: a few common ones and a long tail.
NATURAL_WEIGHTS = {
    "color": 20.0,
    "shape": 17.0,
    "hallucination": 14.0,
    "counting": 13.0,
    "localization": 9.0,
    "spatial_relationship": 8.0,
    "size_comparison": 5.0,
    "material": 3.5,
    "weather": 3.0,
    "comparing_counts": 2.0,
    "negation": 1.5,
    "object_relationship": 1.0,
    "action": 1.2,
    "emotion": 1.2,
    "clock": 1.2,
    "sign": 1.2,
    "small_text": 1.2,
    "world_knowledge": 1.2,
    "distraction": 1.2,
    "small_object": 1.2,
}

NOUNS = (*SHAPES, "object")
_PLURALS = {noun: "crosses" if noun == "cross" else noun + "s" for noun in NOUNS}
_SINGULAR = {plural: noun for noun, plural in _PLURALS.items()}


class Ref(NamedTuple):
    """A description of shapes; an empty attribute (or the noun "object") says nothing about it."""

    noun: str = "object"
    color: str = ""
    size: str = ""
    material: str = ""

    def words(self, plural: bool = False) -> str:
        noun = _PLURALS[self.noun] if plural else self.noun
        return " ".join(word for word in (self.size, self.color, self.material, noun) if word)


def phrasings(forms: Sequence[str], split: str) -> list[tuple[str, str]]:
    """The (lead, form) pairs that belong to one split, of up to three forms; five in seven train, one each of the
    others."""
    return [
        (lead, form)
        for i, lead in enumerate(LEADS)
        for j, form in enumerate(forms)
        # The empty lead (i = 0) is always a training phrasing, so that plain questions are known to every model.
        if {1 + 2 * j: "validation", 2 + 2 * j: "test"}.get(i, "train") == split
    ]


def one_of(words: Iterable[str], name: str) -> str:
    """A pattern of any of the words, as the group `name`."""
    return f"(?P<{name}>{'|'.join(words)})"


def ref_pattern(name: str, plural: bool = False) -> str:
    """A pattern of any `Ref`, as groups that `rules` puts together again."""
    nouns = _SINGULAR if plural else NOUNS
    optional = [("size", SIZES), ("color", COLORS), ("material", MATERIALS)]
    prefix = "".join(f"(?:{one_of(words, f'{name}_{key}')} )?" for key, words in optional)
    return prefix + one_of(nouns, f"{name}_noun")


_SLOT_PATTERNS = {
    "ref": ref_pattern("ref"),
    "ref2": ref_pattern("ref2"),
    "group": ref_pattern("group", plural=True),
    "group2": ref_pattern("group2", plural=True),
    "thing": f"(?:{one_of(SPECIALS, 'special')}|{ref_pattern('thing')})",
    "relation": one_of(RELATIONS, "relation"),
    "comparison": one_of(COMPARISONS, "comparison"),
    "attribute": one_of(ATTRIBUTES, "attribute"),
    "color": one_of(COLORS, "color"),
}


def plain(text: str) -> str:
    """Lower case, words and digits only, single spaces: how a question is compared with the forms."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


Rules = list[tuple[str, re.Pattern]]


def rules(forms_by_name: Mapping[str, Iterable[str]], slot_patterns: Mapping[str, str]) -> Rules:
    """Patterns of all forms with and without a lead, each with its name."""
    leads = "|".join(plain(lead) for lead in LEADS if lead)
    found = []
    for name, forms in forms_by_name.items():
        for form in forms:
            pieces = re.split(r"{(\w+)}", form)
            body = "".join(slot_patterns[p] if i % 2 else re.sub(r"[^a-z ]", "", p) for i, p in enumerate(pieces))
            found.append((name, re.compile(f"(?:(?:{leads}) )?{body}")))
    return found


def match(text: str, grammar: Rules) -> tuple[str, dict[str, str | Ref]] | None:
    """The name of the first rule that fits a whole text, and its slots; None if none does."""
    words = plain(text)
    for name, rule in grammar:
        found = rule.fullmatch(words)
        if found:
            return name, _slots(found.groupdict())
    return None


@lru_cache(maxsize=1)
def _grammar() -> Rules:
    return rules(FORMS, _SLOT_PATTERNS)


def parse(question: str) -> tuple[str, dict[str, str | Ref]] | None:
    """Skill and slots of a question in the world's language, whoever wrote it; None if it is not one."""
    return match(question, _grammar())


def _slots(groups: dict[str, str | None]) -> dict[str, str | Ref]:
    slots: dict[str, str | Ref] = {}
    for name, value in groups.items():
        if value is None:
            continue
        if not name.endswith("_noun"):
            if "_" not in name:
                slots[name] = value
            continue
        slot = name.removesuffix("_noun")
        noun = _SINGULAR.get(value, value)
        adjectives = {key: groups[f"{slot}_{key}"] or "" for key in ("color", "size", "material")}
        slots[slot] = Ref(noun, **adjectives)
    return slots


def fill(lead: str, form: str, slots: dict[str, str | Ref]) -> str:
    """The text of a question: a lead and a form with its slots filled."""
    words = {
        name: slot.words(name.startswith("group")) if isinstance(slot, Ref) else slot for name, slot in slots.items()
    }
    if "special" in words:
        words["thing"] = words["special"]
    return f"{lead} {form.format(**words)}".strip()
