"""How PyTorch's threads wait for each other, which can only be said before it is imported."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let threads of OpenMP sleep while they wait, unless OMP_WAIT_POLICY is set.

    They would keep their cores busy otherwise. Beside other programs, the one that all wait for then gets no core, and
    a network runs ten times slower. Not for latencies: those are of programs that leave this as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
