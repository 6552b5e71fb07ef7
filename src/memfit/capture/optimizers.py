"""Optimizers by name, as people configure them, for a captured step."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memfit.errors import UsageError

Factory = Callable[[Iterable[Tensor]], Any]

KERNELS = ("foreach", "fused", "for-loop")
"""Ways to run an optimizer's step: all parameters at once by lists, by one kernel, or one after the other."""


class Choice(NamedTuple):
    """One optimizer that people can name."""

    what: str
    make: Callable[..., Any]
    kernels: tuple[str, ...]
    """The ways it can run, of KERNELS."""


class Adam8bit(torch.optim.Optimizer):
    """Adam with its two states in 8 bits, as bitsandbytes keeps them; allocates as it does and computes nothing.

    Source: bitsandbytes 0.48, bitsandbytes/optim/optimizer.py, `Optimizer2State.init_state`: parameters of fewer than
    4,096 elements keep states in fp32; of the others each state is one byte an element and one fp32 scale for every
    256, and both share two tables of 256 fp32 numbers on the device.
    """

    MIN_SIZE, BLOCK = 4096, 256

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002  (no closure is ever given)
        """Make the states where there are none, and write to parameters and states in place."""
        maps: list[Tensor] = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    small = p.numel() < self.MIN_SIZE
                    kind = torch.float32 if small else torch.uint8
                    state["state1"], state["state2"] = (torch.zeros_like(p, dtype=kind) for _ in range(2))
                    if not small:
                        if not maps:
                            maps += [torch.empty(256, device=p.device) for _ in range(2)]
                        blocks = -(-p.numel() // self.BLOCK)
                        state["qmap1"], state["qmap2"] = maps
                        for name in ("absmax1", "absmax2"):
                            state[name] = torch.zeros(blocks, dtype=torch.float32, device=p.device)
                for name in ("state1", "state2"):
                    state[name].zero_()  # stands for the one kernel that updates all in place
                p.zero_()


CHOICES: dict[str, Choice] = {
    "sgd": Choice("SGD without momentum: no state", partial(torch.optim.SGD, lr=1e-3), KERNELS),
    "momentum": Choice("SGD with momentum 0.9", partial(torch.optim.SGD, lr=1e-3, momentum=0.9), KERNELS),
    "adam": Choice("Adam", torch.optim.Adam, KERNELS),
    "adamw": Choice("Adam with decoupled weight decay", torch.optim.AdamW, KERNELS),
    "adafactor": Choice("Adafactor: factored second moments", torch.optim.Adafactor, ("foreach", "for-loop")),
    "rmsprop": Choice("RMSprop", torch.optim.RMSprop, ("foreach", "for-loop")),
    "adagrad": Choice("Adagrad", torch.optim.Adagrad, KERNELS),
    "adam8bit": Choice("Adam with states of 8 bits, as bitsandbytes keeps them", Adam8bit, ()),
}
"""Name → optimizer."""

_ALIASES = {"8bit-adam": "adam8bit", "8-bit-adam": "adam8bit", "8-bit adam": "adam8bit", "sgd-momentum": "momentum"}


def optimizer(name: str, kernels: str | None = None) -> Factory:
    """Find an optimizer by name: parameters → optimizer.

    Args:
        name: one of `CHOICES`.
        kernels: foreach, fused or for-loop; None takes PyTorch's own default: foreach on CUDA, for-loop on the CPU.

    Raises:
        UsageError: there is no such optimizer (the nearest names are given), or it has no such kernels.
    """
    known = canonical(name)
    choice = CHOICES[known]
    if kernels is None:
        return choice.make
    if kernels not in choice.kernels:
        raise UsageError(
            f"{known} has no {kernels} kernels",
            where="--kernels",
            received=kernels,
            todo=f"choose one of {', '.join(choice.kernels)}" if choice.kernels else "leave --kernels out",
        )
    flags = {"foreach": kernels == "foreach"}
    if "fused" in choice.kernels:
        flags["fused"] = kernels == "fused"
    return partial(choice.make, **flags)


def canonical(name: str) -> str:
    """Give an optimizer's name as the table has it.

    >>> canonical("8bit-adam")
    'adam8bit'

    Raises:
        UsageError: there is no such optimizer.
    """
    text = name.strip().lower()
    text = _ALIASES.get(text, text)
    if text not in CHOICES:
        near = difflib.get_close_matches(text, [*CHOICES, *_ALIASES], n=3, cutoff=0.5)
        raise UsageError(
            "there is no such optimizer",
            where="--optimizer",
            received=repr(name),
            todo=(f"did you mean {' or '.join(near)}? " if near else "") + f"choose one of {', '.join(CHOICES)}",
        )
    return text
