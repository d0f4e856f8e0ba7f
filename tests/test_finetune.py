import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_zoo import tiny

from auditdm_jax.errors import UserError
from auditdm_jax.finetune import Encoder, batch_loss, fit, init_state, make_optimizer
from auditdm_jax.models import lora
from auditdm_jax.models.multimodal import encode_images, preprocess_on_device
from auditdm_jax.models.vlm import hidden_states, unembed
from auditdm_jax.prompts import PromptTemplate, instruction_prompts, template_for
from auditdm_jax.rollout import prompt_rows, question_logps

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
QUESTIONS = [["what color is the circle?", "is there any ring?"], ["where is the star?", "how many objects are there?"]]
ANSWERS = [["red", "no"], ["top left", "3"]]


@pytest.fixture(scope="module", params=["paligemma", "gemma3"])
def vlm(request):
    return tiny("x", request.param, seed=3)


def test_loss_equals_the_plain_one_on_whole_sequences(vlm):
    """Shared prefixes and padding must not change what is learned: one unpadded sequence at a time says the same."""
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=9, max_answer_tokens=3)
    loss = batch_loss(vlm.params, vlm.config, encode(IMAGES, QUESTIONS, ANSWERS))
    template = template_for(vlm)

    @jax.jit
    def logits_of(ids, features, types):
        hidden = hidden_states(vlm.params, vlm.config, ids, features, jnp.ones_like(ids), types)
        # Image placeholders can never be sampled, so they take no probability.
        return unembed(vlm.params, vlm.config, hidden).at[..., list(vlm.config.forbidden_token_ids)].set(-1e30)

    total, count = 0.0, 0
    for image, questions, answers in zip(IMAGES, QUESTIONS, ANSWERS, strict=True):
        features = encode_images(vlm.params, vlm.config, preprocess_on_device(vlm.config, image[None]))
        for question, answer in zip(questions, answers, strict=True):
            asked, said = (vlm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
            prompt = [*template.prefix_ids, *asked, *template.suffix_ids]
            ids = np.array([[*prompt, *said, vlm.config.eos_token_ids[-1]]])
            types = np.array([[0] * len(prompt) + [1] * (len(said) + 1)])
            logps = jax.nn.log_softmax(logits_of(ids, features, types)[0, :-1])
            total -= sum(float(logps[t - 1, ids[0, t]]) for t in range(len(prompt), ids.shape[1]))
            count += len(said) + 1
    assert float(loss) == pytest.approx(total / count, rel=1e-4)


def test_the_image_is_seen_wherever_the_template_has_it(vlm):
    """Behind the question, too, where no prefix can be shared."""
    template = template_for(vlm)
    image, words = (
        tuple(token for token in template.prefix_ids if (token == vlm.config.image_token_id) == is_image)
        for is_image in (True, False)
    )
    encode = Encoder(vlm, PromptTemplate(words, image + template.suffix_ids), 9, 3)
    losses = [
        float(batch_loss(vlm.params, vlm.config, encode(each, QUESTIONS, ANSWERS))) for each in (IMAGES, 255 - IMAGES)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_learns_four_answers_and_leaves_the_base_alone(vlm):
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=9, max_answer_tokens=3)
    batch = encode(IMAGES, QUESTIONS, ANSWERS)
    optimizer = make_optimizer("adamw", 1e-2, 60)
    base = jax.tree.map(np.asarray, vlm.params)
    state = init_state(lora.init(jax.random.key(0), vlm.params, rank=4), optimizer)
    seen = []
    fit(state, vlm.params, iter([batch] * 60), 60, config=vlm.config, optimizer=optimizer,
        on_step=lambda state, loss: seen.append((int(state.step), loss)))  # fmt: skip
    assert [step for step, _ in seen] == [25, 50, 60]
    assert seen[-1][1] < 0.5 * seen[0][1]
    for before, after in zip(jax.tree.leaves(base), jax.tree.leaves(vlm.params), strict=True):
        np.testing.assert_array_equal(before, after)


def test_stops_on_a_loss_that_is_not_finite():
    vlm = tiny("x", "paligemma", seed=3)
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=9, max_answer_tokens=3)
    optimizer = make_optimizer("muon", 1e-2, 5)
    broken = jax.tree.map(lambda x: x * jnp.nan, vlm.params)
    with pytest.raises(UserError, match="loss is nan at step 5"):
        fit(init_state(broken, optimizer), None, iter([encode(IMAGES, QUESTIONS, ANSWERS)] * 5), 5,
            config=vlm.config, optimizer=optimizer)  # fmt: skip


def test_long_texts_are_cut_to_the_compiled_shape(vlm):
    encode = Encoder(vlm, template_for(vlm), max_question_tokens=4, max_answer_tokens=1)
    batch = encode(IMAGES, QUESTIONS, ANSWERS)
    assert batch.answer_mask.sum() == 4 * 2  # one answer token and its end, for each question


@pytest.mark.parametrize("learns", ["answers", "questions"])
def test_remat_keeps_fewer_activations_of_the_vision_tower(vlm, learns):
    """In bytes that a forward pass leaves for the gradient of the vision tower alone."""
    batch = Encoder(vlm, template_for(vlm), 9, 3)(IMAGES, QUESTIONS, ANSWERS)
    prompt = prompt_rows(instruction_prompts(vlm, ["ask"]), jnp.zeros(len(IMAGES), jnp.int32))
    ids = jnp.ones((len(IMAGES), 2, 5), jnp.int32)

    def learned(vision, remat):
        params = vlm.params | {"vision": vision}
        if learns == "answers":
            return batch_loss(params, vlm.config, batch, remat)
        return question_logps(params, vlm.config, prompt, IMAGES, [(ids, ids > 0)], temperature=1.0, remat=remat)

    def kept(remat):
        left = jax.eval_shape(lambda vision: jax.vjp(lambda v: learned(v, remat), vision)[1], vlm.params["vision"])
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(left))

    assert kept(True) < 0.8 * kept(False)
