"""Accuracy against peak memory on the digits network: channels taken out where the peak is, and evenly.

For each seed a network is trained, pruned to shares of its peak with both strategies, and fine-tuned for some epochs.
Writes a markdown table to stdout and a picture, and keeps each finished figure in a JSON file, so that a run that was
stopped goes on where it was.

    python benchmarks/prune_curve.py [--seeds 5] [--epochs 4] [--png prune_curve.png] [--json prune_curve.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import memfit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import digits

SHARES = (0.5, 0.25, 0.125)
STRATEGIES = ("peak", "uniform")
COLOURS = {"peak": "#2b6a99", "uniform": "#d1495b"}


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


def measure(seed: int, *, epochs: int, importance: str, done: dict[str, Any], keep: Any, folder: Path) -> None:
    """Fill in the figures of one seed."""
    names = [f"{seed}/{share}/{strategy}" for share in SHARES for strategy in STRATEGIES]
    if f"{seed}/1" in done and all(name in done for name in names):
        return
    model = trained(seed, folder)
    whole = memfit.profile(model, "1x1x32x32", memory="mcunet").totals["peak_bytes"]
    done[f"{seed}/1"] = {"peak_bytes": whole, "accuracy": digits.accuracy(model)}
    keep()
    train = list(digits.train_data())
    for share in SHARES:
        for strategy in STRATEGIES:
            name = f"{seed}/{share}/{strategy}"
            if name in done:
                continue
            pruned = memfit.prune(
                model, "1x1x32x32", data=train, budget=int(whole * share), strategy=strategy, importance=importance,
                metric=digits.accuracy, seed=seed,
            )  # fmt: skip
            tuned = digits.fine_tune(copy.deepcopy(pruned.module), epochs, seed=seed)
            done[name] = {
                "peak_bytes": pruned.totals["peak_bytes"],
                "untuned": pruned.totals["metric"],
                "accuracy": digits.accuracy(tuned),
                "macs": pruned.totals["macs"],
                "params": pruned.totals["params"],
            }
            keep()
            print(name, done[name], file=sys.stderr, flush=True)


def spread(values: list[float]) -> str:
    """Write mean and standard deviation, in percent."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{100 * mean(values):.1f} ± {100 * deviation:.1f}"


def table(done: dict[str, Any], seeds: list[int]) -> str:
    """Write the figures as markdown."""
    whole = [done[f"{seed}/1"] for seed in seeds]
    lines = [
        "| share of the peak | bytes | strategy | accuracy, not trained again | accuracy, fine-tuned | parameters |",
        "|---|---|---|---|---|---|",
        f"| whole | {whole[0]['peak_bytes']:,} | | {spread([w['accuracy'] for w in whole])} | | 214,602 |",
    ]
    for share in SHARES:
        for strategy in STRATEGIES:
            found = [done[f"{seed}/{share}/{strategy}"] for seed in seeds]
            lines.append(
                f"| {share:.3g} | {max(f['peak_bytes'] for f in found):,} | {strategy} | "
                f"{spread([f['untuned'] for f in found])} | {spread([f['accuracy'] for f in found])} | "
                f"{mean(f['params'] for f in found):,.0f} |"
            )
    return "\n".join(lines)


def draw(done: dict[str, Any], seeds: list[int], path: Path) -> None:
    """Draw both curves, before and after fine-tuning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.74))
    whole = [done[f"{seed}/1"] for seed in seeds]
    for strategy in STRATEGIES:
        for key, style in (("accuracy", "-"), ("untuned", ":")):
            points = [(whole[0]["peak_bytes"], [w["accuracy"] for w in whole])]
            for share in SHARES:
                found = [done[f"{seed}/{share}/{strategy}"] for seed in seeds]
                points.append((mean(f["peak_bytes"] for f in found), [f[key] for f in found]))
            sizes = [size / 1024 for size, _ in points]
            means = [100 * mean(values) for _, values in points]
            spreads = [100 * stdev(values) if len(values) > 1 else 0.0 for _, values in points]
            label = f"{strategy}, {'fine-tuned' if key == 'accuracy' else 'not trained again'}"
            axes.errorbar(
                sizes, means, yerr=spreads, color=COLOURS[strategy], linestyle=style, marker="o", markersize=4,
                capsize=3, linewidth=1.6 if key == "accuracy" else 1.1, label=label,
            )  # fmt: skip
    axes.set_xlabel("peak (mcunet), KiB", fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.tick_params(length=0, labelsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    for side in axes.spines.values():
        side.set_visible(False)
    figure.text(
        0.03, 0.93, f"Digits network pruned: accuracy against peak memory, {len(seeds)} seeds", fontsize=11,
        fontweight="bold",
    )  # fmt: skip
    figure.savefig(path)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--importance", default="magnitude")
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
        measure(seed, epochs=given.epochs, importance=given.importance, done=done, keep=keep, folder=folder)
    print(table(done, seeds))
    draw(done, seeds, given.png)


if __name__ == "__main__":
    main()
