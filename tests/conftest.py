"""Settings of all tests."""

import os

# Matrix products of the tests are too small to share among threads; NumPy reads this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
