"""Sources become graphs here; `memfit.capture(model, inputs)` calls this package as a function.

The function and the package share the name that users and the design give them, so the package can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memfit.graph.model import Graph


class _Callable(ModuleType):
    """A package that is also the function it is named after."""

    def __call__(self, *args: Any, **kwargs: Any) -> Graph:
        from memfit.capture.entry import capture

        return capture(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
