"""What `memfit stream` says: its text compared with a stored one, and its answers where something cannot be."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import pytest
import stream_nets

import memfit
from memfit.analysis.result import Stream
from memfit.errors import UsageError
from memfit.report import RENDERERS, png, table

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
    assert "too much for 100" in short
    assert str(found.totals["peak_at"]) in short
    assert "no plan goes below" in least


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
