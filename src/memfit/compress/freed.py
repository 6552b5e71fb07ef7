"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> bool:
    """Let the C library return the free memory that it holds; True where it can and had some.

    Between two batches everything but a few tensors is free. glibc keeps pieces of it, others from time to time, so
    that the peak creeps up over many batches. Does nothing where the C library has no such call.

    >>> give_back() in (True, False)
    True
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim  # https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    except (OSError, AttributeError):
        return False
    return bool(trim(0))
