"""What a capture must know of a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from memfit.errors import UsageError


class Capability(NamedTuple):
    """Compute capability of a GPU: 8.0 is the A100's."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


CAPABILITIES = frozenset(
    {(5, 0), (5, 2), (6, 0), (6, 1), (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 1)}
    | {(10, 3), (11, 0), (12, 0), (12, 1)}
)
"""Capabilities of NVIDIA's GPUs since Maxwell (https://developer.nvidia.com/cuda-gpus)."""


class Cuda:
    """A GPU to trace for.

    >>> Cuda.parse("9.0").name
    '9.0'
    """

    def __init__(self, capability: tuple[int, int] = (8, 0)) -> None:
        self.capability = Capability(*capability)

    @classmethod
    def parse(cls, text: str | None) -> Cuda:
        """Read a compute capability such as 8.6 or sm_90.

        Raises:
            UsageError: it is not one, or one that PyTorch 2.13 has no kernels for.
        """
        if text is None:
            return cls()
        found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
        if found is None or (capability := (int(found[1]), int(found[2]))) not in CAPABILITIES:
            raise UsageError(
                "this is not a GPU's compute capability",
                where="--capability",
                received=repr(text),
                todo="give one such as 7.5 (T4), 8.0 (A100), 8.6 (RTX 30), 8.9 (L4, RTX 40) or 9.0 (H100)",
            )
        return cls(capability)

    @property
    def name(self) -> str:
        """The capability as people write it."""
        return str(self.capability)

    @cached_property
    def shape_rules(self) -> Mapping[Any, Callable[..., Any]]:
        """Shape rules of the operations, CUDA's own in front of the common ones."""
        from memfit.capture.cuda.shapes import CUDA_RULES
        from memfit.capture.foreach_rules import FOREACH_RULES
        from memfit.capture.shape_rules import SHAPE_RULES

        return {**SHAPE_RULES, **FOREACH_RULES, **CUDA_RULES}

    def conv_backend(self, args: tuple[Any, ...]) -> str:
        """Name the kernel family that a convolution takes."""
        from memfit.capture.cuda.routes import conv_backend

        return conv_backend(args)
