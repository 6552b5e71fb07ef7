"""Units of work that are done, in an SQLite file that survives being killed at any moment. No torch in it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from memfit.errors import OutputError, SourceError, UsageError

FORMAT = 1
"""Version of the file's tables."""


class Unit(NamedTuple):
    """One unit of work: a layer, or the whole network, in one direction on one batch."""

    layer: str
    direction: str
    batch: int


class Store:
    """Finished units and their numbers; without a file they are kept in memory.

    A unit is written in a transaction of its own to SQLite's write-ahead log. So a process that is killed leaves every
    unit that was finished, and none that was not. One sweep at a time holds the file.

    >>> with Store(None, {"model": "m"}) as store:
    ...     store.add(Unit("conv", "quantize", 0), (1.0, None))
    ...     store.done
    {Unit(layer='conv', direction='quantize', batch=0): (1.0, None)}

    Args:
        path: the file, made where it is not there; None keeps nothing.
        key: what the numbers depend on: hashes of model and data, and the settings.

    Raises:
        SourceError: the file is no store, or another sweep holds it.
        UsageError: it is of another model, other data or other settings; the message says what differs.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | Path | None, key: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[Unit, tuple[float | None, ...]] = {}
        """What is there, by unit."""
        self._connection: sqlite3.Connection | None = None
        if self.path is None:
            return
        if not self.path.parent.is_dir():
            raise OutputError(
                "there is no such folder", where="--store", received=str(self.path), todo="make the folder first"
            )
        try:
            self._open(json.loads(json.dumps(key)))
        except sqlite3.OperationalError as error:
            self.close()
            if "locked" in str(error):
                raise SourceError(
                    "another sweep is writing to this store",
                    where="--store",
                    received=str(self.path),
                    todo="wait for it, or give another file",
                ) from None
            raise OutputError(
                f"the store cannot be written: {error}",
                where="--store",
                received=str(path),
                todo="check the disk, and that the file may be written",
            ) from None
        except sqlite3.DatabaseError:
            self.close()
            raise self._no_store() from None
        except BaseException:
            self.close()
            raise

    def _open(self, key: dict[str, Any]) -> None:
        path = self.path
        assert path is not None
        connection = self._connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            connection.execute("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            connection.execute(
                "CREATE TABLE units (layer TEXT, direction TEXT, batch INTEGER, numbers TEXT NOT NULL,"
                " PRIMARY KEY (layer, direction, batch))"
            )
            rows = [("memfit_store", json.dumps(FORMAT)), ("key", json.dumps(key))]
            connection.executemany("INSERT INTO about VALUES (?, ?)", rows)
        elif not {"about", "units"} <= tables:
            raise self._no_store()
        about = {name: json.loads(text) for name, text in connection.execute("SELECT key, value FROM about")}
        connection.execute("COMMIT")
        if about.get("memfit_store") != FORMAT:
            raise self._no_store(f"format {about.get('memfit_store')}")
        self._compare(about.get("key", {}), key)
        for layer, direction, batch, numbers in connection.execute("SELECT * FROM units"):
            self.done[Unit(layer, direction, batch)] = tuple(json.loads(numbers))

    def _compare(self, kept: dict[str, Any], key: dict[str, Any]) -> None:
        differs = [name for name in key if kept.get(name) != key[name]]
        if differs:
            named = ", ".join(
                name if isinstance(key[name], dict) or len(str(key[name])) > 40 else f"{name} {kept.get(name)}"
                for name in differs
            )
            now = ", ".join(f"{name} {key[name]}" for name in differs if len(str(key[name])) <= 40)
            raise UsageError(
                "this store is of another sweep",
                where="--store",
                received=f"{self.path}: it differs in {named}" + (f" (now {now})" if now else ""),
                todo="give another file, or the model, data and settings that it was made with",
            )

    def _no_store(self, what: str = "") -> SourceError:
        return SourceError(
            "this is not a store of a sweep" if not what else "this store is of another version of memfit",
            where="--store",
            received=f"{self.path}" + (f": {what}" if what else ""),
            todo="give another file",
        )

    def add(self, unit: Unit, numbers: tuple[float | None, ...]) -> None:
        """Keep a finished unit, for good where there is a file.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._connection is not None:
            try:
                self._connection.execute("INSERT INTO units VALUES (?, ?, ?, ?)", (*unit, json.dumps(numbers)))
            except sqlite3.Error as error:
                raise OutputError(
                    f"the store cannot be written: {error}",
                    where="--store",
                    received=str(self.path),
                    todo="check the disk",
                ) from None
        self.done[unit] = numbers

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
