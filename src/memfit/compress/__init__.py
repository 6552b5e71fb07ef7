"""Compression under a memory constraint: calibrated ranges, sensitivity, precision, pruning."""
