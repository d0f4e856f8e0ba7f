"""[host] Memory in huge pages, for what runs on a CPU."""

import os
import sys
from pathlib import Path

GIVEN_TO = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def with_huge_pages() -> None:
    """Starts this program anew, once, with its memory in pages of 2 MB, where Linux gives these to those who ask.

    XLA takes a step's intermediate arrays (100 MB by default) from the system and gives them back in every step. In
    pages of 4 kB that is 25,000 page faults, an eighth of the step. glibc (from 2.35) asks for huge pages where
    GLIBC_TUNABLES says so when a program starts, hence the start anew; whoever has set that variable keeps what it
    says. To be called before anything is computed or printed, by a program alone: whatever called it is replaced.
    """
    if "GLIBC_TUNABLES" in os.environ:
        return
    try:
        if "[madvise]" in GIVEN_TO.read_text():
            os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself
    except OSError:  # no Linux, or no new program may be started: the same, but slower
        return
