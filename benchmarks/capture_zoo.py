"""Capture every model that timm and torchvision list, inference and training, and say which fail.

    python benchmarks/capture_zoo.py --output zoo.jsonl                     all of them; goes on where it stopped
    python benchmarks/capture_zoo.py --library torchvision --only 'rcnn'    some of them
    python benchmarks/capture_zoo.py --summary --output zoo.jsonl           only read what is there

Each model is captured by itself, in a worker process that is replaced after some models, by time or by memory. One line
of JSON per model and mode goes to the output file. torchvision's `quantized_*` must be refused and are counted apart.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import resource
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

RECYCLE_MODELS = 80
"""Models after which a worker process is replaced."""

RECYCLE_MIB = 3000
"""Peak memory of a worker above which it is replaced."""

LISTING = """
from memfit.capture.shim import import_torchvision
models = import_torchvision().models
names = ["torchvision:" + n for n in models.list_models()]
import timm
names += ["timm:" + n for n in timm.list_models()]
print("\\n".join(names))
"""


# -- worker -------------------------------------------------------------------------------------------------------


def capture(source: str, mode: str) -> dict[str, Any]:
    """Capture one model; what went wrong is part of the answer."""
    from memfit.capture.sources import load
    from memfit.capture.torch_trace import capture_module
    from memfit.errors import MemfitError

    record: dict[str, Any] = {"source": source, "mode": mode, "ok": False}
    start = time.perf_counter()
    training = mode == "training"
    try:
        loaded = load(source)
        built = time.perf_counter()
        record["build_s"] = round(built - start, 4)
        assert loaded.model is not None
        example = loaded.example(batch=2 if training else 1, training=training)
        graph = capture_module(
            loaded.model,
            example.args,
            example.kwargs,
            training=training,
            loss=example.loss,
            source=source,
            input_names=example.names,
            strict=False,
        )
        record["trace_s"] = round(time.perf_counter() - built, 4)
        record["ops"] = len(graph.ops)
        record["params"] = sum(t.elements for t in graph.parameters())
        record["macs"] = sum(op.macs for op in graph.ops)
        record["peak_bytes"] = max(graph.live_bytes, default=0)
        record["notes"] = list(graph.notes)
        unknown = {op.target: graph.scopes[op.scope].class_name for op in graph.ops if op.kind == "unknown"}
        record["unknown"] = unknown
        record["ok"] = not unknown
        if unknown:
            record["error"] = f"UnsupportedOp: {', '.join(sorted(unknown))}"
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        record["refused"] = isinstance(error, MemfitError) and "quantized" in str(error)
        record["traceback"] = traceback.format_exc(limit=-8)
    record["seconds"] = round(time.perf_counter() - start, 4)
    record["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


def work() -> None:
    """Capture what stands on standard input, one `SOURCE MODE` a line."""
    import os
    import warnings

    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    for line in sys.stdin:
        source, mode = line.split()
        print(json.dumps(capture(source, mode)), file=answers, flush=True)


# -- pool ---------------------------------------------------------------------------------------------------------


class Worker:
    """One worker process, replaced when it has done enough or answers no more."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[str] | None = None
        self.done = 0

    def ask(self, source: str, mode: str) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, __file__, "--worker"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self.done = 0
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(self.timeout, process.kill)
        watch.start()
        try:
            process.stdin.write(f"{source} {mode}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self.stop()
            error = f"the worker process ended, or took more than {self.timeout:.0f} s"
            return {"source": source, "mode": mode, "ok": False, "error": error, "seconds": self.timeout}
        record: dict[str, Any] = json.loads(line)
        self.done += 1
        if self.done >= RECYCLE_MODELS or record["rss_mib"] > RECYCLE_MIB:
            self.stop()
        return record

    def stop(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


def run(tasks: list[tuple[str, str]], output: Path, *, workers: int, timeout: float) -> None:
    """Capture all tasks and append one line each to the output file."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock = threading.Lock()
    count = 0

    def drain() -> None:
        nonlocal count
        worker = Worker(timeout)
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            record = worker.ask(*task)
            with lock, output.open("a") as file:
                file.write(json.dumps(record) + "\n")
                count += 1
                if not record["ok"] and not record.get("refused"):
                    print(f"{record['source']} {record['mode']}: {record['error'].splitlines()[0][:150]}")
                if count % 50 == 0:
                    print(f"{count} of {len(tasks)}", file=sys.stderr)
        worker.stop()

    threads = [threading.Thread(target=drain) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- summary ------------------------------------------------------------------------------------------------------


def read(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The last answer for each model and mode."""
    records = {}
    if output.exists():
        for line in output.read_text().splitlines():
            record = json.loads(line)
            records[record["source"], record["mode"]] = record
    return records


def summarise(records: list[dict[str, Any]]) -> int:
    """Print counts, times and failures; return the number of failures."""
    failures = 0
    for library in ("torchvision", "timm"):
        for mode in ("inference", "training"):
            mine = [r for r in records if r["source"].startswith(library + ":") and r["mode"] == mode]
            if not mine:
                continue
            refused = [r for r in mine if r.get("refused")]
            tried = [r for r in mine if not r.get("refused")]
            good = [r for r in tried if r["ok"]]
            failures += len(tried) - len(good)
            times = [r["trace_s"] for r in good]
            print(
                f"{library:<12} {mode:<10} {len(good):>5} of {len(tried):>5} captured"
                + (f", {len(refused)} quantized refused" if refused else "")
                + (f"; median {median(times):.2f} s, longest {max(times):.1f} s" if times else "")
                + f"; largest process {max((r.get('rss_mib', 0) for r in mine), default=0)} MiB"
            )
    for record in records:
        if not record["ok"] and not record.get("refused"):
            print(f"FAILED {record['source']} {record['mode']}: {record['error'].splitlines()[0][:200]}")
    missing: dict[str, str] = {}
    for record in records:
        for target, module in (record.get("unknown") or {}).items():
            missing.setdefault(target, f"{record['source']} ({record['mode']}), {module}")
    for target, example in sorted(missing.items()):
        print(f"not in the op table: {target}, in {example}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("capture_zoo.jsonl"))
    parser.add_argument("--library", choices=("torchvision", "timm"))
    parser.add_argument("--mode", choices=("inference", "training"))
    parser.add_argument("--only", metavar="REGEX", default="", help="models whose name matches")
    parser.add_argument("--limit", type=int, help="no more than so many models and modes")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="every Nth model, beginning with the Ith")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one model")
    parser.add_argument("--retry", action="store_true", help="capture again what failed before")
    parser.add_argument("--summary", action="store_true", help="capture nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    names = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, check=True).stdout.split()
    if options.library:
        names = [n for n in names if n.startswith(options.library + ":")]
    names = [n for n in names if re.search(options.only, n)]
    index, count = map(int, options.shard.split("/"))
    names = names[index - 1 :: count]
    modes = [options.mode] if options.mode else ["inference", "training"]
    tasks = [(name, mode) for mode in modes for name in names]
    known = read(options.output)
    if not options.summary:
        done = {key for key, r in known.items() if r["ok"] or r.get("refused") or not options.retry}
        left = [task for task in tasks if task not in done][: options.limit]
        run(left, options.output, workers=options.workers, timeout=options.timeout)
        known = read(options.output)
    return 1 if summarise([known[task] for task in tasks if task in known]) else 0


if __name__ == "__main__":
    sys.exit(main())
