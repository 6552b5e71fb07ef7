"""Units of a sweep spread over processes."""

from __future__ import annotations

BACKENDS = {"loky": None, "ray": None}
