"""studio.py: the pipelines of a run, on tiny ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pipelines

from auditdm_jax.config import Probing, RenderSettings
from auditdm_jax.errors import UserError
from auditdm_jax.studio import Studio


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Directories of a pipeline that does both, and of one that generates."""
    folder = tmp_path_factory.mktemp("pipelines")
    names = {"both": "FluxKontextPipeline", "generator": "FluxPipeline"}
    for name, kind in names.items():
        tiny_pipelines.save(kind, folder / name)
    return {name: str(folder / name) for name in names}


def studio_of(editor: str, generator: str, **settings) -> Studio:
    render = RenderSettings(**{"steps": 1, "device": "cpu"} | settings)
    studio = Studio.load(Probing(("edit", "caption"), editor=editor, generator=generator, render=render))
    assert studio is not None
    return studio


def test_who_only_asks_loads_no_pipeline():
    assert Studio.load(Probing()) is None


def test_a_pipeline_that_is_missing_is_one_line():
    with pytest.raises(UserError, match="no pipeline directory"):
        Studio.load(Probing(channels=("edit",), editor="./nowhere"))


def test_one_pipeline_for_both_is_loaded_once(named):
    studio = studio_of(named["both"], named["both"])
    assert studio.editor is studio.generator
    studio.check_size(32)
    with pytest.raises(UserError, match="30x30"):
        studio.check_size(30)


def test_who_cannot_edit_is_refused_before_the_run(named):
    with pytest.raises(UserError, match="takes no image"):
        studio_of(named["generator"], named["generator"])


def test_a_generation_is_drawn_at_its_size_and_resized_to_the_images(named):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    studio = studio_of(named["both"], named["generator"], size=48)
    assert studio.editor is not studio.generator
    made, faults = studio.render("caption", images, ["a", "b"], [0, 1])
    assert (made.shape, made.dtype) == (images.shape, jnp.uint8)
    assert all(fault.shape == (2,) for fault in jax.tree.leaves(faults))
    own, _ = studio_of(named["both"], named["generator"]).render("caption", images, ["a", "b"], [0, 1])
    assert (np.asarray(made) != np.asarray(own)).any()
    edited, _ = studio.render("edit", images, ["a", "b"], [0, 1])
    assert edited.shape == images.shape
