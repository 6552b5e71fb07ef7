"""Networks as steps and storages: the wirings for which the order of operators matters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from memfit.plan.order import Order, Step, dependencies, search


@dataclass
class Net:
    """Steps, the sizes of their storages, and the ends that stay."""

    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    given: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)

    def storage(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def input(self, size: int) -> int:
        self.given.add(self.storage(size))
        return len(self.sizes) - 1

    def op(self, inputs: Sequence[int], size: int, extra: int = 0) -> int:
        """Add a step with one output; returns its storage."""
        out = self.storage(size)
        self.steps.append(Step(tuple(dict.fromkeys(inputs)), (out,), extra))
        return out

    def chain(self, source: int, *sizes: int) -> int:
        for size in sizes:
            source = self.op([source], size)
        return source

    def search(self, **options: object) -> Order:
        return search(self.steps, self.sizes, given=self.given, kept=self.kept, **options)  # type: ignore[arg-type]

    def shuffled(self, seed: int) -> Net:
        """List the steps in another valid order."""
        chance, before, done = random.Random(seed), dependencies(self.steps), []
        while len(done) < len(self.steps):
            ready = [n for n in range(len(self.steps)) if n not in done and before[n] <= set(done)]
            done.append(chance.choice(ready))
        return Net([self.steps[n] for n in done], self.sizes, self.given, self.kept)


def chain(count: int) -> Net:
    net = Net()
    net.kept = {net.chain(net.input(9), *(8 + number % 5 for number in range(count)))}
    return net


def halves() -> Net:
    """One branch makes much and shrinks it; the other stays small: the order listed keeps both at their largest."""
    net = Net()
    source = net.input(10)
    wide = [net.op([source], 100) for _ in range(2)]
    net.kept = {net.op([net.op([one], 10) for one in wide], 10)}
    return net


def twins(count: int, *sizes: int) -> Net:
    """The same branch so many times over, between one source and a concatenation."""
    net = Net()
    source = net.input(16)
    net.kept = {net.op([net.chain(source, *sizes) for _ in range(count)], sizes[-1] * count)}
    return net


def inception(cells: int) -> Net:
    """Four branches and a concatenation, cell after cell; sizes are channels."""
    net = Net()
    at = net.input(192)
    for _ in range(cells):
        ends = [
            net.chain(at, 96, 128),
            net.chain(at, 64),
            net.chain(at, 16, 96, 32),
            net.chain(at, 192, 32),
        ]
        at = net.op(ends, 256)
    net.kept = {at}
    return net


def nasnet(cells: int, seed: int = 0) -> Net:
    """Cells of five blocks, each the sum of two separable convolutions, over the two cells before."""
    net, chance = Net(), random.Random(seed)
    before = at = net.input(16)
    for _ in range(cells):
        states = [net.op([before], 12), net.op([at], 12)]
        free = []
        for _ in range(5):
            pair = [chance.choice(states), chance.choice(states)]
            sides = [net.chain(one, *([12] * chance.choice([1, 2, 4]))) for one in pair]
            free.append(net.op(sides, 12))
            states.append(free[-1])
        before, at = at, net.op(free, 12 * len(free))
    net.kept = {at}
    return net


def randwire(nodes: int, seed: int, *, stages: int = 1, sizes: Sequence[int] = (8,), ops: int = 1) -> Net:
    """Watts-Strogatz graphs (4 neighbours, a rewired share of 0.75), each edge pointing to the higher node."""
    net, chance = Net(), random.Random(seed)
    at = net.input(sizes[0])
    for _ in range(stages):
        edges = set()
        for node in range(nodes):
            for step in (1, 2):
                other = (node + step) % nodes
                if chance.random() < 0.75:
                    other = chance.choice([n for n in range(nodes) if n != node])
                edges.add((min(node, other), max(node, other)))
        outs: list[int] = []
        for node in range(nodes):
            inputs = [outs[low] for low, high in sorted(edges) if high == node] or [at]
            outs.append(net.chain(net.op(inputs, chance.choice(sizes)), *([chance.choice(sizes)] * (ops - 1))))
        lows = {low for low, _ in edges}
        at = net.op([outs[node] for node in range(nodes) if node not in lows], sizes[0])
    net.kept = {at}
    return net


def irregular(count: int, seed: int, *, reach: int = 8, fan: int = 2) -> Net:
    """Cells wired at random, as architecture search finds them: sizes differ, most results are used once or twice."""
    net, chance = Net(), random.Random(seed)
    made = [net.input(20)]
    for _ in range(count):
        inputs = chance.sample(made[-reach:], min(len(made), chance.randint(1, fan)))
        made.append(net.op(inputs, chance.choice([4, 6, 8, 12, 16, 24, 32]), chance.choice([0, 0, 0, 5])))
    used = {storage for step in net.steps for storage in step.inputs}
    net.kept = {net.op([storage for storage in made if storage not in used], 4)}
    return net


def unet(depth: int) -> Net:
    net = Net()
    at, skips = net.input(64), []
    for level in range(depth):
        size = 256 >> level
        at = net.chain(at, size, size)
        skips.append(at)
        at = net.op([at], size // 4)
    at = net.chain(at, 256 >> depth, 256 >> depth)
    for level in reversed(range(depth)):
        size = 256 >> level
        up = net.op([at], size)
        at = net.chain(net.op([skips[level], up], 2 * size), size, size)
    net.kept = {net.op([at], 8)}
    return net


def dense(layers: int) -> Net:
    """Each layer concatenates everything before it."""
    net = Net()
    made = [net.input(64)]
    for number in range(layers):
        made.append(net.chain(net.op(made, 64 + 32 * number), 128, 32))
    net.kept = {net.op(made, 32)}
    return net


def heads(levels: int, depth: int) -> Net:
    """A feature pyramid with two heads at each level, as detectors have them."""
    net = Net()
    at, features = net.input(768), []
    for level in range(levels):
        at = net.chain(at, 1024 >> level, 512 >> level)
        features.append(at)
    merged = [net.op([features[-1]], 256 >> (levels - 1))]
    for level in reversed(range(levels - 1)):
        up = net.op([merged[-1]], 256 >> level)
        merged.append(net.op([net.op([features[level]], 256 >> level), up], 256 >> level))
    for level, feature in zip(reversed(range(levels)), merged, strict=True):
        for outputs in (16, 90):
            end = net.chain(feature, *([256 >> level] * depth))
            net.kept.add(net.op([end], outputs >> level))
    return net


INSTANCES = {
    "chain of 200": lambda: chain(200),
    "two branches, halved": halves,
    "12 twins": lambda: twins(12, 30, 60, 4).shuffled(1),
    "Inception x 9": lambda: inception(9),
    "NASNet x 12": lambda: nasnet(12),
    "RandWire 32": lambda: randwire(32, 1),
    "RandWire 32, conv + norm": lambda: randwire(32, 2, ops=2),
    "RandWire 3 x 32": lambda: randwire(32, 3, stages=3),
    "RandWire 32, sizes differ": lambda: randwire(32, 4, sizes=(4, 6, 8, 12, 16)),
    "irregular 24": lambda: irregular(24, 1),
    "irregular 40": lambda: irregular(40, 2),
    "irregular 60": lambda: irregular(60, 3, reach=12),
    "irregular 200": lambda: irregular(200, 4),
    "irregular 200, wide": lambda: irregular(200, 5, reach=30, fan=3),
    "U-Net, depth 4": lambda: unet(4),
    "dense block of 16": lambda: dense(16),
    "pyramid, two heads": lambda: heads(5, 4),
    "pyramid, two heads, shuffled": lambda: heads(5, 4).shuffled(7),
}
