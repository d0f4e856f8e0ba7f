"""[host] What the steps of a run through several channels compute, compiled side by side before the first of them.

A step that makes new images is several compiled functions with the renderer between: one after another they would
compile on one core. Here those behind the renderer, and the step that makes no images, compile in threads, by steps on
blank images whose updates are thrown away; what is in front of it meanwhile here, for tokenizers and pipelines are not
for two threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.channels import Made, Prober, Written
from auditdm_jax.checks import Faults
from auditdm_jax.collect import StepSettings
from auditdm_jax.collect_probes import probe_images
from auditdm_jax.heldout import for_probe
from auditdm_jax.layout import Layout
from auditdm_jax.state import AuditState, Cast
from auditdm_jax.step import make_step


@dataclass(frozen=True, eq=False)
class BlankProber(Prober):
    """Writes and renders nothing, but has what comes behind the renderer compiled. real: `compiled` of a prober."""

    real: tuple[Callable, Callable] | None = None

    @cached_property
    def compiled(self) -> tuple[Callable, Callable]:
        assert self.real is not None
        write, follow = self.real

        def nothing(shared_out: Layout, params: Any, images: Array, key: Array, count: int, begun: Any) -> Written:
            shapes = jax.eval_shape(lambda *given: write(shared_out, *given, count, begun), params, images, key)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return nothing, follow

    def _render(self, shared_out: Layout, images: Array, written: Written) -> tuple[list[str], Made, dict[str, int]]:
        made = {}
        for channel in ("edit", "caption"):
            if rows := len(shared_out.probes(channel, written.empty.shape[1])):
                none = jnp.zeros(rows, bool)
                made[channel] = jnp.zeros((rows, *images.shape[1:]), images.dtype), Faults(none, none, none)
        return [], made, {}


def compile_ahead(
    cast: Cast,
    settings: StepSettings,
    prober: Prober,
    asking: Callable | None,
    state: AuditState,
    images: UInt8[np.ndarray, "B H W 3"],
) -> None:
    """Compiles a step that makes new images, and `asking`, one that makes none; what they compute is not kept."""
    blank = BlankProber(**{field.name: getattr(prober, field.name) for field in fields(prober)}, real=prober.compiled)
    steps = [make_step(cast, settings, None, blank), *([asking] if asking else [])]
    with ThreadPoolExecutor(len(steps)) as threads:
        done = [threads.submit(step, for_probe(state), images) for step in steps]
        given = state.trained, state.frozen, jnp.asarray(images), state.trained.key
        probe_images(*given, cast=cast, settings=settings, prober=prober)
        for each in done:
            each.result()
