"""[host] Writers that never leave half a file in place of a good one.

Each writes beside the goal, forces the bytes to the disk, and renames: a reader, and a run killed at
any moment, sees the old file or the new one.
"""

import dataclasses
import fcntl
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from auditdm_jax.errors import UserError, disk_full, is_disk_full, one_line


def lock_folder(folder: Path) -> int:
    """Holds a folder, which is made, until the file (descriptor) that it gives is closed, or this process ends.

    Raises UserError while another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise UserError(
            f"another process is at work in {one_line(folder)}; wait for it, or give another --name"
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a new path to write to; renames it to `path` if the block succeeds, removes it if not.

    Folders above are made. Raises UserError if the disk is full.
    """
    path = Path(path)
    with _in_place_of(path) as folder:
        draft = folder / path.name
        yield draft
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, path)
        _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a new, empty folder to fill; it takes the place of `path` if the block succeeds.

    A folder already at `path` stays whole until the new one is complete. Raises UserError if the disk
    is full.
    """
    path = Path(path)
    with _in_place_of(path) as folder:
        draft = folder / "new"
        draft.mkdir()
        yield draft
        for written in draft.rglob("*"):
            if written.is_file():
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
        # A folder that is not empty cannot be replaced in one system call: the old one steps aside first.
        old = folder / "old"
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(draft, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        _sync_folder(path.parent)


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` (renames work only within one disk), removed in the end."""
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield folder
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value: Any) -> Any:
    """`value` in JSON's own types: arrays and dataclasses unfolded, paths as text, NaN and inf as None.

    JSON has no NaN; a reader in another language stops at one.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `plain(value)` as indented UTF-8 JSON, atomically."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as draft:
        # Lone surrogates (from odd file names) have no UTF-8 form: they become escapes.
        draft.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file. Raises UserError if it is missing, a directory, or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{one_line(path)} does not exist; run the command that writes it first") from None
    except IsADirectoryError:
        raise UserError(f"{one_line(path)} is a directory, not a file; have it written anew") from None
    except (ValueError, RecursionError):
        raise UserError(f"{one_line(path)} is not valid JSON; have it written anew") from None


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file, [] if there is none; what is no object, as the half line of a killed run, is left out."""
    rows = []
    for line in Path(path).read_bytes().splitlines() if Path(path).exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Appends one line of JSON. A half line that a killed run left at the end is cut off first.

    Raises UserError if the disk is full.
    """
    path = Path(path)
    line = json.dumps(plain(row), ensure_ascii=True, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                    end = whole.rfind(b"\n") + 1
                file.truncate(end)
            file.write(line)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def rewind_jsonl(path: str | os.PathLike[str], step: int) -> None:
    """Drops the rows after `step` (their "step" is greater), which a resumed run will write again.

    A row without a step stays; a line that is no JSON object goes. Nothing happens if there is no file.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = [json.dumps(row) + "\n" for row in read_jsonl(path) if row.get("step", step) <= step]
    with atomic_file(path) as draft:
        draft.write_text("".join(kept))


def write_parquet(path: str | os.PathLike[str], table: pa.Table, images: Sequence[str] = ()) -> None:
    """Writes a table atomically. The columns named in `images`, structs of `bytes` and `path`, are marked
    so that `datasets.load_dataset("parquet", ...)` opens them as images."""
    if images:
        features = {name: {"_type": "Image"} for name in images}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), "huggingface": info})
    with atomic_file(path) as draft:
        pq.write_table(table, draft)
