"""The one way in: whatever the user names or holds becomes a graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memfit.capture.sources.loaded import Example, LoadedSource
from memfit.errors import UsageError
from memfit.graph.model import Graph

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memfit.capture.sources.generation import Generation

    Inputs = str | Sequence[str] | Tensor | Sequence[Any] | Mapping[str, Any]


def capture(
    source: str | nn.Module | Graph,
    inputs: Inputs | None = None,
    *,
    dtype: str | None = None,
    args: Mapping[str, Any] | None = None,
    **options: Any,
) -> Graph:
    """Capture a model as a graph, without allocating a weight or computing a value.

    >>> import memfit
    >>> graph = memfit.capture("torchvision:mobilenet_v2", "1x3x224x224")
    >>> len(graph.ops), sum(op.macs for op in graph.ops)
    (205, 300774272)

    Args:
        source: what the command line takes (`torchvision:NAME`, `timm:NAME`, `hf:CONFIG.json`, `FILE.py:CALLABLE`, a
            `.pt2`, `.tflite`, `.onnx` or `.memfit.json` file), an `nn.Module`, or a graph, which is returned as it is.
        inputs: shapes as text (`"1x3x224x224"`, `["ids=1x128:int64", …]`), or tensors: one, a sequence of positional
            arguments, or a mapping of keyword arguments. None takes the model's own.
        dtype: of weights and floating inputs: fp32, fp16 or bf16. None keeps the model's own.
        args: arguments of the source's constructor.
        options: how it runs; see `Model.capture`.

    Raises:
        SourceError: no such model or file, or it cannot be built.
        UsageError: inputs that cannot be read.
        CaptureError: the model refused its input.
        DataDependentError: the model's control flow needs values.
        UnsupportedOp: an operation that the op table lacks.
    """
    if isinstance(source, Graph):
        return source
    return open_model(source, dtype=dtype, args=args).capture(inputs, **options)


def open_model(source: str | nn.Module, *, dtype: str | None = None, args: Mapping[str, Any] | None = None) -> Model:
    """Load a source or hold a module, to capture it several times; arguments and errors as for `capture`."""
    if isinstance(source, str):
        from memfit.capture.sources import load

        return Model(load(source, args=args, dtype=dtype))
    return Model(_held(source, args, dtype), dtype)


@dataclass(frozen=True)
class Model:
    """A source that is open: its model is built once and captured as often as wanted."""

    loaded: LoadedSource
    dtype: str | None = None
    """Dtype to capture a held module in."""

    def capture(
        self,
        inputs: Inputs | None = None,
        *,
        training: bool = False,
        loss: Callable[[Any], Tensor] | None = None,
        optimizer: Callable[[Any], Any] | None = None,
        batch: int | None = None,
        threads: int | None = None,
        estimate: bool = False,
        device: str = "cpu",
        capability: str | None = None,
        autocast: str | None = None,
        checkpoint: str | Sequence[str] = (),
        train_only: str | None = None,
        steady: bool = False,
        accumulating: bool = False,
        phase: str | None = None,
        context: int | None = None,
    ) -> Graph:
        """Capture one run.

        Args:
            inputs: as for `capture`.
            training: also capture loss and backward, in training mode.
            loss: outputs → scalar; None chooses as `memfit.capture.step.default_loss` does.
            optimizer: parameters → optimizer, such as `torch.optim.Adam`; its first `step()` is captured too.
            batch: replaces the first dimension of every input.
            threads: threads to trace for; None takes PyTorch's own setting.
            estimate: let operations that the op table lacks pass, without MACs and with a note.
            device: cpu, or cuda: the operations that a GPU would run, on a machine without one.
            capability: compute capability of that GPU; None is 8.0.
            autocast: lower precision of autocast, fp16 or bf16; None runs without it.
            checkpoint: modules whose activations backward computes again: paths, or a regular expression, of whose
                matches the outermost are taken.
            train_only: which parameters train: bias, norm, or a regular expression that names contain.
            steady: the optimizer's state exists before the step, as in every step but the first.
            accumulating: gradients exist before the step, as in every micro-batch but the first.
            phase: of a language model that generates: prefill or decode.
            context: tokens of each of its sequences, the new one included; see `Generation`.
        """
        loaded = self.loaded
        if loaded.read_with is not None:
            _refuse_options(loaded, training=training, phase=phase, context=context)
            return loaded.read_with(inputs, batch, estimate)
        if loaded.model is None:
            _refuse_options(loaded, inputs=inputs, batch=batch, training=training, phase=phase, context=context)
            if loaded.read is not None:
                return loaded.read(estimate)
            assert loaded.graph is not None  # one of the three is there
            return loaded.graph

        from memfit.capture.cuda import Cuda
        from memfit.capture.freezing import frozen
        from memfit.capture.sources.inputs import DTYPES
        from memfit.capture.torch_trace import capture_module

        generation = None
        if phase is not None or context is not None:
            generation = self.generation(phase, context, batch=batch, inputs=inputs, training=training)
            example = generation.example()
        else:
            example = _example(loaded, inputs, batch=batch, training=training, dtype=self.dtype)
        with _threads(threads), _dtype_of(loaded.model, self.dtype), frozen(loaded.model, train_only):
            graph = capture_module(
                loaded.model,
                example.args,
                example.kwargs,
                training=training,
                loss=loss or example.loss,
                optimizer=optimizer,
                source=loaded.name,
                input_names=example.names,
                strict=not estimate,
                autocast=DTYPES[autocast] if autocast else None,
                checkpoint=checkpoint_paths(loaded.model, checkpoint),
                steady=steady,
                accumulating=accumulating,
                carried=generation,
                cuda=Cuda.parse(capability) if device == "cuda" else None,
            )
        if generation is not None:
            chosen = {"phase": generation.phase, "context": generation.context}
            graph = replace(
                graph, environment={**graph.environment, **chosen}, notes=(*generation.notes(), *graph.notes)
            )
        return replace(graph, notes=(*loaded.notes, *graph.notes)) if loaded.notes else graph

    def generation(
        self,
        phase: str | None,
        context: int | None = None,
        *,
        batch: int | None = None,
        inputs: Inputs | None = None,
        training: bool = False,
    ) -> Generation:
        """Make the call of a language model that generates; arguments as for `capture`.

        Raises:
            UsageError: no phase, inputs or training beside one, or a source without phases.
        """
        from memfit.capture.sources.generation import PHASES, Generation

        for option, given in (("--input", inputs is not None), ("--training", training)):
            if given:
                raise UsageError(
                    f"{option} and --phase do not go together: generation has inputs and a pass of its own",
                    where=option,
                    received=f"--phase {phase}" if phase else f"--context {context}",
                    todo=f"leave out {option}, and give --batch and --context",
                )
        if phase is None:
            raise UsageError(
                "--context is of a phase of generation",
                where="--context",
                received=f"{context}, without --phase",
                todo=f"add --phase {' or --phase '.join(PHASES)}",
            )
        return Generation(self.loaded, phase, context, batch)


def checkpoint_paths(model: nn.Module, chosen: str | Sequence[str]) -> tuple[str, ...]:
    """Give the paths of the modules to checkpoint, none inside another.

    Raises:
        UsageError: a regular expression that is none, or that matches no module.
    """
    if not isinstance(chosen, str):
        return tuple(chosen)
    try:
        pattern = re.compile(chosen)
    except re.error as error:
        raise UsageError(
            f"this is not a regular expression: {error}",
            where="--checkpoint",
            received=repr(chosen),
            todo="use none, auto, or a regular expression that module paths contain",
        ) from None
    paths: list[str] = []
    every = [path for path, module in model.named_modules() if path and type(module).forward is not _no_forward()]
    for path in every:
        if pattern.search(path) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    if not paths:
        raise UsageError(
            "no module has a path like this",
            where="--checkpoint",
            received=repr(chosen),
            todo=f"give a regular expression that module paths contain, such as {', '.join(every[:3])}",
        )
    return tuple(paths)


def _no_forward() -> Any:
    """Give the `forward` of modules that have none of their own, such as a ModuleList."""
    from torch import nn as torch_nn

    return torch_nn.ModuleList.forward


def _held(module: Any, args: Mapping[str, Any] | None, dtype: str | None) -> LoadedSource:
    """Wrap a module that the user holds."""
    from torch import nn

    if not isinstance(module, nn.Module):
        raise UsageError(
            "this is neither a model nor a source",
            where="source",
            received=f"a {type(module).__name__}",
            todo="pass an nn.Module, a graph, or text such as torchvision:resnet50",
        )
    if args:
        raise UsageError(
            "args go to a constructor, and this model is already built",
            where="args",
            received=", ".join(args),
            todo="pass them where you build the model",
        )
    if dtype not in (None, "fp32", "fp16", "bf16", "float32", "float16", "bfloat16"):
        raise UsageError(
            "a model cannot have this dtype", where="--dtype", received=repr(dtype), todo="use fp32, fp16 or bf16"
        )
    return LoadedSource(type(module).__name__, model=module)


def _refuse_options(loaded: LoadedSource, **options: Any) -> None:
    given = [name for name, value in options.items() if value]
    if loaded.graph is not None and loaded.graph.training:
        given = [name for name in given if name != "training"]
    if given:
        raise UsageError(
            "a saved graph has the inputs and the pass that it was captured with"
            if loaded.graph is not None
            else "this file holds a network for inference"
            + ("" if loaded.read_with is not None else ", with the inputs that it was converted for"),
            where=loaded.name,
            received=", ".join(f"--{name.removesuffix('s') if name == 'inputs' else name}" for name in given),
            todo=f"leave them out, or {'capture' if loaded.graph is not None else 'convert'} the model again with them",
        )


def _example(loaded: LoadedSource, inputs: Any, *, batch: int | None, training: bool, dtype: str | None) -> Example:
    """Make the arguments of the call from text, tensors or nothing."""
    if inputs is None or isinstance(inputs, str) or _is_text(inputs):
        texts = [] if inputs is None else [inputs] if isinstance(inputs, str) else list(inputs)
        return loaded.example(_typed(loaded, texts, dtype), batch=batch, training=training)
    if batch is not None:
        raise UsageError(
            "batch replaces a shape's first dimension, and these inputs are tensors",
            where="batch",
            received=f"batch={batch}",
            todo="pass shapes as text, or tensors of that batch",
        )
    from torch import Tensor

    if isinstance(inputs, Mapping):
        return Example((), dict(inputs), tuple(inputs), loaded.loss if training else None)
    values = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    return Example(values, {}, (), loaded.loss if training else None)


def _is_text(inputs: Any) -> bool:
    return isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(i, str) for i in inputs)


def _typed(loaded: LoadedSource, texts: list[str], dtype: str | None) -> list[Any]:
    """Read shapes; without a dtype, an input of a held model has that of the model's own weights."""
    if loaded.specs or not texts:
        return texts
    from memfit.capture.sources.inputs import DTYPES, parse_input

    assert loaded.model is not None
    floating = next((p.dtype for p in loaded.model.parameters() if p.is_floating_point()), None)
    if dtype is not None:
        floating = DTYPES[dtype]
    specs = [parse_input(text) for text in texts]
    if floating is None:
        return list(specs)
    return [s if s.dtype else replace(s, dtype=str(floating).removeprefix("torch.")) for s in specs]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let PyTorch choose kernels as with that many threads."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _dtype_of(model: nn.Module, dtype: str | None) -> Iterator[None]:
    """Let phantoms of another dtype stand in for a held model's floating parameters and buffers."""
    if dtype is None:
        yield
        return
    from torch import nn as torch_nn

    from memfit.capture.phantom import phantom
    from memfit.capture.sources.inputs import DTYPES

    wanted = DTYPES[dtype]
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    stand_ins: dict[int, Any] = {}
    for module in model.modules():
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is None or not tensor.is_floating_point() or tensor.dtype is wanted:
                    continue
                replaced.append((members, name, tensor))
                if id(tensor) not in stand_ins:
                    other: Any = phantom(tuple(tensor.shape), tensor.stride(), wanted)
                    if isinstance(tensor, torch_nn.Parameter):
                        other = torch_nn.Parameter(other, requires_grad=tensor.requires_grad)
                    stand_ins[id(tensor)] = other
                members[name] = stand_ins[id(tensor)]
    try:
        yield
    finally:
        for members, name, tensor in replaced:
            members[name] = tensor
