"""The Python API: the command line's words as functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memfit.analysis.result import Profile
from memfit.capture.entry import capture
from memfit.errors import UsageError
from memfit.graph.io import SUFFIX
from memfit.graph.io import load as load_graph
from memfit.graph.io import save as save_graph
from memfit.graph.model import Graph
from memfit.memory.profile import profile_graph
from memfit.memory.registry import memory_model
from memfit.report import notebook

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memfit.capture.entry import Inputs

__all__ = ["Profile", "capture", "load_graph", "profile", "replay", "save_graph"]

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
    device: str = "cpu",
    dtype: str | None = None,
    batch: int | None = None,
    samples: int = 1,
    args: Mapping[str, Any] | None = None,
    fold: bool = True,
    blocks: str | None = None,
    inplace_depthwise: bool = True,
    bits: int = 8,
    frozen_bits: int | None = None,
    train_only: str | None = None,
    probe: bool = False,
    estimate: bool = False,
    threads: int | None = None,
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
        memory: the memory model: eager (default), ideal, mcunet, tinytl, autograd, tensors (default per tensor).
        training: profile forward, loss and backward; `autograd` and `tinytl` imply it.
        device: cpu.
        dtype: fp32, fp16 or bf16; int8 only counts, with `mcunet`.
        batch: replaces the first dimension of every input.
        samples: multiplies activations: what keeping those of so many samples takes.
        args: arguments of the source's constructor.
        fold: fold norms and activations into the layer before.
        blocks: regular expression of the module paths that are blocks.
        inplace_depthwise: `mcunet`: a depthwise convolution overwrites its input.
        bits: `mcunet`: bits of an activation.
        frozen_bits: bits of a parameter that is not trained, in `model_bytes`.
        train_only: which parameters train: bias, norm, or a regular expression.
        probe: `eager`: run each distinct operation once on real tensors, for workspaces without a rule.
        estimate: let operations that the op table lacks pass, with a note.
        threads: CPU threads to predict for.
        save_graph: keep the captured graph in this `.memfit.json` file, which is replaced if it exists.
        loss: outputs → scalar, for training.
        optimizer: parameters → optimizer, to capture its first step too.

    Raises:
        MemfitError: what failed, where, what was received and what to do; see `memfit.capture`.
    """
    memory = memory or ("tensors" if per == "tensor" else "eager")
    model = memory_model(memory)
    if device != "cpu":
        raise UsageError(
            "this version predicts the CPU; it cannot trace as CUDA",
            where="--device",
            received=device,
            todo="leave it out: ideal, mcunet, tinytl and tensors do not depend on the device",
        )
    if dtype == "int8" and memory not in ("mcunet", "tensors"):
        raise UsageError(
            f"PyTorch does not run this network in int8, so {memory} has no such figure",
            where="--dtype",
            received=dtype,
            todo="use --memory mcunet, which counts int8 activations, or fp32, fp16 or bf16",
        )
    saved = isinstance(source, str) and source.endswith(SUFFIX)  # its pass was chosen when it was captured
    graph = capture(
        source,
        inputs,
        training=training or (not saved and (model.of_training or optimizer is not None)),
        loss=loss,
        optimizer=optimizer,
        dtype=None if dtype == "int8" else dtype,
        batch=batch,
        args=args,
        threads=threads,
        estimate=estimate,
    )
    if save_graph is not None:
        from memfit.graph.io import save

        save(graph, save_graph, force=True)
    probes = None
    if probe:
        from memfit.capture.cpu_probe import probe as measure

        probes = measure(graph)
    return profile_graph(
        graph,
        per=per,
        memory=memory,
        samples=samples,
        fold=fold,
        blocks=blocks,
        inplace_depthwise=inplace_depthwise,
        bits=bits,
        frozen_bits=frozen_bits,
        train_only=train_only,
        probes=probes,
    )
