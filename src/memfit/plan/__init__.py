"""What to change so that a network fits: operator order, and files that carry it."""
