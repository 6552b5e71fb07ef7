"""The exact search, in plain Python on flat lists; `engine.py` compiles the same source where numba is installed.

It decides whether a component fits a capacity. `docs/packing.md` explains it with an example. In short:

- Each section has a *skyline*: all addresses below it are closed. The *head* of a free block is the lowest offset at
  which it still fits: above the skyline of all its sections, and clear of blocks that float above it.
- The *floor* of a section is the lowest head of what must still go there: nothing can begin below, so the skyline is
  raised to it. Where the floor and the sizes still to come exceed the capacity, the state is dead.
- A move asks of one section: which block lies directly on the skyline? Each that can is tried, then "none at this
  level", which raises the skyline to the next level at which one could. A block placed where some of its sections are
  still open below floats there, as a fixed block does from the start, until the skyline reaches it.
- Sections that no free block joins are independent. A component that has no option left sends the search straight back
  to the move that last changed it.

Nothing here but integers, loops and indexing: what numba compiles, and what plain Python runs fastest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SOLVED, INFEASIBLE, STOPPED = 1, 0, 2
"""What `advance` returns: a packing was found; none exists; the budget of nodes is used up."""

FEWEST, LOWEST, TIGHTEST = 0, 1, 2
"""Rules for the section to branch on: fewest options, then lowest level; lowest level, then least slack; fewest
options, then least slack."""

DEPTH, TRAIL, NODES, PHASE, OVERFLOW, FLOATS, LINKED, CAPACITY, RULE, RIGHT = range(10)
"""Where `Board.control` keeps what. FLOATS: blocks may float; LINKED: a block's rectangles may differ."""

_FAR = 1 << 60


class Board(NamedTuple):
    """The state of a search; every field is a list of `int`, or an int64 array of NumPy when compiled.

    `first` … `twin` never change. `skyline` … `floating` change with every move and are restored from the trail.
    """

    first: Any
    """First entry of each block; one more at the end."""
    section: Any
    """Section of each entry."""
    low: Any
    top: Any
    """What each entry occupies, from its block's offset."""
    block: Any
    """Block of each entry."""
    alignment: Any
    high: Any
    """By block: what the capacity limits is its offset + `high`."""
    least: Any
    """By block: lowest offset it may have."""
    begin: Any
    """First place of each section in `entries`."""
    spare: Any
    rank: Any
    """By block: its place in the static order; lower goes first."""
    twin: Any
    """By block: a number that equal blocks share."""
    near_first: Any
    near: Any
    """Blocks that share a section with each block; where each list begins, and one more at the end."""
    entries: Any
    """Entries of each section; its `live` first ones are not yet under the skyline."""
    place: Any
    """Where each entry stands in `entries`."""
    skyline: Any
    solid: Any
    """By section: top of the highest block under the skyline; the skyline itself may have been raised above it."""
    rest: Any
    """By section: sum of sizes not yet under the skyline."""
    live: Any
    crossing: Any
    """By section: free blocks that also reach into the next one."""
    changed: Any
    """By section: the frame that last changed it; -1 for none."""
    options: Any
    """By section: how many free blocks could lie directly on the skyline."""
    marked: Any
    """By block: for short use by one function."""
    floating: Any
    """By section: entries of decided blocks above the skyline."""
    head: Any
    """By block: lowest offset still possible; the offset itself once decided."""
    decided: Any
    """By block: 1 once its offset is decided."""
    trail_at: Any
    trail_old: Any
    dirty: Any
    queue: Any
    queued: Any
    listed: Any
    frame_lower: Any
    frame_upper: Any
    frame_section: Any
    frame_owner: Any
    frame_next: Any
    frame_end: Any
    frame_mark: Any
    frame_raise: Any
    choices: Any
    control: Any


def _undo(b: Board, mark: int) -> None:
    """Restore the state to what it was when the trail had `mark` entries."""
    trail_at, trail_old, control = b.trail_at, b.trail_old, b.control
    count, blocks = len(b.skyline), len(b.head)
    skyline, rest, live, crossing, changed, options, head = (
        b.skyline, b.rest, b.live, b.crossing, b.changed, b.options, b.head
    )  # fmt: skip
    size = control[TRAIL]
    while size > mark:
        size -= 1
        at, old = trail_at[size], trail_old[size]
        if at < count:
            skyline[at] = old
        elif at < 2 * count:
            changed[at - count] = old
        elif at < 3 * count:
            options[at - 2 * count] = old
        elif at < 3 * count + blocks:
            head[at - 3 * count] = old
        else:
            at -= 3 * count + blocks
            if at < count:
                rest[at] = old
            elif at < 2 * count:
                live[at - count] = old
            elif at < 3 * count:
                crossing[at - 2 * count] = old
            elif at < 4 * count:
                b.floating[at - 3 * count] = old
            elif at < 5 * count:
                b.solid[at - 4 * count] = old
            else:
                b.decided[at - 5 * count] = old
    control[TRAIL] = mark


def _cover(b: Board, entry: int, level: int) -> None:
    """Close a section up to the top of an entry whose bottom is at the skyline; the entry is then no longer live."""
    count, blocks, control = len(b.skyline), len(b.head), b.control
    trail_at, trail_old, size = b.trail_at, b.trail_old, control[TRAIL]
    at = b.section[entry]
    base = 3 * count + blocks
    trail_at[size], trail_old[size] = at, b.skyline[at]
    trail_at[size + 1], trail_old[size + 1] = base + at, b.rest[at]
    trail_at[size + 2], trail_old[size + 2] = base + count + at, b.live[at]
    trail_at[size + 3], trail_old[size + 3] = base + 4 * count + at, b.solid[at]
    control[TRAIL] = size + 4
    b.skyline[at] = level
    b.solid[at] = level
    b.rest[at] -= b.top[entry] - b.low[entry]
    b.live[at] -= 1
    last = b.begin[at] + b.live[at]
    gone, other = b.place[entry], b.entries[last]
    b.entries[gone], b.entries[last] = other, entry
    b.place[other], b.place[entry] = gone, last


def _float(b: Board, at: int, change: int) -> None:
    """Count an entry that floats in a section, or no longer does."""
    count, control = len(b.skyline), b.control
    size = control[TRAIL]
    b.trail_at[size], b.trail_old[size] = 6 * count + len(b.head) + at, b.floating[at]
    control[TRAIL] = size + 1
    b.floating[at] += change


def _decide(b: Board, block: int, offset: int) -> int:
    """Fix a block's offset; its sections go to the queue, whose length is returned."""
    count, blocks, control = len(b.skyline), len(b.head), b.control
    trail_at, trail_old = b.trail_at, b.trail_old
    base = 3 * count + blocks
    begin, end = b.first[block], b.first[block + 1]
    size = control[TRAIL]
    trail_at[size], trail_old[size] = base + 5 * count + block, b.decided[block]
    trail_at[size + 1], trail_old[size + 1] = 3 * count + block, b.head[block]
    size += 2
    b.decided[block] = 1
    b.head[block] = offset
    for at in range(b.section[begin], b.section[end - 1]):
        trail_at[size], trail_old[size] = base + 2 * count + at, b.crossing[at]
        size += 1
        b.crossing[at] -= 1
    control[TRAIL] = size
    length = 0
    for entry in range(begin, end):
        at = b.section[entry]
        if b.skyline[at] == offset + b.low[entry]:
            _cover(b, entry, offset + b.top[entry])
        else:
            _float(b, at, 1)
        b.queue[length] = at
        length += 1
    return length


def _clear(b: Board, block: int, offset: int) -> int:
    """Move an offset up until the block is clear of all that floats in its sections."""
    step = b.alignment[block]
    moved = True
    while moved:
        moved = False
        for entry in range(b.first[block], b.first[block + 1]):
            at = b.section[entry]
            if b.floating[at] > 0:
                start = b.begin[at]
                for other in b.entries[start : start + b.live[at]]:
                    owner = b.block[other]
                    if b.decided[owner] == 1 and owner != block:
                        above = b.head[owner] + b.top[other]
                        if offset + b.low[entry] < above and b.head[owner] + b.low[other] < offset + b.top[entry]:
                            offset = -(-(above - b.low[entry]) // step) * step
                            moved = True
    return offset


def _lift(b: Board, owner: int, need: int, found: int) -> int:
    """Raise a head; sections whose floor it was become dirty, and are added to the `found` ones queued."""
    at = b.control[TRAIL]
    old = b.head[owner]
    b.trail_at[at], b.trail_old[at] = 3 * len(b.skyline) + owner, old
    b.control[TRAIL] = at + 1
    b.head[owner] = need
    section, low, skyline, dirty = b.section, b.low, b.skyline, b.dirty
    for entry in range(b.first[owner], b.first[owner + 1]):
        at = section[entry]
        if dirty[at] == 0 and skyline[at] == old + low[entry]:
            dirty[at] = 1
            b.queued[found] = at
            found += 1
    return found


def _settle(b: Board, length: int, frame: int, placed: int) -> bool:
    """Draw all conclusions from the changes in the first `length` sections of the queue; False for a dead state.

    `placed` is the block whose placement changed them, or -1. Where no block can float, its sections are level.
    """
    first, low, block = b.first, b.low, b.block
    begin, entries, live, head, skyline = b.begin, b.entries, b.live, b.head, b.skyline
    alignment, high, decided, floating, dirty, queue, queued = (
        b.alignment, b.high, b.decided, b.floating, b.dirty, b.queue, b.queued
    )  # fmt: skip
    rest, spare, changed, options = b.rest, b.spare, b.changed, b.options
    trail_at, trail_old, control = b.trail_at, b.trail_old, b.control
    count = len(skyline)
    capacity, floats = control[CAPACITY], control[FLOATS]
    room = len(trail_at) - 4 * len(low) - 16 * count
    good = True
    while length > 0 and good:
        if control[TRAIL] > room:
            control[OVERFLOW] = 1
            return False
        found = 0
        for number in range(length):
            at = queue[number]
            if dirty[at] == 0:
                dirty[at] = 1
                queued[found] = at
                found += 1
        if floats == 0 and placed >= 0:
            level = head[placed] + b.top[first[placed]]
            for owner in b.near[b.near_first[placed] : b.near_first[placed + 1]]:
                if decided[owner] == 0:
                    need = level - low[first[owner]]
                    if need > head[owner]:
                        step = alignment[owner]
                        if step > 1:
                            need = -(-need // step) * step
                        if need + high[owner] > capacity:
                            good = False
                            break
                        found = _lift(b, owner, need, found)
            length = 0
        for number in range(length):
            at = queue[number]
            level, start, afloat = skyline[at], begin[at], floating[at]
            for entry in entries[start : start + live[at]]:
                owner = block[entry]
                need = level - low[entry]
                if (need > head[owner] or afloat > 0) and decided[owner] == 0:
                    if need > head[owner]:
                        step = alignment[owner]
                        if step > 1:
                            need = -(-need // step) * step
                    else:
                        need = head[owner]
                    if floats == 1:
                        need = _clear(b, owner, need)
                    if need == head[owner]:
                        continue
                    if need + high[owner] > capacity:
                        good = False
                        break
                    found = _lift(b, owner, need, found)
            if not good:
                break
        length = 0
        for number in range(found):
            at = queued[number]
            dirty[at] = 0
            if not good or live[at] == 0:
                continue
            floor, ways, start = _FAR, 0, begin[at]
            lifted = -1
            for entry in entries[start : start + live[at]]:
                owner = block[entry]
                bottom = head[owner] + low[entry]
                if bottom < floor:
                    floor, ways = bottom, 0
                    lifted = -1
                if bottom == floor:
                    ways += 1
                    if decided[owner] == 1:
                        lifted = entry
            if floor + rest[at] - spare[at] > capacity:
                good = False
                continue
            size = control[TRAIL]
            if floor > skyline[at]:
                trail_at[size], trail_old[size] = at, skyline[at]
                size += 1
                skyline[at] = floor
            if changed[at] != frame:
                trail_at[size], trail_old[size] = count + at, changed[at]
                size += 1
                changed[at] = frame
            if options[at] != ways:
                trail_at[size], trail_old[size] = 2 * count + at, options[at]
                size += 1
                options[at] = ways
            control[TRAIL] = size
            if lifted >= 0:
                _cover(b, lifted, head[block[lifted]] + b.top[lifted])
                _float(b, at, -1)
                queue[length] = at
                length += 1
    return good


def _component(b: Board, lower: int, upper: int, frame: int) -> bool:
    """Find, between two sections, the component that changed last, the shortest of equals; put it into a frame."""
    live, floating, crossing, changed = b.live, b.floating, b.crossing, b.changed
    best, width = -2, 0
    at = lower
    while at <= upper:
        begin, owner, free = at, -2, False
        while True:
            if live[at] > floating[at]:
                free = True
            if changed[at] > owner:
                owner = changed[at]
            if at == upper or crossing[at] == 0:
                break
            at += 1
        if free and (owner > best or (owner == best and at - begin < width)):
            best, width = owner, at - begin
            b.frame_lower[frame], b.frame_upper[frame], b.frame_owner[frame] = begin, at, owner
        at += 1
    return best > -2


def _section(b: Board, frame: int) -> int:
    """Choose the section to branch on: in a valley of the component, by the rule in force."""
    skyline, rest, live, floating, options, spare, control = (
        b.skyline, b.rest, b.live, b.floating, b.options, b.spare, b.control
    )  # fmt: skip
    lower, upper = b.frame_lower[frame], b.frame_upper[frame]
    capacity, rule, right = control[CAPACITY], control[RULE], control[RIGHT]
    chosen, best, second = -1, _FAR, _FAR
    before = _FAR
    at = lower
    while at <= upper:
        if live[at] == floating[at]:
            before = _FAR
            at += 1
            continue
        begin, level = at, skyline[at]
        while at < upper and skyline[at + 1] == level and live[at + 1] > floating[at + 1]:
            at += 1
        after = _FAR
        if at < upper and live[at + 1] > floating[at + 1]:
            after = skyline[at + 1]
        if before > level and after > level:
            for here in range(begin, at + 1):
                slack = capacity + spare[here] - level - rest[here]
                score, other = level, slack
                if rule != LOWEST:
                    score = options[here] + (1 if slack > 0 else 0)
                if rule == FEWEST:
                    other = level
                if score < best or (score == best and (other < second or (other == second and right == 1))):
                    chosen, best, second = here, score, other
        before = level
        at += 1
    return chosen


def _next_level(b: Board, at: int) -> int:
    """Find the lowest level, above its skyline, at which a block can come to lie in a section.

    Where none lies directly on the skyline, the lowest block there rests on something else: on a block that does not
    cover this section, if it could have lain on the skyline, or where its head is.
    """
    level, start = b.skyline[at], b.begin[at]
    found = _FAR
    for entry in b.entries[start : start + b.live[at]]:
        bottom = b.head[b.block[entry]] + b.low[entry]
        if level < bottom < found:
            found = bottom
    if b.control[FLOATS] == 0:
        return _next_rest(b, at, found)
    linked = b.control[LINKED]
    for entry in b.entries[start : start + b.live[at]]:
        owner = b.block[entry]
        if b.head[owner] + b.low[entry] != level:
            continue
        step = b.alignment[owner]
        for mine in range(b.first[owner], b.first[owner + 1]):
            here = b.section[mine]
            if here == at and linked == 0:
                continue
            left = b.begin[here]
            for other in b.entries[left : left + b.live[here]]:
                under = b.block[other]
                if under == owner:
                    continue
                offset = b.head[under] + b.top[other] - b.low[mine]
                if step > 1:
                    offset = -(-offset // step) * step
                bottom = offset + b.low[entry]
                if bottom <= level and b.decided[under] == 0:
                    # It is not yet where it would have to be, and may come to lie anywhere above.
                    bottom = level + step
                if level < bottom < found:
                    if linked == 0 and b.decided[under] == 0:
                        covers = False
                        for theirs in b.section[b.first[under] : b.first[under + 1]]:
                            if theirs == at:
                                covers = True
                                break
                        if covers:
                            continue
                    found = bottom
    return found


def _next_rest(b: Board, at: int, found: int) -> int:
    """Go on with `_next_level` where no block can float: each block has one range of addresses in all its sections."""
    level, start, stop = b.skyline[at], b.begin[at], b.begin[at] + b.live[at]
    marked, decided, head = b.marked, b.decided, b.head
    for entry in b.entries[start:stop]:
        marked[b.block[entry]] = 1
    for entry in b.entries[start:stop]:
        owner = b.block[entry]
        if head[owner] + b.low[entry] != level:
            continue
        step = b.alignment[owner]
        for under in b.near[b.near_first[owner] : b.near_first[owner + 1]]:
            if decided[under] == 0 and marked[under] == 0:
                bottom = head[under] + b.top[b.first[under]]
                if step > 1:
                    bottom = -(-(bottom - b.low[entry]) // step) * step + b.low[entry]
                if level < bottom < found:
                    found = bottom
    for entry in b.entries[start:stop]:
        marked[b.block[entry]] = 0
    return found


def _rests(b: Board, block: int) -> bool:
    """Tell whether a block at its head lies on the ground or on another block, in at least one section.

    One that does not could be pushed down: the packing is found elsewhere too.
    """
    offset, step = b.head[block], b.alignment[block]
    if offset == b.least[block]:
        return True
    for entry in range(b.first[block], b.first[block + 1]):
        if -(-(b.solid[b.section[entry]] - b.low[entry]) // step) * step == offset:
            return True
    return False


def _branch(b: Board, frame: int) -> None:
    """List a frame's options: blocks that could lie on the skyline, by rank, one of each kind; then none of them."""
    at = b.frame_section[frame]
    level, start = b.skyline[at], b.begin[at]
    begin = b.frame_end[frame - 1] if frame > 0 else 0
    floats = b.control[FLOATS]
    end = begin
    for entry in b.entries[start : start + b.live[at]]:
        owner = b.block[entry]
        if b.decided[owner] == 1 or b.head[owner] + b.low[entry] != level:
            continue
        if floats == 0 and not _rests(b, owner):
            continue
        known = False
        for number in range(begin, end):
            if b.twin[b.choices[number]] == b.twin[owner]:
                known = True
                if b.rank[owner] < b.rank[b.choices[number]]:
                    b.choices[number] = owner
        if not known:
            b.choices[end] = owner
            end += 1
    for number in range(begin + 1, end):
        owner, other = b.choices[number], number
        while other > begin and b.rank[b.choices[other - 1]] > b.rank[owner]:
            b.choices[other] = b.choices[other - 1]
            other -= 1
        b.choices[other] = owner
    if b.control[CAPACITY] + b.spare[at] > level + b.rest[at]:
        b.choices[end] = -1
        end += 1
    b.frame_next[frame], b.frame_end[frame] = begin, end
    b.frame_mark[frame] = b.control[TRAIL]


def _move(b: Board, frame: int, choice: int) -> bool:
    """Apply one option of a frame; False for a dead state."""
    if choice >= 0:
        return _settle(b, _decide(b, choice, b.head[choice]), frame, choice)
    at, control = b.frame_section[frame], b.control
    size = control[TRAIL]
    b.trail_at[size], b.trail_old[size] = at, b.skyline[at]
    control[TRAIL] = size + 1
    b.skyline[at] = b.frame_raise[frame]
    b.queue[0] = at
    return _settle(b, 1, frame, -1)


def advance(b: Board, budget: int) -> int:
    """Go on with a search until it ends, or has used up a budget of nodes.

    Args:
        b: a board as `engine` lays it out, or as an earlier call left it.
        budget: nodes (options tried) that this call may use.

    Returns:
        `SOLVED` (the offsets are in `head`), `INFEASIBLE` or `STOPPED`.
    """
    control = b.control
    depth, nodes = control[DEPTH], 0
    last = len(b.skyline) - 1
    if control[PHASE] == 0:
        control[PHASE] = 1
        for at in range(last + 1):
            b.queue[at] = at
        if not _settle(b, last + 1, -1, -1):
            return INFEASIBLE
        if not _component(b, 0, last, 0):
            return SOLVED
        b.frame_section[0] = _section(b, 0)
        _branch(b, 0)
        depth = 1
    while True:
        frame = depth - 1
        if b.frame_next[frame] < b.frame_end[frame]:
            if nodes >= budget:
                break
            choice = b.choices[b.frame_next[frame]]
            b.frame_next[frame] += 1
            if choice < 0:
                # Looked for only now: most frames never come to it.
                at = b.frame_section[frame]
                above = _next_level(b, at)
                if above + b.rest[at] - b.spare[at] > control[CAPACITY]:
                    continue
                b.frame_raise[frame] = above
            nodes += 1
            if not _move(b, frame, choice):
                if control[OVERFLOW] == 1:
                    break
                _undo(b, b.frame_mark[frame])
                continue
            if depth == len(b.frame_next) or b.frame_end[frame] + len(b.head) + 1 > len(b.choices):
                control[OVERFLOW] = 1
                break
            if not _component(b, b.frame_lower[frame], b.frame_upper[frame], depth) and not _component(
                b, 0, last, depth
            ):
                control[NODES] += nodes
                return SOLVED
            b.frame_section[depth] = _section(b, depth)
            _branch(b, depth)
            depth += 1
        else:
            owner = b.frame_owner[frame]
            if owner < 0:
                control[NODES] += nodes
                return INFEASIBLE
            _undo(b, b.frame_mark[owner])
            depth = owner + 1
    control[DEPTH] = depth
    control[NODES] += nodes
    return STOPPED
