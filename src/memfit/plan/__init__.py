"""What to change so that a network fits: operator order, a place for each tensor, and files that carry them.

The package is also the function `memfit.plan(source)`, which the design gives the same name; see `memfit.api.plan`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.analysis.result import Plan


class _Callable(ModuleType):
    """A package that is also the function it is named after."""

    def __call__(self, *args: Any, **kwargs: Any) -> Plan:
        found: Plan = import_module("memfit.api").plan(*args, **kwargs)
        return found


sys.modules[__name__].__class__ = _Callable
