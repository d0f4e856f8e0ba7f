"""[host] Who asks and who answers in an audit: the models of a run, each as a function of a batch of images.

The trained auditor asks through the run's channels, guided by what the run knows of it; all models stay loaded.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.channels import Prober, instructions_of
from auditdm_jax.choice import Choice, Guide
from auditdm_jax.config import CHANNELS, TrainConfig
from auditdm_jax.critic import AS_DRAWN, num_features
from auditdm_jax.errors import UserError, one_line
from auditdm_jax.evals import Answerer
from auditdm_jax.health import weight_warnings
from auditdm_jax.layout import layout
from auditdm_jax.models.vlm import VLM
from auditdm_jax.outcomes import Asked
from auditdm_jax.prompts import instruction_prompts
from auditdm_jax.rollout import decode
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.studio import Studio
from auditdm_jax.topics import topics_of

Images = UInt8[np.ndarray, "B H W 3"]
Answer = Callable[[Images, Sequence[str]], list[str]]
"""Images and a question of each -> the answers."""


class Asking(NamedTuple):
    """asked: one question for each image of a batch, the image's id apart; images: what they are asked of; learn: to be
    told, before the next batch, which of the questions showed a claimed failure."""

    asked: list[Asked]
    images: Images
    learn: Callable[[Sequence[bool]], None] = lambda claimed: None


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
    vlm: VLM, base: VLM, settings: TrainConfig, temperature: float, studio: Studio | None, guide: Guide | None = None
) -> Ask:
    """One sampled probe an image, through the channels of the run. base: the auditor before training. guide: which of
    several candidates is asked.

    Raises UserError for a guide of another auditor.
    """
    prompts = instruction_prompts(vlm, instructions_of(settings))
    heads = len(prompts.input_ids) + len(settings.topics)
    if guide and guide.critic.shape != (heads, num_features(vlm.config.text.width)):
        raise UserError(f"the run's critic is of another auditor or other channels: {AS_DRAWN}")
    choice = guide and Choice(guide, topics_of(vlm, guide.topics, settings.max_question_tokens))
    prober = Prober.of_run(settings, vlm, prompts, temperature, studio, choice)

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

        def learn(claimed: Sequence[bool]) -> None:
            if choice is not None:
                choice.learn(np.array(claimed)[shared_out.asks()])

        return Asking(asked, np.asarray(probes.images), learn)

    return ask_batch


def load_panel(
    trained: str, settings: TrainConfig, temperature: float, batch_size: int, guide: Guide | None = None
) -> tuple[Panel, int]:
    """The models of a run, and the largest image size any of them takes; the others resample on the device.

    trained: the trained auditor, or "" to measure the auditor before training alone. guide: of the trained one.
    Raises UserError for a model that cannot be loaded, and as `make_ask` does.
    """
    names = settings.models
    dtype = jnp.dtype(settings.dtype)
    base = load_model(names.auditor, dtype)
    target, verifier, *references = (
        load_model(name, dtype) for name in (names.target, names.verifier, *names.references)
    )
    auditor = load_model(trained, dtype) if trained else base
    for line in weight_warnings((names.target, *names.references), [vlm.params for vlm in (target, *references)]):
        print(line)
    studio = Studio.load(settings.probing)
    if studio and (auditor.config != base.config or auditor.tokenizer.get_vocab() != base.tokenizer.get_vocab()):
        raise UserError(
            f"the auditor {one_line(trained, 80)} is not of the architecture of {one_line(names.auditor, 80)}, which "
            "asks the old questions; leave out --auditor"
        )

    answerer = partial(Answerer.of_run, auditor=base, settings=settings, batch_size=batch_size)
    panel = Panel(
        make_ask(auditor, base, settings, temperature, studio, guide),
        make_ask(base, base, settings, temperature, studio) if trained else None,
        answerer(target),
        tuple(answerer(vlm) for vlm in references),
        answerer(verifier),
    )
    return panel, max(vlm.config.vision.image_size for vlm in (base, auditor, target, verifier, *references))
