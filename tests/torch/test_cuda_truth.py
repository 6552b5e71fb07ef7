"""Predictions against the figures that a real GPU gave, where they were recorded."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

DATA = Path(__file__).parents[1] / "expected" / "cuda_truth.json"


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    if not DATA.exists():
        pytest.skip("nothing was measured on a GPU yet: run benchmarks/cuda_truth.py measure on one")
    import cuda_truth

    content = json.loads(DATA.read_text())
    found: dict[str, list[float]] = {"allocated": [], "reserved": []}
    for cell in content["cells"]:
        if "error" in cell:
            continue
        allocated, reserved = cuda_truth.predict_case(cell["network"], cell["case"], content["capability"])
        found["allocated"].append(abs(allocated / cell["peak_allocated_bytes"] - 1))
        found["reserved"].append(abs(reserved / cell["peak_reserved_bytes"] - 1))
    return found


def test_allocated_is_near_what_the_gpu_reports(errors: dict[str, list[float]]) -> None:
    assert statistics.median(errors["allocated"]) < 0.01
    assert max(errors["allocated"]) < 0.04


def test_reserved_is_near_what_the_gpu_reports(errors: dict[str, list[float]]) -> None:
    assert statistics.median(errors["reserved"]) < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("case", ["inference", "sgd", "adam", "amp", "checkpoint"])
def test_a_small_network_on_this_gpu(case: str) -> None:
    import cuda_truth

    major, minor = torch.cuda.get_device_capability()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    real: dict[str, Any] = cuda_truth.measure_case("unet", case)
    allocated, _ = cuda_truth.predict_case("unet", case, f"{major}.{minor}")
    assert allocated == pytest.approx(real["peak_allocated_bytes"], rel=0.04)
