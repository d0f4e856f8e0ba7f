"""checks.py: real edits pass, and every way in which a renderer spoils a picture is told apart."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from auditdm_jax.checks import SIDE, faults_of_edits, faults_of_generations, grey, registration, small
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.world import COLORS, Scene, Thing

COUNT = 64


@cache
def before():
    return scenes_of("train", 0, COUNT)


def edited():
    """A thing removed, or a large circle of another color put in the first free cell, in turn."""
    pictures = []
    for number, scene in enumerate(before()[0]):
        cells = list(scene.cells)
        if number % 2:
            cells[next(i for i, cell in enumerate(cells) if cell)] = None
        else:
            cells[cells.index(None)] = Thing("shape", COLORS[number % 7], "circle", "large", "solid")
        pictures.append(render(Scene(scene.weather, tuple(cells))))
    return np.stack(pictures)


def noisy(images, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def shifted(images, down, right):
    padded = np.pad(images, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
    return padded[:, 8 - down : 72 - down, 8 - right : 72 - right]


def cropped(images, margin):
    inside = images[:, margin:-margin, margin:-margin]
    return np.stack([np.asarray(Image.fromarray(image).resize((SIDE, SIDE))) for image in inside])


def rates(old, new):
    faults = faults_of_edits(jnp.asarray(old), jnp.asarray(new))
    return {name: float(getattr(faults, name).mean()) for name in ("collapsed", "no_effect", "drifted")}


def slips(old, new):
    """The shift, in pixels of 64, and the scale that lays the old images best over the new ones."""
    _, shift, scale = registration(*(grey(small(jnp.asarray(images))) for images in (old, new)))
    return np.asarray(shift), np.asarray(scale)


@pytest.mark.parametrize("spoil", [lambda x: x, lambda x: noisy(x, 6)])
def test_edits_pass(spoil):
    found = rates(before()[1], spoil(edited()))
    assert found["collapsed"] == 0
    assert found["no_effect"] <= 0.03
    assert found["drifted"] <= 0.03


def test_an_image_given_back_has_no_effect():
    assert rates(before()[1], before()[1]) == {"collapsed": 0, "no_effect": 1, "drifted": 0}
    assert rates(before()[1], noisy(before()[1], 4))["no_effect"] == 1


@pytest.mark.parametrize(("down", "right"), [(0, 2), (3, 3), (-2, 6)])
def test_a_shift_is_measured(down, right):
    spoiled = shifted(edited(), down, right)
    assert rates(before()[1], spoiled)["drifted"] > 0.9
    shift, scale = slips(before()[1], spoiled)
    assert (shift == (down, right)).all(-1).mean() > 0.9
    assert (scale == 1).mean() > 0.9


@pytest.mark.parametrize("margin", [2, 4, 6])
def test_a_crop_is_measured(margin):
    spoiled = cropped(edited(), margin)
    assert rates(before()[1], spoiled)["drifted"] > 0.9
    assert abs(np.median(slips(before()[1], spoiled)[1]) - SIDE / (SIDE - 2 * margin)) < 0.07


def test_blank_and_noise_have_collapsed():
    images = before()[1]
    noise = np.random.default_rng(1).integers(0, 256, images.shape).astype(np.uint8)
    for spoiled in (np.full_like(images, 130), noise, np.zeros_like(images)):
        assert rates(images, spoiled) == {"collapsed": 1, "no_effect": 0, "drifted": 0}
        assert faults_of_generations(jnp.asarray(spoiled)).collapsed.all()
    assert not faults_of_generations(jnp.asarray(images)).collapsed.any()


def test_a_fault_counts_once_and_sizes_do_not_matter():
    large = [np.repeat(np.repeat(x, 3, 1), 3, 2) for x in (before()[1], shifted(edited(), 0, 4))]
    faults = faults_of_edits(*map(jnp.asarray, large))
    assert int(sum(np.asarray(f).astype(int) for f in (faults.collapsed, faults.no_effect, faults.drifted)).max()) == 1
    assert float(faults.drifted.mean()) > 0.9
    assert (slips(*large)[0][np.asarray(faults.drifted)] == (0, 4)).all(-1).mean() > 0.9
