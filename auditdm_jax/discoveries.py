"""[host] The Parquet files that keep examined questions with their images, and any discoveries file read
back.

What a model wrote, and what is read from a file, is untrusted text: `errors.one_line` before it is printed.
"""

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from auditdm_jax.errors import UserError, one_line
from auditdm_jax.files import write_parquet
from auditdm_jax.image_files import holds_bytes
from auditdm_jax.images import BadImage, decode_rgb
from auditdm_jax.outcomes import Examined, is_answer


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The image as PNG, lightly compressed: thousands are written in a run."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


REQUIRED = ("image", "question", "consensus")
"""What a discoveries file must have to be learned from; the consensus is the label."""
USED = ("image_id", "original")
"""What is read beside, where it is there."""

SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("target_answer", pa.string()),
        ("reference_answers", pa.list_(pa.string())),
        ("consensus", pa.string()),
        ("verifier_answer", pa.string()),
        ("oracle_answer", pa.string()),
        ("skill", pa.string()),
        ("condition", pa.string()),
        ("claimed", pa.bool_()),
        ("verified", pa.bool_()),
        ("seed", pa.int64()),
        ("channel", pa.string()),
        ("written", pa.string()),
        ("original", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("old", pa.bool_()),
        ("outcome", pa.string()),
        ("original_target_answer", pa.string()),
        ("original_consensus", pa.string()),
        ("flipped", pa.bool_()),
    ]
)
"""Columns of a discoveries file; `datasets.load_dataset("parquet", data_files=...)` shows the images."""


def write(
    path: str | os.PathLike[str],
    rows: Sequence[Examined],
    pngs: Sequence[bytes],
    seed: int,
    originals: Sequence[bytes | None] = (),
) -> None:
    """Writes questions with the images (PNG) that they were asked of, atomically; beside a new image its original.

    Raises UserError if the disk is full.
    """
    columns: dict[str, Any] = {
        "image": [{"bytes": data, "path": None} for data in pngs],
        "original": [data and {"bytes": data, "path": None} for data in originals or [None] * len(rows)],
        "seed": [seed] * len(rows),
    }
    for name in SCHEMA.names:
        columns.setdefault(name, [getattr(row, name, None) for row in rows])
    write_parquet(path, pa.table(columns, schema=SCHEMA), images=["image", "original"])


class Discovery(NamedTuple):
    """What is learned of one row of a discoveries file, its image apart. image_id: "" where the file has none."""

    question: str
    consensus: str
    image_id: str = ""


class Discoveries(NamedTuple):
    """images: row i is what question i was asked of; originals: what the new ones among them were made from; skipped:
    how many rows could not be used, by reason."""

    images: UInt8[np.ndarray, "N H W 3"]
    rows: list[Discovery]
    skipped: dict[str, int]
    originals: Sequence[UInt8[np.ndarray, "H W 3"]] = ()


def read(path: str | os.PathLike[str], size: int) -> Discoveries:
    """Reads any discoveries file, its images resized to `[size, size]`.

    It needs the columns image (a struct with `bytes`, or bytes), question and consensus (the label), and may have
    image_id and original; others are not read. Rows without a question, a label or a good image are skipped and
    counted. Raises UserError if the file is missing, no Parquet file, lacks a column, or has no row that can be used.
    """
    table = _table(Path(path))
    images, rows, originals, skipped = [], [], [], Counter[str]()
    for record in (record for batch in table.to_batches(256) for record in batch.to_pylist()):
        texts = ("question", "consensus")
        reason = next((f"no {name}" for name in texts if not is_answer(record[name] or "")), "")
        data, original = (_bytes_of(record.get(name)) for name in ("image", "original"))
        if not reason and not data:
            reason = "no image bytes"  # a path in a table is a stranger's text and is not followed
        if not reason:
            try:
                image, before = decode_rgb(data, size), [decode_rgb(original, size)] if original else []
            except BadImage as error:
                reason = str(error)
        if reason:
            skipped[reason] += 1
            continue
        images.append(image)
        originals += before
        rows.append(Discovery(record["question"], record["consensus"], record.get("image_id") or ""))
    if not rows:
        reasons = ", ".join(f"{n} rows: {reason}" for reason, n in skipped.items()) or "it is empty"
        raise UserError(f"{one_line(path)} has no discovery that can be used ({reasons}); run audit.py again")
    return Discoveries(np.stack(images), rows, dict(skipped.most_common()), originals)


def _bytes_of(image: Any) -> Any:
    return image["bytes"] if isinstance(image, dict) else image


def _table(path: Path) -> pa.Table:
    """The columns of a file that are read. Raises UserError as `read` says."""
    hint = "run audit.py first, or name the Parquet file it wrote"
    if not path.is_file():
        raise UserError(f"there is no discoveries file {one_line(path)}; {hint}")
    try:
        schema = pq.read_schema(path)
        missing = [name for name in REQUIRED if name not in schema.names]
        if missing:
            raise UserError(f"{one_line(path)} has no column {' or '.join(missing)}; {hint}")
        table = pq.read_table(path, columns=[name for name in (*REQUIRED, *USED) if name in schema.names])
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error, 80)
        raise UserError(f"{one_line(path)} cannot be read as Parquet ({reason}); {hint}") from None
    for field in table.schema:
        if not _fits(field):
            kind = one_line(field.type, 60)
            raise UserError(f"the column {field.name} of {one_line(path)} has the type {kind}; {hint}")
    return table


def _fits(field: pa.Field) -> bool:
    """Whether a column of a foreign file holds images or texts, however wide."""
    kind = field.type
    if pa.types.is_null(kind) and field.name in USED:
        return True
    if field.name in ("image", "original"):
        return holds_bytes(kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
