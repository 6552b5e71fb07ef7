"""Every renderer's text, compared with a stored one; MEMFIT_UPDATE_SNAPSHOTS=1 writes them anew."""

from __future__ import annotations

import os
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from test_report_samples import SAMPLES, add_up, layers, modules

from memfit.analysis.result import Profile, Result
from memfit.report import RENDERERS, markdown, notebook, png, table

FOLDER = Path(__file__).parent / "snapshots"
TEXTS = {
    "table-80.txt": partial(table.render, width=80),
    "table-140.txt": partial(table.render, width=140),
    "report.md": RENDERERS["md"].render,
    "report.csv": RENDERERS["csv"].render,
    "report.json": RENDERERS["json"].render,
}


def text_of(render, profile: Profile) -> str:
    stream = StringIO()
    render(profile, stream)
    return stream.getvalue()


def compare(text: str, path: Path) -> None:
    if os.environ.get("MEMFIT_UPDATE_SNAPSHOTS") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing: review the output, then store it with MEMFIT_UPDATE_SNAPSHOTS=1"
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_text_is_as_stored(sample: str, kind: str) -> None:
    text = text_of(TEXTS[kind], SAMPLES[sample])
    if kind == "report.json":
        from memfit import __version__

        text = text.replace(f'"memfit": "{__version__}"', '"memfit": "VERSION"')
    compare(text, FOLDER / f"{sample}-{kind}")


def test_no_snapshot_is_left_over() -> None:
    wanted = {f"{sample}-{kind}" for sample in SAMPLES for kind in TEXTS}
    assert {path.name for path in FOLDER.iterdir()} == wanted


def test_a_missing_snapshot_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMFIT_UPDATE_SNAPSHOTS", raising=False)
    with pytest.raises(AssertionError, match="is missing"):
        compare("text", tmp_path / "none.md")


def test_the_sum_check_can_fail() -> None:
    whole = layers()
    cut = Profile(**{**vars(whole), "rows": whole.rows[1:]})
    with pytest.raises(AssertionError):
        add_up(cut)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 140, 200])
def test_the_table_fits(sample: str, width: int) -> None:
    rows = text_of(partial(table.render, width=width), SAMPLES[sample]).split("\n\n")[1].splitlines()
    chosen = SAMPLES[sample].selection
    if chosen is None or chosen.columns is None:
        assert max(map(len, rows)) <= max(width, 40)


def test_a_wider_table_never_shows_fewer_columns() -> None:
    def columns(width: int) -> int:
        return len(text_of(partial(table.render, width=width), layers()).split("\n\n")[1].splitlines()[0].split("  "))

    counts = [columns(width) for width in (40, 60, 80, 100, 120, 140, 170, 200, 240)]
    assert counts[-1] > counts[0]
    assert "not shown" not in text_of(partial(table.render, width=240), layers())


def test_columns_asked_for_all_stay() -> None:
    text = text_of(partial(table.render, width=20), SAMPLES["columns"])
    assert all(head in text for head in ("name", "MACs", "norm", "batch_norm"))


def test_memory_figures_name_their_model() -> None:
    for render in (partial(table.render, width=140), markdown.render):
        assert "peak (ideal)" in text_of(render, layers())


def test_a_module_tree_is_indented_only_while_it_is_whole() -> None:
    whole = modules()
    assert "    0 " in text_of(partial(table.render, width=80), whole)
    turned = Profile(**{**vars(whole), "rows": whole.rows[::-1]})
    assert "body.0 " in text_of(partial(table.render, width=80), turned)


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" not in text_of(partial(table.render, width=80), layers())
    terminal = _Terminal()
    table.render(layers(), terminal, width=80)
    assert "\x1b[" in terminal.getvalue()


def test_the_terminal_sets_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert text_of(table.render, layers()) == text_of(partial(table.render, width=140), layers())


def test_a_plain_stream_gets_plain_characters() -> None:
    class Plain(StringIO):
        encoding = "ascii"

    stream = Plain()
    table.render(layers(), stream, width=80)
    assert stream.getvalue().isascii()


def test_names_are_never_markup() -> None:
    name = "[bold]<b>:smile:$x_1$"
    odd = Profile(**{**vars(layers()), "source": name, "rows": ({"name": name, "peak_bytes": 1},)})
    assert text_of(partial(table.render, width=100), odd).count(name) == 2
    assert r"\<b>" in text_of(markdown.render, odd)
    assert "<b>:smile:" not in notebook.html(odd).replace("<b>[", "")


@pytest.mark.parametrize("sample", SAMPLES)
def test_png_is_drawn(sample: str) -> None:
    pytest.importorskip("matplotlib")
    stream = BytesIO()
    png.render(SAMPLES[sample], stream)
    assert stream.getvalue().startswith(b"\x89PNG")
    assert len(stream.getvalue()) > 5000


def test_a_long_png_draws_the_largest_rows() -> None:
    pytest.importorskip("matplotlib")
    rows = tuple({"name": f"layer.{i}", "peak_bytes": (i * 7919) % 1000 + 1} for i in range(300))
    long = Profile(**{**vars(layers()), "rows": rows})
    assert len(png._drawn(long, "peak_bytes")) == png.MOST
    stream = BytesIO()
    png.render(long, stream)
    width, height = (int.from_bytes(stream.getvalue()[at : at + 4], "big") for at in (16, 20))
    assert height < 3 * width


def test_a_notebook_shows_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Result, "html", None)
    assert layers()._repr_html_() is None
    notebook.register()
    html = layers()._repr_html_() or ""
    assert html.count("<tr") == 1 + len(layers().rows) + 1
    assert "peak (ideal)" in html
    many = Profile(**{**vars(layers()), "rows": layers().rows * 30})
    assert "110 more rows" in notebook.html(many)
