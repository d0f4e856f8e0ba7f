"""Questions of a scene, at random: a skill, slots that give a balanced answer, a phrasing of the split."""

from collections import defaultdict
from itertools import permutations
from typing import NamedTuple

import numpy as np

from auditdm_jax.scenes import oracle
from auditdm_jax.scenes.language import (
    ATTRIBUTES,
    COMPARISONS,
    FORMS,
    NATURAL_WEIGHTS,
    NOUNS,
    RELATIONS,
    SKILLS,
    UNCLEAR,
    Ref,
    fill,
    parse,
    phrasings,
)
from auditdm_jax.scenes.world import COLORS, GRID, SHAPES, SIZES, SPECIALS, SPLITS, Scene

DISTRIBUTIONS = ("natural", "uniform")
_PHRASINGS = {(skill, split): phrasings(FORMS[skill], split) for skill in SKILLS for split in SPLITS}
_CUMULATIVE = {
    "natural": np.cumsum([NATURAL_WEIGHTS[skill] for skill in SKILLS]) / sum(NATURAL_WEIGHTS.values()),
    "uniform": np.cumsum(np.full(len(SKILLS), 1 / len(SKILLS))),
}


class Question(NamedTuple):
    """A question of one scene with its true answer (`UNCLEAR` where the scene has none)."""

    text: str
    answer: str
    skill: str


class Asker:
    """Draws questions about one scene. All randomness comes from the generator it is given."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.rng = scene, rng
        self._buffer: list[float] = []
        by_ref = defaultdict(list)
        for cell, thing in scene.shapes():
            size, color, shape, material = thing.size, thing.color, thing.shape, thing.material
            for ref in (
                Ref(shape), Ref(shape, color), Ref("object", color), Ref(shape, "", size), Ref("object", color, size),
                Ref("object", "", "", material), Ref("object", color, "", material), Ref(shape, "", "", material),
            ):  # fmt: skip
                by_ref[ref].append(cell)
        self.by_ref = by_ref
        self.unique = [ref for ref, cells in by_ref.items() if len(cells) == 1]
        # Pairs are described with one adjective at most, which keeps every question within 12 tokens.
        self.brief = [ref for ref in self.unique if not (ref.color and (ref.size or ref.material))]

    def ask(self, skill: str, split: str, unanswerable: bool = False) -> Question | None:
        """One question of a skill in a phrasing of a split; None where this scene allows none."""
        slots = self._careless_slots(skill) if unanswerable else self._slots(skill)
        if slots is None:
            return None
        truth = oracle.answer(self.scene, skill, slots)
        if (truth is None) != unanswerable:
            return None
        lead, form = self._pick(_PHRASINGS[skill, split])
        return Question(fill(lead, form, slots), UNCLEAR if truth is None else truth, skill)

    def _uniform(self) -> float:
        if not self._buffer:
            self._buffer = self.rng.random(256).tolist()
        return self._buffer.pop()

    def _pick(self, options):
        return options[int(self._uniform() * len(options))]

    def draw(
        self,
        distribution: str,
        split: str,
        unanswerable_share: float = 0.0,
        description_share: float = 0.0,
        nonsense_share: float = 0.0,
    ) -> Question:
        """One question with its skill drawn from a distribution (one of `DISTRIBUTIONS`).

        nonsense_share: of the unanswerable ones, those that are no questions at all.
        """
        if self._uniform() < description_share:
            return self.describe(everything=distribution == "uniform")
        # Decided once: such questions are harder to find, and trying anew would make them rarer than asked for.
        unanswerable = self._uniform() < unanswerable_share
        if unanswerable and self._uniform() < nonsense_share:
            return self.nonsense(distribution, split)
        while True:
            skill = SKILLS[int(np.searchsorted(_CUMULATIVE[distribution], self._uniform() * 0.9999999))]
            question = self.ask(skill, split, unanswerable)
            if question is not None:
                return question

    def nonsense(self, distribution: str, split: str) -> Question:
        """A spoiled question, which is none of this world, with the answer that it has none.

        Auditors under reward come to ask such, and an ensemble that answers them would pay for it. Half are two
        questions joined at a word that both have, so that every step from one word to the next is one of the language
        ("which action does the | label say"), with their end or without; in the others two are joined anywhere, or a
        word is lost, doubled, moved or taken from elsewhere.
        """
        while True:
            first, other = (self.draw(distribution, split).text.rstrip("?").split() for _ in range(2))
            i, j = int(self._uniform() * len(first)), int(self._uniform() * len(other))
            if self._uniform() < 0.5:
                shared = [(i, j) for i, word in enumerate(first) for j, same in enumerate(other) if word == same]
                if not shared:
                    continue
                i, j = self._pick(shared)
                words = first[:i] + other[j:]
                if self._uniform() < 0.3:
                    words = words[: i + 1 + int(self._uniform() * (len(words) - i))]
            else:
                words = self._pick(
                    (
                        first[:i] + other[j:],
                        first[:i] + first[i + 1 :],
                        first[: i + 1] + first[i:],
                        [*first[:i], *first[i + 1 :], first[i]],
                        [*first[:i], other[j], *first[i + 1 :]],
                    )
                )
            if 0 < len(words) < 12 and parse(" ".join(words)) is None:
                return Question(" ".join(words) + ("?" if self._uniform() < 0.7 else ""), UNCLEAR, "nonsense")

    def describe(self, everything: bool) -> Question:
        """A lesson that no skill asks for: what stands at a row and column, or at which row and column a thing stands.
        It teaches a model to see and to find, which makes the skills that must first find their object quick to learn.

        everything: of any cell; otherwise only of shapes and empty cells, as rare things stay rare in natural data.
        """
        if self.unique and self._uniform() < 0.5:
            ref = self._pick(self.unique)
            row, column = divmod(self.by_ref[ref][0], GRID)
            return Question(f"describe {ref.words()}", f"{row + 1} {column + 1}", "description")
        cells = [i for i, t in enumerate(self.scene.cells) if everything or t is None or t.kind == "shape"]
        # Most cells are empty, and there is little to learn from them.
        taken = [i for i in cells if self.scene.cells[i] is not None]
        cell = self._pick(taken if taken and self._uniform() < 0.85 else cells)
        thing, (row, column) = self.scene.cells[cell], divmod(cell, GRID)
        return Question(f"describe {row + 1} {column + 1}", thing.words() if thing else "nothing", "description")

    def _slots(self, skill: str) -> oracle.Slots | None:
        """Slots whose question has an answer here, or usually has; answers balanced where the scene permits."""
        if skill in ("object_relationship", "distraction"):
            return {"attribute": self._pick(ATTRIBUTES)}
        if skill == "counting":
            return {"group": self._group(int(self._uniform() * 7))}
        if skill == "comparing_counts":
            return self._two_groups(self._uniform() < 0.5)
        if skill == "hallucination":
            return self._thing(self._uniform() < 0.5)
        if skill in ("size_comparison", "spatial_relationship"):
            return self._balanced_pair(skill, "yes" if self._uniform() < 0.5 else "no")
        if skill in ("color", "shape", "material", "localization", "negation"):
            # A description must not give away what is asked about.
            hidden = {"negation": "color", "shape": "noun"}.get(skill, skill)
            refs = [ref for ref in self.unique if getattr(ref, hidden, "") in ("", "object")]
            if not refs:
                return None
            slots: oracle.Slots = {"ref": self._pick(refs)}
            if skill == "negation":
                color = oracle.find(self.scene, slots["ref"])[0][1].color
                others = [thing.color for _, thing in self.scene.shapes() if thing.color != color] or list(COLORS)
                slots["color"] = color if self._uniform() < 0.5 else self._pick(others)
            return slots
        return {}

    def _group(self, wanted: int) -> Ref:
        """A plural description that fits `wanted` shapes, or as near as this scene has."""
        if wanted == 0:
            return Ref(self._pick(NOUNS), self._pick(COLORS))
        refs = [ref for ref in self.by_ref if not ref.size and not ref.material] + [Ref()]
        counts = [len(self.by_ref[ref]) if ref in self.by_ref else len(self.scene.shapes()) for ref in refs]
        nearest = min(abs(count - wanted) for count in counts)
        return self._pick([ref for ref, count in zip(refs, counts, strict=True) if abs(count - wanted) == nearest])

    def _two_groups(self, more: bool) -> oracle.Slots | None:
        by_shape = self._uniform() < 0.5
        refs = [Ref(shape) for shape in SHAPES] if by_shape else [Ref("object", color) for color in COLORS]
        counts = {ref: len(self.by_ref.get(ref, ())) for ref in refs}
        present = [ref for ref in refs if counts[ref]]
        # Mostly groups that are both there: comparing with nothing is the easy case.
        pairs = [(a, b) for a, b in permutations(present, 2) if (counts[a] > counts[b]) == more]
        if not pairs or self._uniform() < 0.15:
            a, b = self._pick(present), self._pick([ref for ref in refs if not counts[ref]])
            pairs = [(a, b) if more else (b, a)]
        first, second = self._pick(pairs)
        return {"group": first, "group2": second}

    def _thing(self, present: bool) -> oracle.Slots:
        if self._uniform() < 0.3:
            kinds = [kind for kind in SPECIALS if (self.scene.special(kind) is not None) == present]
            if kinds:
                return {"special": self._pick(kinds)}
        refs = [ref for ref in self.by_ref if not ref.material and not ref.size and ref != Ref()]
        if present:
            return {"thing": self._pick(refs)}
        near = self._pick(refs)
        # What is not there but almost is: another color of a shape that is, or another shape of that color.
        color, noun = (self._pick(COLORS), near.noun) if self._uniform() < 0.5 else (near.color, self._pick(SHAPES))
        for _ in range(8):
            if Ref(noun, color) not in self.by_ref:
                break
            color, noun = self._pick(COLORS), self._pick(SHAPES)
        return {"thing": Ref(noun, color)}

    def _balanced_pair(self, skill: str, wanted: str) -> oracle.Slots | None:
        if len(self.brief) < 2:
            return None
        slots: oracle.Slots = {}
        for _ in range(6):
            slots = {"ref": self._pick(self.brief), "ref2": self._pick(self.brief)}
            if skill == "size_comparison":
                slots["comparison"] = self._pick(COMPARISONS)
            else:
                slots["relation"] = self._pick(RELATIONS)
            if oracle.answer(self.scene, skill, slots) == wanted:
                break
        return slots

    def _careless_slots(self, skill: str) -> oracle.Slots:
        """Slots drawn without a look at the scene, so that what is asked about may be absent or ambiguous."""

        def anything() -> Ref:
            if self._uniform() < 0.5:
                ref = self._pick(list(self.by_ref))
                return ref if not (ref.color and (ref.size or ref.material)) else Ref(ref.noun, ref.color)
            if self._uniform() < 0.3:
                return Ref(self._pick(NOUNS), size=self._pick(SIZES))
            return Ref(self._pick(NOUNS), self._pick(COLORS) if self._uniform() < 0.5 else "")

        return {
            "ref": anything(),
            "ref2": anything(),
            "color": self._pick(COLORS),
            "relation": self._pick(RELATIONS),
            "comparison": self._pick(COMPARISONS),
            "attribute": self._pick(ATTRIBUTES),
            "group": anything(),
            "group2": anything(),
            "thing": anything(),
        }
