"""scenes/tokenizer.py: the world's texts in few tokens, in the formats of both families."""

import zlib

import numpy as np
import pytest
from PIL import Image

from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import QUESTION_INSTRUCTION, answer_text, expanded_text, instruction_template, template_for
from auditdm_jax.scenes.language import FORMS, SKILLS, UNCLEAR
from auditdm_jax.scenes.members import Member, new_model
from auditdm_jax.scenes.questions import Asker
from auditdm_jax.scenes.render import render
from auditdm_jax.scenes.tokenizer import SPECIAL_TOKENS, build_tokenizer, vocabulary
from auditdm_jax.scenes.world import (
    COLORS,
    GRID,
    MATERIALS,
    QUADRANTS,
    SHAPES,
    SPECIALS,
    SPLITS,
    WEATHERS,
    caption,
    sample_scene,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(QUESTION_INSTRUCTION)


def tiny_member(family: str) -> Member:
    """One of the zoo in everything but its size."""
    sizes = dict(width=16, text_layers=1, heads=1, mlp=16, vision_width=16, vision_layers=1)
    return Member("tiny", family, seed=0, steps=1, **sizes)


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def tiny(request) -> VLM:
    return new_model(tiny_member(request.param))


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def assert_round_trip(tokenizer, texts: list[str], longest: int) -> None:
    ids = encode(tokenizer, texts)
    assert tokenizer.batch_decode(ids) == texts
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert max(map(len, ids)) <= longest


def asked(skill: str) -> list[str]:
    """Questions of a skill in every phrasing of every split, with and without an answer."""
    texts = []
    for seed in range(40):
        for split in SPLITS:
            asker = Asker(sample_scene(split, seed), np.random.default_rng(seed))
            texts += [asker.ask(skill, split, unanswerable) for unanswerable in (False, True, False)]
    return [question.text for question in texts if question is not None]


@pytest.mark.parametrize("skill", SKILLS)
def test_questions_round_trip_within_twelve_tokens(skill, tokenizer):
    texts = asked(skill)
    assert len(set(texts)) > 10
    assert_round_trip(tokenizer, texts, longest=12)


def test_answers_round_trip_within_two_tokens(tokenizer):
    values = [*COLORS, *SHAPES, *MATERIALS, *WEATHERS, *QUADRANTS, "yes", "no", UNCLEAR]
    values += [value for values in SPECIALS.values() for value in values]
    assert_round_trip(tokenizer, values + [str(number) for number in range(13)], longest=2)


def test_descriptions_and_captions_round_trip(tokenizer):
    scenes = [sample_scene("train", seed) for seed in range(40)]
    lessons = [Asker(scene, np.random.default_rng(i)).describe(True) for i, scene in enumerate(scenes)]
    assert_round_trip(tokenizer, [lesson.answer for lesson in lessons], longest=4)
    assert_round_trip(tokenizer, [lesson.text for lesson in lessons], longest=4)
    assert_round_trip(tokenizer, [caption(scene) for scene in scenes], longest=16 * 11)


def test_every_word_of_the_world_is_one_token(tokenizer):
    words = " ".join(form for forms in FORMS.values() for form in forms).replace("{", " ").replace("?", " ")
    lone = [word for word in words.replace("}", " ").split() if word.isalpha()]
    assert {len(row) for row in encode(tokenizer, lone)} == {1}


def test_other_words_are_spelt(tokenizer):
    assert_round_trip(tokenizer, ["zebra crossing 2024", "is it a bird?"], longest=20)
    assert encode(tokenizer, ["What COLOR"]) == encode(tokenizer, ["what color"])
    assert encode(tokenizer, ["日本"]) == [[tokenizer.unk_token_id]]


def test_special_tokens_stand_first_and_survive_lower_casing(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert encode(tokenizer, ["<start_of_turn>what<end_of_turn>"])[0][::2] == [4, 5]
    assert tokenizer.decode([2, *encode(tokenizer, ["top left"])[0], 1], skip_special_tokens=True) == "top left"


def test_the_vocabulary_is_the_one_the_zoo_was_trained_with():
    words = vocabulary(QUESTION_INSTRUCTION)
    assert len(set(words)) == len(words)
    assert (len(words), zlib.crc32(" ".join(words).encode())) == (289, 3151203023), (
        "rebuild the zoo, then write the new figures here"
    )


QUESTION = "is the red circle left of the blue square?"


def test_prompts_of_both_families_are_whole_words_around_one_image(tiny):
    text = expanded_text(tiny.config.family, tiny.processor, answer_text(tiny.config.family, tiny.processor, QUESTION))
    ids = encode(tiny.tokenizer, [text])[0]
    assert ids.count(tiny.config.image_token_id) == tiny.config.num_image_tokens == GRID * GRID
    assert ids.count(tiny.config.bos_token_id) == 1
    assert tiny.tokenizer.unk_token_id not in ids
    assert not [token for token in tiny.tokenizer.convert_ids_to_tokens(ids) if token.startswith("##")]
    template = template_for(tiny)
    filled = [*template.prefix_ids, *encode(tiny.tokenizer, [QUESTION])[0], *template.suffix_ids]
    assert filled == ids


def test_image_processors_only_scale(tiny):
    """One patch a cell and no resampling: a picture already has the tower's size."""
    picture = render(sample_scene("test", 0))
    pixels = tiny.processor.image_processor(images=[Image.fromarray(picture)], return_tensors="np")
    expected = picture.transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(pixels["pixel_values"][0], expected, rtol=0, atol=1e-6)


def test_processors_of_both_families_make_our_prompt(tiny):
    """As a user of transformers calls them."""
    if tiny.config.family == "paligemma":
        text = f"<image>answer en {QUESTION}"
    else:
        text = answer_text("gemma3", tiny.processor, QUESTION)
    picture = Image.fromarray(render(sample_scene("test", 0)))
    inputs = tiny.processor(text=[text], images=[[picture]], return_tensors="np", add_special_tokens=False)
    template = template_for(tiny)
    filled = [*template.prefix_ids, *encode(tiny.tokenizer, [QUESTION])[0], *template.suffix_ids]
    assert inputs["input_ids"][0].tolist() == filled


def test_the_instruction_is_made_of_whole_words(tiny):
    template = instruction_template(tiny, QUESTION_INSTRUCTION)
    tokens = tiny.tokenizer.convert_ids_to_tokens(list(template.prefix_ids))
    assert not [token for token in tokens if token.startswith("##") or token == "<unk>"]
    assert len(encode(tiny.tokenizer, [QUESTION_INSTRUCTION])[0]) == len(QUESTION_INSTRUCTION.split()) + 1


def test_two_turns_of_the_chat_template():
    vlm = new_model(tiny_member("gemma3"))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is the weather?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "rainy"}]},
    ]
    text = vlm.processor.apply_chat_template([chat], tokenize=False)[0]
    assert text == (
        "<bos><start_of_turn>user\n<start_of_image>what is the weather?<end_of_turn>\n"
        "<start_of_turn>model\nrainy<end_of_turn>\n"
    )
    expanded = expanded_text("gemma3", vlm.processor, text)
    tokens = vlm.tokenizer.tokenize(expanded)
    assert tokens[:4] == ["<bos>", "<start_of_turn>", "user", "<start_of_image>"]
    assert tokens[-4:] == ["<start_of_turn>", "model", "rainy", "<end_of_turn>"]
