"""Adapters: they start as the base, merge into it, share its arrays, and alone receive gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm

from auditdm_jax.errors import UserError
from auditdm_jax.models import lora
from auditdm_jax.models.vlm import hidden_states


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm.ours("gemma3")


def forward(vlm, params):
    ids = jnp.arange(3, 12)[None]
    features = jnp.zeros((1, vlm.config.num_image_tokens, vlm.config.text.width))
    return hidden_states(params, vlm.config, ids, features, jnp.ones_like(ids, bool))


def random_adapters(vlm):
    adapters = lora.init(jax.random.key(0), vlm.params, 2)
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), adapters)


def test_new_adapters_change_nothing(vlm):
    adapters = lora.init(jax.random.key(0), vlm.params, 2)
    assert set(adapters) == set(lora.TARGETS)
    adapted = forward(vlm, lora.attach(vlm.params, adapters))
    np.testing.assert_array_equal(adapted, forward(vlm, vlm.params))


def test_merged_equals_attached(vlm):
    adapters = random_adapters(vlm)
    attached, merged = lora.attach(vlm.params, adapters), lora.merge(vlm.params, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(vlm.params)
    np.testing.assert_allclose(forward(vlm, attached), forward(vlm, merged), atol=1e-4)
    assert np.abs(forward(vlm, merged) - forward(vlm, vlm.params)).max() > 0.1


def test_attach_copies_no_array(vlm):
    adapters = {target: lora.init(jax.random.key(0), vlm.params, 2)[target] for target in ("q", "down")}
    attached = lora.attach(vlm.params, adapters)
    grafted = attached["text"]["layers"]["q"]
    assert grafted["kernel"] is vlm.params["text"]["layers"]["q"]["kernel"]
    assert grafted["lora_a"] is adapters["q"]["lora_a"]
    assert attached["text"]["layers"]["k"] is vlm.params["text"]["layers"]["k"]
    assert "lora_a" not in vlm.params["text"]["layers"]["q"]  # the argument is left as it was


def test_only_adapters_need_gradients(vlm):
    """From zero b, the first gradient reaches b of every target."""
    adapters = lora.init(jax.random.key(0), vlm.params, 2)
    gradient = jax.grad(lambda a: jnp.sum(forward(vlm, lora.attach(vlm.params, a)) ** 3))(adapters)
    for target in lora.TARGETS:
        assert np.abs(gradient[target]["lora_b"]).max() > 0
        np.testing.assert_array_equal(gradient[target]["lora_a"], 0)


def test_merge_keeps_the_kernels_dtype(vlm):
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), vlm.params)
    merged = lora.merge(narrow, random_adapters(vlm))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert forward(vlm, lora.attach(narrow, random_adapters(vlm))).dtype == jnp.bfloat16


def test_a_rank_that_cannot_be(vlm):
    with pytest.raises(UserError, match="rank 0 is too small"):
        lora.init(jax.random.key(0), vlm.params, 0)
