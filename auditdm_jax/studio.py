"""[host] The frozen diffusion pipelines of a run: from images and texts to new images and their faults."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from auditdm_jax.checks import Faults, faults_of_edits, faults_of_generations
from auditdm_jax.config import Probing
from auditdm_jax.scenes.zoo_paths import pipeline_path

if TYPE_CHECKING:
    from auditdm_jax.counterfactuals import Renderer


class Studio(NamedTuple):
    """The frozen pipelines that carry out commands and draw captions; None where the channel is not used."""

    editor: "Renderer | None"
    generator: "Renderer | None"

    @classmethod
    def load(cls, probing: Probing) -> "Studio | None":
        """The pipelines that the channels need, one for both where it is the same; None if they need none.

        Raises UserError as `Renderer.load` does, and for a pipeline that does not edit, or generate.
        """
        if set(probing.channels) <= {"question"}:
            return None
        from auditdm_jax.counterfactuals import Renderer  # takes seconds: who only asks does not wait for it

        def load(channel: str, name: str, ability: Literal["edits", "generates"]) -> Renderer | None:
            if channel not in probing.channels:
                return None
            renderer = Renderer.load(pipeline_path(name), **vars(probing.render))
            renderer.require(ability)
            renderer.progress = False  # the run has a bar of its own
            return renderer

        editor = load("edit", probing.editor, "edits")
        if editor is not None and probing.editor == probing.generator and editor.family.generates:
            return cls(editor, editor)
        return cls(editor, load("caption", probing.generator, "generates"))

    def render(
        self, channel: str, images: UInt8[Array, "N H W 3"], texts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[UInt8[Array, "N H W 3"], Faults]:
        """Images after their commands, or from their captions, and their faults.

        A generation is drawn at the size that is set, else at that of the old image, and resized to it.
        """
        if channel == "edit":
            assert self.editor is not None
            made = self.editor.edit(images, texts, seeds)
            return made, faults_of_edits(images, made)
        assert self.generator is not None
        own = (images.shape[1], images.shape[2])
        made = self.generator.generate(texts, seeds, own if (size := self.generator.settings.size) is None else size)
        if made.shape != images.shape:
            resized = jax.image.resize(made.astype(jnp.float32), images.shape, "cubic")
            made = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
        return made, faults_of_generations(made)

    def check_size(self, size: int) -> None:
        """Raises UserError if a pipeline cannot work with square images of a size, or at the size that is set."""
        for renderer in filter(None, self):
            renderer.check_size(size if renderer.settings.size is None else renderer.settings.size)
