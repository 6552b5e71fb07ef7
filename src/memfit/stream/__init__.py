"""Streaming: parts of a network computed together, row by row, so that big networks run in little memory.

The package is also the function `memfit.stream(source)`, which the design gives the same name; see `memfit.api.stream`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from memfit.stream.execute import Execution, Executor, execute
from memfit.stream.network import StreamNetwork, StreamOp, Value, network_of, records
from memfit.stream.plan import StreamPlan, plan_stream

if TYPE_CHECKING:
    from memfit.analysis.result import Stream

__all__ = [
    "Execution", "Executor", "StreamNetwork", "StreamOp", "StreamPlan", "Value", "execute", "network_of", "plan_stream",
    "records",
]  # fmt: skip


class _Callable(ModuleType):
    """A package that is also the function it is named after."""

    def __call__(self, *args: Any, **kwargs: Any) -> Stream:
        found: Stream = import_module("memfit.api").stream(*args, **kwargs)
        return found


sys.modules[__name__].__class__ = _Callable
