"""[host] Folders, globs, Parquet files and saved `datasets` -> fixed-shape batches of RGB images.

The pipeline is grain's: records -> shuffle by seed -> repeat -> decode -> drop what is bad -> batch. A bad
image is dropped before batching, so batches stay full, and the position counts records and not good
images, so it can be restored exactly.

Image ids are text from files and so untrusted (see image_files).
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import grain
import numpy as np
from jaxtyping import Bool, UInt8

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.image_files import Record, encoded, find_images
from auditdm_jax.images import MAX_PIXELS, BadImage, decode_rgb

HELD_OUT = 0.1
"""The share of images, chosen by a hash of their ids, that split "train" leaves to "heldout"."""

Split = Literal["all", "train", "heldout"]


class Source(Protocol):
    """Batches of images with a position that a checkpoint can hold."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict: ...
    def set_state(self, state: dict) -> None: ...


class ImageBatch(TypedDict):
    """What an ImageSource yields."""

    image: UInt8[np.ndarray, "B H W 3"]
    image_id: list[str]
    valid: Bool[np.ndarray, "B"]  # False on rows that only fill up the last batch of a finite pass


def open_images(
    spec: Sequence[str],
    size: int,
    batch_size: int,
    seed: int,
    *,
    split: Split = "all",
    num_epochs: int | None = None,
    leave_out: Set[tuple[Path, int]] = frozenset(),
    max_pixels: int = MAX_PIXELS,
    num_threads: int = 2,
) -> "ImageSource":
    """Opens images for training (`num_epochs=None`: endless) or for passes over them.

    Each item of `spec` is a folder (searched in depth, for images and for Parquet and Arrow files, such as
    `datasets`' `save_to_disk` writes), an image, a Parquet or Arrow file, a glob (`**` allowed), or
    `hf://datasets/OWNER/NAME`, fetched from the hub. `split` divides the images by a hash of their ids, so
    the same image is on the same side in every run and whatever else the folder holds (of a few images, at least one
    is held out). `leave_out`: places of records that are not among them, see `trained_places`.

    Raises UserError for an item that is missing or has no images, an unreadable table, or if all are left out.
    """
    if not spec:
        raise UserError("no images are named; give --images a folder, a glob or a Parquet file")
    records = [record for record in find_images(spec) if record.place not in leave_out]
    if not records:
        raise UserError("training saw every one of these images; give --images that it did not see")
    if split != "all":
        held_out = held_out_ids([record.image_id for record in records])
        chosen = [r for r in records if (r.image_id in held_out) == (split == "heldout")]
        records = chosen or records  # of a single image, both sides are that image
    return ImageSource(records, size, batch_size, seed, num_epochs, max_pixels, num_threads)


class ImageSource:
    """An iterator of ImageBatch with a position that can be saved; reads ahead in threads, not processes.

    `num_images` counts the records, bad ones included, as these are known only once read.
    """

    def __init__(
        self,
        records: Sequence[Record],
        size: int,
        batch_size: int,
        seed: int,
        num_epochs: int | None,
        max_pixels: int,
        num_threads: int,
    ) -> None:
        self._records, self._size, self._max_pixels = records, size, max_pixels
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()
        self.num_images = len(records)
        # grain shuffles epoch e of seed s as epoch 0 of seed s + e: without mixing, runs whose seeds are
        # neighbours would see each other's orders.
        mixed_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        read = grain.ReadOptions(num_threads, prefetch_buffer_size=2 * batch_size + num_threads)
        pipeline = (
            grain.MapDataset.range(len(records))
            .shuffle(seed=mixed_seed)
            .repeat(num_epochs)
            .map(self._load)
            .to_iter_dataset(read)
            .batch(batch_size, batch_fn=lambda rows: _stack(rows, batch_size))
        )
        # How many images are bad is reported by `skipped`, not by grain's log.
        options = grain.experimental.DatasetOptions(filter_warn_threshold_ratio=None)
        self._batches = iter(grain.experimental.WithOptionsIterDataset(pipeline, options))

    def __iter__(self) -> "ImageSource":
        return self

    def __next__(self) -> ImageBatch:
        """The next batch. Raises UserError if every image is bad."""
        return next(self._batches)

    @property
    def skipped(self) -> dict[str, int]:
        """How many different images were bad so far, by reason, the most frequent first.

        Counts what was read ahead too, so it can run before the position by a batch or two.
        """
        with self._lock:
            return dict(Counter(self._bad.values()).most_common())

    def get_state(self) -> dict[str, Any]:
        """The position, in JSON's types: after `set_state` the same batches follow."""
        with self._lock:
            skipped = {str(index): reason for index, reason in self._bad.items()}
        return {"position": self._batches.get_state(), "skipped": skipped, "images": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position. Raises UserError if it was taken over other images."""
        if state.get("images") != self._fingerprint:
            raise UserError(
                "the images are not those of the checkpoint (some were added, removed, renamed or changed); "
                "bring them back, or begin a new run with another --name"
            )
        with self._lock:
            self._bad = {int(index): reason for index, reason in state["skipped"].items()}
        self._batches.set_state(state["position"])

    @cached_property
    def _fingerprint(self) -> str:
        """Of the ids, and of the sizes of the files that they are in."""
        sizes = {file: file.stat().st_size if file.exists() else 0 for file in {r.file for r in self._records}}
        ids = "\0".join(f"{record.image_id}\0{sizes[record.file]}" for record in self._records)
        return hashlib.blake2b(ids.encode(), digest_size=16).hexdigest()

    def _load(self, index: int) -> tuple[str, np.ndarray] | None:
        """The id and pixels of one record; None, which grain leaves out, if it is bad."""
        record = self._records[index]
        try:
            return record.image_id, decode_rgb(encoded(record), self._size, self._max_pixels)
        except BadImage as error:
            with self._lock:
                self._bad[index] = str(error)
                all_bad = len(self._bad) == len(self._records)
        if all_bad:  # an endless pipeline would search for ever
            why = reasons(self.skipped)
            raise UserError(f"none of the {self.num_images} images can be used ({why}); give other --images")
        return None


def _stack(rows: Sequence[tuple[str, np.ndarray]], batch_size: int) -> ImageBatch:
    """One shape for every batch, so that nothing compiles twice: a short last one repeats its last row."""
    filled = [*rows, *[rows[-1]] * (batch_size - len(rows))]
    return {
        "image": np.stack([pixels for _, pixels in filled]),
        "image_id": [image_id for image_id, _ in filled],
        "valid": np.arange(batch_size) < len(rows),
    }


def held_out_ids(image_ids: Sequence[str]) -> set[str]:
    """The images of the held-out split, by a hash of their ids; of two or more, at least one and never all."""
    rank = {name: int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") for name in image_ids}
    ordered = sorted(rank, key=lambda name: (rank[name], name))
    count = sum(value < HELD_OUT * 2**64 for value in rank.values())
    return set(ordered[: min(max(count, 1), len(ordered) - 1)])


def trained_places(spec: Sequence[str]) -> set[tuple[Path, int]]:
    """The places of the images that training on `spec` sees, as far as they are still there; of a single image, which
    both sides are, none."""
    try:
        records = find_images(spec)
    except UserError:  # something is gone
        records = find_images([item for item in spec if _has_images(item)])
    held_out = held_out_ids([record.image_id for record in records])
    return {record.place for record in records if record.image_id not in held_out} if len(records) > 1 else set()


def _has_images(item: str) -> bool:
    try:
        return bool(find_images([item]))
    except UserError:
        return False


def reasons(skipped: Mapping[str, int]) -> str:
    """Counts by reason, safe to print: "2 truncated, 1 not an image"."""
    return ", ".join(f"{count} {one_line(reason)}" for reason, count in skipped.items())
