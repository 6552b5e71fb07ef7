"""Accuracy against peak memory on the digits network: pruned where the peak is, pruned evenly, pruned and quantized.

For each seed a network is trained and brought to shares of its 8-bit peak in three ways, each with the same epochs of
training: by peak-driven pruning, by uniform pruning, and by peak-driven pruning two thirds of the way (in equal
factors) with bits chosen by the integer programme for the rest; there the last quarter of the epochs trains the
quantized network. Writes a markdown table to stdout and a picture, and keeps each finished figure in a JSON file, so
that a run that was stopped goes on where it was.

    python benchmarks/prune_curve.py [--seeds 5] [--epochs 8] [--png prune_curve.png] [--json prune_curve.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import memfit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import digits

SHARES = (0.5, 0.25, 0.125)
WAYS = ("peak", "uniform", "both")
NAMES = {"peak": "peak-driven pruning", "uniform": "uniform pruning", "both": "peak-driven pruning, then bits"}
COLOURS = {"peak": "#2b6a99", "uniform": "#d1495b", "both": "#2f8f5b"}
GREY = "#66727f"
RATE = 5e-4
"""Of training the quantized network, whose gradients pass the rounding as they are: an eighth of fine-tuning's."""
SAMPLES = 128
"""Training digits that bits are measured with."""


def trained(seed: int, folder: Path) -> torch.nn.Module:
    """Train the network, once per seed."""
    path = folder / f"digits-{seed}.pt"
    torch.manual_seed(seed)
    model: torch.nn.Module = digits.Digits()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    digits.fine_tune(model, digits.EPOCHS, 0.01, seed)
    torch.save(model.state_dict(), path)
    return model


def smaller(model: torch.nn.Module, budget: int, way: str, epochs: int, seed: int) -> dict[str, Any]:
    """Bring a network to a peak in one of the ways."""
    train = list(digits.train_data())
    whole = memfit.profile(model, "1x1x32x32", memory="mcunet").totals["peak_bytes"]
    last = max(epochs // 4, 1) if way == "both" else 0
    pruned = memfit.prune(
        model, "1x1x32x32", data=train, budget=budget if way != "both" else int(whole * (budget / whole) ** (2 / 3)),
        strategy="uniform" if way == "uniform" else "peak", metric=digits.accuracy, seed=seed,
        fine_tune=lambda module: digits.fine_tune(module, epochs - last, seed=seed),
    )  # fmt: skip
    t, found = pruned.totals, pruned.totals
    if way == "both":
        found = memfit.quantize(
            pruned.module, "1x1x32x32", data=train, samples=SAMPLES, budget=budget, metric=digits.accuracy,
            train=lambda module: digits.fine_tune(module, last, RATE, seed),
        ).totals  # fmt: skip
    return {
        "peak_bytes": found["peak_bytes"], "pruned_bytes": t["peak_bytes"], "accuracy": found["metric"],
        "untuned": t["untuned_metric"] if way != "both" else found["untrained_metric"], "params": t["params"],
        "macs": t["macs"],
    }  # fmt: skip


def measure(seed: int, epochs: int, done: dict[str, Any], keep: Callable[[], None], folder: Path) -> None:
    """Fill in the figures of one seed."""
    names = [f"{seed}/{share}/{way}" for share in SHARES for way in WAYS]
    if f"{seed}/1" in done and all(name in done for name in names):
        return
    model = trained(seed, folder)
    whole = memfit.profile(model, "1x1x32x32", memory="mcunet").totals["peak_bytes"]
    done[f"{seed}/1"] = {"peak_bytes": whole, "accuracy": digits.accuracy(model)}
    keep()
    for share in SHARES:
        for way in WAYS:
            name = f"{seed}/{share}/{way}"
            if name not in done:
                done[name] = smaller(model, int(whole * share), way, epochs, seed)
                keep()
                print(name, done[name], file=sys.stderr, flush=True)


def spread(values: list[float]) -> str:
    """Write mean and standard deviation, in percent."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean(values):.1f} ± {100 * deviation:.1f}"


def table(done: dict[str, Any], seeds: list[int]) -> str:
    """Write the figures as markdown; points lost are against the same seed's whole network."""
    whole = [done[f"{seed}/1"] for seed in seeds]
    lines = [
        "| share of the peak | bytes | way | accuracy | points lost, mean | the worst seed | parameters |",
        "|---|---|---|---|---|---|---|",
        f"| whole | {whole[0]['peak_bytes']:,} | | {spread([w['accuracy'] for w in whole])} | | | 214,602 |",
    ]
    for share in SHARES:
        for way in WAYS:
            found = [done[f"{seed}/{share}/{way}"] for seed in seeds]
            lost = [100 * (w["accuracy"] - f["accuracy"]) for w, f in zip(whole, found, strict=True)]
            lines.append(
                f"| {share:.3g} | {max(f['peak_bytes'] for f in found):,} | {NAMES[way]} | "
                f"{spread([f['accuracy'] for f in found])} | {mean(lost):.1f} | {max(lost):.1f} | "
                f"{mean(f['params'] for f in found):,.0f} |"
            )
    return "\n".join(lines)


def draw(done: dict[str, Any], seeds: list[int], path: Path) -> None:
    """Draw the three curves, and in dots what they were before the last training; on the right the upper end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    whole = [done[f"{seed}/1"] for seed in seeds]
    size = whole[0]["peak_bytes"] / 1024
    for panel, kinds in enumerate(((("accuracy", "-"), ("untuned", ":")), (("accuracy", "-"),))):
        axes = figure.add_axes((0.07 + panel * 0.49, 0.13, 0.42, 0.64))
        axes.axhline(
            100 * mean(w["accuracy"] for w in whole), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)),
            label="whole network",
        )  # fmt: skip
        for number, way in enumerate(WAYS):
            for key, style in kinds:
                points = [[100 * done[f"{seed}/{share}/{way}"][key] for seed in seeds] for share in SHARES]
                axes.errorbar(
                    [size * share * (1 + 0.012 * (number - 1)) for share in SHARES], [mean(p) for p in points],
                    yerr=[stdev(p) if len(p) > 1 else 0.0 for p in points], color=COLOURS[way], linestyle=style,
                    marker="o", markersize=4, capsize=3, linewidth=1.5 if key == "accuracy" else 1.0, elinewidth=0.9,
                    label=NAMES[way] if key == "accuracy" else None,
                )  # fmt: skip
        axes.plot([], [], color=GREY, linestyle=":", linewidth=1.0, label="before the last training")
        axes.set_xscale("log", base=2)
        axes.margins(x=0.12)
        axes.set_xticks([size * share for share in SHARES])
        axes.set_xticklabels([f"{size * share:.1f} KiB, 1/{round(1 / share)}" for share in SHARES])
        axes.minorticks_off()
        axes.set_xlabel("peak (mcunet), and its share of the whole network's at 8 bits", fontsize=8.5)
        axes.set_ylabel("test accuracy, %", fontsize=8.5)
        axes.grid(color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
        if panel:
            axes.set_ylim(93, 99.5)
        else:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.022, 0.885), ncols=5, frameon=False,
                          fontsize=8, handlelength=1.8, columnspacing=1.6)  # fmt: skip
    figure.text(0.03, 0.93, "Digits network made smaller: accuracy against peak memory", fontsize=13,
                fontweight="bold", color="#1f2933")  # fmt: skip
    figure.text(0.03, 0.885, f"{len(seeds)} seeds, mean and standard deviation; on the right the same from 93 % up",
                fontsize=9.5, color=GREY)  # fmt: skip
    figure.savefig(path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of training after the first")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--png", type=Path, default=Path("prune_curve.png"))
    parser.add_argument("--json", type=Path, default=Path("prune_curve.json"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    done: dict[str, Any] = json.loads(given.json.read_text()) if given.json.is_file() else {}
    seeds = list(range(given.seeds))

    def keep() -> None:
        given.json.write_text(json.dumps(done, indent=1))

    for seed in seeds:
        folder = given.json.resolve().parent
        measure(seed, given.epochs, done, keep, folder)
    print(table(done, seeds))
    draw(done, seeds, given.png)


if __name__ == "__main__":
    main()
