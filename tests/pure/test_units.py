"""Sizes and shapes as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import UsageError
from memfit.units import format_bytes, format_count, format_shape, parse_bytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1404928, "1372.0 KiB"),
        (10 << 20, "10.0 MiB"),
        (10 << 30, "10.0 GiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("65536", 65536),
        ("12B", 12),
        ("256KiB", 262144),
        ("256 kib", 262144),
        ("1.5 MiB", 1572864),
        ("24GiB", 24 << 30),
        ("1KB", 1000),
        ("16GB", 16 * 10**9),
    ],
)
def test_parse_bytes(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "KiB", "12 apples", "-1", "1.2.3MiB", "1e3"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert "not a size" in caught.value.what
    assert caught.value.received == repr(text)
    assert "256KiB" in (caught.value.todo or "")


@given(st.integers(0, 1 << 50))
def test_a_printed_size_reads_back_within_its_rounding(nbytes: int) -> None:
    text = format_bytes(nbytes)
    step = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[text.split()[1]]
    assert abs(parse_bytes(text) - nbytes) <= step * 0.05 + 1


@given(st.lists(st.integers(0, 4096), max_size=5))
def test_a_shape_is_its_sizes_with_x_between(shape: list[int]) -> None:
    text = format_shape(tuple(shape))
    assert text == "scalar" if not shape else [int(part) for part in text.split("x")] == shape


def test_counts_have_separators() -> None:
    assert format_count(143667240) == "143,667,240"
