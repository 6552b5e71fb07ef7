"""Measure how much code TensorFlow Lite Micro's interpreter and each kernel are, in the Python package's own library.

Needs the extra `tflm` and GNU binutils (nm, objdump, readelf, c++filt). Prints the tables of
`src/memfit/memory/flash_kernels.py`; `--check` compares with them instead and exits 1 where they differ.

What counts for an operator: every function and constant that can be reached from its registration and its parser by
calls, jumps, addresses and tables of addresses, without what the interpreter reaches and without the unpacking of
compressed tensors. Sizes are those of the symbol table.
"""

from __future__ import annotations

import argparse
import bisect
import re
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from memfit.memory import flash_kernels

COMPRESSION = re.compile(r"Decompress|compression|Compress|DecodeState|EnumNames")
INTERPRETER = re.compile(r"^tflite::micro::(MicroInterpreter::|MicroAllocator::Create\()")
REGISTRATION = re.compile(r"tflite::micro::Register_(\w+)\(\)")
PARSER = re.compile(r"tflite::(?:micro::)?Parse(\w+)\(")
PARSED_AS = {
    "averagepool2d": "pool", "maxpool2d": "pool", "l2pool2d": "pool", "mean": "reducer", "sum": "reducer",
    "reducemax": "reducer", "reducemin": "reducer",
}  # fmt: skip
NAMED = {"DETECTION_POSTPROCESS": "TFLite_Detection_PostProcess"}
LEFT_OUT = {"ETHOSU", "L2NORM_REF", "BASIC_CLASSIFIER", "DECODE"}
CODE, CONSTANTS = frozenset("tTwWiI"), frozenset("rRdD")
COMMON_FROM, SHARED_FROM = 10, 250


class Symbol(NamedTuple):
    address: int
    nbytes: int
    kind: str
    name: str


class Library:
    """The symbols of a shared library, and which of them each one names."""

    def __init__(self, path: Path) -> None:
        rows = [line.split(None, 3) for line in run("nm", "-S", path).splitlines()]
        rows = [row for row in rows if len(row) == 4]
        plain = subprocess.run(
            ["c++filt"], input="\n".join(row[3] for row in rows), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        found: dict[int, Symbol] = {}
        for (address, nbytes, kind, _), name in zip(rows, plain, strict=True):
            if int(nbytes, 16):
                found.setdefault(int(address, 16), Symbol(int(address, 16), int(nbytes, 16), kind, name))
        self.symbols = dict(sorted(found.items()))
        self.starts = list(self.symbols)
        self.relocations = relocations(path)
        self.places = sorted(self.relocations)
        self.targets: dict[int, set[int]] = defaultdict(set)
        self.stubs: dict[int, int] = {}
        self._read(path)
        self.next = {start: self._following(start) for start in self.starts}

    def at(self, address: int) -> int | None:
        """Find the symbol that holds an address."""
        i = bisect.bisect_right(self.starts, address) - 1
        if i < 0:
            return None
        symbol = self.symbols[self.starts[i]]
        return symbol.address if address < symbol.address + symbol.nbytes else None

    def _read(self, path: Path) -> None:
        for line in run("objdump", "-d", "--no-show-raw-insn", path).splitlines():
            found = re.match(r"\s*([0-9a-f]+):\s+\S+\s*(.*)", line)
            if found is None:
                continue
            address, source = int(found[1], 16), self.at(int(found[1], 16))
            for target in re.findall(r"# ([0-9a-f]+) |^([0-9a-f]+) <", found[2]):
                place = int(target[0] or target[1], 16)
                if source is not None:
                    self.targets[source].add(place)
                elif place in self.relocations:
                    self.stubs.update(dict.fromkeys(range(address & ~15, address + 1), self.relocations[place]))

    def _following(self, start: int) -> set[int]:
        symbol = self.symbols[start]
        found = {self._resolve(target) for target in self.targets[start]}
        for place in self.places[bisect.bisect_left(self.places, start) :]:
            if place >= start + symbol.nbytes:
                break
            found.add(self._resolve(self.relocations[place]))
        return {other for other in found if other is not None and other != start}

    def _resolve(self, target: int) -> int | None:
        own = self.at(target)
        if own is not None:
            return own
        return self.at(self.relocations.get(target, self.stubs.get(target, -1)))

    def reach(self, roots: list[int], without: set[int]) -> set[int]:
        seen: set[int] = set()
        todo = list(roots)
        while todo:
            start = todo.pop()
            if start not in seen and start not in without:
                seen.add(start)
                todo += self.next[start]
        return seen

    def nbytes(self, starts: set[int], kinds: frozenset[str]) -> int:
        return sum(self.symbols[s].nbytes for s in starts if self.symbols[s].kind in kinds)


def run(*arguments: str | Path) -> str:
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=True).stdout


def relocations(path: Path) -> dict[int, int]:
    """Map each relocated place to the address that is put there, where it lies in the library."""
    found = {}
    for line in run("readelf", "-rW", path).splitlines():
        parts = line.split()
        if len(parts) >= 4 and re.fullmatch(r"[0-9a-f]{16}", parts[0]) and int(parts[3], 16):
            found[int(parts[0], 16)] = int(parts[3], 16)
    return found


def measure(library: Library) -> tuple[int, int, dict[str, int], dict[frozenset[str], int]]:
    """Give the interpreter's bytes, those that most kernels share, each operator's, and what few of them share."""
    symbols = library.symbols
    dropped = {start for start, symbol in symbols.items() if COMPRESSION.search(symbol.name)}
    core = library.reach([start for start, symbol in symbols.items() if INTERPRETER.match(symbol.name)], set())
    parsers = {
        m[1].lower(): start
        for start, symbol in symbols.items()
        if symbol.kind in CODE and (m := PARSER.match(symbol.name))
    }
    every: dict[str, set[int]] = {}
    for start, symbol in symbols.items():
        found = REGISTRATION.fullmatch(symbol.name)
        if found is None or symbol.kind not in CODE:
            continue
        plain = found[1].lower().replace("_", "")
        parser = parsers.get(PARSED_AS.get(plain, plain))
        every[found[1]] = library.reach([start] if parser is None else [start, parser], core | dropped)
    signal = {
        m[1]: library.reach([start], core | dropped)
        for start, symbol in symbols.items()
        if symbol.kind in CODE and (m := re.fullmatch(r"tflite::micro::tflm_signal::Register_(\w+)\(\)", symbol.name))
    }
    users = Counter(start for reached in (*every.values(), *signal.values()) for start in reached)
    common = {start for start, count in users.items() if count >= COMMON_FROM}
    kept = {NAMED.get(name, name): reached for name, reached in every.items() if name not in LEFT_OUT}
    groups: dict[frozenset[str], set[int]] = defaultdict(set)
    for start in set().union(*kept.values()) - common:
        groups[frozenset(name for name, reached in kept.items() if start in reached)].add(start)
    shared = {names: library.nbytes(starts, CODE) for names, starts in groups.items() if len(names) > 1}
    return (
        library.nbytes(core - dropped, CODE),
        library.nbytes(common, CODE),
        {name: library.nbytes(reached - common, CODE | CONSTANTS) for name, reached in sorted(kept.items())},
        {names: nbytes for names, nbytes in shared.items() if nbytes >= SHARED_FROM},
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the tables in memfit")
    options = parser.parse_args()
    spec = find_spec("tflite_micro")
    if spec is None or not spec.submodule_search_locations:
        print("tflite_micro is not installed: pip install 'memfit[tflm]'", file=sys.stderr)
        return 2
    path = next(Path(spec.submodule_search_locations[0]).rglob("_runtime*.so"))
    core, common, kernels, shared = measure(Library(path))
    if options.check:
        wanted = (flash_kernels.CORE, flash_kernels.COMMON, flash_kernels.KERNELS, dict(flash_kernels.SHARED))
        same = (core, common, kernels, shared) == wanted
        print("the tables are as measured" if same else "the tables differ from what is measured")
        return 0 if same else 1
    print(f"CORE = {core:_}\nCOMMON = {common:_}")
    print("\n".join(f'"{name}": {nbytes:_},' for name, nbytes in kernels.items()))
    print("\n".join(f'("{" ".join(sorted(names))}", {shared[names]:_}),' for names in sorted(shared, key=sorted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
