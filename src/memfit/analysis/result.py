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
class Profile:
    """Where a network's memory goes, row by row, under one memory model.

    >>> row = {"name": "fc", "type": "linear", "peak_bytes": 4096}
    >>> profile = Profile(
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
    >>> list(profile.to_dict())[:5]
    ['memfit', 'command', 'source', 'inputs', 'memory']
    """

    source: str
    """What was profiled, as the user named it."""
    inputs: tuple[dict[str, Any], ...]
    """Each input's `name`, `shape` and `dtype`."""
    per: str
    """What a row is: layer, block, module, op or tensor."""
    memory: str
    """The memory model that every memory figure comes from."""
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

    command: ClassVar[str] = "profile"
    html: ClassVar[Callable[[Profile], str] | None] = None
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
            "notes": list(self.notes),
            "environment": _plain(self.environment),
        }

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
                where="Profile.to_pandas",
                todo="pip install 'memfit[notebook]'",
            ) from None
        frame = pandas.DataFrame.from_records(list(self.rows))
        frame.attrs.update(source=self.source, per=self.per, memory=self.memory)
        return frame

    def _repr_html_(self) -> str | None:
        render = type(self).html
        return None if render is None else render(self)


def _plain(value: Any) -> Any:
    """Turn tuples into lists all the way down, as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value
