"""Predicted against real memory of whole networks on a GPU.

    python benchmarks/cuda_truth.py measure            # on a GPU: writes tests/expected/cuda_truth.json
    python benchmarks/cuda_truth.py compare            # anywhere: predictions against that file, as a table
    python benchmarks/cuda_truth.py predict            # anywhere: the predictions alone

Every case runs in a process of its own: the model and its input are moved to the GPU, then three iterations run, and
`torch.cuda` reports allocated and reserved peaks, its segments and its settings; the driver reports the rest. The file
also holds GPU, driver and versions. `--networks`, `--cases` and `--jobs` choose less or run several at once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "tests" / "expected" / "cuda_truth.json"
ITERATIONS = 3

VISION = {
    "torchvision:resnet18": 32, "torchvision:resnet50": 32, "torchvision:mobilenet_v2": 32, "torchvision:vgg11": 16,
    "torchvision:efficientnet_b0": 32, "torchvision:densenet121": 16, "torchvision:convnext_tiny": 16,
    "torchvision:shufflenet_v2_x1_0": 64, "torchvision:regnet_y_400mf": 32, "torchvision:googlenet": 32,
    "torchvision:vit_b_16": 16, "torchvision:swin_t": 16, "timm:deit_tiny_patch16_224": 32, "timm:mixer_s16_224": 32,
    "timm:mobilevit_xs": 16, "timm:pvt_v2_b0": 32,
}  # fmt: skip
"""Network → batch."""
LANGUAGE = {"gpt2-124M": (4, 512), "llama-160M": (4, 512), "llama-1B": (1, 512), "bert-110M": (8, 256)}
"""Network → batch and length."""
OWN = {"unet": 8, "gpt": 16}
NETWORKS = (*VISION, *LANGUAGE, *OWN)
CASES = ("inference", "sgd", "adam", "amp", "checkpoint")
"""`amp` is Adam under bf16 autocast, `checkpoint` is Adam with every block checkpointed."""

_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2-124M": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1},
    "llama-160M": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000,
    },
    "llama-1B": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "bert-110M": {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
}  # fmt: skip


def build(name: str, device: str = "cpu") -> tuple[Any, Any, dict[str, Any], Any]:
    """Build a network: model, example arguments by position, by name, and its loss.

    Its weights are random; a language model's are none on the device `meta`, which is enough for a prediction.
    """
    import torch

    from memfit.capture.shim import define_missing_torchvision_schemas
    from memfit.capture.step import default_loss

    define_missing_torchvision_schemas()
    torch.manual_seed(0)
    if name in LANGUAGE:
        import transformers

        content = dict(_CONFIGS[name])
        architecture = getattr(transformers, content["architectures"][0])
        config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[content["model_type"]].from_dict(content)
        batch, length = LANGUAGE[name]
        ids = torch.zeros(batch, length, dtype=torch.int64)
        with torch.device(device):
            model = architecture._from_config(config, dtype=torch.float32)
        return model, (), {"input_ids": ids, "labels": ids, "use_cache": False}, lambda outputs: outputs.loss
    if name in OWN:
        sys.path.insert(0, str(Path(__file__).parent))
        from eager_truth import own_network

        model, make = own_network(name)
        return model, (make(OWN[name]),), {}, default_loss
    library, _, model_name = name.partition(":")
    if library == "timm":
        import timm

        model = timm.create_model(model_name, pretrained=False)
    else:
        from torchvision import models

        extra = {"init_weights": True} if model_name == "googlenet" else {}
        model = models.get_model(model_name, weights=None, **extra)
    return model, (torch.randn(VISION[name], 3, 224, 224),), {}, default_loss


def blocks_of(model: Any, args: Any, kwargs: Any) -> list[str]:
    """Paths of the blocks to checkpoint: all of memfit's own candidates."""
    from memfit.capture.torch_trace import capture_module
    from memfit.training.checkpointing import accepted, candidates, in_order

    run = partial(capture_module, model, args, kwargs, training=True, loss=_any_loss)
    graph = run()
    found = accepted(graph, candidates(graph), lambda paths: run(checkpoint=paths))
    return list(in_order(graph, found))


def _any_loss(outputs: Any) -> Any:
    from memfit.capture.sources.huggingface import _own_loss

    return _own_loss(outputs)


def measure_case(name: str, case: str) -> dict[str, Any]:
    """Run one case on the GPU and read what the allocator and the driver say."""
    import torch
    from torch.utils.checkpoint import checkpoint

    model, args, kwargs, loss = build(name)
    if case == "checkpoint":
        modules = dict(model.named_modules())
        for path in blocks_of(model, args, kwargs):
            modules[path].forward = partial(checkpoint, modules[path].forward, use_reentrant=False)
    training = case != "inference"
    model.train(training)
    torch.cuda.init()
    free_before, total = torch.cuda.mem_get_info()
    model.to("cuda")
    args = tuple(a.cuda() for a in args)
    kwargs = {k: v.cuda() if torch.is_tensor(v) else v for k, v in kwargs.items()}
    if not training and "labels" in kwargs:
        del kwargs["labels"]
    optimizer = None
    if training:
        optimizer = (
            torch.optim.SGD(model.parameters(), lr=1e-9) if case == "sgd" else torch.optim.Adam(model.parameters())
        )

    def step() -> None:
        if optimizer is None:
            with torch.no_grad():
                model(*args, **kwargs)
            return
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=case == "amp"):
            outputs = model(*args, **kwargs)
            value = loss(outputs)
        value.backward()
        del value
        optimizer.step()

    for _ in range(ITERATIONS if training else 2):
        step()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    return {
        "network": name,
        "case": case,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "driver_used_bytes": total - free,
        "driver_before_bytes": total - free_before,
        "segments": sorted((s["total_size"], s["segment_type"]) for s in torch.cuda.memory_snapshot()),
        "retries": stats["num_alloc_retries"],
    }


def predict_case(name: str, case: str, capability: str) -> tuple[int, int]:
    """Predict one case: allocated and reserved peak."""
    import torch

    from memfit.capture.cuda import Cuda
    from memfit.capture.torch_trace import capture_module
    from memfit.memory.cuda.simulate import Run, simulate

    model, args, kwargs, loss = build(name, "meta")
    training = case != "inference"
    if not training:
        kwargs.pop("labels", None)
    optimizer = None
    if training:
        optimizer = (lambda p: torch.optim.SGD(p, lr=1e-9)) if case == "sgd" else torch.optim.Adam
    graph = capture_module(
        model,
        args,
        kwargs,
        training=training,
        loss=loss,
        optimizer=optimizer,
        steady=training,
        autocast=torch.bfloat16 if case == "amp" else None,
        checkpoint=blocks_of(model, args, kwargs) if case == "checkpoint" else (),
        cuda=Cuda.parse(capability),
        strict=False,
    )
    found = simulate(Run(graph), iterations=ITERATIONS if training else 2)
    return found.peak_allocated_bytes, found.peak_reserved_bytes


def each(names: list[str], cases: list[str]) -> Iterator[tuple[str, str]]:
    return ((name, case) for name in names for case in cases)


def measure(names: list[str], cases: list[str], jobs: int) -> int:
    """Measure every case in a process of its own and write the data file."""
    import torch

    if not torch.cuda.is_available():
        print("cuda_truth: no CUDA device here; `compare` and `predict` need none", file=sys.stderr)
        return 2

    def run(pair: tuple[str, str]) -> dict[str, Any]:
        command = [sys.executable, __file__, "child", "--networks", pair[0], "--cases", pair[1]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {"network": pair[0], "case": pair[1], "error": done.stderr[-300:]}
        print(f"{pair[0]} {pair[1]}: {found.get('peak_allocated_bytes', found.get('error'))}", file=sys.stderr)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(run, each(names, cases)))
    major, minor = torch.cuda.get_device_capability()
    content = {
        "gpu": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "cells": found,
    }
    DATA.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {DATA.name}: {sum('error' not in c for c in found)} of {len(found)} cases")
    return 0


def compare(names: list[str], cases: list[str]) -> int:
    """Print predictions beside the measured figures."""
    if not DATA.exists():
        print("cuda_truth: nothing was measured yet: run `measure` on a GPU", file=sys.stderr)
        return 2
    content = json.loads(DATA.read_text())
    print(", ".join([content["gpu"], *(f"{n} {content[n]}" for n in ("torch", "cuda", "cudnn")), content["date"]]))
    print("| network | case | allocated | predicted | error | reserved | predicted | error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    errors: tuple[list[float], list[float]] = ([], [])
    for cell in content["cells"]:
        if "error" in cell or cell["network"] not in names or cell["case"] not in cases:
            continue
        predicted = predict_case(cell["network"], cell["case"], content["capability"])
        line = [cell["network"], cell["case"]]
        for real, guess, list_ in zip(
            (cell["peak_allocated_bytes"], cell["peak_reserved_bytes"]), predicted, errors, strict=True
        ):
            list_.append(guess / real - 1)
            line += [f"{real:,}", f"{guess:,}", f"{guess / real - 1:+.2%}"]
        print("| " + " | ".join(line) + " |", flush=True)
    for what, found in zip(("allocated", "reserved"), errors, strict=True):
        sizes = sorted(map(abs, found))
        print(f"{what}: median error {statistics.median(sizes):.2%}, largest {sizes[-1]:.2%}, {len(sizes)} cases")
    return 0


def predict(names: list[str], cases: list[str], capability: str) -> int:
    """Print the predictions alone."""
    print(f"compute capability {capability}; not compared with a GPU")
    print("| network | case | allocated | reserved |\n|---|---|---:|---:|")
    for name, case in each(names, cases):
        allocated, reserved = predict_case(name, case, capability)
        print(f"| {name} | {case} | {allocated:,} | {reserved:,} |", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "compare", "predict", "child"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--jobs", type=int, default=4, help="cases measured at once")
    parser.add_argument("--capability", default="8.0")
    options = parser.parse_args()
    if options.what == "child":
        print(json.dumps(measure_case(options.networks[0], options.cases[0])))
        return 0
    if options.what == "measure":
        return measure(options.networks, options.cases, options.jobs)
    if options.what == "compare":
        return compare(options.networks, options.cases)
    return predict(options.networks, options.cases, options.capability)


if __name__ == "__main__":
    sys.exit(main())
