"""`python -m memfit` is the command line."""

import sys

from memfit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
