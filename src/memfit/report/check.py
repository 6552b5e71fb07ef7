"""How `memfit check` speaks: one line on a terminal, and JUnit's XML for programs that collect tests."""

from __future__ import annotations

from typing import IO, Any
from xml.etree import ElementTree

from memfit.analysis.result import Check, Result
from memfit.errors import UsageError
from memfit.report import columns, headline
from memfit.report.columns import Column
from memfit.units import format_bytes, format_limit


def conditions(result: Result) -> list[str]:
    """Name the memory model, where a peak is checked."""
    return [f"peak by {result.memory}"] if result.memory else []


def totals(result: Result) -> list[str]:
    """Give the answer, then each limit."""
    return ["holds" if result.totals["holds"] else "does not hold", *map(_limit, result.rows)]


def brief(result: Result) -> str:
    """Say it all in one line."""
    answer, *limits = totals(result)
    return f"{result.source} {answer}: {' · '.join(limits)}"


def _limit(row: dict[str, Any]) -> str:
    over = "" if row["holds"] else f", {format_bytes(row['actual_bytes'] - row['limit_bytes'])} over"
    return f"{row['name']} {format_bytes(row['actual_bytes'])} of {format_limit(row['limit_bytes'])}{over}"


def junit(result: Result, stream: IO[str]) -> None:
    """Write a test suite with one test case per limit.

    Raises:
        UsageError: the result of another command.
    """
    if not isinstance(result, Check):
        raise UsageError(
            "JUnit's XML is of memfit check, whose limits hold or do not",
            where="--format",
            received=f"memfit {result.command}",
            todo="use md, csv or json",
        )
    failed = sum(not row["holds"] for row in result.rows)
    suite = ElementTree.Element(
        "testsuite", name="memfit check", tests=str(len(result.rows)), failures=str(failed), errors="0", skipped="0"
    )
    for row in result.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(result.source), name=f"max-{row['name']}")
        if not row["holds"]:
            ElementTree.SubElement(
                case, "failure", type="limit", message=_clean(_limit(row))
            ).text = f"actual_bytes {row['actual_bytes']}, limit_bytes {row['limit_bytes']}"
        ElementTree.SubElement(case, "system-out").text = _clean("\n".join([_limit(row), *result.notes]))
    tree = ElementTree.Element("testsuites")
    tree.append(suite)
    ElementTree.indent(tree)
    stream.write(ElementTree.tostring(tree, encoding="unicode", xml_declaration=False) + "\n")


def _clean(text: str) -> str:
    """Leave out the characters that XML cannot hold, escaped or not."""
    return "".join(letter if letter in "\t\n\r" or 0x20 <= ord(letter) < 0xFFFE else "?" for letter in text)


headline.VOICES["check"] = headline.Voice(conditions, totals, brief=brief)
columns.MAIN_COLUMNS["check"] = "actual_bytes"
columns.COLUMNS.update(
    {
        "limit_bytes": Column("limit", format_bytes, 90),
        "actual_bytes": Column("actual", format_bytes, 95),
        "holds": Column("holds", lambda value: "yes" if value else "no", 85),
    }
)
