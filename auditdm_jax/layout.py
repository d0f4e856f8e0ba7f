"""[host] How the images of a batch are shared out among the channels: known before the batch, the same all run long."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Int

from auditdm_jax.config import CHANNELS, Probing
from auditdm_jax.errors import UserError

QUESTION = CHANNELS.index("question")

Spans = tuple[tuple[tuple[int, ...], int], ...]
"""Rows of a batch, and how many tokens they have; hashable."""


@dataclass(frozen=True)
class Layout:
    """Which channel each image of a batch goes through, as its place in `CHANNELS`, and whether its question is an old
    one. Fixed for a run, so that nothing compiles twice."""

    channels: tuple[int, ...]
    old: tuple[bool, ...]

    def through(self, name: str) -> np.ndarray:
        """int [n]: the images of a channel."""
        return np.flatnonzero(np.array(self.channels) == CHANNELS.index(name))

    def probes(self, name: str, generations: int) -> np.ndarray:
        """int [n * G]: of the N = B * G probes those of a channel."""
        return probes_of(self.through(name), generations)

    def asks(self) -> np.ndarray:
        """bool [B]: the images that are asked about as they are."""
        return np.array(self.channels) == QUESTION

    def new(self) -> np.ndarray:
        """bool [B]: the images of whose new images a new question is asked."""
        return ~(self.asks() | np.array(self.old))

    def spans(self, limits: tuple[int, ...]) -> "Spans":
        """The images that are asked about, then the others, and how long what is written of them may be: a question is
        not padded to a caption's length. limits: tokens, of each channel."""
        longest, asks = np.array(limits)[np.array(self.channels)], self.asks()
        return tuple((tuple(np.flatnonzero(of).tolist()), int(longest[of].max())) for of in (asks, ~asks) if of.any())

    def distinct(self, generations: int) -> tuple[Int[np.ndarray, "D"], Int[np.ndarray, "N"]]:
        """Of N = B * G probed images those that differ, and which of these each is: a question leaves its image as it
        is."""
        first = np.arange(len(self.channels) * generations)
        return np.unique(
            np.where(np.repeat(self.asks(), generations), first // generations * generations, first),
            return_inverse=True,
        )


def probes_of(images: Int[np.ndarray, "n"], generations: int) -> Int[np.ndarray, "N"]:
    """The probes of some images, by their numbers."""
    return (images[:, None] * generations + np.arange(generations)).reshape(-1)


@cache
def layout(probing: Probing, images: int) -> Layout:
    """Images shared out by the weights, by largest remainder, and each channel's old questions spread among its own.

    Of 8 images, question and edit weighed 3 to 1, half of the questions old: six ask, two edit, one of these with an
    old question. The channels alternate as evenly as their shares allow, so that a batch cut short has them all.
    """
    weights = np.array(probing.weights(images))
    given, old = np.zeros(len(weights)), np.zeros(len(weights))
    rows, are_old = [], []
    for number in range(images):
        chosen = int(np.argmax((number + 1) * weights / weights.sum() - given))
        given[chosen] += 1
        is_old = probing.channels[chosen] != "question" and old[chosen] < int(given[chosen] * probing.old_share + 0.5)
        old[chosen] += is_old
        rows.append(CHANNELS.index(probing.channels[chosen]))
        are_old.append(bool(is_old))
    return Layout(tuple(rows), tuple(are_old))


def used_by_all(probing: Probing, images: int, more: str = "--images-per-step") -> None:
    """Raises UserError if a batch has too few images for one of the channels. more: what makes batches larger."""
    shared_out = layout(probing, images)
    for channel in probing.channels:
        if not len(shared_out.through(channel)):
            raise UserError(
                f"of {images} images at a time none goes through the channel {channel}; raise {more} or its weight, "
                "or leave it out"
            )
