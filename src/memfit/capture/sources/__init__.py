"""Sources: what a user names on the command line, and how each kind becomes a model or a graph.

This file imports no PyTorch, so that a saved graph loads without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memfit.capture.sources.loaded import LoadedSource
from memfit.errors import SourceError, UsageError, require

Loader = Callable[[str, Mapping[str, Any] | None, str | None], LoadedSource]

_KINDS = (
    "use torchvision:NAME, timm:NAME, hf:CONFIG.json, FILE.py:CALLABLE, FILE.pt2, FILE.tflite, FILE.onnx or a "
    "saved FILE.memfit.json"
)


def load(
    source: str, *, args: Mapping[str, Any] | None = None, dtype: str | None = None, real: bool = False
) -> LoadedSource:
    """Load a source: build its model without weights, or read its graph.

    >>> load("torchvision:mobilenet_v2").specs
    (InputSpec(shape=(1, 3, 224, 224), dtype='float32', name='input'),)

    Args:
        source: `torchvision:NAME`, `timm:NAME`, `hf:CONFIG.json`, `FILE.py:CALLABLE`, `FILE.pt2`, `FILE.tflite`,
            `FILE.onnx` or `FILE.memfit.json`.
        args: the constructor's arguments; text is read as a Python literal where it is one.
        dtype: of weights and floating-point inputs, such as `bf16`; None keeps the model's own.
        real: build the model truly, with weights as its constructor initialises them.

    Raises:
        SourceError: there is no such model or file, or it cannot be read or built.
        UsageError: the text names no kind of source, or an option does not apply to it.
        MissingExtra: the package that the source needs is not installed.
    """
    if real:
        _require("torch", "torch")
        from memfit.capture.sources.build import real_weights

        with real_weights():
            return load(source, args=args, dtype=dtype)
    prefix, colon, rest = source.partition(":")
    if colon and prefix in _PREFIXES:
        if not rest:
            raise UsageError("the source names no model", where=source, received=repr(source), todo=_KINDS)
        loader: Loader = _PREFIXES[prefix]
        return loader(rest, args, _dtype(dtype))
    file, colon, _ = source.rpartition(":")
    if colon and file.endswith(".py"):
        return _user_file(source, args, _dtype(dtype))
    for suffix, reader in _SUFFIXES.items():
        if source.endswith(suffix):
            return reader(source, args, dtype)
    if Path(source).exists():
        raise SourceError(
            "this file is not a model that memfit reads",
            where=source,
            received=f"a file that ends in {Path(source).suffix or 'no suffix'}",
            todo=_KINDS,
        )
    raise UsageError("this is not a model source", where="SOURCE", received=repr(source), todo=_KINDS)


def _dtype(text: str | None) -> str | None:
    """Name of the dtype to build with; int8 is a way to count bytes, not a way to build."""
    if text is None or text == "int8":
        return None
    _require("torch", "torch")
    from memfit.capture.sources.inputs import DTYPES, dtype_name

    name = dtype_name(text, where="--dtype")
    if not DTYPES[name].is_floating_point:
        raise UsageError(
            "weights cannot have this dtype", where="--dtype", received=text, todo="use fp32, fp16 or bf16"
        )
    return name


def _require(package: str, extra: str) -> None:
    require(package, extra, f"this source needs {package}", where="SOURCE")


def _torchvision(name: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _require("torch", "zoo")
    _require("torchvision", "zoo")
    from memfit.capture.sources.library import load_torchvision

    return load_torchvision(name, args, dtype)


def _timm(name: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _require("torch", "zoo")
    _require("timm", "zoo")
    from memfit.capture.sources.library import load_timm

    return load_timm(name, args, dtype)


def _hf(path: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _require("torch", "zoo")
    _require("transformers", "zoo")
    from memfit.capture.sources.huggingface import load_config

    return load_config(path, args, dtype)


def _user_file(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _require("torch", "torch")
    from memfit.capture.sources.user_file import load_callable

    return load_callable(source, args, dtype)


def _bare_file(source: str, _args: Mapping[str, Any] | None, _dtype: str | None) -> LoadedSource:
    raise UsageError(
        "the source names a Python file, but not what to build from it",
        where=source,
        received=repr(source),
        todo=f"name a function or class that makes the model: {source}:build",
    )


def _exported(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _existing(source)
    _no_options(source, args, dtype)
    _require("torch", "torch")
    from memfit.capture.sources.pt2 import load_exported

    return load_exported(source)


def _saved_graph(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _existing(source)
    _no_options(source, args, dtype if dtype != "int8" else None)
    from memfit.graph.io import load as load_graph

    return LoadedSource(source, graph=load_graph(source))


def _tflite(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _existing(source)
    _no_options(source, args, dtype if dtype != "int8" else None)
    from memfit.capture.sources.tflite import load_tflite

    return load_tflite(source)


def _onnx(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    _existing(source)
    _no_options(source, args, dtype if dtype != "int8" else None)
    _require("onnx", "onnx")
    from memfit.capture.sources.onnx import load_onnx

    return load_onnx(source)


def _existing(source: str) -> None:
    if not Path(source).is_file():
        what = "this is a folder, not a file" if Path(source).is_dir() else "there is no such file"
        raise SourceError(what, where=source, received=repr(source), todo="check the path")


def _no_options(source: str, args: Mapping[str, Any] | None, dtype: str | None) -> None:
    texts = (("--arg", " ".join(f"{k}={v}" for k, v in (args or {}).items())), ("--dtype", dtype))
    for option, value in texts:
        if value:
            raise UsageError(
                f"{option} does not apply: the file holds a finished model",
                where=source,
                received=f"{option} {value}",
                todo=f"leave out {option}",
            )


_PREFIXES: dict[str, Loader] = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}
_SUFFIXES: dict[str, Loader] = {
    ".memfit.json": _saved_graph,
    ".pt2": _exported,
    ".py": _bare_file,
    ".tflite": _tflite,
    ".onnx": _onnx,
}
