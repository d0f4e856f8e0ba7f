"""[host] The images of a repair: a pool to ask about, of which some are kept for the examination."""

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from auditdm_jax.config import RectifyConfig
from auditdm_jax.data import Split, open_images
from auditdm_jax.discoveries import Discoveries
from auditdm_jax.scenes.dataset import scenes_of


class Pool(NamedTuple):
    """N images to ask about, all different, uint8 [N, H, W, 3]; their ids, of scenes none; what was skipped."""

    images: np.ndarray
    ids: list[str]
    skipped: dict[str, int]


def pool_of(spec: Sequence[str], split: Split, size: int, config: RectifyConfig) -> Pool:
    """At most `config.pool` images, of `spec` at a size, or scenes at their own."""
    if not spec:
        # Seeds apart from those the auditor trained on.
        return Pool(scenes_of("train", (3000 + config.seed) * 100_000_000, config.pool)[1], [], {})
    # One pass, so that no image stands twice: some are kept for the examination.
    batch_size = min(config.pool, 64)
    source = open_images(spec, size, batch_size, config.seed, split=split, num_epochs=1)
    chunks = list(islice(source, -(-config.pool // batch_size)))
    images = np.concatenate([batch["image"][batch["valid"]] for batch in chunks])[: config.pool]
    ids = [name for batch in chunks for name in batch["image_id"][: int(batch["valid"].sum())]]
    return Pool(images, ids[: config.pool], source.skipped)


def unseen_first(pool: Pool, found: Discoveries) -> tuple[Pool, int]:
    """The pool with those images first that no discovery is of or was made from, by name or pixel by pixel, and how
    many these are: one whose discovery is taught cannot be examined on."""
    names = {row.image_id for row in found.rows}
    pixels = {_digest(image) for image in (*found.images, *found.originals)}
    seen = [name in names or _digest(image) in pixels for name, image in zip(pool.ids, pool.images, strict=True)]
    order = np.argsort(seen, kind="stable")
    return pool._replace(images=pool.images[order], ids=[pool.ids[i] for i in order]), len(seen) - sum(seen)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()
