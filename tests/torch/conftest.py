"""What the tests with PyTorch share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compress on one thread: networks of tests are small, and threads that wait for each other take far longer."""
    before = torch.get_num_threads()
    if request.module.__name__.rpartition(".")[2].startswith("test_compress"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
