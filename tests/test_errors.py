"""errors.py: one line on stderr and a status, whatever the user's mistake."""

import errno
import os
import subprocess
import sys

import pytest

from auditdm_jax.errors import UserError, is_disk_full, one_line, run_cli


def exits(capsys, error: BaseException) -> tuple[int, str]:
    """The exit status and stderr of a command that raises `error`."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    return stopped.value.code, capsys.readouterr().err


def test_user_error_is_one_line_and_status_2(capsys):
    status, told = exits(capsys, UserError("no images in photos;\n\tadd some"))
    assert (status, told) == (2, "error: no images in photos; add some\n")


def test_full_disk_by_number_and_by_words(capsys):
    by_number = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")
    by_words = ValueError("RESOURCE_EXHAUSTED: Failed to write 4 bytes: No space left on device")
    status, told = exits(capsys, by_number)
    assert status == 2
    assert "the disk is full: runs/x/metrics.jsonl could not be written" in told
    assert told.count("\n") == 1
    assert exits(capsys, by_words)[1].startswith("error: the disk is full")
    assert not is_disk_full(OSError(errno.ENOENT, "missing"))


def test_too_little_memory_says_what_needs_less(capsys):
    status, told = exits(capsys, RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."))
    assert (status, told.count("\n")) == (2, 1)
    assert "not enough memory (RESOURCE_EXHAUSTED" in told
    assert "--images-per-step" in told


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_permission_names_the_place(capsys, number):
    status, told = exits(capsys, OSError(number, os.strerror(number), "/locked/run"))
    assert status == 2
    assert "no permission to use /locked/run" in told


def test_an_output_that_is_read_no_further_is_no_error():
    code = "from auditdm_jax.errors import run_cli; run_cli(lambda: print('line\\n' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout.readline() == b"line\n"
        command.stdout.close()
        assert command.stderr.read() == b""
    assert command.returncode == 1


def test_keyboard(capsys):
    assert exits(capsys, KeyboardInterrupt()) == (130, "error: stopped by the keyboard\n")


def test_defects_keep_their_traceback_and_success_returns():
    def defect() -> None:
        raise IndexError("a bug")

    with pytest.raises(IndexError, match="a bug"):
        run_cli(defect)
    run_cli(lambda: None)


def test_exit_of_the_option_parser_passes_through():
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda: os.sys.exit(7))
    assert stopped.value.code == 7


def test_one_line_shows_what_a_terminal_would_obey():
    assert one_line("a\x1b[2J\u202eb\nc\x00") == "a\\x1b[2J\\u202eb c\\x00"
    assert one_line("\udcff") == "\\udcff"
    assert one_line("Grüße 日本") == "Grüße 日本"
    assert one_line("x" * 50, 10) == "xxxxxxx..."


@pytest.mark.parametrize("error", [NotADirectoryError, FileExistsError, FileNotFoundError])
def test_a_place_that_cannot_be_used_is_named(capsys, error):
    told = "error: out/x cannot be used (why); choose another place\n"
    assert exits(capsys, error(1, "why", "out/x")) == (2, told)
