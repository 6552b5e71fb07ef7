"""The graph's own rules, its file, and its lifetimes: worked out by hand, torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graphs import inverted_residual, training_step
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import GraphError, OutputError, SourceError
from memfit.graph.io import from_json, load, save, to_json
from memfit.graph.model import Graph, Ref, StorageKind, Symbol
from memfit.graph.verify import verify

GRAPHS = {"inference": inverted_residual(), "training": training_step()}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_gives_the_same_graph_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.memfit.json"
    save(GRAPHS[name], path)
    assert load(path) == GRAPHS[name]
    assert [p.name for p in tmp_path.iterdir()] == ["net.memfit.json"]


def test_a_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "net.memfit.json"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--force") as caught:
        save(GRAPHS["inference"], path)
    assert caught.value.where == str(path)
    assert path.read_text() == "mine"
    save(GRAPHS["inference"], path, force=True)
    assert load(path) == GRAPHS["inference"]


def test_arguments_of_every_kind_survive() -> None:
    graph = GRAPHS["inference"]
    args = (Ref(0), 1, 2.5, float("inf"), True, None, "text", Symbol("torch.float32"), (Ref(1), (2, -1)), ())
    op = graph.ops[0]._replace(args=args, kwargs={"dtype": Symbol("torch.int64"), "size": (1, 2)})
    changed = dataclasses.replace(graph, ops=(op, *graph.ops[1:]))
    again = from_json(json.loads(json.dumps(to_json(changed))))
    assert again == changed
    assert [type(a) for a in again.ops[0].args] == [type(a) for a in args]


def _change(kind: str, at: int, /, **fields: Any) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        records = list(getattr(graph, kind))
        records[at] = records[at]._replace(**fields)
        return dataclasses.replace(graph, **{kind: tuple(records)})

    return change


_LAST = len(GRAPHS["inference"].ops)

BROKEN = {
    "id is its position": _change("storages", 1, id=7),
    "no negative size": _change("storages", 0, nbytes=-1),
    "born before or at": _change("storages", 0, birth=-5),
    "dies after its birth": _change("storages", 0, death=_LAST + 1),
    "has a storage": _change("tensors", 0, storage=999),
    "dtype is a known one": _change("tensors", 0, dtype="float31"),
    "one stride per dimension": _change("tensors", 0, strides=(1,)),
    "lies inside its storage": _change("tensors", 0, offset=1 << 30),
    "follows its parent": _change("scopes", 1, parent=5),
    "scope's parameters exist": _change("scopes", 1, params=(10_000,)),
    "index is its position": _change("ops", 1, index=0),
    "belongs to a scope": _change("ops", 1, scope=99),
    "tensors exist": _change("ops", 1, inputs=(10_000,)),
    "inputs exist": lambda g: dataclasses.replace(g, inputs=(10_000,)),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_every_rule_is_checked_and_named(rule: str) -> None:
    verify(GRAPHS["inference"])
    with pytest.raises(GraphError) as caught:
        verify(BROKEN[rule](GRAPHS["inference"]))
    assert rule in caught.value.what
    assert caught.value.where
    assert caught.value.received
    assert caught.value.todo


def test_reading_the_dead_is_refused() -> None:
    graph = GRAPHS["inference"]
    op = graph.ops[-1]
    storage = graph.tensors[op.inputs[0]].storage
    for field in ("death", "ideal_death"):
        dead = _change("storages", storage, **{field: op.index})
        with pytest.raises(GraphError, match="reads live storages"):
            verify(dead(graph))


def test_a_value_cannot_be_read_before_it_is_written() -> None:
    graph = GRAPHS["inference"]
    tid = graph.ops[-1].inputs[0]
    with pytest.raises(GraphError, match="written before"):
        verify(_change("tensors", tid, version=9)(graph))


def test_live_bytes_count_what_lives_and_no_state() -> None:
    graph = GRAPHS["inference"]
    state = {StorageKind.PARAMETER, StorageKind.BUFFER}
    for index in range(len(graph.ops)):
        for live, end in ((graph.live_bytes, "death"), (graph.ideal_live_bytes, "ideal_death")):
            expected = sum(
                s.nbytes for s in graph.storages if s.kind not in state and s.birth <= index < getattr(s, end)
            )
            assert live[index] == expected


TEXT = json.dumps(to_json(GRAPHS["inference"]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.integers(0, 12), st.text(max_size=6))
def test_a_damaged_file_is_one_clear_error_or_still_a_graph(at: int, cut: int, put: str) -> None:
    damaged = TEXT[:at] + put + TEXT[at + cut :]
    with contextlib.suppress(json.JSONDecodeError, GraphError):  # anything else is a fault
        verify(from_json(json.loads(damaged)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"ops": [', "not valid JSON"),
        (b"\xff\xfe\x00", "not a graph"),
        (b"[]", "not a graph"),
        (b"{}", "not a graph"),
        (b'{"memfit_graph": 99}', "another version"),
    ],
)
def test_a_file_that_is_no_graph(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.memfit.json"
    path.write_bytes(content)
    with pytest.raises(GraphError) as caught:
        load(path)
    assert words in caught.value.what
    assert str(path) in str(caught.value.where)
    assert caught.value.todo


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        load(tmp_path / "nowhere.memfit.json")
    assert "nowhere" in str(caught.value.where)
