"""The Python API: the command line's words as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from memfit.analysis.result import (
    Benchmark,
    Calibration,
    Check,
    Plan,
    Profile,
    Pruning,
    Quantization,
    Sensitivity,
    Stream,
    TrainingStep,
)
from memfit.capture.entry import capture, open_model
from memfit.errors import UsageError, require
from memfit.graph.io import SUFFIX
from memfit.graph.io import load as load_graph
from memfit.graph.io import save as save_graph
from memfit.graph.model import Graph
from memfit.memory.profile import profile_graph
from memfit.memory.registry import memory_model
from memfit.report import notebook
from memfit.units import parse_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memfit.capture.entry import Inputs
    from memfit.memory.cuda.allocator import Settings

__all__ = [
    "Benchmark",
    "Calibration",
    "Check",
    "Plan",
    "Profile",
    "Pruning",
    "Quantization",
    "Sensitivity",
    "Stream",
    "TrainingStep",
    "apply_recipe",
    "bench",
    "calibrate",
    "capture",
    "check",
    "load_graph",
    "plan",
    "profile",
    "prune",
    "quantize",
    "replay",
    "save_graph",
    "sensitivity",
    "stream",
    "train",
]

notebook.register()


def replay(graph: Graph, state: nn.Module | Mapping[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run a captured graph on real tensors; see `memfit.capture.replay.replay`."""
    from memfit.capture import replay as run

    return run.replay(graph, state, inputs)


def profile(
    source: str | nn.Module | Graph,
    inputs: Inputs | None = None,
    *,
    per: str = "layer",
    memory: str | None = None,
    training: bool = False,
    device: str | None = None,
    capability: str | None = None,
    alloc_conf: str | None = None,
    autocast: str | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    samples: int = 1,
    args: Mapping[str, Any] | None = None,
    fold: bool = True,
    blocks: str | None = None,
    inplace_depthwise: bool = True,
    bits: int = 8,
    recipe: str | Path | None = None,
    frozen_bits: int | None = None,
    train_only: str | None = None,
    probe: bool = False,
    estimate: bool = False,
    threads: int | None = None,
    phase: str | None = None,
    context: int | None = None,
    budget: int | str | None = None,
    progress: Callable[[str], None] | None = None,
    save_graph: str | Path | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    optimizer: Callable[[Any], Any] | None = None,
) -> Profile:
    """Show where a network's memory goes, row by row.

    >>> import memfit
    >>> result = memfit.profile("torchvision:mobilenet_v2", "1x3x224x224", per="block", memory="mcunet")
    >>> result.totals["peak_bytes"], result.totals["peak_at"]
    (1404928, 'features.2')

    Args:
        source: as for `memfit.capture`.
        inputs: as for `memfit.capture`.
        per: what a row is: layer, block, module, op or tensor.
        memory: the memory model: eager (default), ideal, tflm (default for .tflite), mcunet, tinytl, autograd, cuda
            (default with a phase), tensors (default per tensor).
        training: profile forward, loss and backward; `autograd` and `tinytl` imply it.
        device: cpu, or cuda: what a GPU would run, on a machine without one. None is cuda for the memory model
            `cuda`, else cpu.
        capability: the GPU's compute capability, such as 9.0; None is 8.0.
        alloc_conf: `cuda`: the allocator's settings, as in PYTORCH_ALLOC_CONF.
        autocast: run under autocast: bf16 or fp16.
        dtype: fp32, fp16 or bf16; int8 only counts, with `mcunet`.
        batch: replaces the first dimension of every input.
        samples: multiplies activations: what keeping those of so many samples takes.
        args: arguments of the source's constructor.
        fold: fold norms and activations into the layer before.
        blocks: regular expression of the module paths that are blocks.
        inplace_depthwise: `mcunet`: a depthwise convolution overwrites its input.
        bits: `mcunet`: bits of an activation.
        recipe: a file that `memfit.quantize` saved: activations have its bits; its memory model is the default.
        frozen_bits: bits of a parameter that is not trained, in `model_bytes`.
        train_only: which parameters train: bias, norm, or a regular expression.
        probe: `eager`: run each distinct operation once on real tensors, for workspaces without a rule.
        estimate: let operations that the op table lacks pass, with a note.
        threads: CPU threads to predict for.
        phase: of a language model that generates: prefill, the whole context at once, or decode, its last token.
        context: tokens of each sequence, the new one included; None is the model's own limit, 4096 at the most.
        budget: what the GPU has, in bytes or as text such as 24GiB: whether the phase fits, and the largest context
            and batch that do.
        progress: is told what is being captured for the budget.
        save_graph: keep the captured graph in this `.memfit.json` file, which is replaced if it exists.
        loss: outputs → scalar, for training.
        optimizer: parameters → optimizer, to capture its first step too.

    Raises:
        MemfitError: what failed, where, what was received and what to do; see `memfit.capture`.
    """
    kept = None
    if recipe is not None:
        from memfit.compress.recipe import check_network, notes_of
        from memfit.compress.recipe import read as read_recipe

        kept = read_recipe(recipe)
        memory = memory or kept.memory
    memory = memory or ("tensors" if per == "tensor" else _default_memory(source) if phase is None else "cuda")
    model = memory_model(memory)
    _check_format(source, memory)
    device = device or ("cuda" if memory == "cuda" else "cpu")
    if device not in ("cpu", "cuda"):
        raise UsageError("there is no such device", where="--device", received=repr(device), todo="use cpu or cuda")
    if probe and device == "cuda":
        raise UsageError(
            "--probe runs operations on the CPU, and a GPU has other workspaces",
            where="--probe",
            received=f"device {device}",
            todo="leave it out, or profile the CPU",
        )
    if dtype == "int8" and memory not in ("mcunet", "tensors"):
        raise UsageError(
            f"PyTorch does not run this network in int8, so {memory} has no such figure",
            where="--dtype",
            received=dtype,
            todo="use --memory mcunet, which counts int8 activations, or fp32, fp16 or bf16",
        )
    _check_generation(phase, memory, budget)
    saved = isinstance(source, str) and source.endswith(SUFFIX)  # its pass was chosen when it was captured
    opened = (
        source if isinstance(source, Graph) else open_model(source, dtype=None if dtype == "int8" else dtype, args=args)
    )
    options: dict[str, Any] = {
        "threads": threads, "estimate": estimate, "device": device, "capability": capability, "autocast": autocast,
    }  # fmt: skip
    if isinstance(opened, Graph):
        graph = opened
    else:
        graph = opened.capture(
            inputs,
            training=training or (not saved and (model.of_training or optimizer is not None)),
            loss=loss,
            optimizer=optimizer,
            batch=batch,
            phase=phase,
            context=context,
            **options,
        )
    if kept is not None:
        check_network(kept, graph)
    if save_graph is not None:
        from memfit.graph.io import save

        save(graph, save_graph, force=True)
    probes = None
    if probe:
        from memfit.capture.cpu_probe import probe as measure

        probes = measure(graph)
    result = profile_graph(
        graph,
        per=per,
        memory=memory,
        samples=samples,
        fold=fold,
        blocks=blocks,
        inplace_depthwise=inplace_depthwise,
        bits=bits,
        layer_bits=None if kept is None else kept.layer_bits,
        frozen_bits=frozen_bits,
        train_only=train_only,
        probes=probes,
        allocator=_settings(alloc_conf),
        estimate=estimate,
    )
    if kept is not None:
        result = replace(result, notes=(*result.notes, *notes_of(kept, result.inputs, memory)))
    if budget is None or phase is None or isinstance(opened, Graph):
        return result
    from memfit.training.generation import Fit

    fit = Fit(
        opened,
        phase,
        batch or 1,
        int(graph.environment["context"]),
        _bytes(budget),
        options,
        _settings(alloc_conf),
        progress or _silent,
    )
    fit.know(graph)
    return replace(result, totals={**result.totals, **fit.totals()})


_MEMORY_OF_FORMAT = {"tflite": "tflm", "onnx": "ideal"}
"""Format of a file → the memory model that it is profiled with unless another is asked for."""

_MEMORY_OF_PYTORCH = ("eager", "cuda", "autograd", "tinytl")


def _format(source: str | nn.Module | Graph) -> str | None:
    """Name the format of another tool's file, or of the graph read from one."""
    if isinstance(source, Graph):
        return source.environment.get("format")
    suffix = Path(source).suffix.removeprefix(".") if isinstance(source, str) else ""
    return suffix if suffix in _MEMORY_OF_FORMAT else None


def _default_memory(source: str | nn.Module | Graph) -> str:
    if isinstance(source, Graph) and source.origin is None and _format(source) is not None:
        return "ideal"  # a saved graph is without the file that it was read from
    return _MEMORY_OF_FORMAT.get(_format(source) or "", "eager")


def _check_format(source: str | nn.Module | Graph, memory: str) -> None:
    """Refuse memory models of PyTorch for networks that PyTorch does not run."""
    found = _format(source)
    if found is not None and memory in _MEMORY_OF_PYTORCH:
        raise UsageError(
            f"{memory} is what PyTorch needs, and it does not run .{found} files",
            where="--memory",
            received=memory,
            todo=f"use --memory {_MEMORY_OF_FORMAT[found]} or mcunet",
        )


def _silent(_: str) -> None:
    """Tell nobody."""


def _check_generation(phase: str | None, memory: str, budget: int | str | None) -> None:
    """Refuse a phase with a model of training, and a budget without a phase or under another memory model."""
    if phase is not None and memory_model(memory).of_training:
        raise UsageError(
            f"{memory} is of training, and generation trains nothing",
            where="--memory",
            received=f"{memory}, with --phase {phase}",
            todo="use --memory cuda, eager or ideal",
        )
    if budget is not None and (phase is None or memory != "cuda"):
        raise UsageError(
            "a profile has a budget for a language model's phase on a GPU",
            where="--budget",
            received=f"{budget}, with --memory {memory}" + ("" if phase else " and without --phase"),
            todo="add --phase prefill or --phase decode, or ask memfit train --budget or memfit check --max-peak",
        )


def _settings(text: str | None) -> Settings | None:
    """Read the allocator's settings; None leaves its defaults."""
    if text is None:
        return None
    from memfit.memory.cuda.allocator import Settings

    return Settings.parse(text)


def bench(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    per: str = "model",
    mode: str = "in-place",
    device: str = "cpu",
    dtype: str | None = None,
    batch: int | Sequence[int] | None = None,
    warmup: int = 25,
    iterations: int | None = None,
    seconds: float | None = None,
    channels_last: bool = False,
    compile: bool = False,
    threads: int | None = None,
    with_memory: bool = False,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
    blocks: str | None = None,
    save: str | Path | None = None,
    against: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Benchmark:
    """Measure how fast a network is, row by row.

    >>> import memfit
    >>> result = memfit.bench("torchvision:mobilenet_v2", "1x3x32x32", per="block", warmup=1, iterations=3)
    >>> len(result.rows), result.totals["layers_ms"] + result.totals["unattributed_ms"] == result.totals["whole_ms"]
    (21, True)

    Args:
        source: as for `memfit.capture`, if it can run; a library's model gets random weights, a held module keeps its
            own and is left as it was.
        inputs: as for `memfit.capture`; shapes are filled with noise, token ids with random ones.
        per: what a row is: model, block, layer or op.
        mode: in-place, during a run of the whole model, or isolated, each row alone on the input that it had there.
        device: cpu or cuda.
        dtype: of weights and floating inputs: fp32, fp16 or bf16. None keeps the model's own.
        batch: replaces the first dimension of every input; several sizes make one row each.
        warmup: iterations before the timed ones.
        iterations: timed ones, 300; with `seconds` at most so many, or any number.
        seconds: stop when the 95 % interval of the median is narrower than 2 % of it, at the latest after that time.
        channels_last: lay images out with their channels last.
        compile: time the model as `torch.compile` makes it; the whole model only.
        threads: of the CPU; None keeps PyTorch's setting.
        with_memory: measure the peak memory too, and put the predicted one beside it.
        weights: a `.safetensors` or `.pt` file of tensors.
        args: arguments of the source's constructor.
        blocks: regular expression of the module paths that are blocks.
        save: keep the run with the time of every iteration in this file, which is replaced if it exists.
        against: a file that `save` wrote, to compare with.
        progress: is told what is being done, how many iterations of it are done, and of how many.

    Raises:
        MemfitError: what failed, where, what was received and what to do.
        KeyboardInterrupt: before anything was measured; later, what was measured so far is returned with a note.
    """
    require("torch", "torch", "running the model needs torch", where="memfit bench")
    from memfit.files import write_whole
    from memfit.measure import runs
    from memfit.measure.bench import measure
    from memfit.measure.config import Config
    from memfit.measure.session import Schedule, no_progress
    from memfit.measure.subject import Placing

    batches = None if batch is None else (batch,) if isinstance(batch, int) else tuple(batch)
    if iterations is None and seconds is None:
        iterations = 300
    config = Config(
        placing=Placing(device, dtype, channels_last, weights),
        schedule=Schedule(warmup, iterations, seconds),
        per=per,
        mode=mode,
        batches=batches,
        compile=compile,
        threads=threads,
        with_memory=with_memory,
        blocks=blocks,
    )
    earlier = None
    if against is not None:
        earlier = runs.read(Path(against))
        name = source if isinstance(source, str) else type(source).__name__
        runs.check(earlier, per="batch" if config.sweep else per, source=name, device=device)
    measured = measure(source, inputs, config, args=args, progress=progress or no_progress)
    result = measured.result
    if earlier is not None:
        result = runs.compare(result, measured.whole, measured.rows, earlier)
    if save is not None:
        write_whole(Path(save), lambda stream: runs.write(result, measured.whole, measured.rows, stream), force=True)
    return result


def calibrate(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    data: Any,
    samples: int | None = None,
    method: str = "minmax",
    bits: int = 8,
    symmetric: bool = False,
    percentile: float | None = None,
    per_channel: bool = False,
    batch: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
    save: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Calibration:
    """Find the range of every layer's output over some data, without keeping any of it.

    >>> import memfit
    >>> ranges = memfit.calibrate("torchvision:squeezenet1_1", "1x3x32x32", data="random", samples=2)
    >>> [row["name"] for row in ranges.rows[:3]], ranges.rows[1]["min"], ranges.rows[1]["samples"]
    (['input', 'features.0', 'features.2'], 0.0, 2)

    Args:
        source: as for `memfit.capture`, if it can run; a library's model gets random weights, a held module keeps its
            own and is left as it was.
        inputs: shapes as text; None takes the model's own, or the data's where it has none.
        data: `random`, `FILE.py:CALLABLE`, a folder of images, a `.npz` file, or an iterable of batches: tensors,
            (inputs, labels), or dicts of inputs by name.
        samples: how many; None takes all, or 32 of `random`.
        method: minmax, moving-average (over samples), percentile, entropy or mse.
        bits: of the grid that is laid over each range, 2 to 16.
        symmetric: put zero in the middle of every range.
        percentile: percent of the values at which ranges of that method end; None is 99.99.
        per_channel: also find the range of each channel.
        batch: samples that run at once; None keeps a loader's own batches and makes batches of 8 otherwise.
        seed: of the noise, and of the choice where there are more samples than are wanted.
        mean: taken from the colours of images, from 0 to 1; None is ImageNet's.
        std: what each colour is divided by; None is ImageNet's.
        weights: a `.safetensors` or `.pt` file of tensors.
        args: arguments of the source's constructor.
        save: keep the ranges in this JSON file, which is replaced if it exists.
        progress: is told what is being done, how many samples are done, and of how many.

    Raises:
        MemfitError: what failed, where, what was received and what to do.
    """
    require("torch", "compress", "running the model needs torch", where="memfit calibrate")
    from memfit.compress import ranges
    from memfit.compress.calibrate import Settings
    from memfit.compress.calibrate import calibrate as run
    from memfit.compress.data import Sampling
    from memfit.files import write_whole
    from memfit.measure.session import no_progress

    settings = Settings(
        Sampling(data, samples, batch, seed, mean, std),
        method=method,
        bits=bits,
        symmetric=symmetric,
        percentile=percentile,
        per_channel=per_channel,
    )
    result = run(source, inputs, settings, args=args, weights=weights, progress=progress or no_progress)
    if save is not None:
        write_whole(Path(save), lambda stream: ranges.write(result, stream), force=True)
    return result


def sensitivity(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    data: Any,
    samples: int | None = None,
    bits: int = 8,
    metric: str | Callable[..., Any] = "sqnr",
    direction: str = "quantize",
    method: str = "exact",
    ranges: str | Path | None = None,
    per_channel: bool = False,
    store: str | Path | None = None,
    jobs: int = 1,
    backend: str = "loky",
    batch: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
    save: str | Path | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Sensitivity:
    """Measure what quantizing each layer costs, one layer at a time, and explain it by the layers' roles.

    >>> import memfit
    >>> found = memfit.sensitivity("torchvision:squeezenet1_1", "1x3x32x32", data="random", samples=2)
    >>> [row["role"] for row in found.rows[:3]], found.rows[0]["sqnr_db"] > 20
    (['first', 'other', 'other'], True)

    Args:
        source: as for `memfit.capture`, if it can run; a library's model gets random weights, a held module keeps its
            own and is left as it was.
        inputs: shapes as text; None takes the model's own, or the data's where it has none.
        data: as for `memfit.calibrate`; what is gone through only once is kept.
        samples: how many; None takes all, or 32 of `random`.
        bits: of the grids of weights and outputs, 2 to 16.
        metric: sqnr (in dB), cosine, loss, accuracy, `FILE.py:CALLABLE`, or a function: called with a batch's outputs
            and labels, it gives the mean over the samples, and more is better.
        direction: quantize one layer of the float network; float: leave one float in the quantized network; both.
        method: exact, or taylor: estimate all layers from one backward pass, with its rank correlation to exact ones.
        ranges: a file of `memfit.calibrate`; None takes the least and largest values in this data.
        per_channel: outputs have a grid for each channel; weights always have.
        store: an SQLite file of what is done; the same call goes on where it was stopped.
        jobs: processes.
        backend: where they run: loky, on this machine; or ray, on a Ray cluster.
        batch: samples that run at once; None keeps a loader's own batches and makes batches of 8 otherwise.
        seed: of the noise, and of the choice where there are more samples than are wanted.
        mean: taken from the colours of images, from 0 to 1; None is ImageNet's.
        std: what each colour is divided by; None is ImageNet's.
        weights: a `.safetensors` or `.pt` file of tensors.
        args: arguments of the source's constructor.
        save: keep the result in this JSON file, which is replaced if it exists.
        progress: is told what is being done, how much of it is done, and of how much.

    Raises:
        UsageError: a store, or ranges, of another model or other data.
        MissingExtra: joblib or Ray is not installed.
        MemfitError: what failed, where, what was received and what to do.
    """
    require("torch", "compress", "running the model needs torch", where="memfit sensitivity")
    from memfit.compress.data import Sampling
    from memfit.compress.sensitivity import Settings
    from memfit.compress.sensitivity import sensitivity as run
    from memfit.files import write_whole
    from memfit.measure.session import no_progress
    from memfit.report import json

    settings = Settings(
        Sampling(data, samples, batch, seed, mean, std),
        bits=bits,
        metric=metric,
        direction=direction,
        method=method,
        ranges=ranges,
        per_channel=per_channel,
        store=store,
        jobs=jobs,
        backend=backend,
    )
    result = run(source, inputs, settings, args=args, weights=weights, progress=progress or no_progress)
    if save is not None:
        write_whole(Path(save), lambda stream: json.render(result, stream), force=True)
    return result


@overload
def _bytes(size: int | str) -> int: ...
@overload
def _bytes(size: int | str | None) -> int | None: ...
def _bytes(size: int | str | None) -> int | None:
    """Read a size that may be text."""
    return parse_bytes(size) if isinstance(size, str) else size


def train(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    batch: int,
    optimizer: str = "adam",
    kernels: str | None = None,
    device: str = "cuda",
    capability: str | None = None,
    budget: int | str | None = None,
    dtype: str | None = None,
    autocast: str | None = None,
    accumulate: int = 1,
    checkpoint: str | None = None,
    train_only: str | None = None,
    set_to_none: bool = True,
    alloc_conf: str | None = None,
    cuda_context: int | str | None = None,
    advice: bool = True,
    args: Mapping[str, Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    estimate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> TrainingStep:
    """Predict what one step of training needs on a GPU, on a machine without one.

    >>> import memfit
    >>> step = memfit.train("torchvision:resnet18", batch=32, budget="12GiB", advice=False)
    >>> step.totals["fits"], step.totals["optimizer_bytes"] == 2 * step.totals["parameter_bytes"]
    (True, True)

    Args:
        source: as for `memfit.capture`.
        inputs: as for `memfit.capture`.
        batch: samples in one forward pass.
        optimizer: sgd, momentum, adam, adamw, adafactor, rmsprop, adagrad or adam8bit.
        kernels: how the optimizer runs: foreach, fused or for-loop; None is PyTorch's own default.
        device: cuda, or cpu for the CPU's own allocations (`eager`).
        capability: the GPU's compute capability, such as 9.0; None is 8.0.
        budget: what the GPU has, in bytes or as text such as 24GiB: whether the step fits, the largest batch that
            does, and what would help.
        dtype: of weights and inputs: fp32, fp16 or bf16. None keeps the model's own.
        autocast: bf16 or fp16; None runs without.
        accumulate: micro-batches whose gradients add up before the optimizer steps.
        checkpoint: `auto`, or a regular expression of the modules whose activations backward computes again.
        train_only: which parameters train: bias, norm, or a regular expression.
        set_to_none: whether `zero_grad` drops the gradients.
        alloc_conf: the allocator's settings, as in PYTORCH_ALLOC_CONF.
        cuda_context: what the CUDA context takes, where it was measured; None estimates it.
        advice: look for what would help, where there is a budget.
        args: arguments of the source's constructor.
        loss: outputs → scalar.
        estimate: let operations that the op table lacks pass, with a note.
        progress: is told what is being predicted.

    Raises:
        MemfitError: what failed, where, what was received and what to do; see `memfit.capture`.
    """
    require("torch", "torch", "predicting a step of training needs torch", where="memfit train")
    from memfit.capture.optimizers import canonical
    from memfit.memory.cuda.allocator import Settings
    from memfit.training.predict import Predictor
    from memfit.training.setup import Setup
    from memfit.training.step import predict_step

    setup = Setup(
        batch=batch,
        optimizer=canonical(optimizer),
        kernels=kernels,
        dtype=dtype,
        autocast=autocast,
        accumulate=accumulate,
        train_only=train_only,
        set_to_none=set_to_none,
        device=device,
        capability=capability,
        allocator=_settings(alloc_conf) or Settings(),
        context_bytes=_bytes(cuda_context),
    )
    predictor = Predictor(source, inputs, args=args, loss=loss, estimate=estimate)
    if progress is not None:
        predictor.progress = progress
    return predict_step(
        predictor,
        setup,
        checkpoint=checkpoint,
        budget_bytes=_bytes(budget),
        advice=advice,
    )


def plan(
    source: str | nn.Module | Graph,
    inputs: Inputs | None = None,
    *,
    target: str | None = None,
    ram: int | str | None = None,
    flash: int | str | None = None,
    pointers: int | None = None,
    capacity: int | str | None = None,
    planner: str = "exact",
    reorder: bool = True,
    time_limit: float | None = None,
    compare: bool = False,
    save: str | Path | None = None,
    emit: str | Path | None = None,
    verify: bool = False,
    verify_inputs: int = 100,
    force: bool = False,
    batch: int | None = None,
    args: Mapping[str, Any] | None = None,
    estimate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Plan the arena of a network for TensorFlow Lite Micro, or pack the buffers of a problem.

    >>> import memfit
    >>> found = memfit.plan("torchvision:mobilenet_v2", "1x3x96x96", target="stm32h743")
    >>> found.totals["optimal"], found.totals["arena_bytes"] == found.totals["lower_bound_bytes"]
    (True, True)

    Args:
        source: a `.tflite` file; any other source of `memfit.capture`, for an estimate of the integer network that it
            would become; or a packing problem in MiniMalloc's format, `PROBLEM.csv`.
        inputs: as for `memfit.capture`.
        target: the board, a name in `memfit targets`: whether the network fits its RAM and flash.
        ram: bytes of RAM, or text such as 320KiB; takes the place of the target's.
        flash: bytes of flash, likewise.
        pointers: bits of a pointer, 32 or 64; None takes the target's, or 64 as on the host.
        capacity: of a problem: the size of its arena; the search stops at the first packing within it.
        planner: how buffers are packed: exact, tflm, size, duration, area, best-fit or local-search.
        reorder: look for a better order of operators.
        time_limit: seconds for the searches; without it the same source has the same plan on every run.
        compare: also pack with every other planner.
        save: write the planned `.tflite` here.
        emit: write the offsets as a C header here.
        verify: run the file as it was and as planned in the real runtime: outputs must be identical, and the smallest
            arena of each is measured.
        verify_inputs: how many inputs to run.
        force: overwrite files that exist.
        batch: replaces the first dimension of every input.
        args: arguments of the source's constructor.
        estimate: let operations that a table lacks pass, with a note.
        progress: is told what is being done.

    Raises:
        MemfitError: what failed, where, what was received and what to do.
    """
    from memfit.plan.outputs import Outputs, check_outputs, write_outputs

    outputs = Outputs(save=save, emit=emit, verify=verify, inputs=verify_inputs, force=force)
    is_problem = isinstance(source, str) and source.endswith(".csv")
    check_outputs(outputs, source=source if isinstance(source, str) else None)
    if is_problem:
        from memfit.plan.problem import plan_problem

        given = {"target": target, "ram": ram, "flash": flash, "inputs": inputs, "batch": batch, "args": args}
        _refuse(
            given, source, "a packing problem has neither a network nor a board", "leave it out, or give --capacity"
        )
        room = _bytes(capacity)
        return plan_problem(
            str(source),
            capacity=room,
            planner=planner,
            time_limit=time_limit,
            side_by_side=compare,
            progress=progress,
        )

    from memfit.plan.network import limits_of, plan_network

    _refuse({"capacity": capacity}, source, "a network has a board's RAM, not a capacity", "use --ram or --target")
    limits = limits_of(target, _bytes(ram), _bytes(flash))
    graph = capture(source, inputs, args=args, batch=batch, estimate=estimate)
    found = plan_network(
        graph,
        limits=limits,
        pointer_bits=pointers,
        planner=planner,
        reorder=reorder,
        time_limit=time_limit,
        side_by_side=compare,
        estimate=estimate,
        progress=progress,
    )
    return write_outputs(found, outputs, progress=progress)


def stream(
    source: str | nn.Module | Graph,
    inputs: Inputs | None = None,
    *,
    max_extra_macs: float | str = 0.1,
    max_peak: int | str | None = None,
    input_resident: bool = False,
    input_passes: int | None = None,
    target: str | None = None,
    per: str = "segment",
    verify: bool = False,
    verify_inputs: int = 20,
    emit: str | Path | None = None,
    force: bool = False,
    args: Mapping[str, Any] | None = None,
    estimate: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Stream:
    """Plan a network so that parts of it are computed together, row by row, in little memory.

    >>> import memfit
    >>> found = memfit.stream("torchvision:mobilenet_v2", "1x3x224x224", max_extra_macs="0%")
    >>> found.totals["baseline_peak_bytes"], found.totals["peak_bytes"], found.totals["extra_macs"]
    (1404928, 131040, 0)

    Args:
        source: a `.tflite` file, or any other source of `memfit.capture`, for an estimate of the integer network that
            it would become.
        inputs: as for `memfit.capture`.
        max_extra_macs: multiply-accumulates that may be done twice: a fraction of the network's, or text such as 10%.
        max_peak: bytes, or text such as 128KiB: look for the least extra work within them, not for the lowest peak.
        input_resident: the input is whole in memory from the start, rather than fed row by row.
        input_passes: how often a fed input may be read, once per stripe and pass; without extra work it is read once.
        target: a board, whose RAM is `max_peak` where none is given.
        per: rows of the result: one per `segment` of the plan, or one per plan of the Pareto `front`.
        verify: run the plan of a `.tflite` file in one array of its size: outputs must be those of a plain run, and are
            compared with the real runtime's where that is installed.
        verify_inputs: how many inputs to run.
        emit: write the `.tflite` file anew, as patches of ordinary operators with a plan of the arena, so that the
            unchanged runtime needs less memory; with `verify`, both files are run there too.
        force: overwrite a file that exists.
        args: arguments of the source's constructor.
        estimate: let operations that a table lacks pass, with a note.
        progress: is told what is being done.

    Raises:
        MemfitError: what failed, where, what was received and what to do.
    """
    from memfit.stream.emit.outcome import check_emit, emit_file
    from memfit.stream.outcome import stream_network
    from memfit.stream.verify import check_verification, verify_stream

    if verify:
        check_verification(source, verify_inputs)
    if emit is not None:
        check_emit(source, emit, force=force)
    graph = capture(source, inputs, args=args, estimate=estimate)
    share = _share_of(max_extra_macs)
    if emit is not None:
        check_emit(graph, emit, force=force)
    result, plan = stream_network(
        graph,
        max_extra_macs=share,
        max_peak=_bytes(max_peak),
        resident=input_resident,
        target=target,
        passes=input_passes,
        per=per,
    )
    if verify:
        said = verify_stream(plan, graph.origin, inputs=verify_inputs, progress=progress)
        result = replace(result, verification=said)
    if emit is not None:
        figures = emit_file(
            graph.origin,
            emit,
            max_extra_macs=share,
            force=force,
            verify_inputs=verify_inputs if verify else None,
            progress=progress,
        )
        result = replace(result, emitted=figures)
    return result


def _share_of(given: float | str) -> float:
    """Read a share: a fraction, or text with a percent sign."""
    try:
        text = str(given).strip()
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(
            "this is not a share", where="--max-extra-macs", received=repr(given), todo="write 10%"
        ) from None


def check(
    source: str | nn.Module | Graph,
    inputs: Inputs | None = None,
    *,
    max_ram: int | str | None = None,
    max_flash: int | str | None = None,
    max_peak: int | str | None = None,
    target: str | None = None,
    memory: str | None = None,
    pointers: int | None = None,
    batch: int | None = None,
    args: Mapping[str, Any] | None = None,
    estimate: bool = False,
) -> Check:
    """Hold a network to limits.

    >>> import memfit
    >>> memfit.check("torchvision:mobilenet_v2", max_peak="2MiB", memory="mcunet").totals["holds"]
    True

    Args:
        source: as for `memfit.plan`.
        inputs: as for `memfit.capture`.
        max_ram: bytes of RAM, or text such as 256KiB, of the planned arena: `ram_bytes` of `memfit.plan`.
        max_flash: of flash: its `flash_bytes`.
        max_peak: of the peak under the memory model: `peak_bytes` of `memfit.profile`.
        target: a board, whose RAM and flash are limits where none are given.
        memory: the memory model of `max_peak`; as for `memfit.profile`.
        pointers: as for `memfit.plan`.
        batch: replaces the first dimension of every input.
        args: arguments of the source's constructor.
        estimate: let operations that a table lacks pass, with a note.

    Raises:
        UsageError: no limit at all.
        MemfitError: as for `memfit.plan` and `memfit.profile`.
    """
    from memfit.plan.network import limits_of

    limits, peak = limits_of(target, _bytes(max_ram), _bytes(max_flash)), _bytes(max_peak)
    asked = {"ram": limits.ram, "flash": limits.flash, "peak": peak}
    if all(limit is None for limit in asked.values()):
        raise UsageError(
            "there is no limit to check",
            where=str(source),
            received="neither a limit nor a target",
            todo="give --max-ram, --max-flash, --max-peak or --target",
        )
    if peak is None and memory is not None:
        raise UsageError("a memory model is for --max-peak", where="--memory", received=memory, todo="give --max-peak")
    graph = capture(source, inputs, args=args, batch=batch, estimate=estimate)
    notes: list[str] = []
    actual: dict[str, int] = {}
    if limits.ram is not None or limits.flash is not None:
        from memfit.plan.network import plan_network

        planned = plan_network(graph, limits=limits, pointer_bits=pointers, estimate=estimate).result
        actual = {"ram": planned.totals["ram_bytes"], "flash": planned.totals["flash_bytes"]}
        notes += planned.notes
        gain = planned.totals["runtime_ram_bytes"] - planned.totals["ram_bytes"]
        if gain > 0 and limits.ram is not None:
            notes.append(f"ram is of the planned file (memfit plan -o); as it is, it takes {gain:,} bytes more")
    if peak is not None:
        found = profile(graph, inputs, memory=memory or _default_memory(source), estimate=estimate)
        memory = found.memory
        actual["peak"] = found.totals["peak_bytes"]
        notes += [note for note in found.notes if note not in notes]
    rows = tuple(
        {"name": name, "limit_bytes": limit, "actual_bytes": actual[name], "holds": actual[name] <= limit}
        for name, limit in asked.items()
        if limit is not None
    )
    return Check(
        source=graph.source,
        inputs=(),
        per="limit",
        memory=memory,
        training=False,
        device="cpu",
        rows=rows,
        totals={"holds": all(row["holds"] for row in rows)},
        notes=tuple(notes),
        environment={},
    )


def prune(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    data: Any,
    budget: int | str | None = None,
    max_flash: int | str | None = None,
    max_macs: int | None = None,
    max_latency: float | None = None,
    memory: str = "mcunet",
    samples: int | None = None,
    batch: int | None = None,
    importance: str = "magnitude",
    strategy: str = "peak",
    fine_tune: str | Callable[[nn.Module], Any] | None = None,
    metric: str | Callable[[nn.Module], Any] | None = None,
    rounds: int = 1,
    min_channels: int = 4,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
    save: str | Path | None = None,
    force: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Pruning:
    """Take channels out of a network until it keeps its limits, first where its peak is.

    >>> import memfit
    >>> pruned = memfit.prune("torchvision:squeezenet1_1", "1x3x64x64", budget="60KiB", data="random", samples=2)
    >>> pruned.totals["baseline_peak_bytes"], pruned.totals["peak_bytes"] <= 60 * 1024
    (75904, True)
    >>> type(pruned.module).__name__
    'SqueezeNet'

    Args:
        source: as for `memfit.capture`, if it can run; a held module is not changed: a pruned copy is the result's
            `module`.
        inputs: shapes as text; None takes the model's own.
        data: `random`, `FILE.py:CALLABLE`, a folder of images, a `.npz` file, or an iterable of batches, as for
            `memfit.calibrate`: what the metric and Taylor importance run on.
        budget: bytes of the peak under the memory model, or text such as 256KiB.
        max_flash: bytes of flash, or text: model file and code, both estimated for TensorFlow Lite Micro in int8.
        max_macs: multiplications of one call.
        max_latency: milliseconds of one call, measured on this machine's CPU.
        memory: the memory model of the budget: mcunet, ideal, eager, autograd or tinytl.
        samples: of the data; None takes all, or 32 of `random`.
        batch: samples that run at once.
        importance: of a channel: magnitude, taylor or bn-scale.
        strategy: peak: channels that lower the peak for the least importance; uniform: the same share of every layer.
        fine_tune: trains the pruned module in place: a callable that is given it, or `FILE.py:CALLABLE`.
        metric: accuracy, loss or sqnr (dB, against the network before pruning), or a callable that is given the module,
            or `FILE.py:CALLABLE`. None is accuracy where there are labels, else sqnr.
        rounds: of pruning and fine-tuning, with limits that close in.
        min_channels: that each layer keeps at the least.
        seed: of random data and of what fine-tuning draws.
        mean: taken from the colours of images, from 0 to 1; None is ImageNet's.
        std: what each colour is divided by; None is ImageNet's.
        weights: a `.safetensors` or `.pt` file of tensors.
        args: arguments of the source's constructor.
        save: write the pruned network here as `.pt2`, a program that loads without the model's code.
        force: overwrite that file if it exists.
        progress: is told what is being done, how much of it is done, and of how much.

    Raises:
        UsageError: limits below what is possible; says the smallest reachable.
        MissingExtra: Torch-Pruning is not installed.
        MemfitError: what failed, where, what was received and what to do.
    """
    require("torch", "compress", "running the model needs torch", where="memfit prune")
    require("torch_pruning", "compress", "pruning needs Torch-Pruning", where="memfit prune")
    from memfit.capture.sources.user_file import load_function
    from memfit.compress.choice import Limits
    from memfit.compress.data import Sampling
    from memfit.compress.prune import Settings
    from memfit.compress.prune import prune as run
    from memfit.files import check_target
    from memfit.measure.session import no_progress

    if save is not None:
        check_target(save, force=force)
    tune = load_function(fine_tune) if isinstance(fine_tune, str) else fine_tune
    score = load_function(metric) if isinstance(metric, str) and ".py:" in metric else metric
    settings = Settings(
        Sampling(data, samples, batch, seed, mean, std),
        limits=Limits(_bytes(budget), _bytes(max_flash), max_macs),
        latency_ms=max_latency,
        memory=memory,
        importance=importance,
        strategy=strategy,
        fine_tune=tune,
        metric=score,
        rounds=rounds,
        least=min_channels,
    )
    return run(
        source,
        inputs,
        settings,
        args=args,
        weights=weights,
        save=None if save is None else Path(save),
        force=force,
        progress=progress or no_progress,
    )


def _refuse(given: Mapping[str, Any], source: Any, why: str, todo: str) -> None:
    """Refuse options that say nothing of such a source."""
    for name, value in given.items():
        if value is not None and value != {}:
            raise UsageError(
                f"--{name} does not go with this source: {why}", where=str(source), received=str(value), todo=todo
            )


def quantize(
    source: str | nn.Module,
    inputs: Inputs | None = None,
    *,
    data: Any,
    budget: int | str,
    memory: str = "mcunet",
    bits: Sequence[int] = (2, 4, 8, 16),
    weight_bits: Sequence[int] | None = None,
    max_flash: int | str | None = None,
    strategy: str = "exact",
    samples: int | None = None,
    batch: int | None = None,
    ranges: str | Path | None = None,
    metric: str | Callable[[nn.Module], Any] | None = None,
    equalize: bool = True,
    correct: bool = True,
    rounding: str = "nearest",
    train: str | Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
    time_limit: float = 60.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
    save: str | Path | None = None,
    force: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Quantization:
    """Choose the bits of every activation and weight, so that the network's peak fits a budget and the least is lost.

    >>> import memfit
    >>> found = memfit.quantize("torchvision:squeezenet1_1", "1x3x64x64", budget="60KiB", data="random", samples=2)
    >>> found.totals["baseline_peak_bytes"], found.totals["peak_bytes"] <= 60 * 1024, found.totals["optimal"]
    (75904, True, True)
    >>> [entry["name"] for entry in found.strategies]
    ['exact', 'greedy', 'uniform']

    Args:
        source: as for `memfit.capture`, if it can run; a held module is not changed.
        inputs: shapes as text, for which the budget holds; None takes the model's own.
        data: `random`, `FILE.py:CALLABLE`, a folder of images, a `.npz` file, or an iterable of batches, as for
            `memfit.calibrate`.
        budget: bytes of the peak under the memory model, or text such as 256KiB; of a model of training, of all that
            is kept.
        memory: the memory model of the budget: mcunet, ideal, autograd or tinytl.
        bits: widths that an activation may have, 2 to 16.
        weight_bits: widths that a weight may have; None is 8, or with `max_flash` those of `bits`.
        max_flash: bytes of flash, or text: model file and code, both estimated for TensorFlow Lite Micro.
        strategy: exact (an integer programme), greedy (whatever is largest, one step narrower, until it fits) or
            uniform; the others are shown beside it.
        samples: of the data; None takes all, or 32 of `random`.
        batch: samples that run at once.
        ranges: a file that `memfit.calibrate` saved, for the grids of activations; None finds, for each width, the
            range of the least squared error.
        metric: accuracy, loss or sqnr (dB, against the float network), or a callable that is given the module, or
            `FILE.py:CALLABLE`. None is accuracy where there are labels, else sqnr.
        equalize: even out the channels of neighbouring layers first, which changes nothing in floating point.
        correct: take out the shift that rounded weights give to each channel's mean.
        rounding: of weights: nearest, or learned layer by layer.
        train: trains the rounded network in place: a callable that is given it, or `FILE.py:CALLABLE`.
        seed: of random data, of the search and of what training draws.
        time_limit: about seconds for the integer programme, counted in steps, so that the answer is always the same.
        mean: taken from the colours of images, from 0 to 1; None is ImageNet's.
        std: what each colour is divided by; None is ImageNet's.
        weights: a `.safetensors` or `.pt` file of tensors.
        args: arguments of the source's constructor.
        save: write the recipe here as JSON.
        force: overwrite that file if it exists.
        progress: is told what is being done, how much of it is done, and of how much.

    Raises:
        UsageError: a budget below what is possible; says the smallest reachable.
        MissingExtra: OR-tools is not installed.
        MemfitError: what failed, where, what was received and what to do.
    """
    require("torch", "compress", "running the model needs torch", where="memfit quantize")
    require("ortools", "compress", "choosing bits needs OR-tools", where="memfit quantize")
    from memfit.capture.sources.user_file import load_function
    from memfit.compress import recipe
    from memfit.compress.data import Sampling
    from memfit.compress.quantize import Settings
    from memfit.compress.quantize import quantize as run
    from memfit.files import check_target, write_whole
    from memfit.measure.session import no_progress

    if save is not None:
        check_target(save, force=force)
    tune = load_function(train) if isinstance(train, str) else train
    score = load_function(metric) if isinstance(metric, str) and ".py:" in metric else metric
    settings = Settings(
        Sampling(data, samples, batch, seed, mean, std),
        budget_bytes=_bytes(budget),
        memory=memory,
        bits=tuple(bits),
        weight_bits=None if weight_bits is None else tuple(weight_bits),
        max_flash=_bytes(max_flash),
        strategy=strategy,
        ranges=ranges,
        metric=score,
        equalize=equalize,
        correct=correct,
        rounding=rounding,
        train=tune,
        time_limit=time_limit,
    )
    result = run(source, inputs, settings, args=args, weights=weights, progress=progress or no_progress)
    if save is not None:
        write_whole(Path(save), lambda stream: recipe.write(result.recipe, stream), force=force)
    return result


def apply_recipe(model: nn.Module, recipe: str | Path | Any) -> nn.Module:
    """Make the rounded network that a recipe describes.

    >>> import memfit, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> found = memfit.quantize(net, "1x8", budget="16B", data="random", samples=4)
    >>> x = torch.ones(3, 8)
    >>> torch.equal(memfit.apply_recipe(net, found.recipe)(x), found.module(x))
    True

    Args:
        model: the network with the weights that the recipe was made for; it is not changed.
        recipe: a file that `memfit.quantize` saved, or its result's `recipe`.

    Returns:
        A module that takes and gives what the model does, in evaluation mode; in training mode gradients pass the
        rounding as they are.

    Raises:
        SourceError: no such file, or it is no recipe.
        UsageError: a recipe for another network or other weights.
    """
    from memfit.compress.quantized import apply
    from memfit.compress.recipe import Recipe, read

    return apply(model, recipe if isinstance(recipe, Recipe) else read(recipe))
