"""What a profile is: plain data, without formatting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from memfit.errors import MissingExtra
from memfit.version import __version__


@dataclass(frozen=True)
class Selection:
    """What a reader chose to see of a profile."""

    columns: tuple[str, ...] | None = None
    """The columns asked for, in that order; None for all."""
    hidden_rows: int = 0
    """Rows left out."""
    hidden: dict[str, Any] = field(default_factory=dict)
    """What the rows left out sum to, by column, for the columns that add up."""


@dataclass(frozen=True)
class Result:
    """What a command found, row by row; each command has its own kind.

    >>> row = {"name": "fc", "type": "linear", "peak_bytes": 4096}
    >>> result = Profile(
    ...     source="net.py:make",
    ...     inputs=({"name": "x", "shape": (1, 8), "dtype": "float32"},),
    ...     per="layer",
    ...     memory="ideal",
    ...     training=False,
    ...     device="cpu",
    ...     rows=(row,),
    ...     totals={"peak_bytes": 4096, "peak_at": "fc"},
    ...     notes=(),
    ...     environment={},
    ... )
    >>> list(result.to_dict())[:5]
    ['memfit', 'command', 'source', 'inputs', 'memory']
    """

    source: str
    """What was looked at, as the user named it."""
    inputs: tuple[dict[str, Any], ...]
    """Each input's `name`, `shape` and `dtype`."""
    per: str
    """What a row is: layer, block, module, op, tensor, model or category."""
    memory: str | None
    """The memory model that every memory figure comes from; None where none is involved."""
    training: bool
    device: str
    rows: tuple[dict[str, Any], ...]
    totals: dict[str, Any]
    """Of the whole network, whatever a selection shows of it."""
    notes: tuple[str, ...]
    """What a reader of any of the figures must know."""
    environment: dict[str, Any]
    """What the figures depend on: versions, threads, instruction set."""
    selection: Selection | None = None

    command: ClassVar[str] = ""
    html: ClassVar[Callable[[Result], str] | None] = None
    """The notebook's renderer, which the floors above put here; None leaves the notebook to `repr`."""

    def to_dict(self) -> dict[str, Any]:
        """Give the JSON contract's object: lists and plain values, sizes in bytes as integers."""
        chosen = self.selection
        return {
            "memfit": __version__,
            "command": self.command,
            "source": self.source,
            "inputs": _plain(self.inputs),
            "memory": self.memory,
            "per": self.per,
            "training": self.training,
            "device": self.device,
            "rows": _plain(self.rows),
            "totals": _plain(self.totals),
            "hidden": {"rows": chosen.hidden_rows, **chosen.hidden} if chosen and chosen.hidden_rows else None,
            **_plain(self.further()),
            "notes": list(self.notes),
            "environment": _plain(self.environment),
        }

    def further(self) -> dict[str, Any]:
        """Give what this kind of result has in JSON beyond the contract's common entries."""
        return {}

    def to_pandas(self) -> Any:
        """Give the rows as a pandas DataFrame, whose `attrs` name the source and the memory model.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtra(
                "pandas is not installed",
                where=f"{type(self).__name__}.to_pandas",
                received="no package pandas",
                todo="pip install 'memfit[notebook]'",
            ) from None
        frame = pandas.DataFrame.from_records(list(self.rows))
        frame.attrs.update(source=self.source, per=self.per, memory=self.memory)
        return frame

    def _repr_html_(self) -> str | None:
        render = type(self).html
        return None if render is None else render(self)


@dataclass(frozen=True)
class Profile(Result):
    """Where a network's memory goes, row by row, under one memory model."""

    command: ClassVar[str] = "profile"


@dataclass(frozen=True)
class Benchmark(Result):
    """How long a network takes, row by row, and how sure that is. Times are in milliseconds."""

    settings: dict[str, Any] = field(default_factory=dict)
    """How it was measured: warm-up and timed iterations, mode, dtype, memory format, threads."""
    sweep: tuple[dict[str, Any], ...] = ()
    """One entry per batch size where several were asked for."""
    comparison: dict[str, Any] | None = None
    """What it is compared with, where it is."""

    command: ClassVar[str] = "bench"

    def further(self) -> dict[str, Any]:
        """Give the settings, the sweep and the comparison."""
        return {"settings": self.settings, "sweep": self.sweep, "comparison": self.comparison}


@dataclass(frozen=True)
class TrainingStep(Result):
    """What one step of training needs, by category, whether it fits, and what would help. Sizes are in bytes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What is predicted: batch, optimizer, autocast, accumulation, checkpointing, the allocator's settings."""
    timeline: dict[str, Any] = field(default_factory=dict)
    """Bytes by category over the step: `ops`, and one list of figures per category."""
    advice: tuple[dict[str, Any], ...] = ()
    """What would help, the most helpful first: `name`, `peak_reserved_bytes`, `saves_bytes`, `fits`."""

    command: ClassVar[str] = "train"

    def further(self) -> dict[str, Any]:
        """Give the settings, the timeline and the advice."""
        return {"settings": self.settings, "timeline": self.timeline, "advice": self.advice}


@dataclass(frozen=True)
class Plan(Result):
    """Where each buffer of an arena lies, what the arena then takes, and whether that fits. Sizes are in bytes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What was planned for: runtime, build, target, limits, planner."""
    order: tuple[int, ...] | None = None
    """The operators' indices of the file in their new order; None where the order stays."""
    operators: tuple[dict[str, Any], ...] = ()
    """In the planned order: each operator's `name`, `type`, `live_bytes` and `reach_bytes`."""
    planners: tuple[dict[str, Any], ...] = ()
    """What other planners make of the same buffers: `name`, `arena_bytes`."""
    boards: tuple[dict[str, Any], ...] = ()
    """Known boards, whether it fits each: `name`, `ram_bytes`, `flash_bytes`, `fits`."""
    advice: tuple[str, ...] = ()
    """What would help."""
    verification: dict[str, Any] | None = None
    """What the real runtime did with the planned file; None where it was not run."""

    command: ClassVar[str] = "plan"

    def further(self) -> dict[str, Any]:
        """Give what was planned for, the operators, other planners, boards, advice and verification."""
        names = ("settings", "order", "operators", "planners", "boards", "advice", "verification")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Stream(Result):
    """How a network runs in little memory: segments computed together, row by row. Sizes are in bytes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What was asked for: largest share of extra multiply-accumulates, largest peak, resident input, target."""
    front: tuple[dict[str, Any], ...] = ()
    """Plans that no other beats in both: `extra_macs`, `extra_macs_share`, `peak_bytes`, and `fed_peak_bytes` and
    `resident_peak_bytes`: the peak with an input fed row by row, and with one that is whole in memory."""
    operators: tuple[dict[str, Any], ...] = ()
    """As they are done, some more than once: `name`, `type`, `index` in the network as it was given, `inputs` and
    `output` by their index among the buffers, and the `rows` and, per stripe, `columns` that are computed of it."""
    buffers: tuple[dict[str, Any], ...] = ()
    """The arena: `tensor` and its `index`, another for each time that it is made; `kind`: a `line` buffer, a `whole`
    value, `sums`, or a `channel` of scratch; `segment`, `stripe`, `rows` and `columns` that it holds; `offset`,
    `nbytes`; and `alive`: lists of a first step, one past the last, and the bytes that live then: where they begin in
    the buffer and how many they are."""
    boards: tuple[dict[str, Any], ...] = ()
    """Known boards: `name`, `ram_bytes`, `fits`, `short_bytes` and `fitted_before`."""
    plain: tuple[dict[str, Any], ...] = ()
    """Operators that cannot stream: `name`, `type`, `reason`."""
    advice: tuple[str, ...] = ()
    """What is missing, where a target is not met."""
    verification: dict[str, Any] | None = None
    """What running it said: inputs, how many gave identical outputs, and what the run took; None if it did not run."""
    emitted: dict[str, Any] | None = None
    """The patched file: `path`, bytes of arena and file, operators and work, before and after; None without one."""

    command: ClassVar[str] = "stream"

    def further(self) -> dict[str, Any]:
        """Give what was asked for, the front, the boards, what runs plainly, what is missing, and proofs."""
        names = (
            "settings", "front", "operators", "buffers", "boards", "plain", "advice", "verification", "emitted"
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Check(Result):
    """Whether a network stays within its limits, one row each."""

    command: ClassVar[str] = "check"


@dataclass(frozen=True)
class Calibration(Result):
    """The range of each layer's output over some data, and the grid that a quantizer lays over it."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What was done: data, samples, method, bits, symmetric, percentile, per channel, batch, seed."""
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By layer: the channels' `axis`, and lists of `min`, `max`, `scale` and `zero_point`; empty without them."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Hashes of the `model`, its weights included, and of the `data`."""

    command: ClassVar[str] = "calibrate"

    def further(self) -> dict[str, Any]:
        """Give the settings, the channels and the fingerprint."""
        return {"settings": self.settings, "channels": self.channels, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Pruning(Result):
    """A network before and after channels were taken out, layer by layer. Sizes are in bytes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """How it was pruned: data, metric, importance, strategy, rounds, seed."""
    module: Any = field(default=None, repr=False, compare=False)
    """The pruned `nn.Module`, in evaluation mode; not in JSON."""

    command: ClassVar[str] = "prune"

    def further(self) -> dict[str, Any]:
        """Give the settings."""
        return {"settings": self.settings}


@dataclass(frozen=True)
class Quantization(Result):
    """Bits of every activation and weight with which a network fits, and what they lose. Sizes are in bytes."""

    settings: dict[str, Any] = field(default_factory=dict)
    """How they were chosen: data, metric, strategy, widths, rounding, seed."""
    strategies: tuple[dict[str, Any], ...] = ()
    """Ways to choose, side by side: `name`, `peak_bytes`, `fits`, `cost`, `mean_bits`, `metric`, `optimal`, `gap`."""
    recipe: Any = field(default=None, repr=False, compare=False)
    """What `memfit quantize --save` writes; not in JSON."""
    module: Any = field(default=None, repr=False, compare=False)
    """The network as an `nn.Module` that rounds as the recipe says; not in JSON."""

    command: ClassVar[str] = "quantize"

    def further(self) -> dict[str, Any]:
        """Give the settings, and what each strategy reaches."""
        return {"settings": self.settings, "strategies": self.strategies}


@dataclass(frozen=True)
class Sensitivity(Result):
    """What quantizing each layer costs, one layer at a time, and which role in the network explains it."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What was done: data, samples, bits, metric, direction, method, ranges, per channel, batch, seed."""
    roles: tuple[dict[str, Any], ...] = ()
    """By role, the most sensitive first: `role`, `layers`, `dips`, `mean` and `worst` of the metric, `mean_drop`."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Hashes of the `model`, its weights included, and of the `data`."""

    command: ClassVar[str] = "sensitivity"

    def further(self) -> dict[str, Any]:
        """Give the settings, the roles and the fingerprint."""
        return {"settings": self.settings, "roles": self.roles, "fingerprint": self.fingerprint}


def _plain(value: Any) -> Any:
    """Turn tuples into lists all the way down, as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value
