"""What a language model keeps between two tokens: its cache of keys and values, by the names that a capture gives them.

A capture names the tensors that the cache holds after the run `kv_cache.<layer>.keys`, `.values` and so on, and those
that it held before the run the same with `past_` in front; what recurrent layers keep is named `state.<layer>.…`. A
named tensor is as long as its layer needs: `context` tokens, or the window's where attention slides.
"""

from __future__ import annotations

from memfit.graph.model import Graph, Tensor
from memfit.units import format_bytes

KEYS_AND_VALUES = "kv_cache."
STATES = "state."
PAST = "past_"


def held(graph: Graph, prefix: str) -> list[Tensor]:
    """List the tensors of a cache, by what their names begin with."""
    return [t for t in graph.tensors if t.name is not None and t.name.startswith(prefix)]


def storages(graph: Graph) -> frozenset[int]:
    """Storages that are part of the cache, before the run or after it."""
    return frozenset(
        t.storage
        for prefix in (KEYS_AND_VALUES, STATES, PAST + KEYS_AND_VALUES, PAST + STATES)
        for t in held(graph, prefix)
    )


def totals(graph: Graph) -> dict[str, int]:
    """Give the bytes of keys and values, and of recurrent layers' states where there are any; empty without a cache.

    >>> from memfit.graph.model import Graph, Storage, StorageKind, Tensor
    >>> keys = Tensor(0, 0, (1, 2, 3, 4), (24, 12, 4, 1), "bfloat16", name="kv_cache.0.keys")
    >>> totals(Graph((Storage(0, 96, StorageKind.ACTIVATION, 0, 1, 1),), (keys,), (), (), (), ()))
    {'kv_cache_bytes': 48}
    """
    found = {}
    for key, prefix in (("kv_cache_bytes", KEYS_AND_VALUES), ("state_bytes", STATES)):
        tensors = held(graph, prefix)
        if tensors:
            found[key] = sum(t.nbytes for t in tensors)
    return found


def notes(graph: Graph) -> list[str]:
    """Say where the cache holds more bytes than its keys and values have: views of longer tensors."""
    needed = sum(t.nbytes for t in held(graph, KEYS_AND_VALUES))
    found = []
    for when, prefix in (("before the run", PAST + KEYS_AND_VALUES), ("after the run", KEYS_AND_VALUES)):
        kept = sum(graph.storages[s].nbytes for s in {t.storage for t in held(graph, prefix)})
        if kept > needed:
            found.append(f"{format_bytes(kept)} {when}")
    if not found:
        return []
    return [
        f"keys and values take {format_bytes(needed)}, but the cache holds {' and '.join(found)}: its sliding layers "
        "keep views of the whole prompt until the next token comes"
    ]
