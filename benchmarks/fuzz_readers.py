"""Damage model files in every way there is, and see what the readers make of them.

    python benchmarks/fuzz_readers.py --cases 20000
    python benchmarks/fuzz_readers.py --suffix .tflite --case 1234 --keep damaged.tflite

Each file is read, made a graph, profiled and printed in a worker process that may use 2 s of processor time and
500 MiB for it. An outcome is `correct` (a graph that passes `verify` and agrees with an independent reading of the
file), `clear error` (one of memfit's own, which says what, where and what was received), or a fault: `crash`, `hang`,
`memory`, `wrong`. Case N is the same file on every run. Ends with 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing as mp
import os
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEBIBYTES = 2.0, 500
FAULTS = ("crash", "hang", "memory", "wrong")
Marks = tuple[list[int], list[tuple[int, int]]]
"""Where a file has numbers, and texts."""


class Reader(NamedTuple):
    """One format: where its healthy files come from, and what reading one means."""

    seeds: Callable[[], dict[str, bytes]]
    landmarks: Callable[[bytes], tuple[list[int], list[tuple[int, int]]]]
    """Of a healthy file: bytes at which its reader finds numbers, and texts as (offset, bytes)."""
    read: Callable[[bytes], None]
    """Read, use, print; raises `Wrong` where the result is not what stands in the file."""
    ways: Callable[[], tuple[Callable[..., None], ...]] = tuple
    """Damage that only this format has."""


class Wrong(Exception):
    """A file that was read as something that it does not say."""


class TooLong(Exception):
    """A file that took more than SECONDS."""


# -- .tflite ------------------------------------------------------------------------------------------------------


def tflite_seeds() -> dict[str, bytes]:
    sys.path.insert(0, str(ROOT / "tests" / "pure"))
    import tflite_models as models

    found = {name: make() for name, make in models.NETS.items()}
    found |= {"control_flow": models.control_flow(), "custom": models.custom(), "tied": models.tied()}
    for path in sorted((ROOT.parent / "shared" / "models").glob("*/*.tflite")):
        if path.stat().st_size < 1 << 20:
            found[path.stem] = path.read_bytes()
    return found


def tflite_landmarks(data: bytes) -> tuple[list[int], list[tuple[int, int]]]:
    from memfit.formats.flatbuffer import File
    from memfit.formats.tflite.reader import _Reader

    class Spy(File):
        numbers: set[int] = set()  # noqa: RUF012
        texts: set[tuple[int, int]] = set()  # noqa: RUF012

        def number(self, code: str, at: int, where: str) -> Any:
            self.numbers.add(at)
            return super().number(code, at, where)

        def vector(self, at: int, item_bytes: int, where: str) -> tuple[int, int]:
            start, count = super().vector(at, item_bytes, where)
            if item_bytes == 1:
                if where.endswith(("name", "custom_code")):
                    self.texts.add((start, count))
            else:
                self.numbers.update(range(start, start + item_bytes * min(count, 16), item_bytes))
            return start, count

    spy = Spy(data, "seed", ".tflite")
    spy.numbers, spy.texts = set(), set()
    _Reader(spy).model()
    return sorted(spy.numbers), sorted(spy.texts)


def tflite_read(data: bytes) -> None:
    from memfit.capture.sources.tflite import to_graph
    from memfit.errors import UsageError
    from memfit.formats.tflite import parse_model
    from memfit.memory.profile import profile_graph
    from memfit.plan.writer import rewrite

    model = parse_model(data, "damaged.tflite")
    _agree_with_stock_reader(data, model)
    graph = to_graph(model)
    use(profile_graph(graph, memory="ideal"))
    use(profile_graph(graph, memory="mcunet", per="block"))
    plan(graph)
    try:
        rewrite(model, offsets=[-1] * len(model.main.tensors))
    except UsageError:
        if len(model.subgraphs) == 1:
            raise


def _agree_with_stock_reader(data: bytes, model: Any) -> None:
    """FlatBuffers' own reader, which checks nothing, must see the same network."""
    import tflite

    root = tflite.Model.GetRootAs(data, 0)
    same = root.SubgraphsLength() == len(model.subgraphs)
    for number, ours in enumerate(model.subgraphs):
        theirs = root.Subgraphs(number)
        same = same and theirs.TensorsLength() == len(ours.tensors) and theirs.OperatorsLength() == len(ours.operators)
        for i, tensor in enumerate(ours.tensors):
            stock = theirs.Tensors(i)
            shape = tuple(stock.Shape(d) for d in range(stock.ShapeLength()))
            same = same and shape == tensor.shape and stock.Buffer() == tensor.buffer
            same = same and stock.IsVariable() == tensor.is_variable
        for i, operator in enumerate(ours.operators):
            stock = theirs.Operators(i)
            inputs = tuple(stock.Inputs(k) for k in range(stock.InputsLength()))
            outputs = tuple(stock.Outputs(k) for k in range(stock.OutputsLength()))
            same = same and (inputs, outputs, stock.OpcodeIndex()) == (operator.inputs, operator.outputs, operator.code)
    if not same:
        raise Wrong("FlatBuffers' own reader sees another network")


def plan(graph: Any) -> None:
    """Plan the arena, write it into the file where there is one, and as a header."""
    from memfit.errors import UnsupportedOp
    from memfit.plan.arena import planned_file
    from memfit.plan.header import header
    from memfit.plan.network import plan_network

    try:
        found = plan_network(graph, estimate=True)
    except UnsupportedOp:  # what TFLM cannot run
        return
    use(found.result)
    header(found.arena, name=graph.source, pointer_bits=64)
    if found.arena.source.data:
        planned_file(found.arena)


def use(result: Any) -> None:
    """Print a result in every text format; no control character may come through."""
    from memfit.report import RENDERERS

    for name in ("table", "md", "csv", "json"):
        stream = io.StringIO()
        RENDERERS[name].render(result, stream)
        text = stream.getvalue()
        if any(c < " " and c not in "\r\n\t" for c in text) or "\x7f" in text or "\u202e" in text:
            raise Wrong(f"a control character in {name}")


# -- .onnx --------------------------------------------------------------------------------------------------------


def onnx_seeds() -> dict[str, bytes]:
    import onnx_damage

    return onnx_damage.seeds()


def onnx_landmarks(data: bytes) -> Marks:
    import onnx_damage

    return onnx_damage.landmarks(data)


def onnx_ways() -> tuple[Callable[..., None], ...]:
    import onnx_damage

    return onnx_damage.WAYS


def onnx_read(data: bytes) -> None:
    import onnx_damage

    from memfit.capture.sources.onnx import to_graph
    from memfit.formats.onnx import parse_model
    from memfit.memory.profile import profile_graph

    model = parse_model(data, "damaged.onnx")
    graph = to_graph(model)
    if not onnx_damage.same_network(data, model):
        raise Wrong("the onnx package sees another network")
    use(profile_graph(graph, memory="ideal"))
    use(profile_graph(graph, memory="mcunet", per="block"))
    plan(graph)


READERS: dict[str, Reader] = {
    ".tflite": Reader(tflite_seeds, tflite_landmarks, tflite_read),
    ".onnx": Reader(onnx_seeds, onnx_landmarks, onnx_read, onnx_ways),
}
"""Suffix → reader; each gets a share of the cases."""


# -- damage -------------------------------------------------------------------------------------------------------

_EXTREMES = (0, 1, 2, 3, 4, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
_TEXTS = (
    b"\x1b[31m", b"\x1b]0;title\x07", b"[/bold][red]", b"<script>alert(1)</script>", b"| a | b |", b"\xff\xfe\xc0",
    b"\xe2\x80\xae", b"\x00", b"\n\r\t", b"`*_#", b"%s%n{0}", b"../../etc", b"\xed\xa0\x80", b"=1+1", b"'\";",
)  # fmt: skip


def bits(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    for _ in range(drawn.randint(1, 8)):
        data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)


def bits_of_numbers(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    at = drawn.choice(marks[0])
    if at < len(data):
        data[at] ^= 1 << drawn.randrange(8)


def cut(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    del data[drawn.randrange(8, len(data)) :]


def extremes(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    """Offsets, lengths, sizes and indices become extreme values."""
    at = drawn.choice(marks[0])
    size = {"I": 4, "H": 2, "B": 1, "Q": 8}[drawn.choice("IIIHBQ")]
    value = drawn.choice((*_EXTREMES, len(data), len(data) - at, drawn.getrandbits(32)))
    if at + size <= len(data):
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def swaps(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    """One number takes the value of another: indices in circles, offsets to other tables."""
    a, b = drawn.choice(marks[0]), drawn.choice(marks[0])
    if max(a, b) + 4 <= len(data):
        data[a : a + 4] = data[b : b + 4]


def redirects(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    """An offset leads to something else that the reader knows."""
    a, b = sorted(drawn.sample(marks[0], 2))
    if b + 4 <= len(data):
        struct.pack_into("<I", data, a, b - a)


def small(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    """Indices and codes become others that may exist."""
    at = drawn.choice(marks[0])
    if at + 4 <= len(data):
        struct.pack_into("<i", data, at, drawn.randint(-2, 40))


def text(data: bytearray, drawn: random.Random, marks: Marks) -> None:
    """Names become markup and control characters."""
    if not marks[1]:
        return
    start, count = drawn.choice(marks[1])
    what = drawn.choice(_TEXTS)
    room = max(0, min(count, len(data) - start))
    data[start : start + room] = (what * (room // len(what) + 1))[:room]


def blocks(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    size = drawn.choice((4, 16, 64, 256))
    a, b = drawn.randrange(len(data)), drawn.randrange(len(data))
    block = bytes(data[b : b + size]) if drawn.random() < 0.7 else bytes([drawn.choice((0, 255))]) * size
    data[a : a + len(block)] = block[: len(data) - a]


def moves(data: bytearray, drawn: random.Random, _marks: Marks) -> None:
    at = drawn.randrange(len(data))
    if drawn.random() < 0.5:
        del data[at : at + drawn.choice((1, 4, 16))]
    else:
        data[at:at] = drawn.randbytes(drawn.choice((1, 4, 16)))


WAYS = (bits, bits_of_numbers, cut, extremes, extremes, swaps, redirects, small, text, blocks, moves)


class Damage:
    """Draws damaged files of one format."""

    def __init__(self, reader: Reader) -> None:
        self.seeds = reader.seeds()
        self.names = sorted(self.seeds)
        self.landmarks = reader.landmarks
        self.ways = (*WAYS, *reader.ways())
        self.known: dict[str, Marks] = {}

    def marks(self, name: str) -> Marks:
        """Where a healthy file has what; looked at once."""
        if name not in self.known:
            self.known[name] = self.landmarks(self.seeds[name])
        return self.known[name]

    def make(self, case: int) -> tuple[str, bytes]:
        """Give what was done, and the file."""
        drawn = random.Random(case)
        name = drawn.choice(self.names)
        data = bytearray(self.seeds[name])
        way = drawn.choice(self.ways)
        for _ in range(drawn.choice((1, 1, 1, 2, 4))):
            if len(data) > 16:
                way(data, drawn, self.marks(name))
        return f"{way.__name__} {name}", bytes(data)


# -- running ------------------------------------------------------------------------------------------------------


def outcome_of(reader: Reader, data: bytes) -> tuple[str, str]:
    """Read one file within the limits: what came of it, and in which words."""
    from memfit.errors import InternalError, MemfitError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(data)
    except InternalError as error:
        return "crash", f"InternalError: {error}"
    except MemfitError as error:
        missing = [part for part in ("what", "where", "received", "todo") if not getattr(error, part)]
        return ("wrong", f"an error without {missing}: {error}") if missing else ("clear error", error.what)
    except Wrong as error:
        return "wrong", str(error)
    except TooLong:
        return "hang", f"more than {SECONDS} s"
    except MemoryError:
        return "memory", f"more than {MEBIBYTES} MiB"
    except BaseException as error:
        return "crash", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "correct", ""


def _alarm(_signal: int, _frame: object) -> None:
    raise TooLong


def _work(suffix: str, cases: Sequence[int], pipe: Connection) -> None:
    reader = READERS[suffix]
    damage = Damage(reader)
    signal.signal(signal.SIGPROF, _alarm)
    for name in damage.names:
        damage.marks(name)
    outcome_of(reader, damage.seeds[damage.names[0]])  # imports, before the limit on memory
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        limit = pages * resource.getpagesize() + (MEBIBYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in cases:
        how, data = damage.make(case)
        pipe.send((case, how))
        began = time.process_time()
        outcome, words = outcome_of(reader, data)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        pipe.send((outcome, words, time.process_time() - began, rss))
    pipe.close()


class Tally:
    """What came of all cases."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.by_way: Counter[tuple[str, str]] = Counter()
        self.words: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.slowest, self.largest = 0.0, 0

    def add(self, case: int, how: str, outcome: str, words: str) -> None:
        self.outcomes[outcome] += 1
        self.by_way[how.partition(" ")[0], outcome] += 1
        if outcome == "clear error":
            self.words[words] += 1
        if outcome in FAULTS:
            self.faults.append({"case": case, "how": how, "outcome": outcome, "words": words[:300]})


def run(suffix: str, cases: Sequence[int], tally: Tally) -> None:
    """Run cases in a worker, which is started anew where it dies."""
    context = mp.get_context("spawn")
    waiting = list(cases)
    while waiting:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(suffix, waiting, theirs))
        worker.start()
        theirs.close()
        begun: tuple[int, str] | None = None
        try:
            while waiting:
                if not ours.poll(120):
                    raise TimeoutError
                begun = ours.recv()
                if not ours.poll(60):  # processor time is limited inside; this is for code that no signal reaches
                    raise TimeoutError
                outcome, words, seconds, rss = ours.recv()
                tally.add(*begun, outcome, words)
                tally.slowest, tally.largest = max(tally.slowest, seconds), max(tally.largest, rss)
                waiting.remove(begun[0])
                begun = None
        except (EOFError, TimeoutError) as error:
            if begun is None:
                raise
            tally.add(*begun, "hang" if isinstance(error, TimeoutError) else "crash", "the process did not answer")
            waiting.remove(begun[0])
        finally:
            worker.kill()
            worker.join()


def fuzz(suffixes: Sequence[str], cases: int, first: int = 0) -> dict[str, Tally]:
    """Run so many cases of each format.

    >>> fuzz([".tflite"], 0)[".tflite"].outcomes
    Counter()
    """
    tallies = {}
    for suffix in suffixes:
        tallies[suffix] = Tally()
        run(suffix, range(first, first + cases), tallies[suffix])
    return tallies


def lines(suffix: str, tally: Tally) -> Iterator[str]:
    total = sum(tally.outcomes.values())
    yield f"{suffix}: {total:,} damaged files"
    for outcome in ("correct", "clear error", *FAULTS):
        yield f"  {outcome:<12} {tally.outcomes[outcome]:>8,}"
    yield f"  slowest {tally.slowest:.2f} s of processor time, largest process {tally.largest} MiB"
    yield "  by damage (correct / clear error):"
    for way in sorted({way for way, _ in tally.by_way}):
        yield f"    {way:<16} {tally.by_way[way, 'correct']:>7,} {tally.by_way[way, 'clear error']:>7,}"
    yield f"  {len(tally.words)} different messages; the most frequent:"
    for words, count in tally.words.most_common(8):
        yield f"    {count:>7,}  {words}"
    for fault in tally.faults[:20]:
        yield f"  {json.dumps(fault)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suffix", action="append", choices=list(READERS), help="formats; all unless given")
    parser.add_argument("--cases", type=int, default=20_000, help="per format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="read this one here, and show what happens")
    parser.add_argument("--keep", type=Path, help="with --case: write the damaged file")
    given = parser.parse_args()
    suffixes = given.suffix or list(READERS)
    if given.case is not None:
        reader = READERS[suffixes[0]]
        how, data = Damage(reader).make(given.case)
        print(how, f"{len(data):,} bytes")
        if given.keep:
            given.keep.write_bytes(data)
        reader.read(data)
        return 0
    faults = 0
    for suffix, tally in fuzz(suffixes, given.cases, given.first).items():
        print("\n".join(lines(suffix, tally)))
        faults += len(tally.faults)
    return int(bool(faults))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
