"""Bits chosen by an integer programme over the peak, against the largest first and the same bits everywhere.

For each seed a network is trained on the digits (examples/digits.py, or read from --weights), calibrated on training
digits and quantized to shares of its 8-bit peak; weights have 8 bits. Accuracy and SQNR are of the 450 test digits.

    python benchmarks/mixed_precision.py --seeds 5 -o mixed-precision.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import memfit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import digits

STRATEGIES = ("exact", "greedy", "uniform")
SHARES = (0.75, 0.5, 0.4, 0.3)
COLOURS = {"exact": "#d1495b", "greedy": "#8fb1cc", "uniform": "#66727f"}


def trained(seed: int, folder: Path | None) -> nn.Module:
    """Give the network of a seed: read where its weights were kept, else trained and kept."""
    path = None if folder is None else folder / f"digits{seed}.pt"
    if path is not None and path.is_file():
        return digits.network(str(path))[0]
    torch.manual_seed(seed)
    model = digits.Digits()
    digits.fine_tune(model, digits.EPOCHS, 0.01, seed)
    if path is not None:
        torch.save(model.state_dict(), path)
    return model.eval()


def scorer(model: nn.Module, kept: list[tuple[float, float]]) -> Callable[[nn.Module], float]:
    """Make a metric that gives the accuracy and keeps it with the SQNR in dB against the float network."""
    images = [images for images, _ in digits.test_data()]
    labels = torch.cat([labels for _, labels in digits.test_data()])
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in images]).double()

    def score(module: nn.Module) -> float:
        with torch.no_grad():
            found = torch.cat([module(batch) for batch in images]).double()
        noise = float((found - wanted).square().sum())
        accuracy = float((found.argmax(1) == labels).double().mean())
        kept.append((accuracy, 10 * math.log10(float(wanted.square().sum()) / noise) if noise else math.inf))
        return accuracy

    return score


def measure(seed: int, folder: Path | None, samples: int) -> list[dict[str, Any]]:
    """Quantize one network to every share."""
    model = trained(seed, folder)
    peak = memfit.profile(model, "1x1x32x32", memory="mcunet").totals["peak_bytes"]
    rows = []
    for share in SHARES:
        kept: list[tuple[float, float]] = []
        start = time.perf_counter()
        found = memfit.quantize(
            model,
            "1x1x32x32",
            budget=math.floor(peak * share),
            data=list(digits.train_data()),
            samples=samples,
            metric=scorer(model, kept),
        )
        seconds = time.perf_counter() - start
        for entry, (accuracy, sqnr) in zip(found.strategies, kept, strict=False):
            assert entry["peak_bytes"] <= math.floor(peak * share)
            rows.append(
                {
                    "seed": seed, "share": share, "budget_bytes": math.floor(peak * share), "strategy": entry["name"],
                    "peak_bytes": entry["peak_bytes"], "accuracy": accuracy, "sqnr_db": sqnr,
                    "float": found.totals["baseline_metric"], "optimal": entry["optimal"], "seconds": seconds,
                }
            )  # fmt: skip
        print(f"seed {seed}, {share:.0%} of {peak:,} bytes: {seconds:.1f} s", file=sys.stderr)
    return rows


def spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| budget | choice | accuracy % | against float, points | SQNR dB | best or equal in |",
        "|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        here = [row for row in rows if row["share"] == share]
        seeds = sorted({row["seed"] for row in here})
        for name in STRATEGIES:
            own = {row["seed"]: row for row in here if row["strategy"] == name}
            accuracy = spread([own[s]["accuracy"] * 100 for s in seeds])
            lost = spread([(own[s]["accuracy"] - own[s]["float"]) * 100 for s in seeds])
            sqnr = spread([own[s]["sqnr_db"] for s in seeds])
            best = sum(
                own[s]["sqnr_db"] >= max(row["sqnr_db"] for row in here if row["seed"] == s) - 1e-9 for s in seeds
            )
            budget = f"{share:.0%} ({here[0]['budget_bytes']:,} bytes)" if name == STRATEGIES[0] else ""
            lines.append(
                f"| {budget} | {name} | {accuracy[0]:.2f} ± {accuracy[1]:.2f} | {lost[0]:+.2f} ± {lost[1]:.2f} "
                f"| {sqnr[0]:.1f} ± {sqnr[1]:.1f} | {best} of {len(seeds)} |"
            )
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    for place, (key, label, factor) in enumerate((("accuracy", "test accuracy, %", 100), ("sqnr_db", "SQNR, dB", 1))):
        axes = figure.add_axes((0.07 + place * 0.49, 0.14, 0.42, 0.68))
        for offset, name in enumerate(STRATEGIES):
            points = [
                spread([row[key] * factor for row in rows if row["strategy"] == name and row["share"] == share])
                for share in SHARES
            ]
            places = [share * 100 + (offset - 1) * 0.7 for share in SHARES]
            axes.errorbar(
                places, [p[0] for p in points], yerr=[p[1] for p in points], color=COLOURS[name], marker="o",
                markersize=4, linewidth=1.4, capsize=3, label=name, zorder=3 - offset * 0.1,
            )  # fmt: skip
        if key == "accuracy":
            axes.axhline(statistics.mean(row["float"] for row in rows) * 100, color="#1f2933", linewidth=0.8,
                         linestyle=(0, (4, 3)), label="float")  # fmt: skip
            axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("budget, % of the 8-bit peak", fontsize=8.5)
        axes.set_ylabel(label, fontsize=8.5)
        axes.tick_params(labelsize=8, length=0)
        axes.grid(color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
    seeds = len({row["seed"] for row in rows})
    figure.text(0.03, 0.93, "Bits by the peak, on the digits network", fontsize=13, fontweight="bold", color="#1f2933")
    figure.text(0.03, 0.87, f"mcunet peak, 8-bit weights, {seeds} seeds: mean and standard deviation", fontsize=9.5,
                color="#66727f")  # fmt: skip
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256, help="training digits to calibrate and measure on")
    parser.add_argument("--weights", type=Path, help="a folder with digits0.pt, …; what is missing is trained into it")
    parser.add_argument("--json", type=Path, help="keep every figure")
    parser.add_argument("-o", "--output", type=Path, help="a picture")
    given = parser.parse_args()
    rows = [row for seed in range(given.seeds) for row in measure(seed, given.weights, given.samples)]
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    if given.output:
        picture(rows, given.output)


if __name__ == "__main__":
    main()
