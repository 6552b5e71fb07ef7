"""Models that a user's own Python file builds: `FILE.py:CALLABLE`."""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.capture.sources.build import constructing
from memfit.capture.sources.inputs import DTYPES, InputSpec
from memfit.capture.sources.loaded import Arguments, LoadedSource, literal, nearest
from memfit.errors import MemfitError, SourceError, UsageError, said


def load_callable(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    """Run a file's function or class, with its folder on the import path, and take the model that it returns.

    It returns a module, or a module and its example inputs: one tensor, a tuple or list of positional arguments, or a
    dict of keyword arguments.

    Raises:
        SourceError: no such file or name, an error of the file's own code, or a result that is no module.
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SourceError("there is no such file", where=source, received=file, todo="check the path")
    if not name.isidentifier():
        raise UsageError(
            "the source names a Python file, but not what to build from it",
            where=source,
            received=repr(name),
            todo=f"name a function or class that makes the model: {file}:build",
        )
    define_missing_torchvision_schemas()  # the file may well import torchvision or timm
    with _on_path(path):
        module = _import(path)
        if not hasattr(module, name):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise SourceError(
                "the file has no such name",
                where=file,
                received=name,
                todo=nearest(name, names) or f"it defines {', '.join(names) or 'nothing that can be called'}",
            )
        made = _call(path, getattr(module, name), {k: literal(v) for k, v in (args or {}).items()}, dtype)
    model, example = _parts(source, made)
    specs, arrange = _inputs(model, example, dtype)
    return LoadedSource(source, model, specs=specs, arrange=arrange, given=_call_of(example))


def load_function(source: str) -> Callable[..., Any]:
    """Import a function or class of a file, to be called for what it makes, such as data or a metric.

    Raises:
        SourceError: no such file or name, or an error of the file's own code, then or when it is called.
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SourceError(
            "there is no such file", where=source, received=file or "no file", todo="write FILE.py:CALLABLE"
        )
    with _on_path(path):
        module = _import(path)
    target = getattr(module, name, None)
    if not callable(target):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise SourceError(
            "the file has no such function" if target is None else "this is not a function",
            where=file,
            received=name or "no name after the colon",
            todo=nearest(name, names) or f"it defines {', '.join(names) or 'nothing that can be called'}",
        )

    def call(*args: Any) -> Any:
        try:
            with _on_path(path):
                return target(*args)
        except MemfitError:
            raise
        except Exception as error:
            raise _own_error(path, error, f"{name} failed") from error

    call.__name__ = name
    return call


def _import(path: Path) -> ModuleType:
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"memfit_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError("this file cannot be imported", where=str(path), received=path.name, todo="name it .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _own_error(path, error, "the file failed while it was imported") from error
    finally:
        del sys.modules[name]
    return module


def _call(path: Path, target: Any, args: dict[str, Any], dtype: str | None) -> Any:
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise SourceError(
            "this is neither a module nor something that makes one",
            where=str(path),
            received=type(target).__name__,
            todo="name an nn.Module, or a function or class that makes one",
        )
    try:
        with constructing():
            made = target(**args)
            if dtype is not None:
                parts = made if isinstance(made, tuple) else (made,)
                for part in parts[:1]:
                    if isinstance(part, nn.Module):
                        part.to(DTYPES[dtype])
            return made
    except MemfitError:
        raise
    except Exception as error:
        raise _own_error(path, error, "the file failed while it built the model") from error


def _own_error(path: Path, error: Exception, what: str) -> SourceError:
    """Name the line of the user's own code, not of what it called."""
    where = str(path)
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"
    else:
        folder = str(path.resolve().parent)
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).resolve() == path.resolve()]
        own = own or [f for f in frames if f.filename.startswith(folder)]
        if own:
            line = own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
            where = f"{own[-1].filename}:{own[-1].lineno}: {line}"
    return SourceError(
        what,
        where=where,
        received=said(error),
        todo="run the file by itself, or with --debug for the whole traceback",
    )


def _parts(source: str, made: Any) -> tuple[nn.Module, Any]:
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], made[1]
    raise SourceError(
        "the callable does not return a module",
        where=source,
        received=type(made).__name__,
        todo="return an nn.Module, or a tuple of an nn.Module and its example inputs",
    )


def _inputs(model: nn.Module, example: Any, dtype: str | None) -> tuple[tuple[InputSpec, ...], Any]:
    """Describe the tensors of an example, and how to put others of other shapes in their places."""
    if example is None:
        return (), _forward_order(model)
    call = _call_of(example)
    assert call is not None
    leaves, shape = tree_flatten(call)
    labels = iter(_labels(model, call))
    specs = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            kind = dtype if dtype is not None and leaf.is_floating_point() else str(leaf.dtype).removeprefix("torch.")
            specs.append(InputSpec(tuple(leaf.shape), kind, next(labels)))

    def arrange(tensors: Mapping[str, Any]) -> Arguments:
        given = iter(tensors.values())
        filled = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(filled, shape)
        return args, kwargs

    return tuple(specs), arrange


def _call_of(example: Any) -> Arguments | None:
    """Give the arguments that an example stands for: one tensor, positional arguments, or keyword arguments."""
    if example is None:
        return None
    if isinstance(example, Tensor):
        return (example,), {}
    return ((), dict(example)) if isinstance(example, Mapping) else (tuple(example), {})


def _labels(model: nn.Module, call: Arguments) -> Iterator[str]:
    """Names of an example's tensors: the parameters of `forward` that take them."""
    parameters = list(inspect.signature(model.forward).parameters)
    args, kwargs = call
    for index, value in enumerate(args):
        name = parameters[index] if index < len(parameters) else f"input{index}"
        yield from _spread(value, name)
    for name, value in kwargs.items():
        yield from _spread(value, name)


def _spread(value: Any, name: str) -> Iterator[str]:
    tensors = [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, torch.Tensor)]
    if isinstance(value, Tensor):
        yield name
    else:
        yield from (f"{name}_{i}" for i in range(len(tensors)))


def _forward_order(model: nn.Module) -> Any:
    """Without an example, unnamed inputs go by position and named ones by name."""

    def arrange(tensors: Mapping[str, Any]) -> Arguments:
        args = tuple(t for n, t in tensors.items() if n.rstrip("0123456789") == "input")
        return args, {n: t for n, t in tensors.items() if n.rstrip("0123456789") != "input"}

    del model
    return arrange


@contextmanager
def _on_path(path: Path) -> Iterator[None]:
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
