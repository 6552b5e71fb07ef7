"""How a network is trained: what a prediction is of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memfit.errors import UsageError
from memfit.memory.cuda.allocator import Settings

PRECISIONS = ("bf16", "fp16")
"""Lower precisions of autocast."""


@dataclass(frozen=True)
class Setup:
    """One way to train a network."""

    batch: int
    """Samples in one forward pass: a micro-batch where gradients are accumulated."""
    optimizer: str = "adam"
    kernels: str | None = None
    """How the optimizer runs: foreach, fused or for-loop; None is PyTorch's own default."""
    dtype: str | None = None
    """Of weights and inputs; None keeps the model's own."""
    autocast: str | None = None
    """bf16, fp16, or None."""
    accumulate: int = 1
    """Micro-batches whose gradients add up before the optimizer steps."""
    checkpoint: tuple[str, ...] = ()
    """Paths of the modules whose activations backward computes again."""
    train_only: str | None = None
    """Which parameters train: bias, norm, a regular expression, or None for all."""
    set_to_none: bool = True
    """Whether `zero_grad` drops the gradients; else it fills them with zeros."""
    device: str = "cuda"
    capability: str | None = None
    """Compute capability of the GPU; None is 8.0."""
    allocator: Settings = field(default_factory=Settings)
    """Settings of the caching allocator."""
    context_bytes: int | None = None
    """What the CUDA context takes, where it was measured; None estimates it."""

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a batch or a number of micro-batches below 1, an unknown device or precision.
        """
        for name, value in (("--batch", self.batch), ("--accumulate", self.accumulate)):
            if value < 1:
                raise UsageError(
                    f"{name} must be at least 1", where=name, received=str(value), todo="give a positive number"
                )
        for name, text, known in (
            ("--device", self.device, ("cuda", "cpu")),
            ("--autocast", self.autocast, (*PRECISIONS, None)),
        ):
            if text not in known:
                raise UsageError(
                    f"{name} cannot be this",
                    where=name,
                    received=repr(text),
                    todo=f"choose one of {', '.join(k for k in known if k)}",
                )

    def describe(self) -> dict[str, Any]:
        """Give the settings as JSON has them."""
        return {
            "batch": self.batch,
            "optimizer": self.optimizer,
            "kernels": self.kernels,
            "dtype": self.dtype,
            "autocast": self.autocast,
            "accumulate": self.accumulate,
            "checkpoint": list(self.checkpoint),
            "train_only": self.train_only,
            "set_to_none": self.set_to_none,
            "device": self.device,
            "capability": self.capability,
            "expandable_segments": self.allocator.expandable_segments,
        }
