"""The op table: what each operation of a framework is called here, what part it plays, and what it multiplies.

To add an operation, add one entry. An operation without an entry is an error that names it, never a zero.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """The part that an operation plays in a network; passes dispatch on it."""

    CONV = "convolution"
    LINEAR = "linear"
    """A product with a parameter."""
    MATMUL = "matmul"
    """A product of two activations."""
    ATTENTION = "attention"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
    BATCH_NORM = "batch norm"
    """Folds into the layer before it."""
    NORM = "norm"
    """Layer, group, instance and RMS norm: rows of their own."""
    ACTIVATION = "activation"
    """Element-wise non-linearity of one input; folds into the layer before it."""
    ADD = "add"
    ARITHMETIC = "arithmetic"
    """Other element-wise work: mul, sub, div, comparisons, where, casts."""
    SOFTMAX = "softmax"
    POOL = "pooling"
    RESIZE = "resize"
    CONCAT = "concatenation"
    REDUCE = "reduction"
    DROPOUT = "dropout"
    VIEW = "view"
    """Makes no bytes: reshape, transpose, slice, expand, detach."""
    COPY = "copy"
    """Same values in new bytes: clone, contiguous, pad, roll, repeat."""
    INDEX = "indexing"
    CREATE = "creation"
    """Makes values from nothing: zeros, arange, rand."""
    LOSS = "loss"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    OTHER = "other"
