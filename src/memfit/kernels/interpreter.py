"""A plain run of a `.tflite` model: every operator in the file's order, with an array for every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memfit.errors import SourceError, UnsupportedOp, UsageError
from memfit.formats.tflite import Operator, TfliteModel, TfliteTensor
from memfit.kernels.kernel import DTYPES, Array, Kernel, constant, senseless
from memfit.kernels.table import KERNELS


def kernel_of(model: TfliteModel, operator: Operator) -> Kernel:
    """Look up an operator's kernel.

    Raises:
        UnsupportedOp: there is none.
    """
    found = None if operator.is_custom else KERNELS.get(operator.name)
    if found is None:
        raise UnsupportedOp(
            f"no kernel computes the operator {operator.name}",
            where=f"{model.source}, operator {operator.index}",
            received=f"a custom operator {operator.name}" if operator.is_custom else operator.name,
            todo="convert the model without it, or add it to KERNELS in memfit/kernels/table.py",
        )
    return found


class Interpreter:
    """Runs the main subgraph of a model, to the bit as TensorFlow Lite Micro does.

    Variable tensors start at their zero points and live on from run to run.

    Args:
        model: from `memfit.formats.tflite.read_model`.
        keep: keep the values of every tensor in `tensors`, as they were when last written.

    Raises:
        UnsupportedOp: an operator, or one of its types or options, has no kernel.

    A model is as a rule read from a file; this one is put together by hand:

    >>> from memfit.formats.tflite import Operator, Quantization, Subgraph, TfliteModel, TfliteTensor
    >>> scale = Quantization((0.1,), (0,), 0, None)
    >>> def tensor(index, *shape):
    ...     return TfliteTensor(index, "", shape, (), "INT8", 0, None, scale, False, True, False, 0)
    >>> window = dict(padding=0, stride_h=2, stride_w=2, filter_height=2, filter_width=2)
    >>> pool = Operator(0, 0, "MAX_POOL_2D", False, 1, (0,), (1,), (), (), "Pool2DOptions",
    ...                 {**window, "fused_activation_function": 0}, None)
    >>> graph = Subgraph(0, "main", (tensor(0, 1, 4, 4, 1), tensor(1, 1, 2, 2, 1)), (pool,), (0,), (1,))
    >>> model = TfliteModel("pool.tflite", 3, "", (), (graph,), (), (), (), ())
    >>> x = np.arange(16, dtype=np.int8).reshape(1, 4, 4, 1)
    >>> Interpreter(model).run([x])[0].ravel().tolist()
    [5, 7, 13, 15]
    """

    def __init__(self, model: TfliteModel, *, keep: bool = False) -> None:
        self.model, self.keep = model, keep
        self.tensors: list[Array | None] = [None] * len(model.main.tensors)
        self.kernels = [kernel_of(model, operator) for operator in model.main.operators]
        self.parameters: list[Any] = [
            kernel.prepare(model, operator) for kernel, operator in zip(self.kernels, model.main.operators, strict=True)
        ]
        self._last = _last_uses(model)
        _check_written(model)
        for tensor in model.main.tensors:
            if tensor.is_constant:
                self.tensors[tensor.index] = constant(model, tensor)
        self.reset()

    def reset(self) -> None:
        """Set the variable tensors to their zero points, as at the start: real zero."""
        for tensor in self.model.main.tensors:
            if tensor.is_variable:
                quantization = tensor.quantization
                zero = quantization.zero_points[0] if quantization and quantization.zero_points else 0
                self.tensors[tensor.index] = np.full(tensor.shape, zero, dtype_of(self.model, tensor))

    def run(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Compute the outputs of one run.

        Args:
            inputs: an array for each input of the model, of its shape and type.

        Returns:
            An array for each output.

        Raises:
            UsageError: an input has another shape or type.
            SourceError: an operator's tensors do not fit together.
        """
        main = self.model.main
        check_inputs(self.model, inputs)
        for index, value in zip(main.inputs, inputs, strict=True):
            self.tensors[index] = value
        for operator, kernel, parameters in zip(main.operators, self.kernels, self.parameters, strict=True):
            given = [self.tensors[i] if i >= 0 else None for i in operator.inputs]
            made = []
            for index in operator.outputs:
                tensor = main.tensors[index]
                self.tensors[index] = array = np.empty(tensor.shape, dtype_of(self.model, tensor))
                made.append(array)
            try:
                kernel.run(parameters, given, made)
            except (ArithmeticError, LookupError, ValueError) as error:
                raise senseless(self.model, operator, error) from error
            if not self.keep:
                for index in self._last[operator.index]:
                    self.tensors[index] = None
        return tuple(found for index in main.outputs if (found := self.tensors[index]) is not None)


def dtype_of(model: TfliteModel, tensor: TfliteTensor) -> np.dtype[Any]:
    """Give the element type of a tensor's array.

    Raises:
        UnsupportedOp: no array holds such elements.
    """
    kind = DTYPES.get(tensor.type)
    if kind is None:
        raise UnsupportedOp(
            "a tensor is of a type that kernels do not compute with",
            where=f"{model.source}, tensor {tensor.index} ({tensor.name})",
            received=tensor.type,
            todo="convert the model to int8, int16 or float32",
        )
    return np.dtype(kind)


def check_inputs(model: TfliteModel, inputs: Sequence[Array | None]) -> None:
    """Refuse inputs that are not an array of the right shape and type for each input of a model; None passes."""
    main = model.main
    if len(inputs) != len(main.inputs):
        raise UsageError(
            "the model has another number of inputs",
            where=model.source,
            received=f"{len(inputs)} arrays for {len(main.inputs)} inputs",
            todo="give an array for each",
        )
    for index, value in zip(main.inputs, inputs, strict=True):
        tensor = main.tensors[index]
        if value is not None and (value.shape != tensor.shape or value.dtype != dtype_of(model, tensor)):
            raise UsageError(
                "an input has another shape or type",
                where=f"{model.source}, input {tensor.name}",
                received=f"{value.shape} of {value.dtype} for {tensor.shape} of {tensor.type}",
                todo="give an array of the model's own shape and type",
            )


def _check_written(model: TfliteModel) -> None:
    """Refuse a model that reads a tensor before anything was written there."""
    main = model.main
    known = {tensor.index for tensor in main.tensors if tensor.is_constant or tensor.is_variable} | {*main.inputs, -1}
    for operator in (*main.operators, None):
        missing = [i for i in (main.outputs if operator is None else operator.inputs) if i not in known]
        if missing:
            where = "its outputs" if operator is None else f"operator {operator.index} ({operator.name})"
            raise SourceError(
                "the model reads a tensor that nothing has written",
                where=f"{model.source}, {where}",
                received=f"tensor {missing[0]} ({main.tensors[missing[0]].name})",
                todo="check how the model was made",
            )
        known.update(operator.outputs if operator else ())


def _last_uses(model: TfliteModel) -> list[list[int]]:
    """List, for each operator, the tensors that nobody reads after it."""
    main = model.main
    last: dict[int, int] = {}
    for operator in main.operators:
        for index in (*operator.inputs, *operator.outputs):
            last[index] = operator.index
    kept = {*main.outputs, *main.inputs, -1}
    found: list[list[int]] = [[] for _ in main.operators]
    for index, operator_index in last.items():
        if index not in kept and main.tensors[index].data is None and not main.tensors[index].is_variable:
            found[operator_index].append(index)
    return found
