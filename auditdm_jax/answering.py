"""[jit] Target and references answer: what each question came out as, and what its answer earns."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from auditdm_jax.answers import ABSTENTIONS, answer_ids, text_answer_id
from auditdm_jax.models.multimodal import encode_images, preprocess_on_device
from auditdm_jax.prompts import fill
from auditdm_jax.reward import Outcome, Reward, disagreement, likelihood_gap, likelihood_reward, share_reward
from auditdm_jax.rollout import words_of
from auditdm_jax.sampling import Prompt, completion_logps, sample
from auditdm_jax.state import Cast, Frozen, Params, Role

Questions = tuple[Int[Array, "B G T"], Bool[Array, "B G T"]]
# (text as tokens, number of the model that reads it, of the model that wrote it: the target is 0, then come the
# references, and None is the auditor).
Translate = Callable[[Questions, int, int | None], Questions]


def examine(
    frozen: Frozen,
    cast: Cast,
    images: UInt8[Array, "B H W 3"],
    questions: Questions,
    flaws: dict[str, Bool[Array, "B G"]],
    reward: Reward,
    max_answer_tokens: int,
    translate: Translate | None,
    shown: Int[Array, "B"] | None = None,
) -> Outcome:
    """What target and references answer, and how each question came out. flaws: as `disagreement` names them. shown:
    number of the image that each row of questions is about, where some share one; each is then encoded once."""
    models = tuple(zip((frozen.target, *frozen.references), (cast.target, *cast.references), strict=True))
    asked = [translate(questions, number, None) if translate else questions for number in range(len(models))]
    said = [answer(*model, images, words, max_answer_tokens, shown) for model, words in zip(models, asked, strict=True)]
    ids, empty = jnp.stack([each.id for each in said]), jnp.stack([each.empty for each in said])

    unsure = jnp.exp(jnp.stack([each.logp for each in said[1:]])).mean(0) < reward.confidence
    abstention, *others = map(text_answer_id, ABSTENTIONS)
    ids = jnp.where(jnp.isin(ids, np.array(others, np.uint32)), np.uint32(abstention), ids)

    def judged(agreement: float) -> Outcome:
        return disagreement(ids[0], empty[0], ids[1:], empty[1:], abstention, agreement, unsure=unsure, **flaws)

    outcome = judged(reward.agreement)
    if reward.disagreement == "share":
        return replace(outcome, reward=share_reward(judged(1 / len(cast.references)), ids[1:]))
    if reward.disagreement == "likelihood":
        target, *references = (
            answer_logps(*model, images, words, consensus_words(said[1:], outcome, number, translate), shown)
            for number, (model, words) in enumerate(zip(models, asked, strict=True))
        )
        return replace(outcome, reward=likelihood_reward(outcome, likelihood_gap(target, jnp.stack(references))))
    return outcome


class Answer(NamedTuple):
    """Canonical id and whether it is empty, as `answer_ids` has them; the tokens, and which of them are words; the
    log-probability of all that was said, its end too (nats)."""

    id: UInt32[Array, "B G"]
    empty: Bool[Array, "B G"]
    tokens: Int[Array, "B G T"]
    words: Bool[Array, "B G T"]
    logp: Float[Array, "B G"]


@partial(jax.jit, static_argnames=("max_new_tokens",))
def answer(
    params: Params,
    role: Role,
    images: UInt8[Array, "I H W 3"],
    questions: Questions,
    max_new_tokens: int,
    shown: Int[Array, "B"] | None = None,
) -> Answer:
    """Greedy answers to G questions about each image, or about those that are `shown`."""
    shape = questions[0].shape[:2]
    asked = _asked(params, role, images, questions, shown)
    # Greedy decoding draws nothing with its key.
    given = params, role.config, asked.prompt, asked.features, jax.random.key(0)
    how = dict(num_generations=asked.rows, max_new_tokens=max_new_tokens, temperature=0.0)
    done = sample(*given, **how, tails=asked.tails)
    words, _, _ = words_of(done, role.config)
    ids, mask, words, logps = (x.reshape(*shape, -1) for x in (done.ids, done.mask, words, done.logps))
    return Answer(*answer_ids(role.token_bytes, ids, mask), ids, words, logps.sum(-1))


@jax.jit
def answer_logps(
    params: Params,
    role: Role,
    images: UInt8[Array, "I H W 3"],
    questions: Questions,
    answers: Questions,
    shown: Int[Array, "B"] | None = None,
) -> Float[Array, "B G"]:
    """Log-probabilities of given answers to the questions of `answer`, each divided by its tokens (nats).

    An end is put behind each answer, and is one of its tokens: else "1" would be as likely as "12". Image and prompt
    are those of `answer`, and in one compiled step are computed once for both.
    """
    asked = _asked(params, role, images, questions, shown)
    ids, words = (x.reshape(-1, asked.rows, x.shape[-1]) for x in answers)
    place, length = jnp.arange(ids.shape[-1] + 1), words.sum(-1, keepdims=True)
    ids = jnp.where(place == length, role.config.eos_token_ids[-1], jnp.pad(ids, ((0, 0), (0, 0), (0, 1))))
    given = asked.prompt, asked.features, [(ids, place <= length)]
    (logps,) = completion_logps(params, role.config, *given, temperature=1.0, tails=asked.tails)
    return (logps.sum(-1) / (length[..., 0] + 1)).reshape(answers[0].shape[:2])


class _Asked(NamedTuple):
    """Questions as `sample` reads them: one prompt each, or a prompt for each image and a tail for each question."""

    prompt: Prompt
    features: Float[Array, "N S D"]
    tails: Prompt | None

    @property
    def rows(self) -> int:
        """Questions of a prompt."""
        return 1 if self.tails is None else self.tails.input_ids.shape[1]


def _asked(
    params: Params, role: Role, images: UInt8[Array, "I H W 3"], questions: Questions, shown: Int[Array, "B"] | None
) -> _Asked:
    """The prompts of B x G questions, and their images' features; what G share is there once where the model allows."""
    features = encode_images(params, role.config, preprocess_on_device(role.config, images))
    features = features if shown is None else features[shown]
    template, rows = role.template, questions[0].shape[1]
    ids, mask = (x.reshape(-1, x.shape[-1]) for x in questions)
    if rows == 1 or not template.shares_image(role.config):
        filled = fill(template, ids, mask, role.config.pad_token_id)
        return _Asked(filled, jnp.repeat(features, rows, axis=0), None)
    shared = jnp.broadcast_to(jnp.array(template.prefix_ids, jnp.int32), (len(features), len(template.prefix_ids)))
    tails = fill(template._replace(prefix_ids=()), ids, mask, role.config.pad_token_id)
    tails = Prompt(*(x.reshape(-1, rows, x.shape[-1]) for x in (tails.input_ids, tails.attention_mask)))
    return _Asked(Prompt(shared, jnp.ones(shared.shape, bool)), features, tails)


def consensus_words(said: Sequence[Answer], outcome: Outcome, number: int, translate: Translate | None) -> Questions:
    """The consensus, as the first reference that gives it writes it, in the tokens of a model.

    said: the references' answers. number: of the model, as `Translate` counts.
    """
    first = jnp.argmax(jnp.stack([each.id for each in said]) == outcome.consensus_id, axis=0)
    written = [(each.tokens, each.words) for each in said]
    if translate:
        written = [translate(each, number, writer) for writer, each in enumerate(written, start=1)]
    ids, words = (jnp.stack(each) for each in zip(*written, strict=True))
    pick = lambda x: jnp.take_along_axis(x, first[None, ..., None], axis=0)[0]  # noqa: E731
    return pick(ids), pick(words)
