"""Kernels against the real TensorFlow Lite Micro runtime, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import kernel_nets
import numpy as np
import pytest
import tflite_models as models
import tflm_nets
from tflm_runtime import need_runtime

from memfit.errors import SourceError, UnsupportedOp, UsageError
from memfit.formats.tflite import TfliteModel, parse_model, read_model
from memfit.kernels import KERNELS, Interpreter, kernel_of
from memfit.kernels.kernel import Array, Kernel
from memfit.plan.runtime import Runtime

SHARED = Path(__file__).parents[3] / "shared" / "models"

UNCOMPUTED = {
    "CALL_ONCE", "IF", "VAR_HANDLE", "WHILE", "CIRCULAR_BUFFER",  # other subgraphs, resources, custom operators
}  # fmt: skip
"""What the tests have models of and the table has no entry for."""

NEARLY = {
    "COS", "ELU", "EXP", "LOG", "LOG_SOFTMAX", "LOGISTIC", "RSQRT", "SIN", "SOFTMAX", "SQRT", "TANH",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
}  # fmt: skip
"""Operators that ask C's library for functions of floats: their last bits are its own affair."""

NETS: dict[str, Callable[[], bytes]] = {
    **models.OPERATOR_NETS,
    **tflm_nets.MORE_OPERATORS,
    **{name: make for name, make in models.MIXED_NETS.items() if not name.endswith("float32")},
}
SEEDS = 5


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    need_runtime()
    with Runtime() as running:
        yield running


def values(model: TfliteModel, seed: int) -> list[Array]:
    """Inputs of one run: the smallest and largest values, zeros, then random ones."""
    random = np.random.default_rng(seed)
    made: list[Array] = []
    for index in model.main.inputs:
        tensor = model.main.tensors[index]
        kind = np.dtype(models.TYPES[tensor.type])
        if kind.kind == "f":
            made.append((random.normal(0, 2, tensor.shape) if seed else np.zeros(tensor.shape)).astype(kind))
            continue
        wide = kind.kind == "b" or kind.itemsize > 2
        low, high = (0, 1) if wide else (np.iinfo(kind).min, np.iinfo(kind).max)
        if seed < 3:
            made.append(np.full(tensor.shape, (low, high, 0)[seed], kind))
        else:
            made.append(random.integers(low, high, tensor.shape, endpoint=True).astype(kind))
    return made


def compare(runtime: Runtime, path: Path, runs: int) -> None:
    model = read_model(path)
    inputs = [values(model, seed) for seed in range(runs)]
    if any(operator.name in ("LOG", "RSQRT", "SQRT") for operator in model.main.operators):
        inputs = [[np.abs(x.astype(np.float64)).clip(0, 100).astype(x.dtype) for x in run] for run in inputs]
    if any(operator.name in ("DIV", "FLOOR_DIV", "FLOOR_MOD") for operator in model.main.operators):
        inputs = [[np.where(x == 0, np.ones_like(x), x) for x in run] for run in inputs]
    interpreter = Interpreter(model)
    nearly = any(operator.name in NEARLY for operator in model.main.operators)
    for number, (expected, given) in enumerate(zip(runtime.outputs(path, inputs), inputs, strict=True)):
        for theirs, ours in zip(expected, interpreter.run(given), strict=True):
            assert theirs.dtype == ours.dtype
            if nearly and theirs.dtype.kind == "f":
                np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)
            else:
                np.testing.assert_array_equal(theirs, ours, f"{path}, input {number}")
                assert theirs.tobytes() == ours.tobytes()


@pytest.mark.parametrize("name", NETS)
def test_networks_of_the_other_tests(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(NETS[name]())
    if any(op.name in UNCOMPUTED for op in read_model(path).main.operators):
        with pytest.raises(UnsupportedOp, match="KERNELS"):
            Interpreter(read_model(path))
        return
    compare(runtime, path, 6)


@pytest.mark.parametrize("name", kernel_nets.DRAWN)
def test_operators_drawn_at_random(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    for seed in range(SEEDS):
        path.write_bytes(kernel_nets.drawn(name, seed))
        compare(runtime, path, 6)


@pytest.mark.parametrize("seed", range(4))
def test_networks_drawn_at_random(seed: int, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tflm_nets.drawn(seed))
    compare(runtime, path, 4)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("mlperf-tiny/ad01_int8", 6),
        ("mlperf-tiny/kws_ref_model", 4),
        ("mlperf-tiny/pretrainedResnet_quant", 4),
        ("mlperf-tiny/vww_96_int8", 4),
        ("tflite-micro/hello_world_int8", 6),
        ("tflite-micro/keyword_scrambled_8bit", 6),
        ("tflite-micro/mobilenet_v2_quantized_1x3x224x224", 1),
        ("tflite-micro/person_detect", 4),
    ],
)
def test_published_networks(name: str, runs: int, runtime: Runtime) -> None:
    path = SHARED / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"no file {path}")
    compare(runtime, path, runs)


@pytest.mark.parametrize("name", ["conv", "depthwise", "linear", "transpose_conv"])
def test_a_bias_at_the_limit_of_its_type(name: str, runtime: Runtime, tmp_path: Path) -> None:
    """Accumulators of 32 bits overflow here, as those of the runtime do."""
    path = tmp_path / "model.tflite"
    for seed in range(4):
        net = kernel_nets.Draw(seed, "INT8")
        y = kernel_nets.DRAWN[name][0](net)
        for index, spec in enumerate(net.tensors):
            if spec.type == "INT32" and spec.scales:
                limits = np.iinfo(np.int32)
                data = net.draw.choice([limits.min, limits.max, 0], spec.shape).astype("<i4").tobytes()
                net.tensors[index] = spec._replace(data=data)
        path.write_bytes(net.build(y))
        compare(runtime, path, 6)


@pytest.mark.parametrize("zero", [3, -5])
def test_floats_that_no_integer_holds(zero: int, runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    x = np.array([[1e30, -1e30, np.inf, -np.inf, np.nan, 1e9, -3e8, 129.6, -129.6]], np.float32)
    for name, type in (("QUANTIZE", "INT8"), ("QUANTIZE", "INT16"), ("CAST", "INT8"), ("CAST", "INT32")):
        net = models.Net("FLOAT32")
        quantized = name == "QUANTIZE"
        y = net.tensor(x.shape, type, scale=0.05 if quantized else None, zero=zero if type == "INT8" else 0)
        path.write_bytes(net.build(net.op(name, [net.input(*x.shape)], [y], f"{name.title()}Options")))
        expected = runtime.outputs(path, [[x]])[0][0]
        np.testing.assert_array_equal(Interpreter(read_model(path)).run([x])[0], expected, f"{name} to {type}")


def test_every_kernel_has_a_network() -> None:
    makers = [
        *NETS.values(),
        *(lambda k=k, s=s: kernel_nets.drawn(k, s) for k in kernel_nets.DRAWN for s in range(SEEDS)),
    ]
    tested = {operator.name for make in makers for operator in parse_model(make()).main.operators}
    assert set(KERNELS) <= tested
    assert not set(KERNELS) & UNCOMPUTED


def test_an_unknown_operator_is_an_error_that_names_it_and_the_table() -> None:
    with pytest.raises(UnsupportedOp) as caught:
        Interpreter(parse_model(models.custom("TFLite_Detection_PostProcess"), "net.tflite"))
    message = str(caught.value)
    assert "no kernel computes the operator TFLite_Detection_PostProcess" in message
    assert "net.tflite, operator 1" in message
    assert "KERNELS in memfit/kernels/table.py" in message


def test_a_type_without_a_kernel_is_an_error() -> None:
    net = models.Net("UINT8")
    x = net.input(1, 4)
    with pytest.raises(UnsupportedOp, match="LOGISTIC: no kernel for this type") as caught:
        Interpreter(parse_model(net.build(net.op("LOGISTIC", [x], [net.tensor((1, 4))]))))
    assert "UINT8" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ([], "0 arrays for 1 inputs"),
        ([np.zeros((1, 4), np.int8)], "(1, 4) of int8 for (1, 16, 16, 3) of INT8"),
        ([np.zeros((1, 16, 16, 3), np.uint8)], "of uint8"),
    ],
)
def test_wrong_inputs_are_named(given: list[Array], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        Interpreter(parse_model(models.cnn())).run(given)
    assert part in str(caught.value)


def test_tensors_that_do_not_fit_are_an_error_with_their_shapes() -> None:
    net = models.Net()
    x = net.input(1, 8, 8, 3)
    weight = net.weight((4, 3, 3, 5), channel=0)
    y = net.op("CONV_2D", [x, weight], [net.tensor((1, 8, 8, 4))], "Conv2DOptions", stride_h=1, stride_w=1)
    with pytest.raises(SourceError, match="CONV_2D: its tensors or options do not fit together") as caught:
        Interpreter(parse_model(net.build(y), "net.tflite")).run([np.zeros((1, 8, 8, 3), np.int8)])
    assert "net.tflite, operator 0" in str(caught.value)
    assert "[1, 8, 8, 3], [4, 3, 3, 5], [1, 8, 8, 4]" in str(caught.value)
    other = models.Net()
    y = other.op("RELU", [other.input(1, 4)], [other.tensor((1, 5))])
    with pytest.raises(SourceError, match="RELU"):
        Interpreter(parse_model(other.build(y))).run([np.zeros((1, 4), np.int8)])


def test_a_tensor_that_nothing_writes_is_an_error() -> None:
    net = models.Net()
    a, b = net.input(1, 4), net.tensor((1, 4), name="nowhere")
    with pytest.raises(SourceError, match="nothing has written") as caught:
        Interpreter(parse_model(net.build(net.add(a, b))))
    assert "operator 0 (ADD)" in str(caught.value)
    assert "nowhere" in str(caught.value)


def test_constants_that_are_not_plain_are_an_error() -> None:
    net = models.Net()
    net.metadata["COMPRESSION_METADATA"] = b"1234"
    with pytest.raises(UnsupportedOp, match="INT8 compressed"):
        Interpreter(parse_model(net.build(net.conv(net.input(1, 4, 4, 2), 3))))


def test_state_lives_on_until_it_is_reset() -> None:
    model = parse_model(kernel_nets.drawn("svdf", 9))
    interpreter = Interpreter(model)
    x = values(model, 9)
    first, second = interpreter.run(x)[0], interpreter.run(x)[0]
    interpreter.reset()
    assert first.tobytes() != second.tobytes()
    assert interpreter.run(x)[0].tobytes() == first.tobytes()


def test_every_tensor_is_kept_when_asked_for() -> None:
    model = parse_model(models.resnet())
    x = values(model, 5)
    kept, plain = Interpreter(model, keep=True), Interpreter(model)
    assert kept.run(x)[0].tobytes() == plain.run(x)[0].tobytes()
    assert all(tensor is not None for tensor in kept.tensors)
    assert any(tensor is None for tensor in plain.tensors)


def run_in_views(model: TfliteModel, seed: int) -> None:
    """Compute each operator into views of one byte array, at odd places."""
    reference = Interpreter(model, keep=True)
    reference.run(values(model, seed))
    for operator in model.main.operators:
        kernel = kernel_of(model, operator)
        given = [None if i < 0 else reference.tensors[i] for i in operator.inputs]
        if any(model.main.tensors[i].is_variable for i in operator.inputs if i >= 0):
            continue
        arena = np.full(sum(16 + x.nbytes for x in given if x is not None) + 4096, 0x5A, np.uint8)
        place, views = 3, []
        for x in given:
            if x is None:
                views.append(None)
                continue
            place += -place % x.itemsize
            view = arena[place : place + x.nbytes].view(x.dtype).reshape(x.shape)
            view[...] = x
            views.append(view)
            place += x.nbytes
        before = [None if x is None else x.copy() for x in views]
        outputs = []
        for index in operator.outputs:
            expected = reference.tensors[index]
            assert expected is not None
            wide = np.zeros(tuple(size + 2 for size in expected.shape), expected.dtype)
            outputs.append((wide[tuple(slice(1, 1 + size) for size in expected.shape)], expected))
        kernel.run(kernel.prepare(model, operator), views, [view for view, _ in outputs])
        for view, expected in outputs:
            np.testing.assert_array_equal(view, expected, operator.name)
        for x, y in zip(views, before, strict=True):
            assert x is None or y is None or x.tobytes() == y.tobytes(), operator.name


@pytest.mark.parametrize("name", kernel_nets.DRAWN)
def test_inputs_and_outputs_may_be_views_and_inputs_stay_as_they_are(name: str) -> None:
    for seed in range(3):
        run_in_views(parse_model(kernel_nets.drawn(name, seed)), 4)


def test_element_wise_kernels_may_write_onto_their_input() -> None:
    model = parse_model(models.OPERATOR_NETS["add-int8"]())
    operator = model.main.operators[0]
    kernel = kernel_of(model, operator)
    parameters = kernel.prepare(model, operator)
    x = values(model, 7)[0]
    expected = np.empty_like(x)
    kernel.run(parameters, [x, x], [expected])
    kernel.run(parameters, [x, x], [x])
    np.testing.assert_array_equal(x, expected)


def test_the_table_holds_kernels() -> None:
    assert all(isinstance(kernel, Kernel) for kernel in KERNELS.values())
    assert all((kernel.part is None) == (kernel.needs is None) for kernel in KERNELS.values())
    assert all(kernel.whole or kernel.part for kernel in KERNELS.values())
