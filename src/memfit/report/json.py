"""JSON, the contract that scripts rely on."""

from __future__ import annotations

import json
from typing import IO, Any

from memfit.analysis.result import Result


def render(result: Result, stream: IO[str]) -> None:
    """Write one object, each row on a line of its own, so that two files compare line by line."""
    entries = ",\n".join(f"  {_text(key)}: {_value(value)}" for key, value in result.to_dict().items())
    stream.write(f"{{\n{entries}\n}}\n")


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict | str):
        return "[\n" + ",\n".join(f"    {_text(entry)}" for entry in value) + "\n  ]"
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
