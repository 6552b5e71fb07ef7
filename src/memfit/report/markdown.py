"""Markdown, with the same cells as the terminal's table and every column that has a value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from memfit.analysis.result import Result
from memfit.report import headline
from memfit.report.columns import cell, column, filled, label, peak_row, summary_rows


def render(result: Result, stream: IO[str]) -> None:
    """Write the table with its title above and its totals and notes below; the row of the peak is bold."""
    shown = filled(result)
    setting = headline.setting(result)
    stream.write(f"**{_escaped(result.source)}**" + (f" · {_escaped(setting)}" if setting else "") + "\n\n")
    if result.rows and shown:
        _line(stream, (_escaped(label(result, key)) for key in shown))
        _line(stream, ("---:" if column(key).right else ":---" for key in shown))
        peak = peak_row(result)
        for index, row in enumerate(result.rows):
            cells = [_escaped(cell(key, row.get(key))) for key in shown]
            _line(stream, _bold(cells) if index == peak else cells)
        for name, sums in summary_rows(result, shown):
            _line(stream, _bold([name, *(cell(key, sums.get(key)) for key in shown[1:])]))
    else:
        stream.write("No rows.\n")
    phrases = headline.totals(result)
    if phrases:
        stream.write(f"\n{_escaped(' · '.join(phrases))}\n")
    remarks = [f"{_indent(sentence)}- {_escaped(sentence.strip())}\n" for sentence in headline.lines(result)]
    remarks += [f"- {_escaped(note)}\n" for note in result.notes]
    around = headline.environment(result)
    if around:
        remarks.append(f"- {_escaped(around)}\n")
    if remarks:
        stream.write("\n" + "".join(remarks))


def _indent(sentence: str) -> str:
    """Keep a sentence that belongs to the one before it below that."""
    return sentence[: len(sentence) - len(sentence.lstrip(" "))]


def _line(stream: IO[str], cells: Iterable[str]) -> None:
    stream.write("| " + " | ".join(cells) + " |\n")


def _bold(cells: Iterable[str]) -> list[str]:
    return [f"**{text}**" if text else "" for text in cells]


def _escaped(text: str) -> str:
    """Keep a name's own characters from being read as markup."""
    for character in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
