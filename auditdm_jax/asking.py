"""[host] Who asks and who answers in an audit: the models of a run, each as a function of a batch of images.

The trained auditor asks through the run's channels, some questions with its topics; all models stay loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.channels import Prober, Studio, instructions_of
from auditdm_jax.config import CHANNELS, TrainConfig
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.evals import Answerer
from auditdm_jax.layout import QUESTION, layout
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import Asked
from auditdm_jax.prompts import instruction_prompts
from auditdm_jax.rollout import decode, question_logps
from auditdm_jax.sampling import Begun
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


def make_ask(
    vlm: VLM,
    base: VLM,
    settings: TrainConfig,
    temperature: float,
    studio: Studio | None,
    chances: Mapping[str, float] | None = None,
) -> Ask:
    """One sampled probe an image, through the channels of the run. base: the auditor before training. chances: of each
    topic that a question may begin with; what is left of 1 goes to questions without."""
    prompts = instruction_prompts(vlm, instructions_of(settings))
    prober = Prober.of_run(settings, vlm, prompts, temperature, studio)
    begin = make_begin(vlm, prober, chances) if chances else None

    def ask_batch(images: Images, key: Array) -> Asking:
        begun = begin and begin(images, jax.random.fold_in(key, 2**30))
        probes = prober(vlm.params, base.params, jnp.asarray(images), key, 1, begun)
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


def make_begin(vlm: VLM, prober: Prober, chances: Mapping[str, float]) -> Callable[[Images, Array], Begun]:
    """What the questions of a batch must begin with: topics as `share_out` gives them to the images that are asked
    about. chances: as `make_ask` has them."""
    length = prober.limits[QUESTION]
    topics = topics_of(vlm, tuple(chances), length)
    assert topics is not None  # there are chances

    @jax.jit
    def likely(params: Any, images: Array) -> Array:
        ids, mask = (jnp.broadcast_to(x, (len(images), *x.shape)) for x in (topics.ids, topics.mask))
        prompt = prober.question_prompt(len(images))
        return question_logps(params, vlm.config, prompt, images, ids, mask, temperature=1.0).sum(-1)

    def begin(images: Images, key: Array) -> Begun:
        asks = layout(prober.probing, len(images)).asks()
        topic = np.full(len(images), -1)
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (2,))))
        topic[asks] = share_out(rng, np.array(list(chances.values())), np.asarray(likely(vlm.params, images))[asks])
        return topics.begun(jnp.asarray(topic)[:, None], length)

    return begin


def load_panel(
    trained: str, settings: TrainConfig, temperature: float, batch_size: int, topics: Mapping[str, float] | None = None
) -> tuple[Panel, int]:
    """The models of a run, and the largest image size any of them takes; the others resample on the device.

    trained: the trained auditor, or "" to measure the auditor before training alone. topics: the trained one's chances,
    as `make_ask` has them. Raises UserError for a model that cannot be loaded.
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
        make_ask(auditor, base, settings, temperature, studio, topics),
        make_ask(base, base, settings, temperature, studio) if trained else None,
        answerer(target),
        tuple(answerer(vlm) for vlm in references),
        answerer(verifier),
    )
    return panel, max(vlm.config.vision.image_size for vlm in (base, auditor, target, verifier, *references))
