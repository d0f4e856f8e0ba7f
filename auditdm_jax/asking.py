"""[host] Who asks and who answers in an audit: the models of a run, each as a function of a batch of images.

The trained auditor asks through the run's channels, or goes on from its topics; all models stay loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.channels import Prober, Studio, instructions_of, layout
from auditdm_jax.config import CHANNELS, TrainConfig
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.evals import Answerer
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import Asked
from auditdm_jax.prompts import instruction_prompts
from auditdm_jax.rollout import ask, decode, prompt_rows, question_logps, words_of
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.topics import share_out, topics_of

Images = UInt8[np.ndarray, "B H W 3"]
Answer = Callable[[Images, Sequence[str]], list[str]]
"""Images and a question of each -> the answers."""


class Asking(NamedTuple):
    """asked: one question for each image of a batch, the image's id apart; images: what they are asked of."""

    asked: list[Asked]
    images: Images


Ask = Callable[[Images, Array], Asking]
"""Images and a key -> a question of each, or of what was made of it."""


class Panel(NamedTuple):
    """Who asks and who answers. auditor: the one whose discoveries are kept; prompt_only: the one before
    training, None where that is the same."""

    auditor: Ask
    prompt_only: Ask | None
    target: Answer
    references: tuple[Answer, ...]
    verifier: Answer


def make_ask(vlm: VLM, base: VLM, settings: TrainConfig, temperature: float, studio: Studio | None) -> Ask:
    """One sampled probe an image, through the channels of the run. base: the auditor before training."""
    prompts = instruction_prompts(vlm, instructions_of(settings))
    prober = Prober.of_run(settings, vlm, prompts, temperature, studio)

    def ask_batch(images: Images, key: Array) -> Asking:
        probes = prober(vlm.params, base.params, jnp.asarray(images), key, 1)
        questions = decode(vlm, probes.questions)
        overlong = np.asarray(probes.overlong)[:, 0].tolist()
        faults = {name: np.asarray(each).tolist() for name, each in probes.faults.items()}
        asked, shared_out = [], layout(settings.probing, len(images))
        for i, question in enumerate(questions):
            channel = CHANNELS[shared_out.channels[i]]
            written = "" if channel == "question" else probes.texts[i]
            fault = next((name for name, each in faults.items() if each[i]), "")
            asked.append(Asked("", question, not overlong[i], channel, written, shared_out.old[i], fault))
        return Asking(asked, np.asarray(probes.images))

    return ask_batch


def make_topic_ask(vlm: VLM, settings: TrainConfig, temperature: float, chances: Mapping[str, float]) -> Ask:
    """One sampled question an image. chances: of each topic; what is left of 1 goes to questions without one."""
    length, weights = settings.max_question_tokens, np.array([chances[name] for name in settings.reward.topics])
    topics = topics_of(vlm, settings.reward.topics, length)
    assert topics is not None  # the run has some
    instruction = instruction_prompts(vlm, [settings.instruction])

    @jax.jit
    def likely(images: Array) -> Array:
        prompt = prompt_rows(instruction, jnp.zeros(len(images), jnp.int32))
        ids, mask = (jnp.broadcast_to(x, (len(images), *x.shape)) for x in (topics.ids, topics.mask))
        return question_logps(vlm.params, vlm.config, prompt, images, ids, mask, temperature=1.0).sum(-1)

    def ask_batch(images: Images, key: Array) -> Asking:
        topic = share_out(jax.random.fold_in(key, 1), weights, np.asarray(likely(images)))
        sampling = dict(num_generations=1, max_new_tokens=length, temperature=temperature)
        prompt = prompt_rows(instruction, jnp.zeros(len(images), jnp.int32))
        begun = topics.begun(jnp.asarray(topic)[:, None], length)
        questions = ask(vlm.params, vlm.config, prompt, images, key, begun=begun, **sampling)
        overlong = np.asarray(words_of(questions, vlm.config)[2])[:, 0]
        asked = [Asked("", text, not late) for text, late in zip(decode(vlm, questions), overlong, strict=True)]
        return Asking(asked, np.asarray(images))

    return ask_batch


def load_panel(
    trained: str, settings: TrainConfig, temperature: float, batch_size: int, topics: Mapping[str, float] | None = None
) -> tuple[Panel, int]:
    """The models of a run, and the largest image size any of them takes; the others resample on the device.

    trained: the trained auditor, or "" to measure the auditor before training alone. topics: as `make_topic_ask` has
    them, for the trained one. Raises UserError for a model that cannot be loaded.
    """
    names = settings.models
    dtype = jnp.dtype(settings.dtype)
    base = load_model(names.auditor, dtype)
    target, verifier, *references = (
        load_model(name, dtype) for name in (names.target, names.verifier, *names.references)
    )
    auditor = load_model(trained, dtype) if trained else base
    studio = Studio.load(settings.probing)
    if studio and (auditor.config != base.config or auditor.tokenizer.get_vocab() != base.tokenizer.get_vocab()):
        raise UserError(
            f"the auditor {one_line(trained, 80)} is not of the architecture of {one_line(names.auditor, 80)}, which "
            "asks the old questions; leave out --auditor"
        )

    def answerer(vlm: VLM) -> Answerer:
        return Answerer.of_run(vlm, base, settings, batch_size)

    panel = Panel(
        make_topic_ask(auditor, settings, temperature, topics)
        if trained and topics
        else make_ask(auditor, base, settings, temperature, studio),
        make_ask(base, base, settings, temperature, studio) if trained else None,
        answerer(target),
        tuple(answerer(vlm) for vlm in references),
        answerer(verifier),
    )
    return panel, max(vlm.config.vision.image_size for vlm in (base, auditor, target, verifier, *references))
