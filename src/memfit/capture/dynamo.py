"""Keep PyTorch from importing its compiler for a capture, which compiles nothing.

Many of PyTorch's Python meta kernels are marked "not to be compiled". The first call of one imports torch._dynamo,
about a second and 100 MiB, only to ask it for the function itself. During a capture a stand-in answers that question;
whoever asks it for anything else gets the real module.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_NAME = "torch._dynamo"
_MARK = "__dynamo_disable"
"""Where PyTorch keeps the answer, on the function (torch/_compile.py, `_disable_dynamo`, PyTorch 2.13)."""


class _Config:
    """The settings that PyTorch reads outside of compiled code, with the compiler's defaults."""

    error_on_nested_fx_trace = True


class StandIn(types.ModuleType):
    """Stands for torch._dynamo: answers `disable`; any other name imports the real module in its place."""

    def __init__(self) -> None:
        super().__init__(_NAME)
        self.asked: list[Any] = []
        self.config = _Config()  # checkpoints ask for one of its settings

    def disable(self, function: Callable[..., Any], *_args: Any, **_kwargs: Any) -> Callable[..., Any]:
        """Answer with the function as it is: nothing compiles it here."""
        self.asked.append(function)
        return function

    def graph_break(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing, as it does outside of compiled code; optimizers call it around each step."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__spec__", "__file__", "__loader__", "__wrapped__"):
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(_NAME), name)

    def leave(self) -> None:
        """Go, and take back what was answered: PyTorch will ask the real module."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        for function in self.asked:
            if vars(function).get(_MARK) is function:
                delattr(function, _MARK)
        self.asked.clear()


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Let meta kernels run without importing torch._dynamo; does nothing where it is imported already."""
    if _NAME in sys.modules:
        yield
        return
    stand_in = StandIn()
    sys.modules[_NAME] = stand_in
    try:
        yield
    finally:
        stand_in.leave()
