"""[host] What the steps of a run through several channels compute, compiled side by side before the first of them.

A step that makes new images is several compiled functions with the renderer between: one after another they would
compile on one core. Here those behind the renderer, and the step that makes no images, compile in threads, by steps on
blank images whose updates are thrown away; what is in front of it meanwhile here, for tokenizers and pipelines are not
for two threads.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from auditdm_jax.channels import FAULTS, Prober, Probes
from auditdm_jax.collect import StepSettings
from auditdm_jax.collect_probes import probe_images
from auditdm_jax.heldout import for_probe
from auditdm_jax.layout import Layout
from auditdm_jax.sampling import Begun
from auditdm_jax.state import AuditState, Cast
from auditdm_jax.step import make_step


@dataclass(frozen=True, eq=False)
class BlankProber(Prober):
    """Gives arrays of the shapes of a prober's, all zeros, and writes and renders nothing."""

    def __call__(
        self,
        params: Any,
        base: Any,
        images: UInt8[Array, "B H W 3"],
        key: Array,
        generations: int,
        begun: Begun | None = None,
    ) -> Probes:
        probe = partial(super().__call__, generations=generations)
        shapes = jax.eval_shape(probe, params, base, images, key, begun=begun)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _render(
        self, shared_out: Layout, images: Array, *written: Array
    ) -> tuple[list[str], Array, dict[str, Array], Mapping[str, int]]:
        return [], images, {name: jnp.zeros(len(images), bool) for name in FAULTS}, {}


def compile_ahead(
    cast: Cast,
    settings: StepSettings,
    prober: Prober,
    asking: Callable | None,
    state: AuditState,
    images: UInt8[np.ndarray, "B H W 3"],
) -> None:
    """Compiles a step that makes new images, and `asking`, one that makes none; what they compute is not kept."""
    steps = [make_step(cast, settings, None, BlankProber(**vars(prober))), *([asking] if asking else [])]
    with ThreadPoolExecutor(len(steps)) as threads:
        done = [threads.submit(step, for_probe(state), images) for step in steps]
        given = state.trained, state.frozen, jnp.asarray(images), state.trained.key
        probe_images(*given, cast=cast, settings=settings, prober=prober)
        for each in done:
            each.result()
