"""scenes/edits.py: commands parse back, change what they say and nothing else, and fail with a status."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.scenes.edits import FORMS, KINDS, Edited, apply, parse, sample_edit
from auditdm_jax.scenes.language import phrasings
from auditdm_jax.scenes.tokenizer import build_tokenizer, vocabulary
from auditdm_jax.scenes.world import SPECIALS, SPLITS, Scene, Thing, sample_scene

SEEDS = st.integers(0, 10**6)
STAR = Thing("shape", "red", "star", "small", "solid", framed=True)
DOTTED_STAR = Thing("shape", "blue", "star", "small", "dotted")
SQUARE = Thing("shape", "red", "square", "large", "striped")
FACE = Thing("face", value="happy")
SCENE = Scene("sunny", (STAR, None, SQUARE, None, None, DOTTED_STAR, FACE, *(None,) * 9))


def changed(**cells: Thing | None) -> Scene:
    """`SCENE` with other things in the cells named like c0."""
    return SCENE._replace(cells=tuple(cells.get(f"c{i}", thing) for i, thing in enumerate(SCENE.cells)))


DONE = {
    "make the red star blue": ("recolor", changed(c0=STAR._replace(color="blue"))),
    "paint the solid object green": ("recolor", changed(c0=STAR._replace(color="green"))),
    "Please turn the square into a ring.": ("reshape", changed(c2=SQUARE._replace(shape="ring"))),
    "replace the blue object with a medium one": ("resize", changed(c5=DOTTED_STAR._replace(size="medium"))),
    "change the pattern of the square to solid": ("change material", changed(c2=SQUARE._replace(material="solid"))),
    "add a red ring at 1 2": ("add", changed(c1=Thing("shape", "red", "ring", "medium", "solid"))),
    "put one 8 clock in row 4 column 3": ("add", changed(c14=Thing("clock", value="8"))),
    "add an orange large dotted heart in row 1 column 4": (
        "add",
        changed(c3=Thing("shape", "orange", "heart", "large", "dotted")),
    ),
    "hide the face": ("remove", changed(c6=None)),
    "make the cell of the red star empty": ("remove", changed(c0=None)),
    "move the red star to row 2 column 1": ("move", changed(c0=None, c4=STAR)),
    "swap the face and the square": ("swap", changed(c2=FACE, c6=SQUARE)),
    "make the scene night": ("change background", SCENE._replace(weather="night")),
    "make the face sad": ("change value", changed(c6=Thing("face", value="sad"))),
}
IMPOSSIBLE = {
    "make the star blue": "recolor",  # there are two
    "make the ring blue": "recolor",  # there is none
    "make the red star red": "recolor",
    "add a red ring in row 1 column 1": "add",  # taken
    "add a sad face in row 1 column 2": "add",  # a scene has one face at most
    "move the face to 1 1": "move",
    "move the clock to 1 2": "move",
    "swap the red star with the solid object": "swap",  # the same
    "change the background to sunny": "change background",
    "make the face 7": "change value",
    "make the clock 7": "change value",
}
UNPARSABLE = ("", "what color is the red star?", "make it red", "make the red star bigger", "日本", "add a face at 1 2")
UNPARSABLE += ("add a red ring at 5 1", "add a ring at 1 2", "make the red star blue and the square green")


@pytest.mark.parametrize("command", DONE)
def test_by_hand(command):
    kind, scene = DONE[command]
    assert apply(command, SCENE) == Edited("done", scene, kind)


@pytest.mark.parametrize("command", IMPOSSIBLE)
def test_what_cannot_be_done_leaves_the_scene(command):
    assert apply(command, SCENE) == Edited("impossible", SCENE, IMPOSSIBLE[command])


@pytest.mark.parametrize("command", UNPARSABLE)
def test_other_texts_are_no_commands(command):
    assert apply(command, SCENE) == Edited("unparsable", SCENE)


@given(SEEDS, st.sampled_from(SPLITS))
def test_a_drawn_command_does_exactly_what_it_was_drawn_for(seed, split):
    scene = sample_scene(split, seed)
    edit = sample_edit(scene, np.random.default_rng(seed), split)
    assert apply(edit.command, scene) == Edited("done", edit.scene, edit.kind)
    different = [
        cell for cell, pair in enumerate(zip(scene.cells, edit.scene.cells, strict=True)) if pair[0] != pair[1]
    ]
    assert len(different) == {"move": 2, "swap": 2, "change background": 0}.get(edit.kind, 1)
    assert (scene.weather != edit.scene.weather) == (edit.kind == "change background")
    # Still a scene of the world.
    kinds = Counter(thing.kind for thing in edit.scene.cells if thing)
    assert all(kinds[kind] <= 1 for kind in SPECIALS)


@given(st.text())
def test_any_text_is_judged(text):
    assert apply(text, SCENE).status in ("done", "impossible", "unparsable")


def drawn(split: str, count: int):
    rng = np.random.default_rng(0)
    return [sample_edit(sample_scene(split, seed), rng, split) for seed in range(count)]


def test_kinds_are_drawn_equally_where_scenes_allow_them():
    counts = Counter(edit.kind for edit in drawn("train", 1000))
    assert set(counts) == set(KINDS)
    assert min(counts.values()) > 60


def test_splits_share_no_phrasing():
    for kind in KINDS:
        of_split = {split: set(phrasings(FORMS[kind], split)) for split in SPLITS}
        assert all(of_split.values())
        for a, b in combinations(SPLITS, 2):
            assert not of_split[a] & of_split[b]


def test_commands_are_whole_words_of_the_vocabulary():
    words = set(vocabulary())
    texts = [edit.command for split in SPLITS for edit in drawn(split, 500)]
    used = set(re.findall(r"\w+", " ".join(texts)))
    assert used <= words
    tokens = build_tokenizer()(texts, add_special_tokens=False)["input_ids"]
    assert [len(row) for row in tokens] == [len(text.split()) for text in texts]
    assert max(map(len, tokens)) <= 14


def test_forms_are_in_the_vocabulary():
    words = re.sub(r"{\w+}", "", " ".join(form for forms in FORMS.values() for form in forms)).split()
    assert set(words) <= set(vocabulary())


def test_no_command_is_of_two_kinds():
    """The first rule that fits wins: the order of the forms must not matter."""
    for edit in drawn("train", 500):
        parsed = parse(edit.command)
        assert parsed is not None
        assert parsed[0] == edit.kind
