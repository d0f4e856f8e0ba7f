"""files.py: a reader sees the old file or the new one, never half of one."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from auditdm_jax import files
from auditdm_jax.errors import UserError
from auditdm_jax.files import append_jsonl, atomic_file, atomic_folder, read_json, rewind_jsonl, write_json


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_json_round_trip_of_everything_a_run_holds(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        name: str
        where: Path

    value = {
        "settings": Settings("é\udcff", Path("a/b")),
        "array": np.arange(3),
        "device": jnp.float32(0.5),
        "nan": float("nan"),
        "infinite": np.array([np.inf]),
        "tuple": (1, None, True),
    }
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == {
        "settings": {"name": "é\udcff", "where": "a/b"},
        "array": [0, 1, 2],
        "device": 0.5,
        "nan": None,
        "infinite": [None],
        "tuple": [1, None, True],
    }


def test_missing_or_broken_json(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="is a directory"):
        read_json(tmp_path)
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "x.json")


def test_failure_keeps_the_good_file_and_leaves_no_draft(tmp_path):
    goal = tmp_path / "x.txt"
    goal.write_text("good")

    def write_half() -> None:
        with atomic_file(goal) as draft:
            draft.write_text("ha")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert goal.read_text() == "good"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_full_disk_is_told_and_keeps_the_good_file(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"disk is full: .*x\.json could not be written"):
        write_json(tmp_path / "x.json", 2)
    monkeypatch.undo()
    assert read_json(tmp_path / "x.json") == 1
    assert os.listdir(tmp_path) == ["x.json"]


def test_folder_is_replaced_whole(tmp_path):
    goal = tmp_path / "model"
    for text in ("old", "new"):
        with atomic_folder(goal) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / f"{text}.txt").write_text(text)
    assert [p.name for p in goal.rglob("*.txt")] == ["new.txt"]
    assert os.listdir(tmp_path) == ["model"]


def test_folder_survives_failures_before_and_during_the_swap(tmp_path, monkeypatch):
    goal = tmp_path / "model"
    goal.mkdir()
    (goal / "good").touch()

    def fail_inside() -> None:
        with atomic_folder(goal):
            full_disk()

    with pytest.raises(UserError, match="disk is full"):
        fail_inside()
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: full_disk() if a.name == "new" else replace(a, b))

    def fail_swapping() -> None:
        with atomic_folder(goal) as draft:
            (draft / "bad").touch()

    with pytest.raises(UserError, match="disk is full"):
        fail_swapping()
    assert os.listdir(goal) == ["good"]
    assert os.listdir(tmp_path) == ["model"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("half", ["", '{"step": 2, "lo', '{"step": 2, "text": "' + "x" * 9000])
def test_append_after_a_half_written_line(tmp_path, half):
    path = tmp_path / "run" / "metrics.jsonl"
    append_jsonl(path, {"step": 1, "loss": np.float32(0.5)})
    with open(path, "a") as file:
        file.write(half)
    append_jsonl(path, {"step": 2, "loss": float("nan"), "text": "a\nb"})
    assert rows(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "text": "a\nb"}]


def test_append_to_a_file_that_is_only_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"st')
    append_jsonl(path, {"step": 1})
    assert rows(path) == [{"step": 1}]


def test_append_on_a_full_disk(tmp_path, monkeypatch):
    append_jsonl(tmp_path / "metrics.jsonl", {"step": 1})
    monkeypatch.setattr(files.mmap, "mmap", lambda *_, **__: full_disk())
    with pytest.raises(UserError, match="disk is full"):
        append_jsonl(tmp_path / "metrics.jsonl", {"step": 2})


def test_rewind_drops_what_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rewind_jsonl(path, 3)
    assert not path.exists()
    for step in range(1, 6):
        append_jsonl(path, {"step": step})
    append_jsonl(path, {"note": "no step"})
    with open(path, "a") as file:
        file.write('{"step": 3')
    rewind_jsonl(path, 3)
    assert rows(path) == [{"step": 1}, {"step": 2}, {"step": 3}, {"note": "no step"}]
