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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the settings: https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.h"""


def keep_apart() -> bool:
    """Let every tensor of 1 MiB or more have pages of its own, which go back to the system with it; True where it can.

    glibc otherwise takes tensors of up to 32 MiB from one heap, where the holes that they leave stay resident: how many
    there are when the largest layer runs differs from batch to batch by tens of MiB. It holds for the whole process, so
    it is for a command's own process only; pages cost some time to make.
    """
    return _set(_M_MMAP_THRESHOLD, 1 << 20)


def keep_at_hand() -> bool:
    """Let the memory of freed tensors stay for those that come next; True where that can be set.

    The system otherwise clears every page anew for nearly every operation of a network that runs again and again, which
    takes up to a fifth of the time. It holds for the whole process, as `keep_apart` does.
    """
    return _set(_M_MMAP_THRESHOLD, 1 << 30) and _set(_M_TRIM_THRESHOLD, 1 << 30)


def _set(setting: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(setting, value))
    except (OSError, AttributeError):
        return False
