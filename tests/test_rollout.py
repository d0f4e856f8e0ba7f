"""rollout.py: many questions, asked in batches of one compiled shape."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from tiny_zoo import tiny

from auditdm_jax.prompts import QUESTION_INSTRUCTION, instruction_prompts
from auditdm_jax.rollout import ask, ask_many, decode, prompt_rows, words_of


def test_many_questions_are_those_of_their_batches():
    """Three images two at a time: the second batch is filled up, and draws with a key of its own."""
    vlm = tiny("m", "gemma3", 0)
    vlm.config = replace(vlm.config, eos_token_ids=tuple(range(0, vlm.config.text.vocab_size, 3)))  # many end early
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    images[2] = images[0]
    got = ask_many(vlm, images, 7, num_generations=2, max_new_tokens=4, batch_size=2)
    prompt = prompt_rows(instruction_prompts(vlm, [QUESTION_INSTRUCTION]), jnp.zeros(2, jnp.int32))
    want = []
    for start, batch in ((0, images[:2]), (2, np.stack([images[2], np.zeros_like(images[0])]))):
        key = jax.random.fold_in(jax.random.key(7), start)
        how = dict(num_generations=2, max_new_tokens=4, temperature=1.0)
        done = ask(vlm.params, vlm.config, prompt, batch, key, **how)
        overlong = np.asarray(words_of(done, vlm.config)[2])
        texts = np.array(decode(vlm, done)).reshape(2, 2)
        want += np.where(overlong, "", texts)[: len(images) - start].tolist()
        assert overlong.any()
        assert not overlong.all()
    assert got == want
    assert got[0] != got[2]
