"""[host] The models of a run, how each is spoken to, and whether they read each other's tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from auditdm_jax.answering import Questions, Translate
from auditdm_jax.answers import token_bytes
from auditdm_jax.config import TrainConfig
from auditdm_jax.models.vlm import VLM
from auditdm_jax.prompts import instruction_prompts, padded, template_for, texts_of
from auditdm_jax.scenes.zoo_paths import load_model
from auditdm_jax.state import Auditor, Cast, Role
from auditdm_jax.topics import Topics


class Players(NamedTuple):
    """The loaded models of a run."""

    auditor: VLM
    target: VLM
    references: tuple[VLM, ...]


def load_players(config: TrainConfig) -> Players:
    dtype = jnp.dtype(config.dtype)
    names = (config.models.auditor, config.models.target, *config.models.references)
    auditor, target, *references = (load_model(name, dtype) for name in names)
    return Players(auditor, target, tuple(references))


def cast_of(players: Players, instructions: Sequence[str], topics: Topics | None = None) -> Cast:
    """How each model is spoken to. instructions: one of each of the auditor's channels."""

    def role(vlm: VLM) -> Role:
        return Role(vlm.config, template_for(vlm), token_bytes(vlm.tokenizer))

    return Cast(
        Auditor(players.auditor.config, instruction_prompts(players.auditor, instructions), topics),
        role(players.target),
        tuple(role(vlm) for vlm in players.references),
    )


def share_tokens(players: Players) -> bool:
    """Whether every model reads the auditor's token ids as the auditor writes them.

    Special tokens, which are no part of a question, may be spelled otherwise; and ids without a token, which pad a
    vocabulary to a round size, may mean something to another model.
    """
    auditor = players.auditor
    special, size = set(auditor.tokenizer.all_special_ids), auditor.config.text.vocab_size
    written = {i: token for token, i in auditor.tokenizer.get_vocab().items() if i < size and i not in special}
    return all(
        vlm.config.text.vocab_size > max(written)
        and vlm.tokenizer.convert_ids_to_tokens(list(written)) == list(written.values())
        for vlm in (players.target, *players.references)
    )


def retokenizer(players: Players) -> Translate:
    """Text in the tokens of the auditor, or of another model, -> in those of a model, through the host."""
    models = (players.target, *players.references)

    def translate(questions: Questions, number: int, writer: int | None) -> Questions:
        vlm = models[number]
        texts = texts_of((players.auditor if writer is None else models[writer]).tokenizer, *questions)
        tokens = vlm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        # Twice the room: another vocabulary may cut the same words finer.
        *lead, length = questions[0].shape
        ids, mask = padded(tokens, 2 * length, vlm.config.pad_token_id)
        return jnp.asarray(ids.reshape(*lead, 2 * length)), jnp.asarray(mask.reshape(*lead, 2 * length))

    return translate


def input_size(players: Players) -> int:
    """Images are read at the largest size any model takes; the others resample on the device."""
    return max(vlm.config.vision.image_size for vlm in (players.auditor, players.target, *players.references))
