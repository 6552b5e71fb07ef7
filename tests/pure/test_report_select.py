"""What a reader may choose to see, and the result itself."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report_samples import SAMPLES, add_up, layers, modules

from memfit.analysis.result import Profile
from memfit.analysis.select import select
from memfit.errors import MissingExtra, UsageError
from memfit.report.columns import peak_row


def names(profile: Profile) -> list[str]:
    return [row["name"] for row in profile.rows]


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.from_regex(r"[ab](\.[0-9]{1,2}){0,2}", fullmatch=True),
            "type": st.sampled_from(["conv2d", "linear", None]),
            "macs": st.integers(0, 10**12),
            "peak_bytes": st.one_of(st.none(), st.integers(0, 10**12)),
        }
    ),
    min_size=1,
    max_size=12,
)


def profile_of(rows: list[dict]) -> Profile:
    totals = {"macs": sum(row["macs"] for row in rows)}
    return Profile("net", (), "layer", "ideal", False, "cpu", tuple(rows), totals, (), {})


@given(ROWS, st.sampled_from(["macs", "-macs", "+macs", "peak_bytes", "name", "type"]), st.integers(1, 15))
def test_what_is_shown_and_what_is_not_make_the_whole(rows, sort, top) -> None:
    whole = profile_of(rows)
    part = select(whole, sort=sort, top=top)
    assert len(part.rows) + part.selection.hidden_rows == len(rows)
    assert part.totals == whole.totals
    assert whole.rows == tuple(rows)
    add_up(part)


@given(ROWS, st.integers(1, 3))
def test_joined_rows_keep_the_sums_and_the_largest_peak(rows, depth) -> None:
    joined = select(profile_of(rows), depth=depth)
    add_up(joined)
    assert len(set(names(joined))) == len(joined.rows) or depth > 1
    if all(row["peak_bytes"] is not None for row in rows):
        assert max(row["peak_bytes"] for row in joined.rows) == max(row["peak_bytes"] for row in rows)


@given(ROWS, st.integers(0, 10**12))
def test_a_condition_and_its_opposite_split_the_rows(rows, limit) -> None:
    whole = profile_of(rows)
    low, high = (select(whole, where=[f"macs{sign}{limit}"]).rows for sign in ("<", ">="))
    assert len(low) + len(high) == len(rows)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("type=conv2d", ["stem.0", "blocks.0.conv.1"]),
        ("type == conv2d", ["stem.0", "blocks.0.conv.1"]),
        ("peak_bytes>=32KiB", ["blocks.0.conv.0", "blocks.0.conv.1", "blocks.0"]),
        ("peak_bytes>49,151", None),
        ("name~^blocks", ["blocks.0.conv.0", "blocks.0.conv.1", "blocks.0"]),
        ("kernel=1x1", ["blocks.0.conv.1"]),
        ("params_share>40%", ["stem.0"]),
        ("macs>=65_536", ["stem.0", "blocks.0.conv.1"]),
        ("macs<1e3", ["input", "blocks.0", "pool", "head.classifier.projection.linear"]),
        ("norm!=batch_norm", ["input", "blocks.0", "pool", "head.classifier.projection.linear"]),
        ("kernel!=null", ["stem.0", "blocks.0.conv.0", "blocks.0.conv.1"]),
        ("activation=none", ["input", "blocks.0.conv.1", "blocks.0", "pool", "head.classifier.projection.linear"]),
    ],
)
def test_conditions(where: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            select(layers(), where=[where])
    else:
        assert names(select(layers(), where=[where])) == expected


def test_conditions_all_hold() -> None:
    assert names(select(layers(), where=["type=conv2d", "kernel=3x3"])) == ["stem.0"]


def test_numbers_fall_and_text_rises() -> None:
    assert [row["macs"] for row in select(layers(), sort="macs").rows][:2] == [110592, 65536]
    assert [row["macs"] for row in select(layers(), sort="+macs").rows][-1] == 110592
    assert names(select(layers(), sort="name"))[0] == "blocks.0"
    assert names(select(layers(), sort="-name"))[0] == "stem.0"
    assert [row["kernel"] for row in select(layers(), sort="kernel").rows][2:4] == [(1, 1), None]


def test_numbers_in_names_sort_by_value() -> None:
    whole = profile_of([{"name": f"features.{i}", "macs": i} for i in (10, 2, 1)])
    assert names(select(whole, sort="name")) == ["features.1", "features.2", "features.10"]


def test_choosing_twice_still_adds_up() -> None:
    part = select(select(layers(), sort="macs", top=5), top=2)
    assert part.selection.hidden_rows == 5
    add_up(part)


def test_a_joined_row_is_found_as_the_peak() -> None:
    joined = select(layers(), depth=1)
    assert names(joined) == ["input", "stem", "blocks", "pool", "head"]
    assert peak_row(joined) == 2
    assert peak_row(select(layers(), where=["type=add"])) == 0
    assert peak_row(select(layers(), where=["type=linear"])) is None


def test_columns_stand_as_asked() -> None:
    part = select(layers(), columns=["macs", "name"])
    assert [list(row) for row in part.rows] == [["macs", "name"]] * 7


def test_the_note_says_how_much_is_shown() -> None:
    part = select(layers(), sort="macs", top=1)
    assert part.notes[-1].startswith("shown: 1 of 7 rows; activations 4,096 of 19,482")
    assert "activation_bytes 16.0 KiB of 76.1 KiB" in part.notes[-1]
    assert part.to_dict()["hidden"]["rows"] == 6
    assert select(layers(), sort="macs").to_dict()["hidden"] is None


def test_no_match_says_what_there_is() -> None:
    assert any("type is one of input, conv2d" in note for note in SAMPLES["empty"].notes)


def test_modules_are_cut_by_depth_and_never_summed() -> None:
    part = select(modules(), depth=1)
    assert names(part) == ["(root)", "stem", "body"]
    assert part.selection.hidden == {}
    assert part.notes == ("shown: 3 of 4 rows",)


@pytest.mark.parametrize(
    ("options", "what", "where", "received", "todo"),
    [
        ({"sort": "peak"}, "no such column", "--sort", "'peak'", "did you mean peak_bytes"),
        ({"columns": ["nmae"]}, "no such column", "--columns", "'nmae'", "did you mean name"),
        ({"where": ["typ=conv2d"]}, "no such column", "--where", "'typ'", "did you mean type"),
        ({"where": ["type"]}, "not a condition", "--where", "'type'", "write COLUMN"),
        ({"where": ["type<conv"]}, "compares numbers", "--where type<conv", "'conv'", "use = or !="),
        ({"where": ["name~["]}, "not a regular expression", "--where name~[", "'['", "escape"),
        ({"where": ["peak_bytes>big"]}, "holds sizes", "--where peak_bytes>big", "'big'", "100KiB"),
        ({"where": ["macs>1KiB"]}, "holds numbers", "--where macs>1KiB", "'1KiB'", "write a number"),
        ({"top": 0}, "counts from one", "--top", "0", "1 or more"),
        ({"depth": 0}, "counts from one", "--depth", "0", "1 or more"),
    ],
)
def test_errors_say_what_where_received_and_todo(options, what, where, received, todo) -> None:
    with pytest.raises(UsageError) as caught:
        select(layers(), **options)
    error = caught.value
    assert what in error.what
    assert error.where == where
    assert error.received == received
    assert todo in (error.todo or "")


def test_the_contract_has_its_keys_in_order() -> None:
    contract = layers().to_dict()
    required = ["memfit", "command", "source", "inputs", "memory", "rows", "totals", "notes", "environment"]
    assert [key for key in contract if key in required] == required
    assert contract["command"] == "profile"
    assert contract["rows"][1]["kernel"] == [3, 3]
    assert json.loads(json.dumps(contract)) == contract


def test_a_result_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        layers().source = "other"  # type: ignore[misc]


def test_pandas_has_the_rows_and_names_the_model() -> None:
    pytest.importorskip("pandas")
    frame = layers().to_pandas()
    assert list(frame["name"]) == names(layers())
    assert frame.attrs["memory"] == "ideal"


def test_missing_pandas_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'memfit\[notebook\]'"):
        layers().to_pandas()


def test_missing_matplotlib_gives_the_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from memfit.report import files

    monkeypatch.setattr(files, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(MissingExtra, match=r"pip install 'memfit\[plots\]'"):
        files.check([tmp_path / "a.png"], force=False)
