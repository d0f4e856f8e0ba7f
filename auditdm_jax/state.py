"""The one pytree that a run is: what trains, beside what is frozen.

Axis letters, used everywhere: B images, G completions per image, P prompt tokens, T tokens, S cache length,
V vocabulary, D width, N heads, K key/value heads, H head size, L layers, R references.
"""

from typing import Any

import flax.struct
import optax
from jaxtyping import Array, Float, Int

from auditdm_jax.answers import TokenBytes
from auditdm_jax.critic import Critic
from auditdm_jax.models.multimodal import VLMConfig
from auditdm_jax.prompts import PromptTemplate
from auditdm_jax.sampling import Prompt
from auditdm_jax.topics import Topics

Params = Any


@flax.struct.dataclass
class Trained:
    """What a step changes, and what a checkpoint stores.

    auditor: all parameters, or LoRA adapters. step: updates done. key: the run's key; a step folds its number in, so
    that a resumed run repeats exactly. archive: how often each hashed part of a question was asked lately (>= 0).
    topics: of each of the K topics, questions asked lately and failures found. critic: tells which of them fail.
    """

    auditor: Params
    opt_state: optax.OptState
    key: Array
    step: Int[Array, ""]
    archive: Float[Array, "A"]
    topics: Float[Array, "2 K"]
    critic: Critic


@flax.struct.dataclass
class Frozen:
    """Parameters that only pass through: the auditor before training (also the base under adapters), the target, and
    the R references."""

    auditor: Params
    target: Params
    references: tuple[Params, ...]


@flax.struct.dataclass
class AuditState:
    """Everything a training step reads; `frozen` is never copied, and `trained` is donated to a step that is one
    compiled function."""

    trained: Trained
    frozen: Frozen


@flax.struct.dataclass
class Role:
    """How one model is spoken to: its static configuration, the prompt around a question, its tokens' bytes."""

    config: VLMConfig = flax.struct.field(pytree_node=False)
    template: PromptTemplate = flax.struct.field(pytree_node=False)
    token_bytes: TokenBytes


@flax.struct.dataclass
class Auditor:
    """How the auditor is spoken to: its static configuration, a prompt for each of its C channels, its topics."""

    config: VLMConfig = flax.struct.field(pytree_node=False)
    prompts: Prompt
    topics: Topics | None = None


@flax.struct.dataclass
class Cast:
    """The roles of a run: the auditor, the target, the R references."""

    auditor: Auditor
    target: Role
    references: tuple[Role, ...]
