"""Read `targets.toml`, where one block describes one board, chip or GPU."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, NamedTuple

from memfit.errors import InternalError, MemfitError, UsageError
from memfit.units import parse_bytes

KINDS = ("mcu", "gpu")
"""Microcontrollers (boards and chips), and GPUs."""

_NEAR = 4
"""Names that a message suggests."""


class Bank(NamedTuple):
    """One bank of RAM, as the data sheet names it."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Target:
    """One board, chip or GPU. Sizes are in bytes, a data sheet's "KB" of memory being 1024.

    >>> board = find("stm32f746")
    >>> board.ram_bytes, board.flash_bytes, board.core, board.mhz
    (327680, 1048576, 'Cortex-M7', 216)
    >>> [(bank.name, bank.nbytes) for bank in board.banks]
    [('DTCM', 65536), ('SRAM1', 245760), ('SRAM2', 16384)]
    """

    key: str
    """What `--target` takes: lower-case letters and digits, with a hyphen where a name has variants."""
    name: str
    """The vendor's name, with the boards that carry it."""
    kind: str
    """One of KINDS."""
    ram_bytes: int
    """The most that one array can take: the longest stretch of RAM without a gap between its addresses.

    What an operating system, a radio's stack or a CUDA context takes of it is not subtracted.
    """
    bank_bytes: int
    """The largest single bank within that stretch; less than `ram_bytes` where neighbouring banks make it up."""
    banks: tuple[Bank, ...]
    """Every bank of RAM that a program may use, those outside the stretch too; empty where one is all."""
    reported_bytes: int | None
    """What a GPU's driver says that it has, where the table knows: a little less than the data sheet's round figure."""
    flash_bytes: int | None
    """Memory for program and constants on the chip, or on the board where the chip has none; None where it varies."""
    core: str
    """The processor that runs the network."""
    mhz: int
    """Its highest clock, or a GPU's boost clock."""
    pointer_bits: int
    link: str
    """The vendor's page."""
    checked: str | None
    """The day on which RAM and flash were compared with `seen`; None where they were not compared with anything."""
    seen: str | None
    """What they were compared with: the vendor's own text or source code, or a well-known port's."""
    note: str | None
    """What a reader of the figures must know."""
    aliases: tuple[str, ...]

    @property
    def total_ram_bytes(self) -> int:
        """All banks together, which no single array can have where there are gaps between them."""
        return sum(bank.nbytes for bank in self.banks) or self.ram_bytes


@cache
def load() -> Mapping[str, Target]:
    """Read the table, once in a process: key → target, in the table's order.

    >>> load()["nano33ble"].ram_bytes
    262144
    """
    text = files("memfit.targets").joinpath("targets.toml").read_text(encoding="utf-8")
    return MappingProxyType({key: _target(key, row) for key, row in tomllib.loads(text).items()})


def lookup(name: str) -> Target | None:
    """Find a target as `find` does; None where no target goes by that name.

    >>> lookup("Teensy 4.1").key, lookup("abacus")
    ('teensy41', None)
    """
    key = _names().get(_plain(name))
    return None if key is None else load()[key]


def find(name: str) -> Target:
    """Find a target by its key or an alias, whatever the case; hyphens, underscores, points and spaces do not count.

    >>> find("NVIDIA A100-80GB").key, find("Nano_33_BLE").key
    ('a100-80gb', 'nano33ble')

    Raises:
        UsageError: no target goes by that name; the message has the nearest ones.
    """
    target = lookup(name)
    if target is not None:
        return target
    known, wanted = _names(), _plain(name)
    near = difflib.get_close_matches(wanted, known, n=_NEAR, cutoff=0.6)
    near += [other for other in known if len(wanted) > 2 and wanted in other]
    keys = list(dict.fromkeys(known[other] for other in near))[:_NEAR]
    hint = f"did you mean {' or '.join(keys)}? " if keys else ""
    raise UsageError(
        "there is no such target",
        where="--target",
        received=repr(name),
        todo=f"{hint}`memfit targets` lists all {len(load())}",
    )


@cache
def _names() -> Mapping[str, str]:
    """Map every plain name to its key."""
    return {_plain(name): key for key, target in load().items() for name in (key, *target.aliases)}


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s]", "", name).lower()


def _target(key: str, row: dict[str, Any]) -> Target:
    """Make a target of a block, whose sizes are text such as 256KiB."""
    try:
        ram = parse_bytes(row["ram"])
        banks = tuple(_bank(text) for text in row.get("banks", "").split(",") if text.strip())
        reported, flash = row.get("reported"), row.get("flash")
        return Target(
            key=key,
            name=row["name"],
            kind=row["kind"],
            ram_bytes=ram,
            bank_bytes=parse_bytes(row["bank"]) if "bank" in row else ram,
            banks=banks,
            reported_bytes=None if reported is None else parse_bytes(reported),
            flash_bytes=None if flash is None else parse_bytes(flash),
            core=row["core"],
            mhz=row["mhz"],
            pointer_bits=row.get("pointer_bits", 32 if row["kind"] == "mcu" else 64),
            link=row["link"],
            checked=str(row["checked"]) if "checked" in row else None,
            seen=row.get("seen"),
            note=row.get("note"),
            aliases=tuple(row.get("aliases", ())),
        )
    except (KeyError, TypeError, MemfitError) as error:
        raise InternalError(
            "a target of memfit's own table cannot be read",
            where=f"memfit/targets/targets.toml, [{key}]",
            received=f"{type(error).__name__}: {error}",
            todo="mend the block; its entries are described at its head",
        ) from error


def _bank(text: str) -> Bank:
    name, _, size = text.strip().rpartition(" ")
    return Bank(name, parse_bytes(size))
