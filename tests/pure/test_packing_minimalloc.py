"""MiniMalloc's CSV: what it may say, and one clear message for every fault; its challenging instances."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memfit.packing import Buffer, PackingError, Problem, Span, pack, violations
from memfit.packing.minimalloc import parse_minimalloc, read_minimalloc

CHALLENGING = Path(__file__).parents[3] / "shared" / "benchmarks" / "minimalloc"


def test_columns_in_any_order_and_optional_ones() -> None:
    text = "size,upper,alignment,id,lower,gaps,hint,offset\n8,9,4,x,0,2-4 5-6@0:3,7,-1\n8,9,4,y,0,,,16\r\n\n"
    assert parse_minimalloc(text, 64) == Problem(
        (
            Buffer("x", 8, [(0, 2), Span(2, 4, 0, 0), (4, 5), Span(5, 6, 0, 3), (6, 9)], alignment=4),
            Buffer("y", 8, [(0, 9)], alignment=4, offset=16),
        ),
        capacity=64,
    )


def test_the_older_columns_include_their_end() -> None:
    assert parse_minimalloc("buffer_id,start,end,size\na,0,3,8\n").buffers == (Buffer("a", 8, [(0, 4)]),)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "empty", "t.csv"),
        ("id,lower,size\n", "lacks a column: 'upper'", "line 1"),
        ("id,lower,upper,size,size\n", "twice: 'size'", "line 1"),
        ("id,lower,upper,size,colour\n", "not known: 'colour'", "line 1"),
        ("id,lower,upper,size\na,0,1\n", "3 fields, the header 4", "line 2"),
        ("id,lower,upper,size\na,0,1,4\nb,0,x,4\n", "upper is not an integer", "line 3"),
        ("id,lower,upper,size\na,0,1,1e3\n", "size is not an integer", "line 2"),
        ("id,lower,upper,size\na,0,1,99999999999999999999999\n", "size is not an integer", "line 2"),
        ("id,lower,upper,size\na,0,1,-4\n", "size is less than 0", "line 2, buffer a"),
        ("id,lower,upper,size\na,2,1,4\n", "ends before it begins", "line 2, buffer a"),
        ("id,lower,upper,size\na,0,1,4\na,0,1,4\n", "twice, first in line 2", "line 3"),
        ("id,lower,upper,size,alignment\na,0,1,4,0\n", "alignment is less than 1", "line 2"),
        ("id,lower,upper,size,offset\na,0,1,4,-2\n", "offset is less than 0", "line 2"),
        ("id,lower,upper,size,gaps\na,0,9,4,3\n", "gap is not well formed", "line 2"),
        ("id,lower,upper,size,gaps\na,0,9,4,3-4@1\n", "gap is not well formed", "line 2"),
        ("id,lower,upper,size,gaps\na,0,9,4,3-12\n", "gap lies outside", "line 2"),
        ("id,lower,upper,size,gaps\na,0,9,4,3-5 4-6\n", "gap lies outside", "line 2"),
        ('id,lower,upper,size\n"a\n,0,1,4\n', "fields, the header 4", "line 3"),
    ],
)
def test_one_clear_message_for_every_fault(text: str, what: str, where: str) -> None:
    with pytest.raises(PackingError) as caught:
        parse_minimalloc(text, name="t.csv")
    assert what in caught.value.what
    assert where in (caught.value.where or "")
    assert caught.value.todo


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PackingError, match="No such file"):
        read_minimalloc(tmp_path / "none.csv")
    (tmp_path / "image.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PackingError, match="not UTF-8"):
        read_minimalloc(tmp_path / "image.csv")


@settings(max_examples=300, deadline=None)
@example("id,lower,upper,size\n\x00,0,0,0")
@given(st.text(alphabet='id,lowerups z0123456789-\n"@:;\x00\ufeff٣', max_size=80))
def test_any_text_is_a_problem_or_one_message(text: str) -> None:
    for given_text in (text, "id,lower,upper,size,gaps\n" + text):
        try:
            parse_minimalloc(given_text)
        except PackingError as fault:
            assert fault.todo  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("name", "ABCDE")
def test_challenging_instances_fit_their_capacity(name: str) -> None:
    path = CHALLENGING / f"{name}.1048576.csv"
    if not path.exists():
        pytest.skip(f"MiniMalloc's instances are not part of memfit: {path} is not there")
    problem = read_minimalloc(path, 1_048_576)
    packing = pack(problem, use_numba=False)
    assert packing.fits
    assert violations(problem, packing.offsets, capacity=1_048_576) == []
