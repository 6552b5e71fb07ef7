"""In place: where a run's time goes, by timestamps as modules are entered and left.

The capture and the timed runs carry the same marks: each module's `forward`, replaced on the instance and put back.
The capture tells how many operations had run at each mark, so the time between two marks is the time of known
operations, whatever module or function ran them. Only modules that part one row from another carry marks when timed.
No hook of PyTorch's is used: a model with hooks may take another path, and a hook costs more than a timestamp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import jit, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from memfit.capture.tracer import Tracer
from memfit.measure.layout import Event, Layout, other_order
from memfit.measure.timers import Mark

Result = TypeVar("Result")


class Forward:
    """Stands in for the `forward` of some modules, on and off."""

    def __init__(self, modules: Sequence[nn.Module], wrap: Callable[[int, Callable[..., Any]], Any]) -> None:
        self._swaps: list[tuple[dict[str, Any], Any, bool, Any]] = []
        for index, module in enumerate(modules):
            if isinstance(module, jit.ScriptModule):
                continue
            wrapped = wrap(index, module.forward)
            if wrapped is not None:
                own = vars(module)
                self._swaps.append((own, wrapped, "forward" in own, own.get("forward")))

    def install(self) -> None:
        """Put the stand-ins in place."""
        for own, wrapped, _, _ in self._swaps:
            own["forward"] = wrapped

    def remove(self) -> None:
        """Put everything back."""
        for own, _, had, before in self._swaps:
            if had:
                own["forward"] = before
            else:
                own.pop("forward", None)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Install for as long as it lasts."""
        try:
            self.install()
            yield
        finally:
            self.remove()


def record(model: nn.Module, capture: Callable[[], Result]) -> tuple[Result, tuple[Event, ...]]:
    """Run a capture of the model, and note when each module is entered and left."""
    events: list[Event] = []

    def wrap(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            events.append(Event(index, True, _ops()))
            result = forward(*args, **kwargs)
            events.append(Event(index, False, _ops()))
            return result

        return noted

    with Forward([module for _, module in model.named_modules()], wrap)():
        result = capture()
    return result, tuple(events)


def _ops() -> int:
    """Count the operations that the tracer around this call has recorded."""
    return next((len(mode.ops) for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Tracer)), 0)


def instrument(model: nn.Module, layout: Layout, mark: Mark) -> Forward:
    """Make the stand-ins that mark when the chosen modules are entered and left."""

    def wrap(index: int, forward: Callable[..., Any]) -> Callable[..., Any] | None:
        if index not in layout.modules:
            return None

        def timed(*args: Any, **kwargs: Any) -> Any:
            mark()
            result = forward(*args, **kwargs)
            mark()
            return result

        return timed

    return Forward([module for _, module in model.named_modules()], wrap)


def check_order(model: nn.Module, events: Sequence[Event], run: Callable[[], object]) -> None:
    """Run the model once and see that its modules are called as in the capture, all of them.

    Raises:
        CaptureError: they are not, so that no time could be given to a row.
    """
    seen: list[tuple[int, bool]] = []

    def wrap(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append((index, True))
            result = forward(*args, **kwargs)
            seen.append((index, False))
            return result

        return noted

    with Forward([module for _, module in model.named_modules()], wrap)():
        run()
    expected = [(event.module, event.enters) for event in events]
    if seen != expected:
        raise other_order([path for path, _ in model.named_modules()], expected, seen)
