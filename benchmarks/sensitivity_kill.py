"""Kill a sensitivity sweep with SIGKILL at random moments, again and again, and compare with one left alone.

    python benchmarks/sensitivity_kill.py [--kills 20] [--seed 0] [--source torchvision:mobilenet_v2 --input 1x3x64x64]

Each round is a `memfit sensitivity --store` in a process of its own, killed at a random moment: as a rule some time
after its first unit, sometimes while it starts. Between rounds the store is read: no unit that was there may be gone or
changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import memfit

EARLY = 0.2
"""Share of the rounds that are killed while they start."""


def wait_for_units(store: Path, process: int) -> None:
    """Wait until a process writes to its store, which it alone may read, or has come to its end."""
    log = store.with_name(f"{store.name}-wal")
    before = log.stat().st_size if log.exists() else 0
    while not log.exists() or log.stat().st_size in (0, before):
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)


def units(store: Path) -> dict[tuple[str, str, int], str]:
    """Read what a store holds."""
    if not store.exists():
        return {}
    connection = sqlite3.connect(store)
    try:
        rows = connection.execute("SELECT layer, direction, batch, numbers FROM units").fetchall()
    except sqlite3.OperationalError:
        return {}
    finally:
        connection.close()
    return {(layer, direction, batch): numbers for layer, direction, batch, numbers in rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="torchvision:mobilenet_v2")
    parser.add_argument("--input", default="1x3x64x64")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    settings = {"data": "random", "samples": 16, "batch": 2, "direction": "both"}

    def sweep(store: Path | None, save: Path) -> float:
        """Run the sweep in a process of its own, which forks from this one: PyTorch takes seconds to load."""
        start = time.monotonic()
        process = os.fork()
        if not process:
            memfit.sensitivity(given.source, given.input, store=store, save=save, **settings)  # type: ignore[arg-type]
            os._exit(0)
        running[0] = process
        return start

    running = [0]
    with TemporaryDirectory() as folder:
        alone, store, save = Path(folder, "alone.json"), Path(folder, "sweep.sqlite"), Path(folder, "killed.json")
        start = sweep(Path(folder, "alone.sqlite"), alone)
        wait_for_units(Path(folder, "alone.sqlite"), running[0])
        ready = time.monotonic()
        first = ready - start
        assert os.waitpid(running[0], 0)[1] == 0
        whole = time.monotonic() - ready
        print(f"left alone: {first:.1f} s until the first unit, then {whole:.1f} s", flush=True)
        kills, before = 0, units(store)
        while kills < given.kills:
            sweep(store, save)
            if chance.random() < EARLY:
                time.sleep(chance.uniform(0, first))
            else:
                wait_for_units(store, running[0])
                time.sleep(chance.uniform(0, 2 / given.kills) * whole)
            os.kill(running[0], signal.SIGKILL)
            killed = os.waitpid(running[0], 0)[1] == signal.SIGKILL
            after = units(store)
            assert before.items() <= after.items(), "a unit is gone, or has changed"
            if not killed:
                print("it was done before it was killed; it starts from nothing again", flush=True)
                for path in (store, save):
                    path.unlink(missing_ok=True)
                before = {}
                continue
            kills += 1
            print(f"kill {kills}: {len(before)} units before, {len(after)} after", flush=True)
            before = after
        sweep(store, save)
        assert os.waitpid(running[0], 0)[1] == 0
        one, other = (json.loads(path.read_text()) for path in (alone, save))
        same = one == other
        print(f"{len(units(store))} units; the result is {'identical' if same else 'ANOTHER'}")
        sys.exit(not same)


if __name__ == "__main__":
    main()
