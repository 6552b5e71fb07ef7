"""Memory model `tflm`: the arena that TensorFlow Lite Micro needs, for networks read from `.tflite` files.

Definition: head, planned by the runtime's greedy planner with each kernel's scratch buffers, plus tail, everything
persistent in order of allocation; their sum is the total that the runtime prints in an arena whose size is a multiple
of 16. `ram_bytes` is the smallest arena with which it starts, its planning temporaries included. An operation's figure
is the tail plus the first address of the head above all that is in use while it runs; `live_bytes` is the sum of what
is in use there, which a better plan could come down to.

Source: tensorflow/lite/micro of tflite-micro, commit 90b983c2; docs/tflm.md.

Limits: reference kernels of the Python wheel (64-bit pointers). A 32-bit device's figures are in a note, not verified
by execution; optimised kernels ask for more. Tensors that another tool compressed are not known.
"""

from __future__ import annotations

from memfit.errors import UsageError
from memfit.formats.tflite import TfliteModel
from memfit.memory.model import Figures, View
from memfit.memory.tflm.arena import Arena, arena
from memfit.memory.tflm.builds import VERSION


def figures(view: View) -> Figures:
    """Give the arena in use at each operation, and head, tail and smallest arena of the whole."""
    graph = view.graph
    if not isinstance(graph.origin, TfliteModel):
        raise UsageError(
            "tflm is the arena of a .tflite file, and this network was not read from one",
            where="--memory",
            received=f"tflm, with {graph.source or 'a captured network'}",
            todo="give the .tflite file itself, or use --memory mcunet for any network",
        )
    found = arena(graph.origin, estimate=view.options.estimate)
    device = arena(graph.origin, "mcu", estimate=view.options.estimate)
    return Figures(
        tuple(found.tail_bytes + reach for reach in found.reach_bytes),
        found.total_bytes,
        notes(found, device),
        extra=(
            ("head_bytes", found.head_bytes),
            ("tail_bytes", found.tail_bytes),
            ("ram_bytes", found.smallest_bytes),
        ),
        columns=(("live_bytes", found.live_bytes),),
    )


def notes(found: Arena, device: Arena) -> tuple[str, ...]:
    """Say what the figures are of, what the tail holds, and what a device would need."""
    parts = ", ".join(f"{category.name} {category.used_bytes:,}" for category in found.categories)
    return (
        f"the arena of {VERSION}: optimised kernels ask for more",
        f"tail, in bytes: {parts}",
        f"a 32-bit device, not verified by execution: total {device.total_bytes:,} bytes (head {device.head_bytes:,}, "
        f"tail {device.tail_bytes:,}), smallest arena {device.smallest_bytes:,}",
        *found.notes,
    )
