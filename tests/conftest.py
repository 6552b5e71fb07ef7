"""Settings of all tests."""

from memfit.cli.threads import multiply_alone

multiply_alone()  # before NumPy is imported
