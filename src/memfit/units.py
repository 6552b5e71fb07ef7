"""Sizes and shapes as text: the only place that formats or parses bytes.

Printed units are KiB, MiB and GiB (powers of 1024); input also accepts KB, MB and GB (powers of 1000).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from memfit.errors import UsageError

_BINARY = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_FACTORS = {"": 1, "b": 1, **_BINARY, **_DECIMAL}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def format_bytes(nbytes: int) -> str:
    """Write a size for people, in B, KiB, MiB or GiB.

    >>> format_bytes(1404928), format_bytes(512), format_bytes(39403008)
    ('1372.0 KiB', '512 B', '37.6 MiB')
    """
    magnitude = abs(nbytes)
    if magnitude < 1 << 10:
        return f"{nbytes} B"
    if magnitude < 10 << 20:
        return f"{nbytes / (1 << 10):.1f} KiB"
    if magnitude < 10 << 30:
        return f"{nbytes / (1 << 20):.1f} MiB"
    return f"{nbytes / (1 << 30):.1f} GiB"


def format_limit(nbytes: int) -> str:
    """Write a size as people give one: in the largest unit of which it is a whole number, if there is one.

    >>> format_limit(320 << 10), format_limit(1 << 20), format_limit(24 << 30), format_limit(1000)
    ('320 KiB', '1 MiB', '24 GiB', '1000 B')
    """
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << shift and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B" if nbytes < 10 << 10 else format_bytes(nbytes)


def parse_bytes(text: str) -> int:
    """Read a size such as `256KiB`, `1.5 MiB`, `16GB` or `65536`, in bytes.

    >>> parse_bytes("256KiB"), parse_bytes("1MB"), parse_bytes("4096")
    (262144, 1000000, 4096)

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(
            "this is not a size in bytes",
            where="a size",
            received=repr(text),
            todo="write a number and a unit, such as 256KiB, 1.5MiB, 24GiB or 65536",
        )
    return math.floor(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_shape(shape: tuple[int, ...]) -> str:
    """Write a shape as memfit's command line reads it.

    >>> format_shape((1, 3, 224, 224)), format_shape(())
    ('1x3x224x224', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def format_count(count: int) -> str:
    """Write a count with thousands separators.

    >>> format_count(143667240)
    '143,667,240'
    """
    return f"{count:,}"


def format_names(names: Sequence[str], most: int = 5) -> str:
    """List names, the first few where there are many.

    >>> format_names(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
