"""[host] Errors that a user can cause and mend, told in one line instead of a traceback."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can mend: "what is wrong; how to mend it". Of several arguments each is a line."""


def one_line(text: object, limit: int | None = None) -> str:
    """Makes text from a file, a model or a user safe to print on one line.

    Whitespace is folded; whatever a terminal would obey instead of show (control characters, escape
    sequences, direction marks) and what cannot be encoded is written as an escape: `"a\\x1b[2J"`
    becomes `a\\x1b[2J`. Text over `limit` characters is cut and ends in "...".
    """
    folded = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in folded)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 3] + "..."


def and_nearest(name: str, known: Iterable[str]) -> str:
    """`'grop', the nearest is 'grpo@trl'`: for an error that tells of a name unheard of. known: in lower case."""
    return f"{one_line(name, 60)!r}, the nearest is {get_close_matches(name.lower(), known, 1, 0.0)[0]!r}"


def check_choice(name: str, value: object, choices: object) -> None:
    """Raises UserError for a value that is none of a `Literal`'s."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise UserError(f"{name} is {value!r}: choose one of {', '.join(get_args(choices))}")


def at_least_one(settings: object, *names: str) -> None:
    """Raises UserError if one of the named settings, each a number or None, is a number below 1."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')} is {value}: it must be at least 1")


def check_seed(seed: int) -> None:
    """Raises UserError for a seed that is no number from 0 to 2^31 - 1."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}: it must be from 0 to {2**31 - 1}")


def check_name(name: str) -> None:
    """Raises UserError for one that is no folder of its own."""
    if Path(name) == Path():
        raise UserError("name is empty: give the run one, of its folder")


def is_disk_full(error: BaseException) -> bool:
    """True where `error` says that no more can be written.

    Libraries that write through native code raise a ValueError or RuntimeError with only the system's
    words in it, so the words are looked at too.
    """
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def is_out_of_memory(error: BaseException) -> bool:
    """True where `error` says that memory ran out: most libraries, on whatever device, say it in words alone."""
    words = ("out of memory", "allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def disk_full(place: object) -> UserError:
    """The error for a disk that filled up while `place` was written."""
    return UserError(
        f"the disk is full: {one_line(place)} could not be written; free some space and run again "
        "(what was saved before is whole)"
    )


def run_cli(main: Callable[[], object]) -> None:
    """Runs `main`, the body of a command, and turns errors a user can mend into one line on stderr.

    Exits with 2 after a UserError, a full disk, too little memory, or a file that may not be read or written; with 130
    after Ctrl-C, with 1 where nobody reads the output any more. Any other exception is a defect of this program and
    keeps its traceback.
    """
    try:
        main()
    except BrokenPipeError:  # who read the output has seen enough, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _fail("stopped by the keyboard", 130)
    except UserError as error:
        for line in error.args[:-1]:
            print(f"error: {one_line(line)}", file=sys.stderr)
        _fail(error.args[-1], 2)
    except Exception as error:
        if is_disk_full(error):
            _fail(str(disk_full(getattr(error, "filename", None) or "a file")), 2)
        if is_out_of_memory(error):
            ways = "fewer images at a time (--images-per-step, --batch-size), --dtype bfloat16 or --remat"
            _fail(f"not enough memory ({one_line(error, 100)}); try {ways}, whichever the command has", 2)
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            place = getattr(error, "filename", None) or "a file"
            _fail(f"no permission to use {place}; change its permissions or choose another place", 2)
        unusable = isinstance(error, NotADirectoryError | FileExistsError | FileNotFoundError)
        if isinstance(error, OSError) and (unusable or error.errno == errno.ENAMETOOLONG) and error.filename:
            _fail(f"{one_line(error.filename, 80)} cannot be used ({error.strerror}); choose another place", 2)
        raise


def _fail(message: str, status: int) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(status)
