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


_THRESHOLD = 1 << 20
"""Bytes from which on a tensor has pages of its own."""

_M_MMAP_THRESHOLD = -3
"""glibc's number of the setting: https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.h"""


def keep_apart() -> bool:
    """Let every large tensor have pages of its own, which go back to the system with it; True where that can be set.

    glibc otherwise takes tensors of up to 32 MiB from one heap, where the holes that they leave stay resident: how many
    there are when the largest layer runs differs from batch to batch by tens of MiB. It holds for the whole process, so
    it is for a command's own process only; pages cost some time to make.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _THRESHOLD))
    except (OSError, AttributeError):
        return False
