"""Passes over a graph: rows per layer, block, module, operation and tensor, and what a reader chooses of them."""
