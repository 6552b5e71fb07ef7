"""What a source becomes: a model without weights and the inputs it takes, or a saved graph."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memfit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memfit.capture.sources.inputs import InputSpec
    from memfit.graph.model import Graph

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


@dataclass(frozen=True)
class Example:
    """Phantom arguments for one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Names of the tensors among the arguments, in order."""
    loss: Callable[[Any], Tensor] | None = None
    """Outputs → the scalar to train on; None: the tracer's own choice is right."""


def positional(tensors: Mapping[str, Any]) -> Arguments:
    """Pass inputs in order."""
    return tuple(tensors.values()), {}


def by_name(tensors: Mapping[str, Any]) -> Arguments:
    """Pass inputs by keyword."""
    return (), dict(tensors)


@dataclass(frozen=True)
class LoadedSource:
    """A model source, loaded; `model` is None where the source is a file that holds a graph."""

    name: str
    model: nn.Module | None = None
    graph: Graph | None = None
    read: Callable[[bool], Graph] | None = None
    """Makes the graph of another tool's file; True lets operations pass that no table has."""
    read_with: Callable[[Any, int | None, bool], Graph] | None = None
    """The same for a file whose inputs may have other shapes: inputs and batch, then as for `read`."""
    specs: tuple[InputSpec, ...] = ()
    """The inputs that the model takes by its own configuration; empty where it states none."""
    arrange: Callable[[Mapping[str, Any]], Arguments] = positional
    """Turns tensors, by name and in the order of `specs`, into the arguments of a call."""
    targets: Callable[[Arguments], Arguments] | None = None
    """Adds to a call's arguments what training needs: labels, boxes."""
    loss: Callable[[Any], Tensor] | None = None
    notes: tuple[str, ...] = ()
    given: Arguments | None = None
    """The example arguments that a user's own file gives, as it made them."""

    def example(
        self, inputs: Sequence[str | InputSpec] = (), *, batch: int | None = None, training: bool = False
    ) -> Example:
        """Make phantom arguments for one call.

        Args:
            inputs: what the user gave, as text or as specs; replaces the model's own, see `inputs.resolve`.
            batch: replaces the first dimension of every input.
            training: add targets, and the loss to train on.

        Raises:
            UsageError: text that is no shape, too many inputs, or none where the model states none.
        """
        from memfit.capture.sources.inputs import InputSpec, make, parse_input, resolve

        given = [spec if isinstance(spec, InputSpec) else parse_input(spec) for spec in inputs]
        specs = resolve(self.specs, given, batch=batch)
        if not specs and self.model is not None and _needs_input(self.model):
            raise UsageError(
                "the inputs of this model are not known",
                where=self.name,
                received="no --input",
                todo="give one --input for each input, such as --input 1x3x224x224 or --input ids=1x128:int64",
            )
        own = len(self.specs)
        tensors = {spec.name or f"input{i or ''}": make(spec) for i, spec in enumerate(specs)}
        added = {name: t for i, (name, t) in enumerate(tensors.items()) if i >= own and specs[i].name}
        args, kwargs = self.arrange({name: t for name, t in tensors.items() if name not in added})
        kwargs = {**kwargs, **added}
        if training and self.targets is not None:
            args, kwargs = self.targets((args, kwargs))
        labels = tuple(n for n, t in tensors.items() if n not in added)
        names = tuple(_names(args, kwargs, labels))
        return Example(args, kwargs, names, self.loss if training else None)


def _needs_input(model: nn.Module) -> bool:
    import inspect

    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in inspect.signature(model.forward).parameters.values()
    )


def _names(args: tuple[Any, ...], kwargs: Mapping[str, Any], labels: Sequence[str]) -> Iterator[str]:
    for position, value in enumerate(args):
        label = labels[position] if position < len(labels) else f"input{position}"
        yield from _leaf_names(value, label)
    for name, value in kwargs.items():
        yield from _leaf_names(value, name)


def _leaf_names(value: Any, path: str) -> Iterator[str]:
    if hasattr(value, "untyped_storage"):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaf_names(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaf_names(item, f"{path}.{index}")


def literal(value: Any) -> Any:
    """Read a constructor argument from the command line: a number, a truth value, a list, else text.

    >>> literal("10"), literal("false"), literal("[64, 128]"), literal("gelu")
    (10, False, [64, 128], 'gelu')
    """
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "none": None, "null": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def without_weights(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Constructor arguments without those that would load weights: memfit never does."""
    return {
        name: literal(value)
        for name, value in (args or {}).items()
        if not name.startswith(("weights", "pretrained", "checkpoint"))
    }


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which known names are close to an unknown one."""
    close = difflib.get_close_matches(name, list(names), n=4, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else ""
