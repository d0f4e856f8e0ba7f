"""[jit] A step of several runs that differ in their seeds alone: one compiled function, by vmap over what trains.

The auditor must ask questions only, in tokens that all models read, so that a step is one compiled function. What a run
becomes differs from what it would be alone by rounding.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from auditdm_jax.collect import StepSettings, collect
from auditdm_jax.state import AuditState, Cast, Frozen, Trained
from auditdm_jax.step import audit_step


def make_joint_step(cast: Cast, settings: StepSettings):
    """step(states, images) -> for each run (state, metrics, record). All share the frozen models of the first."""
    ask_once = partial(collect, cast=cast, settings=settings, translate=None)
    one = partial(audit_step, ask_once=ask_once, config=cast.auditor.config, settings=settings)

    @partial(jax.jit, donate_argnums=0)
    def fused(trained: list[Trained], frozen: Frozen, images: Array) -> list[tuple[Trained, dict, dict]]:
        stacked = jax.tree.map(lambda *runs: jnp.stack(runs), *trained)
        done = jax.vmap(one, in_axes=(0, None, 0))(stacked, frozen, images)
        return [jax.tree.map(lambda x: x[i], done) for i in range(len(trained))]  # noqa: B023 - called at once

    def step(states: Sequence[AuditState], images: Sequence[Array], _=None) -> list[tuple[AuditState, dict, dict]]:
        frozen = states[0].frozen
        done = fused([state.trained for state in states], frozen, jnp.stack(images))
        return [(AuditState(trained, frozen), metrics, record) for trained, metrics, record in done]

    return step
