"""scenes/parser.py: clean pictures are read exactly, noisy and softened ones nearly so, and noise is refused."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.parser import cells_of, images_of, pictures, read_scenes, things
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import SPLITS, WEATHERS, sample_scene


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_clean_pictures_are_read_exactly(seed, split):
    scene = sample_scene(split, seed)
    (reading,) = read_scenes(render(scene)[None])
    assert reading.scene == scene
    assert not reading.distances.any()
    assert reading.readable().all()


@pytest.mark.parametrize("weather", range(len(WEATHERS)))
def test_every_cell_has_a_picture_of_its_own(weather):
    table = pictures(WEATHERS[weather])
    assert len(np.unique(table, axis=0)) == len(things()) == len(set(things()))
    # Beside empty cells, by which the weather is told, each is read as itself.
    indices = np.zeros((len(things()), 16), int)
    indices[:, 5] = np.arange(len(things()))
    indices = indices[::40]
    readings = read_scenes(images_of(np.full(len(indices), weather), indices))
    assert [reading.scene.cells[5] for reading in readings] == list(things()[::40])
    assert {reading.scene.weather for reading in readings} == {WEATHERS[weather]}


def test_pictures_are_those_of_the_renderer():
    scenes, images = scenes_of("train", 0, 8)
    known = {thing: index for index, thing in enumerate(things())}
    weathers = np.array([WEATHERS.index(scene.weather) for scene in scenes])
    indices = np.array([[known[thing] for thing in scene.cells] for scene in scenes])
    np.testing.assert_array_equal(images_of(weathers, indices), images)
    assert cells_of(images).shape == (8, 16, 768)


def softened(images: np.ndarray, share: float) -> np.ndarray:
    """Each pixel mixed with its four neighbours, as a decoder's blur or a strong JPEG does."""
    padded = np.pad(images.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    sides = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return ((1 - share) * images + share * sides / 4).round().astype(np.uint8)


def share_read(images: np.ndarray, scenes) -> float:
    """Of the cells that hold a thing."""
    seen = [thing for reading in read_scenes(images) for thing in reading.scene.cells]
    true = [thing for scene in scenes for thing in scene.cells]
    return float(np.mean([a == b for a, b in zip(seen, true, strict=True) if b is not None]))


def test_noise_and_softness_are_borne():
    scenes, images = scenes_of("test", 0, 100)
    noise = np.random.default_rng(0).normal(0, 12, images.shape)
    noisy = (images + noise).round().clip(0, 255).astype(np.uint8)
    assert share_read(noisy, scenes) > 0.99
    assert all(reading.readable().all() for reading in read_scenes(noisy))
    assert share_read(softened(images, 0.2), scenes) > 0.95


def test_what_is_no_scene_is_not_readable():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    gray = np.full((1, 64, 64, 3), 128, np.uint8)
    assert not any(reading.readable().any() for reading in read_scenes(np.concatenate([noise, gray])))


def test_it_is_fast():
    _, images = scenes_of("test", 0, 64)
    read_scenes(images)
    started = time.process_time()
    read_scenes(images)
    assert time.process_time() - started < 1
