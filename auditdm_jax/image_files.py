"""[host] Folders, globs, Parquet files and saved `datasets` -> records of encoded images.

A record's id is text from a file and so untrusted: `photos/cat.jpg`, or `photos/part.parquet#17` for a
row, the first part being the name of the folder that was asked for, however it was spelled.
"""

import glob
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from auditdm_jax.errors import UserError, disk_full, is_disk_full, one_line
from auditdm_jax.images import SUFFIXES, BadImage

TABLE_SUFFIXES = (".parquet", ".arrow")


class Record(NamedTuple):
    """Where one encoded image lies: a file (links followed), or of a table a row of its column of bytes."""

    image_id: str
    file: Path
    row: int = 0
    column: pa.ChunkedArray | None = None

    @property
    def place(self) -> tuple[Path, int]:
        """What tells one image from another, however it was named."""
        return self.file, self.row


def find_images(spec: Sequence[str]) -> list[Record]:
    """All records of `spec` in a fixed order with different ids; a file named twice counts once."""
    records: list[Record] = []
    seen_files: set[Path] = set()
    seen_ids: Counter[str] = Counter()
    for item in spec:
        root, files = _files_of(item)
        new = [(file, place) for file in files if (place := file.resolve()) not in seen_files]
        seen_files.update(place for _, place in new)
        found = [record for file, place in new for record in _records_of(root, file, place)]
        if not found and len(new) == len(files):
            raise UserError(f"no images in {one_line(item)}; expected {' '.join(SUFFIXES)} or .parquet files")
        for record in found:
            seen_ids[record.image_id] += 1
            times = seen_ids[record.image_id]  # above 1 where two roots share a name
            records.append(record if times == 1 else record._replace(image_id=f"{record.image_id}~{times}"))
    return records


def _files_of(item: str) -> tuple[Path, list[Path]]:
    """The folder that ids are relative to, and the files that an item of the spec stands for."""
    if item.startswith("hf://datasets/"):
        item = _fetch_dataset(item.removeprefix("hf://datasets/"))
    path = Path(os.path.expanduser(item))
    if path.is_dir():
        files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        # "cache-*" are results that `datasets` keeps beside the data
        kept = [
            f
            for f in files
            if f.suffix.lower() in (*SUFFIXES, *TABLE_SUFFIXES) and not f.name.startswith((".", "cache-"))
        ]
        return path, sorted(kept)
    if path.is_file():
        return path.parent, [path]
    if glob.has_magic(item):
        matches = map(Path, glob.glob(str(path), recursive=True))
        return _before_magic(path), sorted(file for file in matches if file.is_file())
    raise UserError(f"{one_line(item)} does not exist; give --images a folder, a glob or a Parquet file")


def _before_magic(path: Path) -> Path:
    """The leading folders of a glob that stand for themselves: `a/b/*/c?.png` -> `a/b`."""
    return next(parent for parent in path.parents if not glob.has_magic(str(parent)))


def _fetch_dataset(name: str) -> str:
    """Downloads the tables and images of a dataset of the hub (once; kept in the hub's cache)."""
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in (*SUFFIXES, *TABLE_SUFFIXES)]
    try:
        return snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
    except Exception as error:  # network, spelling and access each raise a type of their own
        raise UserError(
            f"cannot fetch the dataset {one_line(name)} ({one_line(error, 120)}); "
            "check its name, your access and the network"
        ) from None


def _records_of(root: Path, file: Path, place: Path) -> list[Record]:
    """The records of one file: itself, or its rows. place: the file that it is, links followed."""
    relative = Path(root.resolve().name, os.path.relpath(file, root)).as_posix()
    # File names need not be UTF-8; ids must be, to be hashed and written to Parquet.
    image_id = relative.encode(errors="backslashreplace").decode()
    kind = file.suffix.lower()
    if kind not in TABLE_SUFFIXES:
        return [Record(image_id, place)]
    try:
        column = _parquet_images(file) if kind == ".parquet" else _arrow_images(file)
    except (pa.ArrowException, OSError) as error:
        if is_disk_full(error):
            raise disk_full(f"the temporary copy of {one_line(file)}") from None
        raise UserError(
            f"{one_line(file)} cannot be read as a {kind} table ({one_line(error, 80)}); write it again"
        ) from None
    return [Record(f"{image_id}#{row}", place, row, column) for row in range(len(column))]


def _parquet_images(file: Path) -> pa.ChunkedArray:
    """The encoded images of a Parquet file, copied once to an unnamed temporary file and mapped from there.

    A Parquet row can be reached only by decoding its whole group, and a shuffled order would do so for
    every image.
    """
    parquet = pq.ParquetFile(file)
    name = _image_column(parquet.schema_arrow, file)
    nested = pa.types.is_struct(parquet.schema_arrow.field(name).type)
    with tempfile.TemporaryFile() as spool:
        writer = None
        for batch in parquet.iter_batches(batch_size=256, columns=[f"{name}.bytes" if nested else name]):
            writer = writer or pa.ipc.new_stream(spool, batch.schema)
            writer.write_batch(batch)
        if writer is None:
            return pa.chunked_array([], pa.binary())
        writer.close()
        spool.flush()
        mapped = pa.py_buffer(mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ))
    return _bytes_of(pa.ipc.open_stream(mapped).read_all()[name])


def _arrow_images(file: Path) -> pa.ChunkedArray:
    """The encoded images of an Arrow stream, as `datasets` saves it, mapped and not read."""
    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    return _bytes_of(table[_image_column(table.schema, file)])


def _bytes_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of that type is of bytes, or of structs that have them."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_column(schema: pa.Schema, file: Path) -> str:
    """The column "image", or else the only one that holds bytes."""
    columns = [field.name for field in schema if holds_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) == 1:
        return columns[0]
    problem = f"has several image columns ({listed(columns)})" if columns else "has no image column"
    raise UserError(
        f"{one_line(file)} {problem} among {listed(schema.names)}; name the column of encoded images 'image'"
    )


def encoded(record: Record) -> bytes | Path:
    """What the decoder takes. Raises BadImage if the row is empty: a path in a table is text from a stranger
    and is not followed."""
    if record.column is None:
        return record.file
    data = record.column[record.row].as_py()
    if not data:
        raise BadImage("no image bytes in the row")
    return data


def listed(names: Sequence[str]) -> str:
    """Names from a user or a file on one line, the first five of them."""
    return ", ".join(one_line(name, 60) for name in names[:5]) + (", ..." if len(names) > 5 else "")
