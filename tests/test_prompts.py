"""Prompt formats against the Hugging Face processors, and answers against transformers' generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditdm_jax.errors import UserError
from auditdm_jax.prompts import (
    PromptTemplate,
    answer_text,
    expanded_text,
    fill,
    instruction_prompts,
    instruction_template,
    template_for,
    token_ids,
)
from auditdm_jax.rollout import ask, prompt_rows, question_logps

QUESTIONS = ["what color is the star ?", "is the circle red ?", ""]


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def vlm(request):
    return tiny_vlm.ours(request.param)


def processed(vlm, questions) -> list[np.ndarray]:
    """Tokens of each prompt as the processor makes them, unpadded."""
    rows = []
    for question in questions:
        text = answer_text(vlm.config.family, vlm.processor, question)
        image = np.zeros((8, 8, 3), np.uint8)
        # Gemma 3's chat template writes its begin token itself.
        begin = {} if vlm.config.family == "paligemma" else {"add_special_tokens": False}
        rows.append(vlm.processor(images=[[image]], text=[text], return_tensors="np", **begin)["input_ids"][0])
    return rows


def test_expanded_text_gives_the_processors_tokens(vlm):
    for question, theirs in zip(QUESTIONS, processed(vlm, QUESTIONS), strict=True):
        text = answer_text(vlm.config.family, vlm.processor, question)
        ours = token_ids(vlm.tokenizer, expanded_text(vlm.config.family, vlm.processor, text))
        np.testing.assert_array_equal(ours, theirs)
        assert (ours == vlm.config.image_token_id).sum() == vlm.config.num_image_tokens


def test_filled_template_gives_the_processors_tokens(vlm):
    template = template_for(vlm)
    questions = [token_ids(vlm.tokenizer, question) for question in QUESTIONS]
    width = max(map(len, questions)) + 2
    ids = np.stack([np.pad(q, (0, width - len(q)), constant_values=59) for q in questions])
    mask = np.stack([np.arange(width) < len(q) for q in questions])
    prompt = fill(template, jnp.asarray(ids), jnp.asarray(mask), vlm.config.pad_token_id)
    for i, theirs in enumerate(processed(vlm, QUESTIONS)):
        np.testing.assert_array_equal(prompt.input_ids[i, : len(theirs)], theirs)
        assert (prompt.input_ids[i, len(theirs) :] == vlm.config.pad_token_id).all()
        np.testing.assert_array_equal(prompt.attention_mask[i], np.arange(prompt.input_ids.shape[1]) < len(theirs))


@settings(max_examples=25)  # each new length is compiled
@given(st.data())
def test_fill_is_concatenation(data):
    tokens = st.lists(st.integers(1, 9), max_size=3)
    template = PromptTemplate(*(tuple(data.draw(tokens)) for _ in range(2)))
    rows = data.draw(st.lists(tokens, min_size=2, max_size=2))
    ids = np.array([row + [7] * (3 - len(row)) for row in rows])  # what is off the mask must not show
    mask = np.array([np.arange(3) < len(row) for row in rows])
    prompt = fill(template, jnp.asarray(ids), jnp.asarray(mask), 0)
    for i, row in enumerate(rows):
        whole = [*template.prefix_ids, *row, *template.suffix_ids]
        pad = [0] * (prompt.input_ids.shape[1] - len(whole))
        assert prompt.input_ids[i].tolist() == whole + pad
        assert prompt.attention_mask[i].tolist() == [True] * len(whole) + [False] * len(pad)


@pytest.mark.parametrize("family", ["paligemma", "gemma3"])
def test_answers_equal_transformers(family, tmp_path):
    """From pixels and strings to strings; more questions than one batch, of unequal lengths."""
    config = tiny_vlm.hf_config(family)
    model = tiny_vlm.hf_model(config)
    tiny_vlm.save(model, tmp_path)
    vlm = tiny_vlm.VLM.load(tmp_path)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8))
    theirs = []
    for ids, pixels in zip(processed(vlm, QUESTIONS), vlm.pixel_values(images), strict=True):
        types = ids == vlm.config.image_token_id if family == "gemma3" else np.zeros_like(ids)
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor(ids)[None],
                pixel_values=torch.tensor(pixels)[None],
                token_type_ids=torch.tensor(types.astype(int))[None],
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=list(vlm.config.eos_token_ids),
                suppress_tokens=list(vlm.config.forbidden_token_ids),
            )
        theirs.append(vlm.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip())
    assert vlm.answer(images, QUESTIONS, max_new_tokens=5, batch_size=2) == theirs
    assert any(theirs)


def test_prompts_of_several_instructions(vlm):
    """The shorter is padded on the left, and asked as if it were alone."""
    instructions = ["Ask.", "Ask a short question about the color of the star."]
    prompts = instruction_prompts(vlm, instructions)
    rows = [instruction_template(vlm, instruction).prefix_ids for instruction in instructions]
    assert len(rows[0]) < len(rows[1]) == prompts.input_ids.shape[1]
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(prompts.input_ids[number, -len(row) :], row)
        assert (prompts.input_ids[number, : -len(row)] == vlm.config.pad_token_id).all()
        np.testing.assert_array_equal(prompts.attention_mask[number].sum(), len(row))
        assert prompts.attention_mask[number, -len(row) :].all()
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8))
    greedy = dict(num_generations=1, max_new_tokens=5, temperature=0.0)
    logps_of = jax.jit(lambda params, *given: question_logps(params, vlm.config, *given, temperature=1.0)[0])
    both = ask(vlm.params, vlm.config, prompt_rows(prompts, jnp.array([1, 0])), images, jax.random.key(0), **greedy)
    for image, instruction in enumerate(reversed(instructions)):
        alone = instruction_prompts(vlm, [instruction])
        one = images[image : image + 1]
        own = ask(vlm.params, vlm.config, prompt_rows(alone, jnp.array([0])), one, jax.random.key(0), **greedy)
        np.testing.assert_array_equal(both.ids[image], own.ids[0])
        np.testing.assert_allclose(both.logps[image], own.logps[0], atol=1e-4)
        logps = logps_of(vlm.params, prompt_rows(prompts, jnp.array([1 - image])), one, [(own.ids, own.mask)])
        np.testing.assert_allclose(logps, own.logps, atol=1e-4)


def test_no_chat_template():
    vlm = tiny_vlm.ours("gemma3")
    vlm.processor.chat_template = None
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        vlm.answer([np.zeros((8, 8, 3), np.uint8)], ["what ?"])


def test_a_broken_chat_template_is_told_in_one_line():
    vlm = tiny_vlm.ours("gemma3")
    vlm.processor.chat_template = "{% for"
    with pytest.raises(UserError, match=r"chat template of .* is broken"):
        template_for(vlm)


def test_a_chat_template_without_the_image_is_refused():
    """The auditor would train without seeing anything."""
    vlm = tiny_vlm.ours("gemma3")
    vlm.processor.chat_template = "{{ bos_token }}{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(UserError, match="has 0 image tokens where the model needs"):
        template_for(vlm)
    with pytest.raises(UserError, match="has 0 image tokens where the model needs"):
        instruction_template(vlm, "Ask.")
