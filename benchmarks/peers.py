"""Parameters and MACs beside fvcore and torchinfo, every difference accounted for.

    python benchmarks/peers.py [NAME …]

Prints a markdown table; exits with 1 where a difference is not explained to the last multiplication. Needs
`pip install 'memfit[zoo,peers]'`.
"""

from __future__ import annotations

import collections
import logging
import math
import sys
import warnings
from typing import Any

from memfit.capture.shim import import_torchvision

import_torchvision()

import torch  # noqa: E402
import torchinfo  # noqa: E402
import torchvision  # noqa: E402
from fvcore.nn import FlopCountAnalysis  # noqa: E402

import memfit  # noqa: E402

NAMES = ("resnet50", "mobilenet_v2", "vgg19", "vit_b_16", "swin_t", "efficientnet_b0", "convnext_tiny")
SHAPE = (1, 3, 224, 224)
NOT_PRODUCTS = ("batch_norm", "layer_norm", "adaptive_avg_pool2d", "group_norm")
"""What fvcore counts besides products: norms, one or more an element, and adaptive pooling, one an input element."""
GROUPS = {
    "conv": ("conv2d", "depthwise_conv2d", "conv1d", "conv3d", "conv_transpose2d"),
    "linear": ("linear",),
    "matmul": ("matmul",),
    "attention": ("attention", "multi_head_attention", "transformer_encoder_layer"),
}


def memfit_counts(model: torch.nn.Module) -> dict[str, int]:
    """MACs by group, as memfit counts them."""
    kinds: collections.Counter[str] = collections.Counter()
    for op in memfit.capture(model, "x".join(map(str, SHAPE))).ops:
        kinds[op.kind] += op.macs
    counts = {group: sum(kinds.pop(k, 0) for k in members) for group, members in GROUPS.items()}
    assert not +kinds, f"MACs outside the groups: {+kinds}"
    return counts


def fvcore_counts(model: torch.nn.Module) -> dict[str, int]:
    """fvcore's counts by operator."""
    with torch.no_grad():
        return dict(FlopCountAnalysis(model, torch.zeros(SHAPE)).by_operator())


def torchinfo_by_its_rule(model: torch.nn.Module) -> int:
    """torchinfo 1.8's rule, worked out from shapes alone.

    A module whose class name holds "Conv" multiplies each parameter by its output's elements without channels; any
    other multiplies each parameter once an image, however often it is used: a linear layer over 196 tokens counts once.
    Parameters with other names, and those of a module that is never called, do not count.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    graph = memfit.capture(model, "x".join(map(str, SHAPE)))
    for op in graph.ops:
        if op.outputs:
            shapes[graph.scopes[op.scope].path] = graph.tensors[op.outputs[0]].shape
    total = 0
    for path, module in model.named_modules():
        if path not in shapes:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if "Conv" in type(module).__name__ and name in ("weight", "bias"):
                total += parameter.numel() * math.prod(shapes[path][2:])
            elif name in ("weight", "bias"):
                total += parameter.numel()
    return total


def compare(name: str) -> dict[str, Any]:
    """Count one network three times."""
    model = getattr(torchvision.models, name)().eval()
    mine, fvcore = memfit_counts(model), fvcore_counts(model)
    info = torchinfo.summary(model, SHAPE, verbose=0)
    graph = memfit.capture(model, "x".join(map(str, SHAPE)))
    params = sum(t.elements for t in graph.parameters())
    return {
        "name": name,
        "params": params,
        "params_equal": params == info.total_params == sum(p.numel() for p in model.parameters()),
        "macs": sum(mine.values()),
        "groups": mine,
        "fvcore": sum(fvcore.values()),
        "fvcore_groups_equal": all(fvcore.get(g, 0) == mine[g] for g in ("conv", "linear", "matmul")),
        "fvcore_extra": {k: v for k, v in fvcore.items() if k in NOT_PRODUCTS},
        "unexplained_fvcore": sum(fvcore.values())
        - sum(v for k, v in fvcore.items() if k in NOT_PRODUCTS)
        - (sum(mine.values()) - mine["attention"]),
        "torchinfo": info.total_mult_adds,
        "torchinfo_rule": torchinfo_by_its_rule(model),
    }


SUM = "= memfit - attention + norms + pooling"
COLUMNS = ("network", "parameters", "MACs (memfit)", "fvcore's total", SUM, "torchinfo's")


def main(names: list[str]) -> int:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"| {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---|---:|")
    unexplained = 0
    for name in names:
        row = compare(name)
        parts = [f"{row['macs']:,}"]
        if row["groups"]["attention"]:
            parts.append(f"- {row['groups']['attention']:,} attention")
        for operator, count in row["fvcore_extra"].items():
            parts.append(f"+ {count:,} {operator.replace('adaptive_avg_pool2d', 'pooling')}")
        cells = (name, f"{row['params']:,}", f"{row['macs']:,}", f"{row['fvcore']:,}", " ".join(parts))
        print(f"| {' | '.join(cells)} | {row['torchinfo']:,} |")
        fine = row["params_equal"] and row["fvcore_groups_equal"] and not row["unexplained_fvcore"]
        if not fine or row["torchinfo"] != row["torchinfo_rule"]:
            unexplained += 1
            print(f"{name}: not explained: {row}", file=sys.stderr)
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(NAMES)))
