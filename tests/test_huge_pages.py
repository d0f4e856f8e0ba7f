"""huge_pages.py: a program starts anew once, where that changes anything, and is otherwise as it was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from auditdm_jax import huge_pages

PROGRAM = """
import os, sys
print(os.getpid(), flush=True)
from auditdm_jax.huge_pages import with_huge_pages
with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


@pytest.fixture
def given_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Says who is given huge pages; returns the programs that are started anew."""
    started: list[tuple] = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "GIVEN_TO", tmp_path / "enabled")
    monkeypatch.setattr(os, "execv", lambda *arguments: started.append(arguments))

    def say(text: str) -> list[tuple]:
        huge_pages.GIVEN_TO.write_text(text)
        return started

    yield say
    os.environ.pop("GLIBC_TUNABLES", None)  # set behind monkeypatch's back


def test_where_they_are_given_to_those_who_ask_the_program_starts_anew_once(given_to, monkeypatch):
    started = given_to("always [madvise] never\n")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "train.py", "--steps", "4"])
    huge_pages.with_huge_pages()
    assert started == [(sys.executable, [sys.executable, "-X", "utf8", "train.py", "--steps", "4"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    huge_pages.with_huge_pages()
    assert len(started) == 1


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]"])
def test_where_asking_changes_nothing_it_goes_on(given_to, text: str):
    started = given_to(text)
    huge_pages.with_huge_pages()
    assert not started
    assert "GLIBC_TUNABLES" not in os.environ


def test_what_a_user_has_set_stays(given_to, monkeypatch):
    started = given_to("always [madvise] never")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.with_huge_pages()
    assert not started
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"


def test_without_linux_it_goes_on(given_to):
    huge_pages.with_huge_pages()  # no such file
    assert "GLIBC_TUNABLES" not in os.environ


def test_where_no_program_may_be_started_it_goes_on(given_to, monkeypatch):
    given_to("always [madvise] never")

    def refused(*_: object) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "execv", refused)
    huge_pages.with_huge_pages()


def test_a_program_keeps_its_arguments_and_its_place(tmp_path: Path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, path, "a b", "--c"], capture_output=True, text=True, env=environment, check=True
    )
    *places, last = done.stdout.splitlines()
    asked = huge_pages.GIVEN_TO.exists() and "[madvise]" in huge_pages.GIVEN_TO.read_text()
    assert places == places[:1] * (2 if asked else 1)  # the same process
    assert last == f"{'glibc.malloc.hugetlb=1' if asked else None} ['a b', '--c']"
