"""[jit] What an update learns from: a batch of images, asked about through the run's channels, answered and rewarded.

images -> what the auditor writes -> (new images ->) answers of target and references -> outcome -> reward
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from auditdm_jax.answers import answer_ids, text_answer_id
from auditdm_jax.channels import Prober, layout
from auditdm_jax.config import CHANNELS, GRPO, Reward
from auditdm_jax.models import lora
from auditdm_jax.models.multimodal import encode_images, preprocess_on_device
from auditdm_jax.policy_gradient import expected_zero_signal, zero_signal
from auditdm_jax.prompts import fill
from auditdm_jax.reward import Outcome, disagreement, novelty_weights, question_ngrams
from auditdm_jax.rollout import ask, prompt_rows, words_of
from auditdm_jax.sampling import Completions, Prompt, sample
from auditdm_jax.state import Cast, Frozen, Params, Role, Trained

ABSTENTION = "unclear"

Questions = tuple[Int[Array, "B G T"], Bool[Array, "B G T"]]
# (questions in the auditor's tokens, number of the model that is asked: the target is 0, then come the references).
Translate = Callable[[Questions, int], Questions]


@dataclass(frozen=True)
class StepSettings:
    """What a step is compiled for."""

    grpo: GRPO
    reward: Reward
    max_question_tokens: int
    max_answer_tokens: int
    remat: bool
    optimizer: optax.GradientTransformation


class Batch(NamedTuple):
    """What an update learns from. signal: groups whose rewards, before diversity, are not all the same."""

    images: UInt8[Array, "B H W 3"]
    prompt: Prompt
    questions: Completions
    rewards: Float[Array, "B G"]
    signal: Bool[Array, "B"]


def collect(
    trained: Trained,
    frozen: Frozen,
    images: UInt8[Array, "B H W 3"],
    key: Array,
    *,
    cast: Cast,
    settings: StepSettings,
    translate: Translate | None,
) -> tuple[Batch, Float[Array, "A"], dict[str, Array], dict[str, Array]]:
    """Questions about a batch of images, answered and rewarded; the new archive, metrics, and the record."""
    prompt = prompt_rows(cast.auditor.prompts, jnp.zeros(len(images), jnp.int32))
    questions = ask(
        auditor_params(trained.auditor, frozen.auditor),
        cast.auditor.config,
        prompt,
        images,
        key,
        num_generations=settings.grpo.num_generations,
        max_new_tokens=settings.max_question_tokens,
        temperature=settings.grpo.temperature,
    )
    words, empty, overlong = words_of(questions, cast.auditor.config)
    flaws = {"question_empty": empty, "question_overlong": overlong}
    outcome = examine(frozen, cast, images, (questions.ids, words), flaws, settings, translate)
    rewards, archive = diversified(outcome, questions, trained.archive, settings.reward)
    metrics = asked_metrics(outcome, rewards, questions)
    record = {"question_ids": questions.ids, "question_mask": questions.mask, "reward": rewards, **recorded(outcome)}
    return Batch(images, prompt, questions, rewards, ~zero_signal(outcome.reward)), archive, metrics, record


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
) -> tuple[Batch, Float[Array, "A"], dict[str, Array], dict[str, Array]]:
    """As `collect`, through all of the run's channels: only what was written for the channel is rewarded."""
    images = jnp.asarray(images)
    current = auditor_params(trained.auditor, frozen.auditor)
    probes = prober(current, frozen.auditor, images, key, settings.grpo.num_generations)
    shape = probes.empty.shape
    flaws = {"question_empty": probes.empty, "question_overlong": probes.overlong, "image_spoiled": probes.spoiled}
    flaws = {name: flaw.reshape(-1, 1) for name, flaw in flaws.items()}
    # One question for each of the N images.
    written = jax.tree.map(lambda x: x.reshape(-1, 1, x.shape[-1]), probes.written)
    rewarded = _rewarded if translate else _rewarded_compiled
    outcome, rewards, archive = rewarded(
        frozen,
        cast,
        probes.images,
        probes.questions,
        flaws,
        written,
        trained.archive,
        settings=settings,
        translate=translate,
    )
    outcome, rewards = jax.tree.map(lambda x: x.reshape(shape), (outcome, rewards))
    metrics = asked_metrics(outcome, rewards, probes.written)
    shared_out = layout(prober.probing, len(images))
    for name in CHANNELS:
        rows = shared_out.through(name)
        if len(rows):
            shares = {"claimed": outcome.claimed, "spoiled": outcome.spoiled, "reward": rewards}
            metrics |= {f"{name}/{share}": value[rows].mean() for share, value in shares.items()}
        if len(rows) and name != "question":
            metrics |= {f"{name}/{fault}": each.reshape(shape)[rows].sum() for fault, each in probes.faults.items()}
    metrics |= {name: jnp.float32(count) for name, count in probes.skips.items()}
    ids, mask = (x.reshape(*shape, -1) for x in (probes.questions.ids, probes.questions.mask))
    record = {"question_ids": ids, "question_mask": mask, "reward": rewards, "images": probes.images}
    record |= recorded(outcome)
    signal = ~zero_signal(outcome.reward)
    return Batch(images, probes.prompt, probes.written, rewards, signal), archive, metrics, record


def _rewarded(
    frozen: Frozen,
    cast: Cast,
    images: Array,
    questions: Completions,
    flaws: dict[str, Array],
    written: Completions,
    archive: Array,
    *,
    settings: StepSettings,
    translate: Translate | None,
) -> tuple[Outcome, Array, Array]:
    words, _, _ = words_of(questions, cast.auditor.config)
    outcome = examine(frozen, cast, images, (questions.ids, words), flaws, settings, translate)
    return outcome, *diversified(outcome, written, archive, settings.reward)


_rewarded_compiled = jax.jit(_rewarded, static_argnames=("settings", "translate"))


def asked_metrics(outcome: Outcome, rewards: Float[Array, "B G"], written: Completions) -> dict[str, Array]:
    """How the questions of a batch came out, and what they earned."""
    expected = expected_zero_signal(outcome.reward.mean(), rewards.shape[1])
    shares = {name: value.mean() for name, value in vars(outcome).items() if value.dtype == bool and name != "valid"}
    metrics = {f"outcome/{name}": share for name, share in shares.items()}
    metrics |= {"reward/mean": rewards.mean(), "reward/before_diversity": outcome.reward.mean()}
    metrics |= {"reward/groups_without_signal": zero_signal(outcome.reward).mean()}
    metrics |= {"reward/groups_without_signal_expected": expected}
    return metrics | {"question/tokens": written.mask.sum(-1).mean()}


def recorded(outcome: Outcome) -> dict[str, Array]:
    return {name: getattr(outcome, name) for name in ("claimed", "target_id", "consensus_id")}


def auditor_params(trainable: Params, base: Params) -> Params:
    """The auditor's full parameters: adapters grafted onto the base, or the trained parameters themselves."""
    return trainable if "text" in trainable else lora.attach(base, trainable)


def examine(
    frozen: Frozen,
    cast: Cast,
    images: UInt8[Array, "B H W 3"],
    questions: Questions,
    flaws: dict[str, Bool[Array, "B G"]],
    settings: StepSettings,
    translate: Translate | None,
) -> Outcome:
    """What target and references answer, and how each question came out. flaws: as `disagreement` names them."""
    models = zip((frozen.target, *frozen.references), (cast.target, *cast.references), strict=True)
    answers = []
    for number, (params, role) in enumerate(models):
        asked = translate(questions, number) if translate else questions
        answers.append(answer(params, role, images, asked, settings.max_answer_tokens))
    ids, empty = (jnp.stack(field) for field in zip(*answers, strict=True))
    return disagreement(
        ids[0],
        empty[0],
        ids[1:],
        empty[1:],
        abstain_id=text_answer_id(ABSTENTION),
        agreement=settings.reward.agreement,
        **flaws,
    )


@partial(jax.jit, static_argnames=("max_new_tokens",))
def answer(
    params: Params, role: Role, images: UInt8[Array, "B H W 3"], questions: Questions, max_new_tokens: int
) -> tuple[Array, Array]:
    """Greedy answers to G questions about each image as (canonical id uint32 [B, G], empty bool [B, G])."""
    ids, mask = questions
    batch, rows, length = ids.shape
    flat = (ids.reshape(-1, length), mask.reshape(-1, length))
    prompt = fill(role.template, *flat, role.config.pad_token_id)
    features = encode_images(params, role.config, preprocess_on_device(role.config, images))
    done = sample(
        params,
        role.config,
        prompt,
        jnp.repeat(features, rows, axis=0),
        jax.random.key(0),  # greedy decoding draws nothing
        num_generations=1,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    canonical, empty = answer_ids(role.token_bytes, done.ids[:, 0], done.mask[:, 0])
    return canonical.reshape(batch, rows), empty.reshape(batch, rows)


def diversified(
    outcome: Outcome, questions: Completions, archive: Float[Array, "A"], reward: Reward
) -> tuple[Float[Array, "B G"], Float[Array, "A"]]:
    """Rewards times 1 / (1 + c * how often such a failure was found, or so asked, lately), and the new archive."""
    if reward.novelty == "answer":
        parts, counted = outcome.consensus_id[..., None], outcome.claimed[..., None]
    else:
        parts, counted = question_ngrams(questions.ids, questions.mask, reward.ngram)
    weights, archive = novelty_weights(parts, counted, archive, reward.diversity)
    return outcome.reward * weights, archive
