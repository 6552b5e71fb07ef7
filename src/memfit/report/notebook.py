"""The small HTML table that a notebook shows."""

from __future__ import annotations

from html import escape

from memfit.analysis.result import Result
from memfit.report import headline
from memfit.report.columns import cell, column, filled, label, peak_row, summary_rows

ROWS = 100
"""A longer table is cut in the notebook, and says so."""

_BOLD = ' style="font-weight:bold"'


def html(result: Result) -> str:
    """Give a result as one HTML table, sized and coloured by the notebook's own style."""
    shown = filled(result)
    peak = peak_row(result)
    head = "".join(_cell("th", key, label(result, key)) for key in shown)
    body = []
    for index, row in enumerate(result.rows[:ROWS]):
        line = "".join(_cell("td", key, cell(key, row.get(key))) for key in shown)
        body.append(f"<tr{_BOLD if index == peak else ''}>{line}</tr>")
    more = len(result.rows) - ROWS
    if more > 0:
        body.append(f'<tr><td colspan="{len(shown)}">… {more} more rows; to_pandas() has them all</td></tr>')
    foot = []
    for name, sums in summary_rows(result, shown):
        cells = [_cell("td", key, name if not i else cell(key, sums.get(key))) for i, key in enumerate(shown)]
        foot.append(f"<tr{_BOLD}>{''.join(cells)}</tr>")
    remarks = [
        " · ".join(headline.totals(result)),
        *headline.lines(result),
        *(f"note: {note}" for note in result.notes),
    ]
    below = "".join(f"<div>{escape(remark)}</div>" for remark in remarks if remark)
    return (
        f"<div><b>{escape(result.source)}</b> · {escape(headline.setting(result))}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
        f"<tfoot>{''.join(foot)}</tfoot></table>{below}"
    )


def register() -> None:
    """Make notebooks show results as this table."""
    Result.html = staticmethod(html)


def _cell(tag: str, key: str, text: str) -> str:
    side = "right" if column(key).right else "left"
    return f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>'
