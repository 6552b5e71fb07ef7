"""The rules of PyTorch's caching allocator written a second time, slowly, to hold the first against."""

from __future__ import annotations

from memfit.memory.cuda.allocator import Settings

MIB = 1 << 20


class Span:
    """A stretch of a segment: `state` is used, free or void (addresses only)."""

    def __init__(self, nbytes: int, state: str, born: int = 0, requested: int = 0) -> None:
        self.nbytes, self.state, self.born, self.requested = nbytes, state, born, requested


class Naive:
    """The same rules a second time, without any index: segments are lists of spans, and every search is a scan."""

    def __init__(self, s: Settings) -> None:
        self.s = s
        self.segments: list[tuple[str, list[Span]]] = []
        self.lookups = {"small": 0, "large": 0}
        self.retries = self.ooms = 0

    def total(self, *states: str) -> int:
        return sum(x.nbytes for _, spans in self.segments for x in spans if x.state in states)

    def requested(self) -> int:
        return sum(x.requested for _, spans in self.segments for x in spans if x.state == "used")

    def rounded(self, n: int) -> int:
        interval = 0
        while interval < 15 and n >= 2 << (20 + interval):
            interval += 1
        divisions = self.s.divisions()[interval]
        if divisions > 1 and n > 512 * divisions:
            power = 1
            while power * 2 <= n:
                power *= 2
            size = power
            while size < n:
                size += power // divisions
            return size
        return max(1, -(-n // 512)) * 512

    def malloc(self, n: int) -> Span | None:
        """The new span, or None when the device is full; n is above 0."""
        size = self.rounded(n)
        pool = "small" if size <= MIB else "large"
        segment_bytes = -(-size // (2 * MIB)) * 2 * MIB
        if pool == "small":
            segment_bytes = 2 * MIB
        elif size < 10 * MIB:
            segment_bytes = self.s.large_segment_bytes
        place = self.fit(pool, size)
        if place is None:
            self.collect()
            place = self.grow(pool, size, segment_bytes)
            if place is None and self.drop_oversize(pool, size):
                place = self.grow(pool, size, segment_bytes)
            if place is None:
                self.empty()
                self.retries += 1
                place = self.grow(pool, size, segment_bytes)
            if place is None:
                self.ooms += 1
                return None
        spans, span = place
        rest = span.nbytes - size
        if pool == "small" or self.s.expandable_segments:
            split = rest >= 512
        else:
            split = rest > MIB and (self.s.max_split_size_bytes is None or size < self.s.max_split_size_bytes)
        if split:
            at = spans.index(span)
            spans.insert(at + 1, Span(rest, "free", self.lookups[pool]))
            span.nbytes = size
        span.state, span.requested = "used", n
        return span

    def fit(self, pool: str, size: int) -> tuple[list[Span], Span] | None:
        self.lookups[pool] += 1
        found = [
            (span.nbytes, order, at, room, spans, span)
            for order, (name, spans) in enumerate(self.segments)
            for at, span in enumerate(spans)
            if name == pool and span.state == "free" and span.nbytes >= size
            for room in [span.nbytes + sum(x.nbytes for x in spans[at + 1 : at + 2] if x.state == "void")]
        ]
        found.sort(key=lambda f: f[:3])
        if self.s.expandable_segments:
            while len(found) > 1 and found[1][3] < found[0][3]:
                found.pop(0)
        if not found:
            return None
        nbytes, _, _, _, spans, span = found[0]
        limit = self.s.max_split_size_bytes
        extra = self.s.max_non_split_rounding_bytes or self.s.large_segment_bytes
        if limit is not None and nbytes >= (limit if size < limit else size + extra):
            return None
        return spans, span

    def grow(self, pool: str, size: int, segment_bytes: int) -> tuple[list[Span], Span] | None:
        reserved = self.total("used", "free")
        if self.s.allowed_bytes is not None and reserved + segment_bytes > self.s.allowed_bytes:
            return None
        if self.s.expandable_segments:
            return self.expand(pool, size)
        if self.s.capacity_bytes is not None and reserved + segment_bytes > self.s.capacity_bytes:
            return None
        span = Span(segment_bytes, "free")
        self.segments.append((pool, [span]))
        return self.segments[-1][1], span

    def expand(self, pool: str, size: int) -> tuple[list[Span], Span] | None:
        unit = 2 * MIB if pool == "small" else self.s.large_segment_bytes
        for name, spans in self.segments:
            for at, span in enumerate(spans):
                start = at - 1 if at and spans[at - 1].state == "free" else at
                end = start
                while end < len(spans) and spans[end].state != "used":
                    end += 1
                if name == pool and span.state == "void" and sum(x.nbytes for x in spans[start:end]) >= size:
                    return self.fill(pool, spans, start, size, unit)
        device = self.s.capacity_bytes if self.s.device_bytes is None else self.s.device_bytes
        addresses = 1 << 50 if device is None else device + device // 8
        self.segments.append((pool, [Span(-(-addresses // unit) * unit, "void")]))
        return self.fill(pool, self.segments[-1][1], 0, size, unit)

    def fill(self, pool: str, spans: list[Span], start: int, size: int, unit: int) -> tuple[list[Span], Span] | None:
        while True:
            have = spans[start].nbytes if spans[start].state == "free" else 0
            if have >= size:
                return spans, spans[start]
            void = spans[start + 1] if have else spans[start]
            take_bytes = -(-min(size - have, void.nbytes) // unit) * unit
            if self.s.capacity_bytes is not None and self.total("used", "free") + take_bytes > self.s.capacity_bytes:
                return None
            at = spans.index(void)
            void.nbytes -= take_bytes
            spans[at : at + 1] = [Span(take_bytes, "free"), *([void] if void.nbytes else [])]
            self.tidy(pool, spans)

    def tidy(self, pool: str, spans: list[Span]) -> None:
        """Merge neighbours that are both free or both void."""
        at = 0
        while at + 1 < len(spans):
            one, two = spans[at : at + 2]
            if one.state == two.state != "used":
                spans[at : at + 2] = [Span(one.nbytes + two.nbytes, one.state, self.lookups[pool])]
            else:
                at += 1

    def free(self, span: Span) -> None:
        for pool, spans in self.segments:
            if span in spans:
                span.state, span.born, span.requested = "free", self.lookups[pool], 0
                self.tidy(pool, spans)

    def empty(self) -> None:
        if not self.s.expandable_segments:
            self.segments = [(p, spans) for p, spans in self.segments if [x.state for x in spans] != ["free"]]
            return
        for pool, spans in self.segments:
            unit = 2 * MIB if pool == "small" else self.s.large_segment_bytes
            cut: list[Span] = []
            address = 0
            for x in spans:
                end = address + x.nbytes
                low, high = -(-address // unit) * unit, end // unit * unit
                if x.state == "free" and low < high:
                    parts = [(low - address, "free"), (high - low, "void"), (end - high, "free")]
                    cut += [Span(nbytes, state, self.lookups[pool]) for nbytes, state in parts if nbytes]
                else:
                    cut.append(x)
                address = end
            spans[:] = cut
            self.tidy(pool, spans)
        self.segments = [(p, spans) for p, spans in self.segments if [x.state for x in spans] != ["void"]]

    def whole(self, pool: str) -> list[tuple[str, list[Span]]]:
        """Segments that are one free span, smallest first, then oldest."""
        found = [g for g in self.segments if g[0] == pool and [x.state for x in g[1]] == ["free"]]
        return sorted(found, key=lambda g: g[1][0].nbytes)

    def drop_oversize(self, pool: str, size: int) -> bool:
        limit = self.s.max_split_size_bytes
        if limit is None or self.s.expandable_segments:
            return False
        needed = max(size, limit)
        fits = [g for g in self.whole(pool) if g[1][0].nbytes >= needed]
        if fits:
            self.segments.remove(fits[0])
            return True
        released = 0
        for group in reversed([g for g in self.whole(pool) if g[1][0].nbytes >= limit]):
            if released < needed:
                released += group[1][0].nbytes
                self.segments.remove(group)
        return released >= needed

    def collect(self) -> None:
        if not self.s.garbage_collection_threshold or self.s.allowed_bytes is None or self.s.expandable_segments:
            return
        target = self.total("used", "free") - int(self.s.garbage_collection_threshold * self.s.allowed_bytes)
        reclaimed = 0
        while reclaimed < target:
            ages = {id(g[1]): self.lookups["large"] - g[1][0].born for g in self.whole("large")}
            old = [g for g in self.whole("large") if ages[id(g[1])] >= sum(ages.values()) / len(ages)]
            if not old:
                return
            for group in old:
                reclaimed += group[1][0].nbytes
                self.segments.remove(group)

    def layout(self) -> list[tuple[str, list[tuple[int, bool]]]]:
        found = []
        for pool, spans in self.segments:
            run: list[tuple[int, bool]] = []
            for x in [*spans, Span(0, "void")]:
                if x.state != "void":
                    run.append((x.nbytes, x.state == "used"))
                elif run:
                    found.append((pool, run))
                    run = []
        return found
