"""The auditor's channels: who writes what, what is asked of which image, and what earns nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax import collect_probes as collect_probes_module
from auditdm_jax import training
from auditdm_jax.channels import Prober, instructions_of
from auditdm_jax.collect import collect
from auditdm_jax.collect_probes import collect_probes
from auditdm_jax.config import CHANNELS, Models, Probing, TrainConfig
from auditdm_jax.conventions import GRPO
from auditdm_jax.layout import layout
from auditdm_jax.reward import Reward
from auditdm_jax.rollout import decode, question_logps, words_of
from auditdm_jax.scenes.dataset import scenes_of
from auditdm_jax.step import batch_logps, update
from auditdm_jax.studio import Studio
from auditdm_jax.topics import topics_of

ALL = Probing(CHANNELS, channel_weights=(1, 1, 1), new_images_every=1, old_questions=0.5)
IMAGES, GENERATIONS = 6, 3


@pytest.fixture(scope="module")
def parts():
    """The zoo's auditor, target and one reference, and its editor."""
    models = Models(references=("reference-b",))
    config = TrainConfig(probing=ALL, models=models, images_per_step=IMAGES, grpo=GRPO(num_generations=GENERATIONS))
    players = training.load_players(config)
    cast = training.cast_of(players, instructions_of(config))
    prober = Prober.of_run(config, players.auditor, cast.auditor.prompts, 1.0, Studio.load(ALL))
    return config, players, cast, prober


@pytest.fixture(scope="module")
def started(parts):
    """The settings of a step, and the state before the first."""
    config, players, _, _ = parts
    settings = training.step_settings(config)
    return settings, training.initial_state(config, players, settings.optimizer)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(scenes_of("validation", 0, IMAGES)[1])


@pytest.fixture(scope="module")
def probes(parts, images):
    _, players, _, prober = parts
    params = players.auditor.params
    return prober(params, params, images, jax.random.key(0), GENERATIONS)


def collected(parts, settings, state, images, **changed):
    """(batch, memory, metrics, record) of a batch through all channels. changed: of the prober."""
    given = (state.trained, state.frozen, images, jax.random.key(0))
    return collect_probes(*given, cast=parts[2], settings=settings, translate=None, prober=replace(parts[3], **changed))


def graded(parts, settings, state, images):
    """Such a batch with rewards that differ within every group, so that every group has a gradient."""
    batch, *_ = collected(parts, settings, state, images)
    return batch._replace(rewards=jnp.tile(jnp.arange(float(GENERATIONS)), (IMAGES, 1)))


def rows_of(channel: str) -> np.ndarray:
    return layout(ALL, IMAGES).through(channel)[:, None] * GENERATIONS + np.arange(GENERATIONS)


def test_questions_are_asked_of_the_image_itself(parts, images, probes):
    rows = rows_of("question").reshape(-1)
    repeated = np.repeat(np.asarray(images), GENERATIONS, axis=0)
    np.testing.assert_array_equal(np.asarray(probes.images)[rows], repeated[rows])
    tokens = parts[0].max_question_tokens
    written = np.asarray(probes.written.ids).reshape(len(repeated), -1)[rows, :tokens]
    np.testing.assert_array_equal(np.asarray(probes.questions.ids)[rows, 0], written)
    assert not np.asarray(probes.spoiled).reshape(-1)[rows].any()


def test_commands_and_captions_make_new_images(images, probes):
    repeated = np.repeat(np.asarray(images), GENERATIONS, axis=0)
    flawed = np.asarray(probes.empty | probes.overlong | probes.spoiled).reshape(-1)
    for channel in ("edit", "caption"):
        rows = rows_of(channel).reshape(-1)
        good = rows[~flawed[rows]]
        assert len(good)
        changed = np.abs(np.asarray(probes.images)[good].astype(int) - repeated[good]).max((1, 2, 3))
        assert (changed > 30).all()


def test_an_old_question_is_one_for_the_group_and_a_new_one_is_not(probes):
    shared_out = layout(ALL, IMAGES)
    asked = np.asarray(probes.questions.ids).reshape(IMAGES, GENERATIONS, -1)
    for row in np.flatnonzero(shared_out.old):
        assert (asked[row] == asked[row, :1]).all()
    new = [row for row, channel in enumerate(shared_out.channels) if channel and not shared_out.old[row]]
    assert any((asked[row] != asked[row, :1]).any() for row in new)


def test_old_questions_are_those_of_the_auditor_before_training(parts, images):
    """Whatever the trained auditor has become, an old question of the same draw stays the same."""
    _, players, _, prober = parts
    base = players.auditor.params
    other = jax.tree.map(lambda x: x * 1.1, base)
    first, second = (prober(params, base, images, jax.random.key(3), GENERATIONS) for params in (base, other))
    old = np.flatnonzero(layout(ALL, IMAGES).old)
    one, two = (np.asarray(probes.questions.ids).reshape(IMAGES, GENERATIONS, -1)[old] for probes in (first, second))
    np.testing.assert_array_equal(one, two)
    assert (np.asarray(first.written.ids) != np.asarray(second.written.ids)).any()


def test_what_did_not_end_is_not_rendered(parts, images):
    """With room for two tokens no command ends: nothing is rendered, and every such probe is over-long."""
    _, players, _, prober = parts
    params = players.auditor.params
    short = replace(prober, limits=(13, 2, 2))
    probes = short(params, params, images, jax.random.key(0), GENERATIONS)
    rows = np.concatenate([rows_of("edit"), rows_of("caption")]).reshape(-1)
    assert np.asarray(probes.overlong).reshape(-1)[rows].all()
    edits = rows_of("edit").reshape(-1)
    repeated = np.repeat(np.asarray(images), GENERATIONS, axis=0)
    np.testing.assert_array_equal(np.asarray(probes.images)[edits], repeated[edits])


def test_a_step_rewards_what_was_written_and_never_a_spoiled_image(parts, started, images, probes):
    config, players, _, prober = parts
    settings, state = started
    batch, _, metrics, record = collected(parts, settings, state, images)
    np.testing.assert_array_equal(batch.questions.ids, probes.written.ids)
    words, _, _ = words_of(batch.questions, players.auditor.config)
    assert words.shape[-1] == config.probing.max_caption_tokens
    assert record["question_ids"].shape == (IMAGES, GENERATIONS, config.max_question_tokens)
    assert {f"{channel}/claimed" for channel in CHANNELS} <= set(metrics)

    class Blank:
        """A studio whose pictures are all black."""

        editor = generator = prober.studio.editor

        def render(self, channel, images, texts, seeds):
            black = jnp.zeros_like(images)
            return black, prober.studio.render("caption", black, [""] * len(texts), seeds)[1]

    batch, _, metrics, _ = collected(parts, settings, state, images, studio=Blank())
    changed = np.concatenate([layout(ALL, IMAGES).through(channel) for channel in ("edit", "caption")])
    assert float(np.abs(np.asarray(batch.rewards)[changed]).max()) == 0
    assert metrics["edit/collapsed"] > 0
    assert metrics["outcome/spoiled"] > 0


def test_diversity_within_a_group_is_of_all_that_was_written_of_an_image(parts, started, images, monkeypatch):
    """Of three failures about each image two have the same answer: 1 / (1 + 9 * 2 / 3) each, and 1 / (1 + 9 / 3)."""
    settings, state = started
    settings = replace(settings, reward=Reward(scope="group", diversity=9.0, floor=0.0))
    answers = jnp.tile(jnp.array([7, 7, 8], jnp.uint32), IMAGES)[:, None]
    real = collect_probes_module.examine

    def examine(*given):
        return real(*given).replace(claimed=answers > 0, reward=jnp.ones(answers.shape), consensus_id=answers)

    monkeypatch.setattr(collect_probes_module, "examine", examine)
    record = collected(parts, settings, state, images)[3]
    np.testing.assert_allclose(record["reward"], np.tile([1 / 7, 1 / 7, 1 / 4], (IMAGES, 1)), rtol=1e-6)


@pytest.mark.parametrize("preset", ["dr_grpo@auditdm", "dapo@trl", "grpo@verl"])
def test_new_questions_of_new_images_are_credited_and_old_ones_are_not(parts, started, images, preset):
    """They change the gradient, of an empty mask they do not, and their prompts and images are those they were asked
    with: the log-probabilities come out as the sampler had them. Dynamic sampling has all groups in the update, the
    others without a question: the gradient is the same."""
    _, players, cast, _ = parts
    settings, state = started
    settings = replace(settings, grpo=replace(settings.grpo, preset=preset))

    def gradient_norm(batch):
        return float(update(state.trained, state.frozen, cast.auditor.config, batch, settings)[1]["grad_norm"])

    batch = graded(parts, settings, state, images)
    everything = graded(parts, replace(settings, grpo=replace(settings.grpo, max_resamples=1)), state, images)
    shared_out = layout(ALL, IMAGES)
    new = (np.array(shared_out.channels) > 0) & ~np.array(shared_out.old)
    assert batch.new.groups.tolist() == np.flatnonzero(new).tolist()
    assert np.asarray(batch.new.questions.mask).any((1, 2)).all()
    np.testing.assert_array_equal(np.asarray(everything.new.questions.mask).any((1, 2)), new)
    np.testing.assert_allclose(gradient_norm(batch), gradient_norm(everything), rtol=1e-4)

    nothing = jax.tree.map(jnp.zeros_like, batch.new.questions)
    unasked = batch._replace(new=batch.new._replace(questions=nothing))
    np.testing.assert_allclose(gradient_norm(unasked), gradient_norm(batch._replace(new=None)), rtol=1e-4)
    assert abs(gradient_norm(batch) / gradient_norm(unasked) - 1) > 0.05
    asked, config = batch.new.questions, players.auditor.config
    logps_of = jax.jit(lambda params, *given: question_logps(params, config, *given, temperature=1.0)[0])
    for generation in range(GENERATIONS):
        of_one = jax.tree.map(lambda x, g=generation: x[:, g], (batch.new.prompt, batch.new.images))
        questions = asked.ids[:, generation, None], asked.mask[:, generation, None]
        logps = logps_of(players.auditor.params, *of_one, [questions])
        shown = np.asarray(asked.mask[:, generation])
        sampled = np.where(shown, np.asarray(asked.logps[:, generation]), 0)
        np.testing.assert_allclose(np.where(shown, np.asarray(logps[:, 0]), 0), sampled, atol=2e-4)


@pytest.mark.parametrize("cache", [0, 4])
def test_a_question_counts_as_much_in_a_step_that_makes_new_images(parts, started, images, cache):
    """Padded to a caption's length, the questions of a step have the gradient that they have alone; a text with more
    room counts less a token, and what is penalised is to come near one's own limit, not the longest."""
    _, players, cast, _ = parts
    settings, state = started
    settings = replace(settings, grpo=replace(settings.grpo, soft_punish_cache=cache))
    given = state.trained, state.frozen, images, jax.random.key(0)
    batch, *_ = jax.jit(partial(collect, cast=cast, settings=settings, translate=None))(*given)
    batch = batch._replace(rewards=jnp.tile(jnp.arange(GENERATIONS, dtype=jnp.float32), (IMAGES, 1)))
    more = ((0, 0), (0, 0), (0, 32 - settings.max_question_tokens))
    padded = {name: jnp.pad(getattr(batch.questions, name), more) for name in ("ids", "mask", "logps")}
    wide = batch._replace(questions=batch.questions.replace(**padded), learned=jnp.pad(batch.learned, more))
    # As captions of at most 32 tokens they are far from their limit.
    roomy = wide._replace(room=jnp.full(IMAGES, 32))

    def found(batch):
        metrics = update(state.trained, state.frozen, players.auditor.config, batch, settings)[1]
        return [float(metrics[name]) for name in ("grad_norm", "advantage_abs")]

    np.testing.assert_allclose(found(wide)[0], found(batch)[0], rtol=1e-4)
    if not cache:
        np.testing.assert_allclose(found(roomy)[0] / found(wide)[0], settings.max_question_tokens / 32, rtol=1e-4)
    penalised = abs(found(roomy)[1] / found(wide)[1] - 1)
    assert penalised > 0.02 if cache else penalised < 1e-6


def test_topics_begin_what_is_asked_of_the_images_themselves(parts, started, images):
    """Of what is written for a channel only questions; the new questions of new images are the auditor's own."""
    config, players, cast, prober = parts
    settings, state = started
    topics = topics_of(players.auditor, ("how many", "where is"), config.max_question_tokens)
    settings = replace(settings, reward=replace(settings.reward, topics=("how many", "where is"), topic_share=1.0))
    trained = replace(state.trained, topics=jnp.zeros((2, 2)))
    cast = replace(cast, auditor=replace(cast.auditor, topics=topics))
    batch, memory, _, _ = collect_probes(
        trained, state.frozen, images, jax.random.key(0), cast=cast, settings=settings, translate=None, prober=prober,
    )  # fmt: skip
    texts = np.array(decode(players.auditor, batch.questions)).reshape(IMAGES, GENERATIONS)
    asks = layout(ALL, IMAGES).through("question")
    begun = np.vectorize(lambda text: text.startswith(("how many", "where is")))(texts)
    assert begun[asks].all()
    assert not np.delete(begun, asks, axis=0).any()
    assert float(memory["topics"][0].sum()) == len(asks) * GENERATIONS
    # The tokens of a beginning count in the update where the question paid.
    first = np.asarray(batch.learned)[asks, :, 0]
    np.testing.assert_array_equal(first, np.asarray(batch.rewards)[asks] > 0)
    assert np.asarray(batch.learned)[asks, :, 2].all()


@pytest.mark.parametrize("preset", ["dr_grpo@auditdm", "gspo@trl"])
def test_each_text_is_computed_at_its_own_length(parts, started, images, preset):
    """Questions padded to a caption's length or not: they have the log-probabilities that the sampler had, and the
    gradient is the same."""
    _, players, _, prober = parts
    settings, state = started
    settings = replace(settings, grpo=replace(settings.grpo, preset=preset))
    batch, spans = graded(parts, settings, state, images), layout(ALL, IMAGES).spans(prober.limits)
    assert [tokens for _, tokens in spans] == [settings.max_question_tokens, ALL.max_caption_tokens]
    params, config = players.auditor.params, players.auditor.config
    short, new = batch_logps(params, config, batch, settings, spans)
    for said, logps in ((batch.questions, short), (batch.new.questions, new)):
        mask, sampled = (np.asarray(x).reshape(logps.shape) for x in (said.mask, said.logps))
        assert mask.any()
        np.testing.assert_allclose(logps, np.where(mask, sampled, 0), atol=2e-4)

    def found(batch, spans=None):
        metrics = update(state.trained, state.frozen, config, batch, settings, spans)[1]
        return [float(metrics[name]) for name in ("grad_norm", "loss", "sampling/drift_mean")]

    np.testing.assert_allclose(found(batch, spans), found(batch), rtol=1e-4, atol=1e-6)
    longest = batch_logps(params, config, batch, settings, None)
    np.testing.assert_allclose(short, longest[0], atol=1e-5)
    np.testing.assert_allclose(new, longest[1], atol=1e-5)
