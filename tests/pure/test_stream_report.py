"""What `memfit stream` says: its text compared with a stored one, and its answers where something cannot be."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import pytest
import stream_nets
from tflite_models import Net

import memfit
from memfit.analysis.result import Stream
from memfit.errors import SourceError, UsageError
from memfit.formats.tflite import read_model
from memfit.report import RENDERERS, png, table
from memfit.report.stream import _points, lines
from memfit.stream import network_of, plan_stream, records
from memfit.stream.choose import within
from memfit.units import format_bytes

FOLDER = Path(__file__).parent / "stream_snapshots"
TEXTS = {
    "table-100.txt": partial(table.render, width=100),
    "report.md": RENDERERS["md"].render,
    "report.csv": RENDERERS["csv"].render,
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nets") / "net.tflite"
    net = stream_nets.StreamNet()
    x = net.conv(net.image(16, 16, 3), 4)
    for _ in range(2):
        x = net.conv(net.excite(net.conv(x, 16), 2), 6)
    path.write_bytes(net.finish(net.classify(x, 3)))
    return path


def planned(network: Path, **options: object) -> Stream:
    found = memfit.stream(str(network), **options)  # type: ignore[arg-type]
    return dataclasses.replace(found, source="net.tflite")


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("per", ["segment", "front"])
def test_text_is_as_stored(network: Path, per: str, kind: str) -> None:
    stream = StringIO()
    TEXTS[kind](planned(network, per=per, max_extra_macs=0.5), stream)
    path = FOLDER / f"{per}-{kind}"
    if os.environ.get("MEMFIT_UPDATE_SNAPSHOTS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(stream.getvalue(), encoding="utf-8")
    assert path.exists(), f"{path.name} is missing: review the output, then store it with MEMFIT_UPDATE_SNAPSHOTS=1"
    assert stream.getvalue() == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("per", ["segment", "front"])
def test_a_picture_is_drawn(network: Path, per: str) -> None:
    pytest.importorskip("matplotlib")
    stream = BytesIO()
    png.render(planned(network, per=per), stream)
    assert stream.getvalue().startswith(b"\x89PNG")


def test_both_ways_to_take_the_input_are_told(network: Path) -> None:
    fed, whole = planned(network), planned(network, input_resident=True)
    for name in ("fed_peak_bytes", "resident_peak_bytes", "fed_extra_macs_share", "resident_extra_macs_share"):
        assert fed.totals[name] == whole.totals[name]
    assert fed.totals["peak_bytes"] == fed.totals["fed_peak_bytes"]
    assert whole.totals["peak_bytes"] == whole.totals["resident_peak_bytes"]


def test_rows_add_up_to_the_extra_work(network: Path) -> None:
    found = planned(network, max_extra_macs=0.5)
    assert sum(row["extra_macs"] for row in found.rows) == found.totals["extra_macs"]
    assert any(row["type"] == "pass" for row in found.rows)


def test_an_impossible_peak_says_how_far_it_is(network: Path) -> None:
    found = planned(network, max_peak=100)
    assert found.totals["fits"] is False
    short, least = found.advice
    assert "too much for 100 B" in short
    assert str(found.totals["peak_at"]) in short
    assert "no plan with at most 50% extra MACs goes below" in least


def test_the_extra_work_that_would_reach_a_size_is_told_and_does(network: Path) -> None:
    asked = 0.001
    size = planned(network, max_extra_macs=0.5).totals["peak_bytes"]
    found = planned(network, max_extra_macs=asked, max_peak=size)
    assert found.totals["fits"] is False
    assert "with at most 0.1% extra MACs" in found.advice[0]
    option, share = found.advice[1].split()[:2]
    assert option == "--max-extra-macs"
    again = planned(network, max_extra_macs=share, max_peak=size)
    assert again.totals["fits"] is True
    assert found.advice[1].endswith(f"would reach {format_bytes(again.totals['peak_bytes'])}")


def test_the_arena_is_told_buffer_by_buffer(network: Path) -> None:
    found = planned(network, max_extra_macs=0.5)
    operators = [operator["index"] for operator in found.operators]
    assert len(operators) == found.rows[-1]["end_op"] > len(set(operators))  # the squeeze-excites' passes
    blocks = [
        (lower, upper, buffer["offset"] + start, size)
        for buffer in found.buffers
        for lower, upper, start, size in buffer["alive"]
    ]
    assert max(start + size for _, _, start, size in blocks) == found.totals["peak_bytes"]
    steps = range(max(upper for _, upper, _, _ in blocks))
    live = [sum(size for lower, upper, _, size in blocks if lower <= step < upper) for step in steps]
    assert max(live) == max(row["peak_bytes"] for row in found.rows)
    assert {"line", "whole", "sums"} <= {buffer["kind"] for buffer in found.buffers}
    for operator in found.operators:
        assert {operator["output"], *operator["inputs"]} <= {buffer["index"] for buffer in found.buffers}
    for buffer in found.buffers:
        assert buffer["nbytes"] == sum(size for *_, size in buffer["alive"])
        if buffer["kind"] == "line":
            row = found.rows[buffer["segment"]]
            assert row["type"] != "plain"
            assert 0 <= buffer["stripe"] < row["stripes"]


def test_rows_and_columns_can_be_chosen(network: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from memfit.cli.main import main

    picture = tmp_path / "chosen.png"
    command = ["stream", str(network), "--columns", "name,rows_kept", "--top", "1", "--sort", "rows_kept"]
    assert main([*command, "-o", str(picture)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert ["name", "rows", "kept"] in [line.split() for line in shown]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_input_is_taken_whole_where_that_needs_less(tmp_path: Path) -> None:
    net = stream_nets.StreamNet()
    x = net.image(6, 24, 1)
    path = tmp_path / "far.tflite"
    path.write_bytes(net.finish(net.conv(net.conv(net.sum(x, net.conv(x, 1, 5)), 1), 2, 3, 2)))
    network = network_of(memfit.capture(str(path)))
    fed, whole = (plan_stream(network, resident=way).front for way in (False, True))
    assert fed[0].peak_bytes > whole[0].peak_bytes
    assert fed[-1].peak_bytes < whole[-1].peak_bytes
    for share in (0, 0.5):
        found = memfit.stream(str(path), max_extra_macs=share)
        assert found.totals["fed_peak_bytes"] <= found.totals["resident_peak_bytes"]
        for point in found.front:
            either = [within(front, extra_macs=point["extra_macs"]) for front in (fed, whole)]
            assert point["fed_peak_bytes"] == min(choice.peak_bytes for choice in either if choice is not None)


def test_points_of_the_front_are_those_where_the_peak_falls() -> None:
    peaks = [None, 9, 9, 7, 7, 3]
    front = [{"peak_bytes": peak} for peak in peaks]
    assert [point["peak_bytes"] for point in _points(front)] == [9, 7, 3]
    assert [point["peak_bytes"] for point in _points([{"peak_bytes": -n} for n in range(22)])] == list(
        range(0, -22, -3)
    )


def test_boards_with_and_without_room_are_named(network: Path) -> None:
    found = planned(network)
    short = dataclasses.replace(
        found,
        boards=(
            {"name": "large", "ram_bytes": 1 << 20, "fits": True, "short_bytes": 0, "fitted_before": True},
            {"name": "small", "ram_bytes": 1 << 10, "fits": False, "short_bytes": 512, "fitted_before": False},
        ),
    )
    said = lines(short)
    assert "fits 1 of 2 known boards (1 before), the smallest: large (1 MiB)" in said
    assert "no room on small (512 B short)" in said
    for board in found.boards:
        assert board["fits"] is (board["short_bytes"] == 0)
        assert board["short_bytes"] == max(0, found.totals["peak_bytes"] - board["ram_bytes"])


def test_a_network_without_images_is_refused(tmp_path: Path) -> None:
    net = stream_nets.StreamNet()
    data = net.finish(net.classify(net.image(1, 1, 16), 4))
    path = tmp_path / "dense.tflite"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        memfit.stream(str(path))
    for part in ("row by row", "dense.tflite", "FULLY_CONNECTED", "memfit plan"):
        assert part in str(caught.value)


def test_rows_of_another_kind_are_refused(network: Path) -> None:
    with pytest.raises(UsageError, match="--per"):
        memfit.stream(str(network), per="layer")


def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    net = stream_nets.StreamNet()
    x = net.image(8, 8, 2)
    path = tmp_path / "broken.tflite"
    tall = net.tensor((1, 1 << 24, 8, 2), scale=0.05)
    path.write_bytes(net.build(net.op("HARD_SWISH", [x], [tall], "HardSwishOptions")))
    with pytest.raises(
        UsageError, match=r"(?s)rows or columns.*broken.tflite.*16,777,216 by 8.*how the model was made"
    ):
        memfit.stream(str(path))


def test_a_window_that_does_not_move_is_refused(tmp_path: Path) -> None:
    net = stream_nets.StreamNet()
    path = tmp_path / "still.tflite"
    path.write_bytes(net.build(stream_nets.Net.pool(net, net.conv(net.image(8, 8, 2), 2), stride=1)))
    model = read_model(path)
    pool = model.main.operators[1]
    still = pool._replace(options={**pool.options, "stride_w": 0})
    main = model.main._replace(operators=(model.main.operators[0], still))
    with pytest.raises(SourceError, match=r"(?s)AVERAGE_POOL_2D.*do not fit together.*operator 1"):
        records(dataclasses.replace(model, subgraphs=(main,)))


def test_a_file_whose_shapes_contradict_each_other_is_refused_by_its_run(tmp_path: Path) -> None:
    net = stream_nets.StreamNet()
    x = net.conv(net.image(8, 8, 2), 2)
    path = tmp_path / "broken.tflite"
    path.write_bytes(net.build(net.op("HARD_SWISH", [x], [net.tensor((1, 8, 6, 2), scale=0.05)], "HardSwishOptions")))
    with pytest.raises(SourceError, match=r"(?s)HARD_SWISH.*do not fit together.*operator 1.*8, 6"):
        memfit.stream(str(path), verify=True, verify_inputs=1)


@pytest.mark.parametrize(("kind", "size"), [("INT8", 1), ("INT16", 2), ("FLOAT32", 4)])
def test_what_was_needed_before_is_of_elements_as_wide(tmp_path: Path, kind: str, size: int) -> None:
    net = Net(kind)
    path = tmp_path / "net.tflite"
    path.write_bytes(net.build(net.conv(net.depthwise(net.conv(net.input(1, 12, 12, 3), 8)), 4, 1)))
    found = memfit.stream(str(path), max_extra_macs=0)
    assert found.totals["baseline_peak_bytes"] == 12 * 12 * (8 + 4) * size
    assert found.totals["peak_bytes"] < found.totals["baseline_peak_bytes"]
    assert found.rows[0]["before_bytes"] == 12 * 12 * (8 + 4) * size


def test_a_runtime_that_is_not_installed_is_told(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memfit.stream.verify.find_spec", lambda _: None)
    said = lines(planned(network, verify=True, verify_inputs=1))
    assert said[-1] == "the real runtime was not asked: tflite-micro is not installed (extra tflm)"
