"""How fast a sensitivity sweep is, side by side: the whole network again for each layer, memfit, AIMET's QuantAnalyzer.

    python benchmarks/sensitivity_speed.py [--images 360] [--batch 60] [--rounds 3] [--aimet PYTHON]

    given     the whole network again for each layer, with PyTorch alone: modules, weights put in, a hook on the output
    naive     the same on images laid channels last, as memfit lays them; memfit's outputs are held against these, bit
              for bit
    memfit    what `memfit sensitivity` does
    aimet     AIMET's sweep that enables one module's quantizers at a time, batch norms folded, in an interpreter that
              has aimet-torch, where one is named
    aimet-cl  the same on images laid channels last, which is nothing that AIMET does by itself

Each way runs in a process of its own, on the same images, one thread and 8 bits. They take turns, round after round, so
that other work on the machine meets all alike. A unit is what a way measures at a time: a layer (the weights and the
output of a convolution with its norm and activation), and for AIMET a module. Processor seconds count, those that the
kernel spends for the process included.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]

Round = Callable[[], dict[str, Any]]
"""Measure every unit once: how many they are, what that took, and digests of the outputs by batch and layer."""


def timed(units: Iterator[tuple[str, list[Tensor]]]) -> dict[str, Any]:
    """Go through a sweep that gives each unit's outputs."""
    processor, clock = time.process_time(), time.perf_counter()
    digests = {name: digest(outputs) for name, outputs in units}
    return {
        "seconds": time.process_time() - processor,
        "wall": time.perf_counter() - clock,
        "digests": digests,
    }


def digest(outputs: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in outputs)).hexdigest()


@contextmanager
def study(given: argparse.Namespace, *, quick: bool) -> Iterator[Any]:
    """Open the network and its data, with ranges and quantized weights as `memfit sensitivity` has them."""
    from memfit.compress.data import Sampling
    from memfit.compress.network import opened
    from memfit.compress.sensitivity import Settings, _Study

    with opened(given.source, given.input, quick=quick) as network:
        settings = Settings(Sampling("random", samples=given.images, batch=given.batch))
        found = _Study(network, settings.sampling.open(network.wanted), settings)
        found.prepare(None)
        yield found


@contextmanager
def replayed(given: argparse.Namespace) -> Iterator[Round]:
    from memfit.compress.freed import keep_at_hand
    from memfit.compress.metrics import compare
    from memfit.compress.sweep import measure

    keep_at_hand()  # as the command does
    with study(given, quick=True) as found:

        def units() -> Iterator[tuple[str, list[Tensor]]]:
            for place, batch in enumerate(found.data):
                runner, inputs = found.network.runner(batch)
                reference = runner.run(inputs)
                for layer, outputs in measure(runner, inputs, found.quantization, found.chosen, "quantize"):
                    compare(reference, outputs, batch.samples)
                    yield f"{place} {runner.layers[layer].name}", outputs

        yield lambda: {"units": len(found.chosen), **timed(units())}


@contextmanager
def naive(given: argparse.Namespace, *, quick: bool = True) -> Iterator[Round]:
    from memfit.compress.fake_quant import fake_quantize
    from memfit.compress.metrics import compare

    with study(given, quick=quick) as found:
        model: nn.Module = found.network.what.model
        batches = [(batch, *found.network.runner(batch)) for batch in found.data]
        modules = dict(model.named_modules())
        layers = {layer: batches[0][1].layers[layer] for layer in found.chosen}
        graph = batches[0][1].graph
        ends = {layer: graph.scopes[graph.ops[held.ops[-1]].scope].path for layer, held in layers.items()}

        def again(layer: int, inputs: list[Tensor]) -> list[Tensor]:
            grids = found.quantization.outputs[layer]
            weights = {name: model.get_parameter(name) for name in found.quantization.weights[layer]}
            floats = {name: weight.data for name, weight in weights.items()}
            hook = modules[ends[layer]].register_forward_hook(lambda _m, _i, output: fake_quantize(output, grids))
            try:
                for name, weight in weights.items():
                    weight.data = found.quantization.weights[layer][name]
                return [model(*inputs)]
            finally:
                hook.remove()
                for name, weight in weights.items():
                    weight.data = floats[name]

        def units() -> Iterator[tuple[str, list[Tensor]]]:
            for place, (batch, _, inputs) in enumerate(batches):
                reference = [model(*inputs)]
                for layer, held in layers.items():
                    outputs = again(layer, inputs)
                    compare(reference, outputs, batch.samples)
                    yield f"{place} {held.name}", outputs

        with torch.no_grad():
            yield lambda: {"units": len(layers), **timed(units())}


@contextmanager
def aimet(given: argparse.Namespace, *, quick: bool = False) -> Iterator[Round]:
    sys.path.insert(0, str(ROOT / "src"))
    from memfit.capture.shim import define_missing_torchvision_schemas
    from memfit.compress.metrics import add, compare, sqnr_db

    define_missing_torchvision_schemas()
    analyzer = importlib.import_module("aimet_torch.quant_analyzer")
    simulation = importlib.import_module("aimet_torch.quantsim")
    preparer = importlib.import_module("aimet_torch.model_preparer")
    define = importlib.import_module("aimet_torch.common.defs")
    with study(given, quick=quick) as found:  # for the same images
        images = [found.network.runner(batch)[1][0] for batch in found.data]
        model, example = found.network.what.model, images[0][:1]
    model = preparer.prepare_model(model.eval())
    importlib.import_module("aimet_torch.batch_norm_fold").fold_all_batch_norms(model, tuple(example.shape), example)
    marks: list[tuple[float, float]] = []
    with torch.no_grad():
        reference = [model(x) for x in images]

    def forward(module: nn.Module, *_: object) -> None:
        with torch.no_grad():
            for x in images:
                module(x)

    def evaluate(module: nn.Module, *_: object) -> float:
        marks.append((time.process_time(), time.perf_counter()))
        with torch.no_grad():
            sums = [compare([r], [module(x)], len(x)) for x, r in zip(images, reference, strict=True)]
        marks.append((time.process_time(), time.perf_counter()))
        return sqnr_db(add(sums)) or 0.0

    sim = simulation.QuantizationSimModel(
        model,
        dummy_input=example,
        quant_scheme=define.QuantScheme.post_training_tf,
        default_output_bw=8,
        default_param_bw=8,
    )
    sim.compute_encodings(forward)
    analysis = analyzer.QuantAnalyzer(model, example, forward, evaluate)

    def run() -> dict[str, Any]:
        marks.clear()
        with TemporaryDirectory() as folder:  # its plots are drawn after the last mark
            measured = analysis.perform_per_layer_analysis_by_enabling_quant_wrappers(sim, folder)
        (processor, clock), (processor_end, clock_end) = marks[0], marks[-1]
        return {"units": len(measured), "seconds": processor_end - processor, "wall": clock_end - clock}

    yield run


WAYS: dict[str, Callable[[argparse.Namespace], AbstractContextManager[Round]]] = {
    "given": partial(naive, quick=False),
    "naive": naive,
    "memfit": replayed,
    "aimet": aimet,
    "aimet-cl": partial(aimet, quick=True),
}


def work(given: argparse.Namespace) -> None:
    """Be the process of one way: a round for each line that comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    with WAYS[given.way](given) as round_:
        round_()  # warms up
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(round_()), file=answers, flush=True)


class Worker:
    """The process of one way, seen from outside."""

    def __init__(self, way: str, python: str, options: list[str], folder: Path) -> None:
        self.way, self.errors = way, folder / f"{way}.txt"
        command = [python, __file__, "--way", way, *options]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.way} failed:\n" + "".join(self.errors.read_text().splitlines(True)[-6:]))
        return line

    def round(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.answer())
        return found

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", default=str(ROOT / "examples/digits.py:network"))
    parser.add_argument("--input")
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--aimet", metavar="PYTHON", help="an interpreter that has aimet-torch")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        work(given)
        return
    options = ["--source", given.source, "--images", str(given.images), "--batch", str(given.batch)]
    options += ["--input", given.input] if given.input else []
    print(f"{given.source}, {given.images} images in batches of {given.batch}, one thread; seconds a unit")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        workers = []
        for way in WAYS:
            if "aimet" not in way or given.aimet:
                python = given.aimet if "aimet" in way else sys.executable
                workers.append(Worker(way, python, options, Path(folder)))
                stack.callback(workers[-1].close)
        rounds = []
        for number in range(given.rounds):
            found = {worker.way: worker.round() for worker in workers}
            assert found["memfit"]["digests"] == found["naive"]["digests"], "the outputs differ"
            rounds.append(found)
            each = ", ".join(f"{way} {one['seconds'] / one['units']:.4f}" for way, one in found.items())
            print(f"  round {number + 1}: {each}; load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"outputs of memfit and naive identical to the bit: {len(rounds[0]['memfit']['digests'])} of them\n")
    print("way       units  processor s  clock s  times memfit's  (clock)  whole sweep  (medians)")
    for way in rounds[0]:
        units = rounds[0][way]["units"]
        each = {key: median(r[way][key] / units for r in rounds) for key in ("seconds", "wall")}
        ratio = {
            key: median(r[way][key] / units / (r["memfit"][key] / r["memfit"]["units"]) for r in rounds)
            for key in ("seconds", "wall")
        }
        whole = median(r[way]["seconds"] / r["memfit"]["seconds"] for r in rounds)
        print(
            f"{way:8} {units:6} {each['seconds']:12.4f} {each['wall']:8.4f}"
            f" {ratio['seconds']:15.2f} {ratio['wall']:8.2f} {whole:12.2f}"
        )


if __name__ == "__main__":
    main()
