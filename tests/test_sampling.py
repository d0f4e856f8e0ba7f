"""Sampling: caches, padding, end tokens, log-probs and their gradient, against plain teacher forcing."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm

from auditdm_jax import sampling
from auditdm_jax.models import gemma, layers
from auditdm_jax.models.vlm import encode_images, hidden_states, unembed
from auditdm_jax.sampling import Prompt, completion_logps, sample, token_logps

T = 7
# A window shorter than prompt and completion, so that cached and uncached decoding must agree on it.
LOCAL = {"sliding_window": 5, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def case(request):
    """A model, prompts of unequal length padded on the right, and image features."""
    vlm = tiny_vlm.ours(request.param, text=LOCAL, vision={"num_hidden_layers": 1})
    batch = tiny_vlm.inputs(vlm.hf_config, lengths=(6, 3))
    features = encode_images(vlm.params, vlm.config, jnp.asarray(batch["pixel_values"]))
    prompt = Prompt(jnp.asarray(batch["input_ids"]), jnp.asarray(batch["attention_mask"] == 1))
    return vlm, prompt, features


def draw(case, key=0, *, config=None, prompt=None, params=None, **settings):
    vlm, own_prompt, features = case
    settings = {"num_generations": 3, "max_new_tokens": T, "temperature": 0.7} | settings
    key = jax.random.key(key)
    args = (params or vlm.params, config or vlm.config, prompt or own_prompt, features, key)
    return sample(*args, **settings)


def uncached_logps(case, params, ids, temperature, config=None):
    """The definition: every prompt and its completion as one sequence, nothing shared, nothing cached."""
    vlm, prompt, features = case
    rows, config = ids.shape[1], config or vlm.config
    starts = [np.asarray(prompt.input_ids)[b][np.asarray(prompt.attention_mask)[b]] for b in range(len(ids))]
    wholes = [np.concatenate([starts[b], row]) for b in range(len(ids)) for row in np.asarray(ids)[b]]
    width = max(map(len, wholes))
    padded = jnp.asarray([np.pad(whole, (0, width - len(whole))) for whole in wholes])
    lengths = np.repeat([len(start) for start in starts], rows)[:, None]
    mask, types = jnp.arange(width) < lengths + T, jnp.arange(width) >= lengths
    repeated = jnp.repeat(features, rows, axis=0)
    x = hidden_states(params, config, padded, repeated, mask, types.astype(int))
    x = jnp.take_along_axis(x, (lengths - 1 + np.arange(T))[..., None], axis=1)
    logits = unembed(params, config, x).at[..., list(config.forbidden_token_ids)].set(-1e9)
    logps = jax.nn.log_softmax(logits / temperature).reshape(*ids.shape, -1)
    return jnp.take_along_axis(logps, ids[..., None], axis=-1)[..., 0]


def test_ends_are_what_the_last_tokens_were_drawn_from(case):
    """The second run lets every token end a row, so that rows end early, at different places."""
    vlm, _, _ = case
    usual = dataclasses.replace(vlm.config, eos_token_ids=tuple(range(0, vlm.config.text.vocab_size, 3)))
    for config in (vlm.config, usual):
        done = draw(case, config=config)
        last = (done.mask.sum(-1) - 1)[..., None]
        ids, logps = (jnp.take_along_axis(x, last, axis=-1)[..., 0] for x in (done.ids, done.logps))
        again = token_logps(vlm.params, config, done.ends, ids, temperature=0.7)
        np.testing.assert_allclose(again, logps, atol=1e-5)
    assert len({*np.asarray(last).ravel()}) > 1


@pytest.mark.parametrize("beyond_prompt", [None, 2])
def test_logps_equal_teacher_forcing(case, beyond_prompt):
    """With a short window, and with one that leaves the prompt's start behind only during the completion."""
    vlm, prompt, features = case
    config = vlm.config
    if beyond_prompt:
        window = prompt.input_ids.shape[1] + beyond_prompt
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, sliding_window=window))
    done = draw(case, config=config)
    whole = done.ids, done.mask

    @jax.jit
    def both(params):
        plain = uncached_logps(case, params, done.ids, 0.7, config)
        # The first prompt's completions, and of the others less and fewer.
        apart = [tuple(x[:1] for x in whole), tuple(x[1:, :2, :3] for x in whole)]
        logps_of = partial(completion_logps, params, config, prompt, features, temperature=0.7)
        return logps_of([whole]), logps_of(apart), plain

    (forced,), (first, others), plain = both(vlm.params)
    plain = jnp.where(done.mask, plain, 0.0)
    np.testing.assert_allclose(done.logps, forced, atol=1e-5)
    np.testing.assert_allclose(forced, plain, atol=1e-5)
    np.testing.assert_allclose(first, plain[:1], atol=1e-5)
    np.testing.assert_allclose(others, plain[1:, :2, :3], atol=1e-5)


def test_gradient_equals_that_of_the_definition(case):
    """The shared prompt collects the gradient of all its rows; rematerialised or not."""
    vlm, prompt, features = case
    done = draw(case)
    weights = jax.random.normal(jax.random.key(1), done.mask.shape) * done.mask

    def shared(params, remat):
        args = (params, vlm.config, prompt, features, [(done.ids, done.mask)])
        return jnp.sum(weights * completion_logps(*args, temperature=0.7, remat=remat)[0])

    def plain(params):
        return jnp.sum(weights * uncached_logps(case, params, done.ids, 0.7))

    definition = jax.jit(jax.grad(plain))(vlm.params)
    for remat in (False, True):
        ours = jax.jit(jax.grad(shared), static_argnums=1)(vlm.params, remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, definition)


@pytest.mark.parametrize("window", [5, 14])  # shorter than a tail and what it is completed by; over the prompt's end
@pytest.mark.parametrize("case", ["gemma3"], indirect=True)
def test_tails_behind_a_shared_prompt_count_as_prompts_of_their_own(case, window):
    vlm, prompt, features = case
    config = dataclasses.replace(vlm.config, text=dataclasses.replace(vlm.config.text, sliding_window=window))
    lengths = np.array([[4, 1, 3], [2, 4, 4]])
    real = np.arange(4) < lengths[..., None]
    ids = np.where(real, np.random.default_rng(0).integers(3, 49, real.shape), vlm.config.pad_token_id)
    tails = Prompt(jnp.asarray(ids), jnp.asarray(real))

    def behind(x, tail):
        return jnp.concatenate([jnp.repeat(x, 3, axis=0), tail.reshape(6, -1)], axis=1)

    whole = Prompt(behind(prompt.input_ids, tails.input_ids), behind(prompt.attention_mask, tails.attention_mask))
    apart = vlm, whole, jnp.repeat(features, 3, axis=0)
    greedy = draw(case, config=config, tails=tails, temperature=0.0)
    alone = draw(apart, config=config, num_generations=1, temperature=0.0)
    np.testing.assert_array_equal(greedy.ids.reshape(6, 1, -1), alone.ids)

    done = draw(case, config=config, tails=tails)
    weights, written = jax.random.normal(jax.random.key(1), done.mask.shape) * done.mask, done.ids.reshape(6, 1, -1)

    def shared(params):
        args = (params, config, prompt, features, [(done.ids, done.mask)])
        (logps,) = completion_logps(*args, temperature=0.7, tails=tails)
        return jnp.sum(weights * logps), logps

    def definition(params):
        logps = uncached_logps(apart, params, written, 0.7, config).reshape(done.mask.shape)
        return jnp.sum(weights * logps), jnp.where(done.mask, logps, 0.0)

    (ours, logps), (theirs, expected) = (jax.jit(jax.grad(f, has_aux=True))(vlm.params) for f in (shared, definition))
    np.testing.assert_allclose(logps, expected, atol=1e-5)
    np.testing.assert_allclose(done.logps, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_padding_side_and_width_do_not_matter(case):
    vlm, prompt, _ = case
    plain = draw(case, temperature=0.0)
    for left, right in ((4, 0), (0, 4)):
        widths = ((0, 0), (left, right))
        ids = jnp.pad(prompt.input_ids, widths, constant_values=vlm.config.pad_token_id)
        wider = draw(case, temperature=0.0, prompt=Prompt(ids, jnp.pad(prompt.attention_mask, widths)))
        np.testing.assert_array_equal(wider.ids, plain.ids)
        np.testing.assert_allclose(wider.logps, plain.logps, atol=1e-5)


def test_rows_of_a_group(case):
    """Greedy rows agree; sampled rows differ from each other and with another key, and repeat with theirs."""
    greedy = draw(case, temperature=0.0)
    np.testing.assert_array_equal(greedy.ids, jnp.broadcast_to(greedy.ids[:, :1], greedy.ids.shape))
    first, again, other = draw(case, 1), draw(case, 1), draw(case, 2)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.ids != other.ids).any()
    assert (first.ids[:, 0] != first.ids[:, 1]).any()


def test_ends(case):
    """After an end token: pad, no mask, no log-prob. The mask includes the end token."""
    vlm, _, _ = case
    ends = tuple(range(3, 20))  # likely, so that rows end at different places
    done = draw(case, config=dataclasses.replace(vlm.config, eos_token_ids=ends))
    ids, mask = np.asarray(done.ids).reshape(-1, T), np.asarray(done.mask).reshape(-1, T)
    lengths = mask.sum(axis=1)
    assert len(set(lengths)) > 1
    for row, row_mask, length in zip(ids, mask, lengths, strict=True):
        assert row_mask[:length].all()
        assert not np.isin(row[: length - 1], ends).any()
        assert length == T or row[length - 1] in ends
        assert (row[length:] == vlm.config.pad_token_id).all()
    np.testing.assert_array_equal(np.asarray(done.logps)[~np.asarray(done.mask)], 0.0)


def test_the_loop_stops_when_all_rows_have_ended(case, monkeypatch):
    """Not one of twenty thousand passes is made: each would look up a token."""
    vlm, _, _ = case
    embed, passes = gemma.embed, []

    def counted(params, ids):
        if ids.shape[-1] == 1:
            jax.debug.callback(lambda: passes.append(1))
        return embed(params, ids)

    monkeypatch.setattr(gemma, "embed", counted)
    usual = draw(case, max_new_tokens=4, num_generations=2)
    jax.effects_barrier()
    assert len(passes) == np.asarray(usual.mask).sum(-1).max() - 1 > 0
    passes.clear()
    everything = dataclasses.replace(vlm.config, eos_token_ids=tuple(range(tiny_vlm.VOCABULARY)))
    done = draw(case, config=everything, max_new_tokens=20_000, num_generations=1)
    np.testing.assert_array_equal(np.asarray(done.mask).sum(axis=-1), 1)
    jax.effects_barrier()
    assert passes == []


def test_image_placeholders_are_never_sampled(case):
    """Even where the model wants nothing else: the last hidden state itself is their embedding."""
    vlm, prompt, features = case
    forbidden = list(vlm.config.forbidden_token_ids)
    assert tiny_vlm.IMAGE in forbidden
    hidden = hidden_states(vlm.params, vlm.config, prompt.input_ids, features, prompt.attention_mask)
    table = vlm.params["text"]["embedding"]
    wanted = 100.0 * hidden[0, int(prompt.attention_mask[0].sum()) - 1]
    params = vlm.params | {"text": vlm.params["text"] | {"embedding": table.at[jnp.array(forbidden)].set(wanted)}}
    # The image's own tokens are not looked up, so the hidden state is unchanged for PaliGemma.
    done = draw(case, params=params, num_generations=50, temperature=1.0)
    assert not np.isin(done.ids, forbidden).any()


def test_sampled_frequencies(case):
    """First tokens of 4,000 rows against the softmax at the temperature (5 standard errors)."""
    vlm, prompt, features = case
    rows = 4000
    done = draw(case, num_generations=rows, max_new_tokens=1, temperature=2.0)
    mask = prompt.attention_mask
    hidden = hidden_states(vlm.params, vlm.config, prompt.input_ids, features, mask)
    for b in range(2):
        logits = unembed(vlm.params, vlm.config, hidden[b, int(mask[b].sum()) - 1])
        logits = logits.at[jnp.array(vlm.config.forbidden_token_ids)].set(-jnp.inf)
        expected = np.asarray(jax.nn.softmax(logits / 2.0))
        found = np.bincount(np.asarray(done.ids[b, :, 0]), minlength=tiny_vlm.VOCABULARY) / rows
        assert (np.abs(found - expected) < 5 * np.sqrt(expected / rows) + 1e-9).all()


def test_chunked_logps(case, monkeypatch):
    """A chunk of any size gives the same values and gradients, a last one that is not full too."""
    vlm, _, _ = case
    hidden = jax.random.normal(jax.random.key(0), (3, 5, vlm.config.text.width))
    ids = jax.random.randint(jax.random.key(1), (3, 5), 3, 50)

    def total(hidden):
        return jnp.sum(jnp.sin(token_logps(vlm.params, vlm.config, hidden, ids, temperature=0.5)))

    whole = jax.value_and_grad(total)(hidden)
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 4 * tiny_vlm.VOCABULARY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.value_and_grad(total)(hidden), whole)


def test_a_real_loop_over_layers_gives_the_same(case, monkeypatch):
    """Deep models take another path than the shallow ones of these tests, which are unrolled."""
    vlm, prompt, features = case
    done = draw(case)
    monkeypatch.setattr(layers, "UNROLL_UP_TO", 0)
    monkeypatch.setattr(gemma, "UNROLL_UP_TO", 0)
    args = (vlm.params, vlm.config, prompt, features, [(done.ids, done.mask)])
    (forced,) = jax.jit(completion_logps, static_argnames=("config", "temperature"))(*args, temperature=0.7)
    np.testing.assert_allclose(done.logps, forced, atol=1e-5)
