"""How PyTorch's and NumPy's threads work together, which can only be said before these are imported."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let threads of OpenMP sleep while they wait, unless OMP_WAIT_POLICY is set.

    They would keep their cores busy otherwise. Beside other programs, the one that all wait for then gets no core, and
    a network runs ten times slower. Not for latencies: those are of programs that leave this as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def multiply_alone() -> None:
    """Let NumPy multiply matrices in one thread, unless OPENBLAS_NUM_THREADS or OMP_NUM_THREADS is set.

    A row of an image is too little work to share: on a machine that does other things as well, it then takes ten times
    as long.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
