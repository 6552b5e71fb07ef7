"""Measuring: how long a real network takes, row by row, and what it really allocates."""
