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
from auditdm_jax.images import BadImage, decode_rgb
from auditdm_jax.outcomes import Examined, is_answer


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The image as PNG, lightly compressed: thousands are written in a run."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


REQUIRED = ("image", "question", "consensus")
"""What a discoveries file must have to be learned from; the consensus is the label."""

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


# What is read back: all but the originals, of which nothing is learned.
KEPT = [name for name in SCHEMA.names if name != "original"]


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
    """One row of a discoveries file, its image apart; what a file does not say is empty or False."""

    question: str
    consensus: str
    image_id: str = ""
    target_answer: str = ""
    reference_answers: tuple[str, ...] = ()
    verifier_answer: str = ""
    oracle_answer: str = ""
    skill: str = ""
    condition: str = ""
    claimed: bool = False
    verified: bool = False
    seed: int = 0
    channel: str = "question"
    written: str = ""
    old: bool = False
    outcome: str = ""
    original_target_answer: str = ""
    original_consensus: str = ""
    flipped: bool = False


class Discoveries(NamedTuple):
    """images: row i is what question i was asked of; skipped: how many rows could not be used, by reason."""

    images: UInt8[np.ndarray, "N H W 3"]
    rows: list[Discovery]
    skipped: dict[str, int]


def read(path: str | os.PathLike[str], size: int) -> Discoveries:
    """Reads any discoveries file, its images resized to `[size, size]`.

    It needs the columns image (a struct with `bytes`, or bytes), question and consensus (the label); others
    may be missing. Rows without a question, a label or a good image are skipped and counted. Raises
    UserError if the file is missing, no Parquet file, lacks a column, or has no row that can be used.
    """
    table = _table(Path(path))
    images, rows, skipped = [], [], Counter[str]()
    for record in (record for batch in table.to_batches(256) for record in batch.to_pylist()):
        texts = ("question", "consensus")
        reason = next((f"no {name}" for name in texts if not is_answer(record[name] or "")), "")
        data = record["image"]["bytes"] if isinstance(record["image"], dict) else record["image"]
        if not reason and not data:
            reason = "no image bytes"  # a path in a table is a stranger's text and is not followed
        if not reason:
            try:
                images.append(decode_rgb(data, size))
            except BadImage as error:
                reason = str(error)
        if reason:
            skipped[reason] += 1
            continue
        known = {name: value for name, value in record.items() if name != "image" and value is not None}
        known["reference_answers"] = tuple(answer or "" for answer in known.get("reference_answers", ()))
        rows.append(Discovery(**known))
    if not rows:
        reasons = ", ".join(f"{n} rows: {reason}" for reason, n in skipped.items()) or "it is empty"
        raise UserError(f"{one_line(path)} has no discovery that can be used ({reasons}); run audit.py again")
    return Discoveries(np.stack(images), rows, dict(skipped.most_common()))


def _table(path: Path) -> pa.Table:
    """The columns of a file that a Discovery has. Raises UserError as `read` says."""
    hint = "run audit.py first, or name the Parquet file it wrote"
    if not path.is_file():
        raise UserError(f"there is no discoveries file {one_line(path)}; {hint}")
    try:
        schema = pq.read_schema(path)
        missing = [name for name in REQUIRED if name not in schema.names]
        if missing:
            raise UserError(f"{one_line(path)} has no column {' or '.join(missing)}; {hint}")
        table = pq.read_table(path, columns=[name for name in KEPT if name in schema.names])
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error, 80)
        raise UserError(f"{one_line(path)} cannot be read as Parquet ({reason}); {hint}") from None
    for field in table.schema:
        if not _fits(field):
            kind = one_line(field.type, 60)
            raise UserError(f"the column {field.name} of {one_line(path)} has the type {kind}; {hint}")
    return table


def _fits(field: pa.Field) -> bool:
    """Whether a column of a foreign file holds values of the same kind as ours, however wide."""

    def alike(ours: pa.DataType, theirs: pa.DataType) -> bool:
        if pa.types.is_list(ours):
            return (pa.types.is_list(theirs) or pa.types.is_large_list(theirs)) and alike(
                ours.value_type, theirs.value_type
            )
        tests = (pa.types.is_boolean, pa.types.is_integer, _is_text, _is_bytes)
        return any(test(ours) and test(theirs) for test in tests)

    kind = field.type
    if field.name == "image":
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return _is_bytes(kind)
    nothing = pa.types.is_null(kind) and field.name not in REQUIRED
    return nothing or alike(SCHEMA.field(field.name).type, kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
