"""What an update learns from where the auditor also makes new images: as `collect`, through all of a run's channels.

images -> what the auditor writes -> new images [host]; then, compiled: answers -> outcome -> reward -> `Batch`
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.answering import Translate, examine
from auditdm_jax.channels import Prober, Probes
from auditdm_jax.collect import Batch, Drawn, FollowUps, Memory, StepSettings, auditor_params, drawn_topics, earned
from auditdm_jax.config import CHANNELS
from auditdm_jax.layout import QUESTION, Layout, layout
from auditdm_jax.policy_gradient import zero_signal
from auditdm_jax.rollout import prompt_rows, words_of
from auditdm_jax.state import Cast, Frozen, Trained


def collect_probes(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    translate: Translate | None,
    prober: Prober,
) -> tuple[Batch, Memory, dict[str, Array], dict[str, Array]]:
    """As `collect`: rewarded are what was written for the channels, and new questions of new images."""
    images = jnp.asarray(images)
    drawn, probes = probe_images(trained, frozen, images, key, cast=cast, settings=settings, prober=prober)
    batch, memory, metrics, record = (judged if translate else judged_compiled)(
        trained,
        frozen,
        cast,
        images,
        drawn,
        # The arrays alone, all bound to the device: as otherwise some are, the renderer's, and some are not.
        jax.device_put(probes._replace(texts=[], skips={}), images.sharding),
        settings=settings,
        shared_out=layout(prober.probing, len(images)),
        limits=prober.limits,
        translate=translate,
    )
    skips = {name: jnp.float32(count) for name, count in probes.skips.items()}
    return batch, memory, metrics | skips, record


def probe_images(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    prober: Prober,
) -> tuple[Drawn | None, Probes]:
    """What is written of a batch of images, what they become, and what is asked of them."""
    drawn = drawn_topics(trained, cast, settings, layout(prober.probing, len(images)).asks(), key)
    current = auditor_params(trained.auditor, frozen.auditor)
    generations = settings.grpo.num_generations
    return drawn, prober(current, frozen.auditor, images, key, generations, drawn and drawn.begun)


def judged(
    trained: Trained,
    frozen: Frozen,
    cast: Cast,
    images: UInt8[Array, "B H W 3"],
    drawn: Drawn | None,
    probes: Probes,
    *,
    settings: StepSettings,
    shared_out: Layout,
    limits: tuple[int, int, int],
    translate: Translate | None,
) -> tuple[Batch, Memory, dict[str, Array], dict[str, Array]]:
    """Probes, answered and rewarded: the batch, the new memory, metrics, and the record."""
    shape = probes.empty.shape
    flaws = {"question_empty": probes.empty, "question_overlong": probes.overlong, "image_spoiled": probes.spoiled}
    flaws = {name: flaw.reshape(-1, 1) for name, flaw in flaws.items()}
    words, _, _ = words_of(probes.questions, cast.auditor.config)
    distinct, shown = shared_out.distinct(shape[1])
    outcome = examine(
        frozen,
        cast,
        probes.images[distinct],
        (probes.questions.ids, words),
        flaws,
        settings.reward,
        settings.max_answer_tokens,
        translate,
        jnp.asarray(shown),
    )
    outcome = jax.tree.map(lambda x: x.reshape(shape), outcome)
    channels = jnp.asarray(shared_out.channels)
    given = cast, settings, channels, drawn, probes.written, outcome
    rewards, learned, memory, metrics, record = earned(trained, *given)
    for name in CHANNELS:
        rows = shared_out.through(name)
        if len(rows):
            shares = {"claimed": outcome.claimed, "spoiled": outcome.spoiled, "reward": rewards}
            metrics |= {f"{name}/{share}": value[rows].mean() for share, value in shares.items()}
        if len(rows) and name != "question":
            metrics |= {f"{name}/{fault}": each.reshape(shape)[rows].sum() for fault, each in probes.faults.items()}
    asked = jax.tree.map(lambda x: x.reshape(*shape, x.shape[-1]), probes.questions)
    record |= {"question_ids": asked.ids, "question_mask": asked.mask, "images": probes.images}
    room = jnp.array(limits)[channels]
    batch = Batch(images, probes.prompt, probes.written, learned, room, rewards, ~zero_signal(outcome.reward))
    if (new := shared_out.new()).any():
        # Only these: else the update would run all new images through the auditor for nothing. But where `refill`
        # picks among groups, or rewards are scaled by those of the batch, all come along.
        every = settings.grpo.max_resamples > 0 or settings.grpo.convention().scale_rewards == "batch"
        rows = np.arange(len(new)) if every else np.flatnonzero(new)
        prompt = prompt_rows(cast.auditor.prompts, jnp.full((len(rows), shape[1]), QUESTION))
        some = jax.tree.map(lambda x: x[rows], asked)
        batch = batch._replace(
            new=FollowUps(
                probes.images.reshape(*shape, *images.shape[1:])[rows],
                prompt,
                some.replace(mask=some.mask & new[rows, None, None]),
                None if every else jnp.asarray(rows),
            )
        )
    return batch, memory, metrics, record


judged_compiled = jax.jit(judged, static_argnames=("settings", "shared_out", "limits", "translate"))
