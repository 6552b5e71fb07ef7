"""How a runtime was compiled, and the sizes of its structures by that.

Sizes were read from TensorFlow Lite Micro at commit 90b983c2 (2026-08-20) and compared with what its Python wheel
0.dev20261023182759 allocates (`wheel`), and with the source compiled with `-m32 -malign-double` (the 32-bit builds).
The file and line beside each are of that commit, in tensorflow/lite/micro; names are the source's own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

from memfit.errors import UsageError

VERSION = "tflite-micro 0.dev20261023182759, reference kernels"
"""What the figures are equal to."""

ALIGNMENT = 16
"""MicroArenaBufferAlignment(), micro_arena_constants.h."""

SCRATCH_PER_OPERATOR = 12
"""kMaxScratchBuffersPerOp, micro_allocator.cc:54: room for so many requests is kept while operators prepare."""

PLANNER_BYTES = 40
"""GreedyMemoryPlanner::per_buffer_size(), greedy_memory_planner.h:100: what planning one buffer takes."""


class Sizes(NamedTuple):
    """Bytes of one structure in each build."""

    wheel: int
    host: int
    mcu_int_enums: int
    mcu: int


class Build(NamedTuple):
    """One way to compile the runtime."""

    name: str
    what: str
    """For people."""
    column: int
    """Of `Sizes`."""
    pointer: int
    """Bytes of a pointer, and the alignment of structures that hold one."""
    verified: bool
    """Whether its figures were compared with what that build does when it runs."""

    def size(self, sizes: Sizes) -> int:
        """Pick this build's size of a structure."""
        return sizes[self.column]


def _all(nbytes: int) -> Sizes:
    return Sizes(nbytes, nbytes, nbytes, nbytes)


def _pointers(wide: int, narrow: int) -> Sizes:
    return Sizes(wide, wide, narrow, narrow)


BUILDS = MappingProxyType(
    {
        build.name: build
        for build in (
            Build("wheel", "the Python package: 64-bit, recording allocator, tensor compression", 0, 8, True),
            Build("host", "64-bit, plain allocator, no tensor compression", 1, 8, False),
            Build("mcu-int-enums", "32-bit, plain allocator, enums of 4 bytes", 2, 4, False),
            Build("mcu", "32-bit microcontroller, plain allocator, short enums as in arm-none-eabi", 3, 4, False),
        )
    }
)
"""Name → build. The plain allocator is what programs on a device use; the recording one can print its categories."""


def build_named(name: str) -> Build:
    """Find a build by its name.

    >>> build_named("mcu").pointer
    4

    Raises:
        UsageError: there is no such build.
    """
    if name not in BUILDS:
        raise UsageError(
            "there is no such build of TFLM",
            where="build",
            received=repr(name),
            todo=f"choose one of {', '.join(BUILDS)}",
        )
    return BUILDS[name]


POINTER = _pointers(8, 4)
ARENA_ALLOCATOR = Sizes(104, 72, 36, 36)
"""RecordingSingleArenaBufferAllocator in the wheel, recording_micro_allocator.cc:45; SingleArenaBufferAllocator
elsewhere, micro_allocator.cc:553."""
GREEDY_PLANNER = _pointers(72, 44)
"""GreedyMemoryPlanner, micro_allocator.cc:83."""
MICRO_ALLOCATOR = Sizes(272, 72, 36, 36)
"""RecordingMicroAllocator in the wheel; MicroAllocator elsewhere, micro_allocator.cc:575."""
DATA_ALLOCATOR = _pointers(16, 8)
"""MicroBuiltinDataAllocator, micro_allocator.cc:637."""
RESOURCES = _pointers(16, 12)
"""MicroResourceVariables, where the model has any; the program makes it, as the wheel does:
micro_resource_variable.h."""
RESOURCE = _pointers(40, 20)
"""MicroResourceVariable of each, same file."""
SUBGRAPH = Sizes(24, 16, 8, 8)
"""SubgraphAllocations of each subgraph, micro_allocator.cc:649; compression adds a list."""
EVAL_TENSOR = _pointers(24, 12)
"""TfLiteEvalTensor of each tensor, constants too, micro_allocator.cc:1047."""
NODE = _pointers(64, 32)
"""NodeAndRegistration of each operator, micro_allocator.cc:783."""
SCRATCH_HANDLE = _pointers(8, 4)
"""ScratchBufferHandle of each request, micro_allocator.cc:1226."""
SCRATCH_REQUEST = _pointers(16, 12)
"""internal::ScratchBufferRequest, micro_allocator.h: kept at the arena's start while operators prepare."""
ALLOCATION_INFO = _pointers(32, 24)
"""AllocationInfo of each tensor and request while the head is planned, micro_allocation_info.cc:103."""
TENSOR = Sizes(64, 64, 40, 32)
"""TfLiteTensor, micro_interpreter.cc:233: one for each input and output, and one for each that a kernel looks at."""
AFFINE_QUANTIZATION = _pointers(24, 12)
"""TfLiteAffineQuantization, micro_allocator.cc:290."""


def int_array(count: int) -> int:
    """Bytes of a TfLiteIntArray: its length and its elements, 4 bytes each.

    >>> int_array(4)
    20
    """
    return 4 + 4 * count


def align_up(address: int, alignment: int) -> int:
    """Round an address up."""
    return -(-address // alignment) * alignment


def align_down(address: int, alignment: int) -> int:
    """Round an address down."""
    return address // alignment * alignment
