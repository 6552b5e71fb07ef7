"""How a benchmark is shown, and the command line of `memfit bench`, with a stand-in for what measures."""

from __future__ import annotations

import json
import os
import sys
import types
from dataclasses import replace
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.analysis.result import Benchmark
from memfit.analysis.select import select
from memfit.cli.main import main
from memfit.report import RENDERERS, png, table
from memfit.report.bench import lines, summary
from memfit.report.columns import filled

FOLDER = Path(__file__).parent / "bench_snapshots"
TEXTS = {
    "table-80.txt": partial(table.render, width=80),
    "table-100.txt": partial(table.render, width=100),
    "table-160.txt": partial(table.render, width=160),
    "report.md": RENDERERS["md"].render,
    "report.csv": RENDERERS["csv"].render,
    "report.json": RENDERERS["json"].render,
}
CONTRACT = ["name", "calls", "mean_ms", "std_ms", "min_ms", "p50_ms", "p95_ms", "share", "fps", "gmacs_per_s"]


def row(
    name: str, kind: str, mean: float, *, macs: int, batch: int = 1, wide: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "output_shape": (1, 16, 8, 8),
        "calls": 1,
        "mean_ms": mean,
        "std_ms": mean * (0.5 if wide else 0.02),
        "min_ms": mean * 0.75,
        "p50_ms": mean * 0.875,
        "p95_ms": mean * 1.5,
        "share": mean / 20,
        "fps": batch * 1000 / mean,
        "gmacs_per_s": macs / mean / 1e6 or None,
        "unsteady": wide,
        "macs": macs,
        **more,
    }


def layers(**changed: Any) -> Benchmark:
    """Three layers of a model that takes 20 ms."""
    rows = (
        row("stem.conv", "conv2d", 12.0, macs=300_000_000, wide=True),
        row("body.attention", "attention", 4.0, macs=20_000_000, calls=2),
        row("head", "linear", 0.03125, macs=1_000_000),
    )
    layers_ms = sum(entry["mean_ms"] for entry in rows)
    return Benchmark(
        **{
            "source": "net.py:make",
            "inputs": ({"name": "x", "shape": (1, 3, 32, 32), "dtype": "float32"},),
            "per": "layer",
            "memory": None,
            "training": False,
            "device": "cpu",
            "rows": rows,
            "totals": {
                "whole_ms": 20.0,
                "layers_ms": layers_ms,
                "unattributed_ms": 20.0 - layers_ms,
                "fps": 50.0,
                "gmacs_per_s": 16.05,
                "macs": 321_000_000,
                "whole_std_ms": 0.25,
                "whole_min_ms": 19.5,
                "whole_p50_ms": 19.75,
                "whole_p95_ms": 20.5,
                "unsteady": False,
                "batch": 1,
            },
            "notes": ("weights are random",),
            "environment": {"cpu": "A CPU", "threads": 2, "cores": "0-1", "torch": "2.13.0"},
            "settings": {"warmup": 25, "iterations": 300, "mode": "in-place", "channels_last": True, "compile": False},
            **changed,
        }
    )


def memory() -> Benchmark:
    """The whole model, with its memory."""
    whole = layers()
    totals = {**whole.totals, "layers_ms": 20.0, "unattributed_ms": 0.0}
    totals |= {"measured_peak_bytes": 12_000_000, "predicted_peak_bytes": 12_120_000, "prediction_error": 0.01}
    one = row("(model)", "Net", 20.0, macs=321_000_000)
    return replace(whole, per="model", rows=(one,), totals=totals, settings={**whole.settings, "mode": None})


def sweep() -> Benchmark:
    rows = []
    for batch, mean in ((1, 20.0), (2, 24.0), (4, 44.0)):
        entry = row(f"batch {batch}", "Net", mean, macs=321_000_000 * batch, batch=batch)
        entry = {"name": entry["name"], "batch": batch, **entry, "per_sample_ms": mean / batch, "share": None}
        del entry["type"], entry["output_shape"]
        rows.append(entry)
    totals: dict[str, Any] = dict.fromkeys(("whole_ms", "layers_ms", "unattributed_ms"))
    totals |= {"fps": 4000 / 44, "best_batch": 4}
    settings = {**layers().settings, "mode": None}
    return layers(per="batch", rows=tuple(rows), totals=totals, sweep=tuple(rows), settings=settings)


def compared() -> Benchmark:
    """The layers, beside those of an earlier run."""
    whole = layers()
    changes = {"stem.conv": (10.5, 10.0, "unsure"), "body.attention": (3.5, 7.0, "faster")}
    rows = []
    listed = []
    for entry in whole.rows:
        now, before, change = changes.get(entry["name"], (None, None, None))
        ratio = now / before if now and before else None
        rows.append({**entry, "before_ms": before, "ratio": ratio, "change": change})
        if change:
            listed.append({"name": entry["name"], "before_ms": before, "now_ms": now, "ratio": ratio, "change": change})
    comparison = {
        "file": "old.json",
        "whole": {"before_ms": 25.0, "now_ms": 20.0, "ratio": 0.8, "change": "faster"},
        "rows": listed,
        "only_now": ["head"],
        "only_before": ["tail"],
        "differences": {},
    }
    return replace(whole, rows=tuple(rows), comparison=comparison)


SAMPLES = {
    "layers": layers(),
    "top": select(layers(), sort="mean_ms", top=1),
    "memory": memory(),
    "sweep": sweep(),
    "compared": compared(),
}


def text_of(render: Any, result: Benchmark) -> str:
    stream = StringIO()
    render(result, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_text_is_as_stored(sample: str, kind: str) -> None:
    text = text_of(TEXTS[kind], SAMPLES[sample])
    text = text.replace(f'"memfit": "{memfit.__version__}"', '"memfit": "VERSION"')
    path = FOLDER / f"{sample}-{kind}"
    if os.environ.get("MEMFIT_UPDATE_SNAPSHOTS") == "1":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing: review the output, then store it with MEMFIT_UPDATE_SNAPSHOTS=1"
    assert text == path.read_text(encoding="utf-8")


def test_no_snapshot_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{sample}-{kind}" for sample in SAMPLES for kind in TEXTS}


@pytest.mark.parametrize("sample", ["layers", "top", "compared"])
def test_the_lines_below_add_up_to_the_whole(sample: str) -> None:
    result = SAMPLES[sample]
    hidden = (result.selection.hidden if result.selection else {}).get("mean_ms", 0)
    shown = sum(entry["mean_ms"] for entry in result.rows)
    below = dict(summary(result))
    every = below["all layers"]
    assert shown + hidden == pytest.approx(every["mean_ms"], rel=1e-12)
    rest = below["unattributed"]
    assert every["mean_ms"] + rest["mean_ms"] == pytest.approx(below["whole model"]["mean_ms"], rel=1e-12)
    assert every["share"] + rest["share"] == pytest.approx(1)


def test_unattributed_is_a_line_and_not_a_row() -> None:
    printed = text_of(TEXTS["table-100.txt"], layers())
    assert "unattributed" in printed
    contract = layers().to_dict()
    assert all(entry["name"] != "unattributed" for entry in contract["rows"])
    assert contract["totals"]["unattributed_ms"] == 3.96875


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_contract_has_its_keys(sample: str) -> None:
    contract = json.loads(text_of(RENDERERS["json"].render, SAMPLES[sample]))
    required = ["memfit", "command", "source", "inputs", "memory", "rows", "totals", "notes", "environment"]
    assert [key for key in contract if key in required] == required
    assert contract["memory"] is None
    assert {"whole_ms", "layers_ms", "unattributed_ms", "fps"} <= set(contract["totals"])
    assert all(set(CONTRACT) <= set(entry) for entry in contract["rows"])


def test_a_mark_is_shown_where_one_is_set() -> None:
    assert "unsteady" in filled(layers())
    steady = replace(layers(), rows=tuple({**entry, "unsteady": False} for entry in layers().rows))
    assert "unsteady" not in filled(steady)
    assert "wide" not in text_of(TEXTS["table-160.txt"], steady)


def test_a_comparison_is_told_in_words() -> None:
    told = lines(compared())
    assert told[0] == "against old.json: whole model 25.000 → 20.000 ms, ratio 0.800, faster"
    assert told[1] == "of 2 rows 1 faster, 1 unsure"
    assert told[2:] == ["only in this run: 1 row (head)", "only in old.json: 1 row (tail)"]
    assert lines(layers()) == []


@pytest.mark.parametrize("sample", SAMPLES)
def test_png_is_drawn(sample: str) -> None:
    pytest.importorskip("matplotlib")
    stream = BytesIO()
    png.render(SAMPLES[sample], stream)
    assert stream.getvalue().startswith(b"\x89PNG")
    assert len(stream.getvalue()) > 5000


def test_a_long_png_draws_the_slowest_rows() -> None:
    pytest.importorskip("matplotlib")
    from memfit.report.bench import chart

    rows = tuple(row(f"layer.{i}", "conv2d", 1.0 + i % 97, macs=0) for i in range(300))
    figure = chart(layers(rows=rows))
    assert len(figure.axes[0].get_yticklabels()) == png.MOST
    assert any("the slowest 80 of 300 rows" in text.get_text() for text in figure.texts)


def test_a_sweep_draws_latency_and_throughput() -> None:
    pytest.importorskip("matplotlib")
    from memfit.report.bench import chart

    latency, throughput = chart(sweep()).axes
    assert list(latency.lines[0].get_ydata()) == [20.0, 24.0, 44.0]
    assert list(throughput.lines[0].get_ydata()) == pytest.approx([50.0, 2000 / 24, 4000 / 44])


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the stand-in was asked for."""
    seen: list[dict[str, Any]] = []

    def bench(source: str, **given: Any) -> Benchmark:
        given.pop("progress")
        seen.append({"source": source, **given})
        return layers(notes=("interrupted after 3 of 300 iterations",)) if source == "interrupted" else layers()

    module = types.ModuleType("memfit.api")
    module.bench = bench  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "memfit.api", module)
    monkeypatch.setattr(memfit, "api", module, raising=False)
    return seen


DEFAULTS = {"per": "model", "mode": "in-place", "device": "cpu", "warmup": 25, "channels_last": False}
DEFAULTS |= {"compile": False, "with_memory": False, "save": None}


def test_defaults_are_as_stated(calls, capsys) -> None:
    assert main(["bench", "net.py:make"]) == 0
    assert calls == [{"source": "net.py:make", **DEFAULTS}]
    out, err = capsys.readouterr()
    assert out.startswith("net.py:make · 1x3x32x32 float32 · cpu · per layer in place · channels last")
    assert err == ""  # no bar where there is no terminal


def test_every_option_reaches_the_api(calls, tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    line = "bench s --input 1x3x8x8 --per layer --mode isolated --device cuda --dtype bf16 --batch 1,2,4 --warmup 3"
    line += " --iterations 7 --seconds 2.5 --channels-last --compile --threads 2 --with-memory --weights w.pt"
    line += f" --arg width=0.5 --blocks ^a --save {run} --against old.json"
    assert main(line.split()) == 0
    assert calls == [
        {
            "source": "s",
            "inputs": ["1x3x8x8"],
            "per": "layer",
            "mode": "isolated",
            "device": "cuda",
            "dtype": "bf16",
            "batch": [1, 2, 4],
            "warmup": 3,
            "iterations": 7,
            "seconds": 2.5,
            "channels_last": True,
            "compile": True,
            "threads": 2,
            "with_memory": True,
            "weights": Path("w.pt"),
            "args": {"width": 0.5},
            "blocks": "^a",
            "save": run,
            "against": Path("old.json"),
        }
    ]


def test_rows_are_chosen(calls, capsys) -> None:
    assert main(["bench", "s", "--sort", "mean_ms", "--top", "1", "--columns", "name,mean_ms", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "name,mean_ms,memory\nstem.conv,12.0,\n"


def test_an_interrupted_run_is_shown_and_ends_as_one(calls, capsys, tmp_path: Path) -> None:
    report = tmp_path / "a.json"
    assert main(["bench", "interrupted", "-o", str(report)]) == 130
    assert "interrupted after 3 of 300 iterations" in capsys.readouterr().out
    assert json.loads(report.read_text())["rows"]


@pytest.mark.parametrize(
    ("options", "where", "received"),
    [
        (["--batch", "0"], "--batch", "'0'"),
        (["--batch", "1,,2"], "--batch", "'1,,2'"),
        (["--batch", "many"], "--batch", "'many'"),
        (["--iterations", "0"], "memfit bench", "--iterations 0"),
        (["--per", "tensor"], "memfit bench", "--per tensor"),
        (["--mode", "alone"], "memfit bench", "--mode alone"),
        (["--save", "run.txt"], "--save", "run.txt"),
        (["--save", "run.memfit.json"], "--save", "run.memfit.json"),
    ],
)
def test_bad_options_are_refused(calls, capsys, options, where, received) -> None:
    assert main(["bench", "s", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, calls) == ("", [])
    assert f"where:    {where}" in err
    assert received in err
    assert "to do:" in err


def test_a_run_is_kept_unless_forced(calls, capsys, tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text("old")
    assert main(["bench", "s", "--save", str(run)]) == 2
    assert "--force" in capsys.readouterr().err
    assert calls == []
    assert main(["bench", "s", "--save", str(run), "--force"]) == 0
    assert main(["bench", "s", "--save", str(run), "-o", str(run), "--force"]) == 2
    assert "named twice" in capsys.readouterr().err
