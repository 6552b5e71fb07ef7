"""A plan as a C header, for programs that place tensors themselves instead of reading the file's metadata."""

from __future__ import annotations

import re

from memfit.memory.tflm.builds import ALIGNMENT
from memfit.plan.arena import ArenaPlan
from memfit.version import __version__

_WORD = re.compile(r"\W+", re.ASCII)


def header(plan: ArenaPlan, *, name: str, pointer_bits: int) -> str:
    """Write the header.

    Every tensor of the file has an entry, -1 for constants and what the runtime places; scratch buffers follow in a
    comment of their own, since no index names them.

    Args:
        plan: of a network with one subgraph.
        name: what the C names begin with; characters that C lacks become `_`.
        pointer_bits: of the runtime that the arena's size is for.
    """
    stem = _WORD.sub("_", name).strip("_").lower() or "model"
    if stem[0].isdigit():
        stem = f"model_{stem}"
    guard = f"{stem.upper()}_OFFSETS_H_"
    tensors = plan.model.main.tensors
    offsets = [-1] * len(tensors)
    scratch = []
    for buffer, offset in zip(plan.arena.buffers, plan.arena.offsets, strict=True):
        if buffer.subgraph == 0 and buffer.tensor is not None:
            offsets[buffer.tensor] = offset
        else:
            scratch.append(f"//   {offset:>9} {buffer.nbytes:>9}  {_comment(buffer.name)}")
    order = plan.order and ", ".join(map(str, plan.order))
    lines = [
        f"// Written by memfit {__version__}: where each tensor of {_comment(plan.model.source)} lies in the arena.",
        f"// Arena: {plan.arena.head_bytes} bytes of buffers; TensorFlow Lite Micro ({pointer_bits}-bit) starts in "
        f"{plan.arena.smallest_bytes}.",
        *([f"// The operators run in this order: {order}"] if order else []),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        f"#define {stem.upper()}_HEAD_BYTES {plan.arena.head_bytes}",
        f"#define {stem.upper()}_ARENA_BYTES {plan.arena.smallest_bytes}",
        f"#define {stem.upper()}_ARENA_ALIGNMENT {ALIGNMENT}",
        f"#define {stem.upper()}_TENSORS {len(tensors)}",
        "",
        "// First byte of each tensor, by its index in the file; -1: a constant, or placed by the runtime.",
        f"static const int32_t {stem}_offsets[{max(len(tensors), 1)}] = {{",
        *(
            f"    {offset}, /* {tensor.index}: {_comment(tensor.name)} */"
            for tensor, offset in zip(tensors, offsets, strict=True)
        ),
        *(["    -1,"] if not tensors else []),
        "};",
        "",
        *(["// Scratch buffers, which kernels ask for (offset, bytes, what):", *scratch, ""] if scratch else []),
        f"#endif  // {guard}",
    ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """Keep a name from ending the comment that it stands in, or from going on to the next line."""
    return " ".join(text.split()).replace("*/", "* /").replace("\\", "/").replace("??/", "?? /")
