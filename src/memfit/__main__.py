"""`python -m memfit` is the command line."""

from memfit.cli.main import main

if __name__ == "__main__":
    main()
