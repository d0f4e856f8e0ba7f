"""scenes/captions.py: the exact inverse of captions, and tolerant of those that others wrote."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditdm_jax.scenes.captions import parse_caption, parse_thing
from auditdm_jax.scenes.world import SPLITS, Scene, Thing, caption, sample_scene

STAR = Thing("shape", "red", "star", "medium", "solid")


@given(st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_it_inverts_captions_in_any_order(seed, split):
    scene = sample_scene(split, seed)
    text = caption(scene)
    assert parse_caption(text) == scene
    parts = text.split(", ")
    random.Random(seed).shuffle(parts)
    assert parse_caption(", ".join(parts)) == scene
    assert parse_caption(", ".join(parts).upper() + ".") == scene


def test_what_is_not_named_is_not_there():
    cells = [None] * 16
    cells[4] = STAR
    assert parse_caption("a star red at 2 1") == Scene("sunny", tuple(cells))
    assert parse_caption("night weather") == Scene("night", (None,) * 16)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ,, ",
        "a cat",
        "red star",
        "star at 1 1",
        "red star at 1 5",
        "red blue star at 1 1",
        "red star at 1 1, blue ring at 1 1",
        "face sad at 1 1, face happy at 1 2",
        "face 7 at 1 1",
        "face sad in a frame at 1 1",
        "night weather, sunny weather",
    ],
)
def test_other_captions_are_refused(text):
    assert parse_caption(text) is None


def test_things_in_words():
    assert parse_thing("a red star") == STAR
    assert parse_thing("large striped pink ring behind bars") == Thing(
        "shape", "pink", "ring", "large", "striped", barred=True
    )
    assert parse_thing("happy face") == parse_thing("face happy") == Thing("face", value="happy")
    assert parse_thing("") is None
