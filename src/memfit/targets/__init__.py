"""Boards, chips and GPUs that a network may have to fit: one TOML table, with a link to the vendor in each row."""

from memfit.targets.table import KINDS, Bank, Target, find, load, lookup

__all__ = ["KINDS", "Bank", "Target", "find", "load", "lookup"]
