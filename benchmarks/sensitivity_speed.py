"""How fast a sensitivity sweep is, side by side: whole network again for each layer, memfit, and AIMET's QuantAnalyzer.

    python benchmarks/sensitivity_speed.py [--source FILE.py:CALLABLE] [--images 360] [--batch 60] [--aimet PYTHON]

All on one thread, in processor time, since other work on the machine changes what the clock shows. memfit's outputs are
held against those of the whole network run again, bit for bit. AIMET (aimet-torch) runs in an interpreter of its own
where one is named: it does the same sweep, one module's quantizers on at a time, evaluated over the same images.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def sweep(source: str, shape: str | None, images: int, batch: int, rounds: int) -> tuple[float, float, int]:
    """Time both ways in turn; processor seconds a layer, the best of several rounds."""
    from memfit.compress.data import Sampling
    from memfit.compress.metrics import compare
    from memfit.compress.network import opened
    from memfit.compress.sensitivity import Settings, _Study
    from memfit.compress.sweep import measure, measure_again, one_thread

    best = {"naive": float("inf"), "memfit": float("inf")}
    with opened(source, shape) as network, one_thread():
        settings = Settings(Sampling("random", samples=images, batch=batch))
        study = _Study(network, settings.sampling.open(network.wanted), settings)
        study.prepare(None)
        count = len(study.chosen)
        for number in range(rounds):
            spent = dict.fromkeys(best, 0.0)
            for given in study.data:
                runner, inputs = network.runner(given)
                reference = runner.run(inputs)
                found = {}
                for name, way in (("naive", measure_again), ("memfit", measure)):
                    start = time.process_time()
                    sums = {}
                    kept = {}
                    for layer, outputs in way(runner, inputs, study.quantization, study.chosen, "quantize"):
                        sums[layer] = compare(reference, outputs, given.samples)
                        kept[layer] = outputs
                    spent[name] += time.process_time() - start
                    found[name] = (sums, kept)
                assert found["naive"][0] == found["memfit"][0], "the sums differ"
                for layer in study.chosen:
                    pair = (found[name][1][layer] for name in best)
                    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True)), "the outputs differ"
            best = {name: min(best[name], spent[name]) for name in best}
            print(
                f"  round {number + 1}: naive {spent['naive'] / count:.3f} s a layer,"
                f" memfit {spent['memfit'] / count:.3f}, {spent['naive'] / spent['memfit']:.2f} times as fast",
                flush=True,
            )
    return best["naive"] / count, best["memfit"] / count, count


def aimet(source: str, images: int, batch: int) -> None:
    """Run AIMET's own sweep; in its interpreter."""
    sys.path.insert(0, str(ROOT / "src"))
    from memfit.capture.shim import define_missing_torchvision_schemas

    define_missing_torchvision_schemas()
    analyzer = importlib.import_module("aimet_torch.quant_analyzer")
    simulation = importlib.import_module("aimet_torch.quantsim")
    preparer = importlib.import_module("aimet_torch.model_preparer")
    define = importlib.import_module("aimet_torch.common.defs")
    torch.set_num_threads(1)
    path, _, name = source.rpartition(":")
    sys.path.insert(0, str(Path(path).resolve().parent))
    made = getattr(importlib.import_module(Path(path).stem), name)()
    model, example = made if isinstance(made, tuple) else (made, torch.zeros(1, 3, 224, 224))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(images, *example.shape[1:], generator=generator).split(batch)
    model = preparer.prepare_model(model.eval())
    importlib.import_module("aimet_torch.batch_norm_fold").fold_all_batch_norms(model, tuple(example.shape), example)
    with torch.no_grad():
        reference = [model(x) for x in data]

    def forward(module: torch.nn.Module, *_: object) -> None:
        with torch.no_grad():
            for x in data:
                module(x)

    def evaluate(module: torch.nn.Module, *_: object) -> float:
        signal = noise = 0.0
        with torch.no_grad():
            for x, wanted in zip(data, reference, strict=True):
                found = module(x)
                signal += float(wanted.double().square().sum())
                noise += float((wanted.double() - found.double()).square().sum())
        return 10 * float(torch.log10(torch.tensor(signal / max(noise, 1e-30))))

    sim = simulation.QuantizationSimModel(
        model,
        dummy_input=example,
        quant_scheme=define.QuantScheme.post_training_tf,
        default_output_bw=8,
        default_param_bw=8,
    )
    sim.compute_encodings(forward)
    study = analyzer.QuantAnalyzer(model, example, forward, evaluate)
    start = time.process_time()
    found = study.perform_per_layer_analysis_by_enabling_quant_wrappers(sim, str(Path("/tmp")))
    seconds = time.process_time() - start
    print(json.dumps({"modules": len(found), "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", default=str(ROOT / "examples/digits.py:network"))
    parser.add_argument("--input")
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aimet", metavar="PYTHON", help="an interpreter that has aimet-torch")
    parser.add_argument("--as-aimet", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_aimet:
        aimet(given.source, given.images, given.batch)
        return
    print(f"{given.source}, {given.images} images in batches of {given.batch}, one thread, processor time")
    naive, own, count = sweep(given.source, given.input, given.images, given.batch, given.rounds)
    print(f"best of {given.rounds}: naive {naive:.3f} s a layer, memfit {own:.3f} s, {naive / own:.2f} times as fast;")
    print(f"{count} layers, identical to the bit")
    if given.aimet:
        command = [given.aimet, __file__, "--as-aimet", "--source", given.source]
        command += ["--images", str(given.images), "--batch", str(given.batch)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            print("AIMET failed:\n" + "\n".join(told.stderr.splitlines()[-6:]))
            return
        found = json.loads(told.stdout.splitlines()[-1])
        each = found["seconds"] / found["modules"]
        print(f"AIMET: {found['modules']} modules, {each:.3f} s each, {each / own:.1f} times memfit's for a layer;")
        print(f"the whole sweep {found['seconds']:.1f} s, {found['seconds'] / own / count:.1f} times memfit's")


if __name__ == "__main__":
    main()
