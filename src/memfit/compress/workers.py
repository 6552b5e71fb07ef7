"""Units of a sweep spread over processes: with joblib on this machine, or on a Ray cluster."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from memfit.capture.shim import define_missing_torchvision_schemas
from memfit.compress import metrics
from memfit.compress.data import Batch
from memfit.compress.freed import keep_at_hand
from memfit.compress.runner import Runner
from memfit.compress.store import Unit
from memfit.compress.sweep import Batchwise, one_thread
from memfit.errors import require

CHUNK = 16
"""Layers that one task measures: the network's run up to the first of them is shared, and what a killed process
loses is no more."""

_ROUND = 4
"""Tasks for each job that Ray's backend is given at a time."""

_KEPT = 2
"""Networks that a worker keeps ready."""


@dataclass(frozen=True)
class Plan:
    """What every task of a sweep has in common."""

    quantization: Any
    metric: str | Callable[..., Any]


@dataclass(frozen=True)
class Task:
    """Some layers of one batch in one direction."""

    place: int
    """The batch's."""
    inputs: Sequence[Tensor]
    labels: Tensor | None
    samples: int
    direction: str
    chosen: Sequence[int]


def spread(
    plan: Plan,
    ready: Callable[[Batch], tuple[Runner, Sequence[Tensor]]],
    state: dict[str, Tensor],
    work: Iterable[tuple[int, Batch, Sequence[tuple[str, Sequence[int]]]]],
    *,
    jobs: int,
    backend: str,
) -> Iterator[tuple[Unit, metrics.Sums]]:
    """Measure units in several processes; each comes as soon as the task that it belongs to is done.

    Args:
        plan: what all have in common.
        ready: gives the runner for a batch, and the batch as its inputs.
        state: the model's tensors by name.
        work: batches, and the layers to measure on each by direction.
        jobs: processes.
        backend: `loky` or `ray`.

    Raises:
        MissingExtra: a package is not installed.
    """
    require("joblib", "compress", "several jobs need joblib", where="--jobs")
    from joblib import Parallel, delayed

    with BACKENDS[backend](jobs) as share:
        handles: dict[int, tuple[str, Any]] = {}

        def tasks() -> Iterator[Any]:
            for place, batch, todo in work:
                runner, inputs = ready(batch)
                handle = handles.get(id(runner.graph))
                if handle is None:
                    packed = _packed((runner.graph, state, plan))
                    handle = handles[id(runner.graph)] = (hashlib.sha256(packed).hexdigest(), share(packed))
                    graphs.append(runner.graph)  # so that no other gets its id
                for direction, chosen in todo:
                    for start in range(0, len(chosen), CHUNK):
                        part = list(chosen[start : start + CHUNK])
                        task = Task(place, list(inputs), batch.labels, batch.samples, direction, part)
                        yield delayed(_run)(*handle, task)

        graphs: list[Any] = []
        common = {"n_jobs": jobs, "backend": backend, "batch_size": 1}
        if backend == "loky":
            for units in Parallel(**common, pre_dispatch="2*n_jobs", return_as="generator")(tasks()):
                yield from units
            return
        waiting = tasks()  # Ray's backend gives results only when all are there, so it gets some at a time
        while some := list(islice(waiting, _ROUND * jobs)):
            for units in Parallel(**common)(some):
                yield from units


def _packed(content: Any) -> bytes:
    """Pickle, functions that are in no module included."""
    try:
        cloudpickle = import_module("cloudpickle")
    except ImportError:  # joblib before 1.6 brings its own
        cloudpickle = import_module("joblib.externals.cloudpickle")
    packed: bytes = cloudpickle.dumps(content)
    return packed


def _run(key: str, handle: Any, task: Task) -> list[tuple[Unit, metrics.Sums]]:
    """Be a worker: measure one task's units."""
    with one_thread():
        runner, plan, name, score = _opened(key, handle)
        work = Batchwise(runner, task.inputs, task.labels, task.samples, plan.quantization, score, name)
        return [
            (Unit(layer, task.direction, task.place), sums) for layer, sums in work.units(task.chosen, task.direction)
        ]


_ready: OrderedDict[str, tuple[Runner, Plan, str, metrics.Score | None]] = OrderedDict()
"""In a worker: the networks that its last tasks were of."""


def _opened(key: str, handle: Any) -> tuple[Runner, Plan, str, metrics.Score | None]:
    if key not in _ready:
        keep_at_hand()
        define_missing_torchvision_schemas()  # a graph may call operators that torchvision brings
        graph, state, plan = pickle.loads(_fetched(handle))
        name, metric = metrics.metric_of(plan.metric)
        _ready[key] = (Runner(graph, state), plan, name, metric.score)
        while len(_ready) > _KEPT:
            _ready.popitem(last=False)
    return _ready[key]


def _fetched(handle: Any) -> bytes:
    if isinstance(handle, str):
        return Path(handle).read_bytes()
    import ray

    found: bytes = ray.get(handle)
    return found


@contextmanager
def _loky(_jobs: int) -> Iterator[Callable[[bytes], str]]:
    """Share what is packed as a file of this machine."""
    with TemporaryDirectory(prefix="memfit-") as folder:
        files: list[Path] = []

        def share(packed: bytes) -> str:
            files.append(Path(folder, f"{len(files)}.pickle"))
            files[-1].write_bytes(packed)
            return str(files[-1])

        yield share


@contextmanager
def _ray(jobs: int) -> Iterator[Callable[[bytes], Any]]:
    """Share what is packed through Ray's object store; a cluster of this machine's own where none is there."""
    require("ray", "ray", "this backend needs Ray", where="--backend")
    import ray
    from ray.util.joblib import register_ray

    started = not ray.is_initialized()
    if started:
        there = {"address": "auto"} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="ERROR", **there)
    register_ray()
    try:
        yield ray.put
    finally:
        if started:
            ray.shutdown()


BACKENDS: dict[str, Callable[[int], AbstractContextManager[Callable[[bytes], Any]]]] = {"loky": _loky, "ray": _ray}
"""Backend → how what all tasks need gets to where they run."""
