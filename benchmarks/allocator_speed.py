"""Time of the simulated CUDA caching allocator, over traces of 100,000 events.

    python benchmarks/allocator_speed.py [--events N] [--repeats N]

Two traces: random sizes with a set number of live blocks, and a training step repeated, whose blocks are found again
in the cache. Best time of several runs, one thread, pure Python.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Iterator

from memfit.memory.cuda.allocator import Block, CachingAllocator, Settings

MIB = 1 << 20
SETTINGS = ("", "expandable_segments:True", "max_split_size_mb:64", "roundup_power2_divisions:8")
LIVE = (500, 4000)

Event = tuple[int, int]
"""Number of a block and its bytes, or -1 to free it."""


def mixed(count: int, live: int, seed: int = 0) -> Iterator[Event]:
    """Random sizes from 32 bytes to 128 MiB, evenly on a logarithmic scale within the small and the large ones."""
    rng = random.Random(seed)
    held: list[int] = []
    made = 0
    for _ in range(count):
        wanted = len(held) < live * rng.uniform(0.9, 1.1) and rng.random() < 0.6
        if wanted or not held:
            kind = rng.random()
            low, high = (5, 20) if kind < 0.6 else (20, 23.3) if kind < 0.9 else (23.3, 27)
            yield made, int(2 ** rng.uniform(low, high))
            held.append(made)
            made += 1
        else:
            index = rng.randrange(len(held))
            held[index], held[-1] = held[-1], held[index]
            yield held.pop(), -1


def training(count: int, seed: int = 0) -> Iterator[Event]:
    """Steps of a model of 200 layers: activations kept to the backward pass, workspaces, gradients, optimizer."""
    rng = random.Random(seed)
    weights = [rng.choice((64 << 10, 600 << 10, 9 * MIB, 36 * MIB)) for _ in range(200)]
    kept = [rng.choice((3 * MIB, 6 * MIB, 24 * MIB)) for _ in range(200)]
    made = 0
    for nbytes in [w for weight in weights for w in (weight, weight, weight)]:  # weights and Adam's two states
        yield made, nbytes
        made += 1
    done = made
    while done < count:
        activations, gradients = [], []
        for nbytes in kept:
            yield from ((made, nbytes), (made + 1, 8 * MIB + 512), (made + 1, -1))
            activations.append(made)
            made += 2
        for layer in reversed(range(200)):
            yield from ((made, weights[layer]), (made + 1, kept[layer]), (activations[layer], -1), (made + 1, -1))
            gradients.append(made)
            made += 2
        for block in gradients:
            yield block, -1
        done += 200 * 8


def best(events: list[Event], text: str, repeats: int) -> tuple[float, CachingAllocator]:
    """Least seconds of `repeats` runs, and the allocator after the last."""
    seconds = []
    for _ in range(repeats):
        allocator = CachingAllocator(Settings.parse(text))
        held: dict[int, Block | None] = {}
        start = time.perf_counter()
        for number, nbytes in events:
            if nbytes < 0:
                allocator.free(held.pop(number))
            else:
                held[number] = allocator.malloc(nbytes)
        seconds.append(time.perf_counter() - start)
    return min(seconds), allocator


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    traces = {f"random, {live} live": list(mixed(options.events, live)) for live in LIVE}
    traces["training steps"] = list(training(options.events))[: options.events]
    print(f"Python {platform.python_version()}, {options.events} events, best of {options.repeats}\n")
    print(f"{'trace':<20} {'settings':<28} {'ms':>7} {'us/event':>9} {'peak reserved GiB':>18}")
    for name, events in traces.items():
        for text in SETTINGS:
            seconds, allocator = best(events, text, options.repeats)
            reserved = allocator.peak_reserved_bytes / (1 << 30)
            each = seconds / len(events) * 1e6
            print(f"{name:<20} {text or '(default)':<28} {seconds * 1e3:7.1f} {each:9.2f} {reserved:18.2f}")


if __name__ == "__main__":
    main()
