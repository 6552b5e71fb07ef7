"""Predicted against real peak memory of whole networks on this CPU, byte by byte.

Real is what PyTorch's CPU allocator reports to the profiler, summed in time; predicted is the `eager` memory model on
a capture, which allocates nothing. Each network runs in a process of its own:

    python benchmarks/eager_truth.py                                # every network, 1 and 2 threads
    python benchmarks/eager_truth.py resnet18 gpt --threads 2       # some
    python benchmarks/eager_truth.py --isa AVX2                     # with the instruction set limited
    python benchmarks/eager_truth.py --dtype bfloat16 --probe       # workspaces measured, where no rule is known
    python benchmarks/eager_truth.py --training                     # 12 networks, SGD and Adam steps, one thread
    python benchmarks/eager_truth.py --training --autocast --probe  # the same under bf16 autocast
    python benchmarks/eager_truth.py --write docs/eager-cpu.md      # put the table between the page's markers
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet1_0 mobilenet_v2 "
    "mobilenet_v3_small regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 swin_t "
    "swin_v2_t vgg11 vit_b_16"
)
TIMM = (
    "cait_xxs24_224 coat_lite_tiny convmixer_768_32 cspresnet50 deit_tiny_patch16_224 dla34 edgenext_xx_small "
    "efficientvit_b0 fastvit_t8 focalnet_tiny_srf ghostnet_100 gmlp_s16_224 hrnet_w18_small lcnet_050 levit_128s "
    "mixer_s16_224 mobilevit_xs mobilenetv4_conv_small pvt_v2_b0 poolformer_s12 repvgg_a0 res2net50_26w_4s "
    "twins_svt_small xcit_nano_12_p16_224"
)
OWN = "unet gpt conv1d"
NETWORKS = (
    *OWN.split(),
    *(f"torchvision:{name}" for name in TORCHVISION.split()),
    *(f"timm:{name}" for name in TIMM.split()),
)

TRAINED = (
    "unet gpt conv1d resnet18 resnet50 mobilenet_v2 efficientnet_b0 densenet121 vgg11 vit_b_16 swin_t convnext_tiny"
)
"""Networks whose training steps have a table of their own: convolution, attention, a language model, a UNet."""

CASES = ("inference, batch 1", "inference, batch 4", "SGD step, batch 2", "Adam step, batch 2")
ISA = {"AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}}


def own_network(name: str) -> tuple[Any, Callable[[int], Any]]:
    """Build one of the networks written here, and a maker of its input."""
    import torch
    from torch import nn
    from torch.nn import functional

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (16, 32, 64, 128)

            def block(inputs: int, outputs: int) -> nn.Sequential:
                return nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(outputs, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                )

            self.down = nn.ModuleList(block(i, o) for i, o in zip((3, *widths[:-1]), widths, strict=True))
            pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
            self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairs)
            self.merge = nn.ModuleList(block(2 * o, o) for _, o in pairs)
            self.head = nn.Conv2d(widths[0], 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = []
            for index, block in enumerate(self.down):
                x = block(functional.max_pool2d(x, 2) if index else x)
                kept.append(x)
            for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
                x = merge(torch.cat([skip, up(x)], 1))
            return self.head(x)

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, length, width = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(n, length, width))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = 256
            self.tokens, self.places = nn.Embedding(2000, width), nn.Embedding(256, width)
            self.blocks = nn.Sequential(*(Block(width, 8) for _ in range(4)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2000, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
            return self.head(self.norm(self.blocks(x)))

    class Conv1d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
                layers += [nn.Conv1d(inputs, outputs, 5, stride=2, padding=2), nn.BatchNorm1d(outputs), nn.ReLU()]
            self.features = nn.Sequential(*layers)
            self.head = nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x).mean(-1))

    if name == "gpt":
        return GPT(), lambda n: torch.zeros(n, 128, dtype=torch.int64)
    if name == "unet":
        return UNet(), lambda n: torch.randn(n, 3, 128, 128)
    return Conv1d(), lambda n: torch.randn(n, 1, 1024)


def network(name: str) -> tuple[Any, Callable[[int], Any]]:
    """Build a network by name, and a maker of its input."""
    from memfit.capture.shim import define_missing_torchvision_schemas

    define_missing_torchvision_schemas()
    import torch

    library, _, model = name.rpartition(":")
    if not library:
        return own_network(model)
    if library == "timm":
        import timm

        built = timm.create_model(model, pretrained=False)
        size = built.default_cfg["input_size"]
        return built, lambda n: torch.randn(n, *size)
    from torchvision import models

    arguments = {"init_weights": True} if model in {"googlenet", "inception_v3"} else {}
    built = models.get_model(model, weights=None, **arguments)
    side = 299 if model == "inception_v3" else 224
    return built, lambda n: torch.randn(n, 3, side, side)


def measure_case(model: Any, x: Any, case: str, *, probe: bool, autocast: bool) -> dict[str, Any]:
    """Predict and measure one cell."""
    import torch

    from memfit.capture.allocations import measure
    from memfit.capture.step import default_loss
    from memfit.capture.torch_trace import capture_module
    from memfit.graph.model import BEFORE, StorageKind
    from memfit.memory.cpu_workspaces import events
    from memfit.memory.eager import timeline

    training = "step" in case
    optimizer = {"S": torch.optim.SGD, "A": torch.optim.Adam}.get(case[0])
    make = (lambda params: optimizer(params, lr=1e-9)) if optimizer else None
    model.train(training)

    def step() -> None:
        if not training:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                model(x)
            return
        stepper = make([p for p in model.parameters() if p.requires_grad])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outputs = model(x)
            loss = default_loss(outputs)
        loss.backward()
        del loss
        stepper.step()
        for parameter in model.parameters():
            parameter.grad = None

    real = measure(step)  # before the capture, which then finds what the model has cached on itself
    lower = torch.bfloat16 if autocast else None
    graph = capture_module(model, (x,), training=training, optimizer=make, strict=False, autocast=lower)
    probes = None
    if probe:
        from memfit.capture.cpu_probe import probe as run_probe

        probes = run_probe(graph)
    predicted = timeline(graph, probes)
    # What the call found and `eager` counts: the input, and tensors that the model cached on itself.
    counted = {StorageKind.INPUT, StorageKind.CONSTANT}
    existing = sum(s.nbytes for s in graph.storages if s.birth == BEFORE and s.kind in counted)
    given = probes or {}
    planned = [given.get(op.index) or events(graph, op) or () for op in graph.ops]
    return {
        "real": real.peak_bytes + existing,
        "predicted": predicted.peak_bytes,
        "real_total": sum(e for e in real.events if e > 0),
        "predicted_total": sum(e for op in planned for e in op if e > 0),
        "peak_at": f"{graph.ops[predicted.peak_op].kind} #{predicted.peak_op}",
        "unknown": list(predicted.unknown),
        "notes": list(predicted.notes),
    }


def child(name: str, threads: list[int], dtype: str, *, probe: bool, autocast: bool, cases: list[str]) -> None:
    """Measure every cell of one network; one JSON line each."""
    import torch

    torch.manual_seed(0)
    model, make_input = network(name)
    model.to(getattr(torch, dtype))
    for count in threads:
        torch.set_num_threads(count)
        for case in cases:
            x = make_input(int(case[-1]))
            x = x.to(getattr(torch, dtype)) if x.is_floating_point() else x
            cell = {"network": name, "threads": count, "case": case}
            try:
                cell.update(measure_case(model, x, case, probe=probe, autocast=autocast))
            except Exception as error:
                cell["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(json.dumps(cell), flush=True)


def environment(isa: str | None) -> str:
    """What the figures depend on, in one line."""
    import torch

    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        processor = found.group(1) if found else processor
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, PyTorch {torch.__version__}, "
        f"oneDNN {onednn.group(1) if onednn else '?'}, {processor}, "
        f"{isa or torch.backends.cpu.get_cpu_capability()}"
    )


def share(cell: dict[str, Any]) -> float:
    """Signed error of a prediction."""
    return (cell["predicted"] - cell["real"]) / cell["real"]


def table(cells: list[dict[str, Any]], heading: str, cases: list[str]) -> str:
    """Lay the cells out: one row per network and thread count."""
    good = [c for c in cells if "error" not in c]
    exact = sum(c["predicted"] == c["real"] for c in good)
    worst = max((abs(share(c)) for c in good), default=0.0)
    lines = [
        f"{heading}. Equal to the byte: **{exact} of {len(cells)}** cells; largest error {100 * worst:.3f} %.",
        "",
        "| network | threads | " + " | ".join(cases) + " |",
        "|---|---:|" + "---:|" * len(cases),
    ]
    rows: dict[tuple[str, int], dict[str, str]] = {}
    for cell in cells:
        if "error" in cell:
            text = cell["error"]
        else:
            off = cell["predicted"] - cell["real"]
            text = f"{cell['real']:,}" + (f" ({off:+,}; {100 * share(cell):+.3f} %)" if off else " =")
        rows.setdefault((cell["network"], cell["threads"]), {})[cell["case"]] = text
    lines += [f"| {n} | {t} | " + " | ".join(row.get(c, "") for c in cases) + " |" for (n, t), row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help="all unless given; a bare name is looked up in the list")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", choices=sorted(ISA), help="limit the instruction set")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--training", action="store_true", help="12 networks, training steps only, its own table")
    parser.add_argument("--autocast", action="store_true", help="run forward and loss under bf16 autocast")
    parser.add_argument("--probe", action="store_true", help="measure the workspaces of single operations")
    parser.add_argument("--write", type=Path, help="refresh the table between the markers of this page")
    parser.add_argument("--marker", default="eager-truth", help="name of those markers")
    parser.add_argument("--totals", action="store_true", help="also compare the sum of all allocations")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [case for case in CASES if "step" in case] if options.training else list(CASES)
    if options.child:
        child(
            options.child, options.threads, options.dtype, probe=options.probe, autocast=options.autocast, cases=cases
        )
        return
    if options.training and not options.networks:
        options.networks = TRAINED.split()
    wanted = [n for n in NETWORKS if not options.networks or {n, n.rpartition(":")[2]} & set(options.networks)]
    cells: list[dict[str, Any]] = []
    for name in wanted:
        command = [sys.executable, __file__, "--child", name, "--dtype", options.dtype]
        command += ["--threads", *map(str, options.threads)]
        command += [f"--{flag}" for flag in ("probe", "training", "autocast") if getattr(options, flag)]
        env = {**os.environ, "KINETO_LOG_LEVEL": "99", **ISA.get(options.isa, {})}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not found:
            found = [{"network": name, "threads": 0, "case": CASES[0], "error": done.stderr[-200:].replace("\n", " ")}]
        cells += found
        for cell in found:
            if "error" in cell:
                print(f"{name} {cell['threads']} {cell['case']}: {cell['error']}", file=sys.stderr)
                continue
            off = cell["predicted"] - cell["real"]
            total = cell["predicted_total"] - cell["real_total"]
            if off or cell["unknown"] or (options.totals and total):
                print(
                    f"{name} T{cell['threads']} {cell['case']}: {off:+,} ({100 * share(cell):+.3f} %) at "
                    f"{cell['peak_at']}, unknown {cell['unknown']}, in all {total:+,} of {cell['real_total']:,}",
                    file=sys.stderr,
                )
    kind = "bf16 autocast, " if options.autocast else ""
    kind += "workspaces probed, " if options.probe else ""
    text = table(cells, kind + environment(options.isa), cases)
    print(text)
    if options.write:
        begin, end = (f"<!-- {options.marker}: {edge} -->" for edge in ("begin", "end"))
        page = options.write.read_text()
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        options.write.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
