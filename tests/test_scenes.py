"""scenes/world.py and scenes/render.py: one scene a seed, one split a scene, one cell a thing."""

import re
import zlib
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.scenes import language
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import (
    CELL,
    COLORS,
    GRID,
    MATERIALS,
    SHAPES,
    SIZE,
    SIZES,
    SPECIALS,
    SPLITS,
    WEATHERS,
    Scene,
    Thing,
    caption,
    quadrant,
    sample_scene,
    split_of,
)

NUM_CELLS = GRID * GRID
MARKS = ({}, {"framed": True}, {"barred": True})
EVERYTHING: list[Thing | None] = [
    None,
    *(
        Thing("shape", color, shape, size, material, **mark)
        for color, shape, size, material, mark in product(COLORS, SHAPES, SIZES, MATERIALS, MARKS)
    ),
    *(Thing(kind, value=value) for kind, values in SPECIALS.items() for value in values),
]


def scenes(split: str, count: int) -> list[Scene]:
    return [sample_scene(split, seed) for seed in range(count)]


def cells_of(picture: np.ndarray) -> np.ndarray:
    """[64, 64, 3] -> [16, 16, 16, 3]: the pictures of the cells, row by row."""
    grid = picture.reshape(GRID, CELL, GRID, CELL, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(NUM_CELLS, CELL, CELL, 3)


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_a_function_of_split_and_seed(split):
    first, again = scenes(split, 60), scenes(split, 60)
    assert first == again
    assert len(set(first)) == 60
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, again, strict=True))


def test_scenes_and_pixels_are_those_the_zoo_was_trained_on():
    drawn = [scene for split in SPLITS for scene in scenes(split, 40)]
    graphs = zlib.crc32(repr([tuple(scene) for scene in drawn]).encode())
    pixels = zlib.crc32(np.stack([render(scene) for scene in drawn]).tobytes())
    assert (graphs, pixels) == (3239832233, 2905971377), "rebuild the zoo, then write the new sums here"


def test_splits_never_share_a_scene():
    drawn = {split: scenes(split, 150) for split in SPLITS}
    for split, of_split in drawn.items():
        assert {split_of(scene) for scene in of_split} == {split}
    for a, b in combinations(SPLITS, 2):
        assert not set(drawn[a]) & set(drawn[b])
    # By content, not by object: an equal graph made elsewhere falls into the same split.
    scene = drawn["test"][0]
    assert split_of(Scene(scene.weather, tuple(thing and Thing(*thing) for thing in scene.cells))) == "test"


def test_splits_never_share_a_phrasing():
    for skill in language.SKILLS:
        of_split = {split: language.phrasings(language.FORMS[skill], split) for split in SPLITS}
        every = [pair for pairs in of_split.values() for pair in pairs]
        assert sorted(every) == sorted(product(language.LEADS, language.FORMS[skill]))
        assert {split: len(pairs) for split, pairs in of_split.items()} == {"train": 10, "validation": 2, "test": 2}
        # Nor does any word first meet a model outside training.
        assert {part for pair in of_split["train"] for part in pair} == {*language.LEADS, *language.FORMS[skill]}


@pytest.mark.parametrize("split", SPLITS)
def test_questions_keep_to_the_phrasings_of_their_split(split):
    for seed, skill in enumerate(language.SKILLS * 4):
        asker = Asker(sample_scene(split, seed), np.random.default_rng(seed))
        question = asker.ask(skill, split)
        if question is None:
            continue
        _, slots = language.parse(question.text)
        used = {
            s
            for s in SPLITS
            for p in language.phrasings(language.FORMS[skill], s)
            if language.fill(*p, slots) == question.text
        }
        assert used == {split}


def test_scenes_hold_what_the_world_promises():
    drawn = scenes("train", 300)
    for scene in drawn:
        shapes = [thing for _, thing in scene.shapes()]
        assert len(scene.cells) == NUM_CELLS
        assert 1 <= len(shapes) <= 8
        assert sum(thing.framed for thing in shapes) <= 1
        assert sum(thing.barred for thing in shapes) <= 1
        assert not any(thing.framed and thing.barred for thing in shapes)
        assert set(scene.cells) <= set(EVERYTHING)
        for kind in SPECIALS:
            assert sum(thing is not None and thing.kind == kind for thing in scene.cells) <= 1
    for kind, values in SPECIALS.items():
        found = [scene.special(kind) for scene in drawn]
        assert {thing.value for thing in found if thing} == set(values)
        assert 0.4 < sum(thing is not None for thing in found) / len(drawn) < 0.6
    assert {scene.weather for scene in drawn} == set(WEATHERS)
    # From nearly empty to crowded, and never full: the weather always shows.
    filled = [sum(thing is not None for thing in scene.cells) for scene in drawn]
    assert min(filled) <= 2
    assert 12 <= max(filled) < NUM_CELLS


@pytest.mark.parametrize("weather", WEATHERS)
def test_every_two_different_things_look_different(weather):
    padded = EVERYTHING + [None] * (-len(EVERYTHING) % NUM_CELLS)
    pictures = [
        cells_of(render(Scene(weather, tuple(padded[i : i + NUM_CELLS])))) for i in range(0, len(padded), NUM_CELLS)
    ]
    different = {cell.tobytes() for cell in np.concatenate(pictures)}
    assert len(different) == len(EVERYTHING)


@settings(max_examples=60)
@given(seed=st.integers(0, 500), cell=st.integers(0, NUM_CELLS - 1), thing=st.sampled_from(EVERYTHING))
def test_a_thing_changes_the_pixels_of_its_own_cell_only(seed, cell, thing):
    scene = sample_scene("train", seed)
    changed = scene._replace(cells=(*scene.cells[:cell], thing, *scene.cells[cell + 1 :]))
    before, after = render(scene), render(changed)
    assert after.shape == (SIZE, SIZE, 3)
    assert after.dtype == np.uint8
    differs = (before != after).any(axis=-1)
    top, left = CELL * (cell // GRID), CELL * (cell % GRID)
    inside = np.zeros_like(differs)
    inside[top : top + CELL, left : left + CELL] = True
    assert not differs[~inside].any()
    assert differs[inside].any() == (thing != scene.cells[cell])


def test_weather_shows_in_every_empty_cell():
    pictures = [cells_of(render(Scene(weather, (None,) * NUM_CELLS))) for weather in WEATHERS]
    assert len({cell.tobytes() for picture in pictures for cell in picture}) == len(WEATHERS)


def test_pictures_may_be_written_to():
    scene = sample_scene("train", 0)
    before = render(scene)
    render(scene)[:] = 0  # were it the cache's own array, the next picture would be black
    assert np.array_equal(render(scene), before)


def scene_from_caption(text: str) -> Scene:
    """Draws the scene again from its caption alone."""
    weather, *parts = text.split(", ")
    cells: list[Thing | None] = [None] * NUM_CELLS
    for part in parts:
        words, row, column = re.fullmatch(r"(.+) at ([1-4]) ([1-4])", part).groups()
        plain = words.removesuffix(" in a frame").removesuffix(" behind bars").split()
        if len(plain) == 2:
            thing = Thing(plain[0], value=plain[1])
        else:
            size, color, material, shape = plain
            framed, barred = words.endswith(" in a frame"), words.endswith(" behind bars")
            thing = Thing("shape", color, shape, size, material, framed, barred)
        cells[GRID * (int(row) - 1) + int(column) - 1] = thing
    return Scene(weather.removesuffix(" weather"), tuple(cells))


def test_a_caption_names_everything():
    drawn = scenes("validation", 60)
    assert [scene_from_caption(caption(scene)) for scene in drawn] == drawn
    square = Thing("shape", "red", "square", "large", "striped", framed=True)
    by_hand = Scene("rainy", (None, Thing("clock", value="12"), *(None,) * 13, square))
    assert caption(by_hand) == "rainy weather, clock 12 at 1 2, large red striped square in a frame at 4 4"


def test_quadrants():
    tops, bottoms = ["top left"] * 2 + ["top right"] * 2, ["bottom left"] * 2 + ["bottom right"] * 2
    assert [quadrant(cell) for cell in range(NUM_CELLS)] == tops * 2 + bottoms * 2
