"""Parameters and MACs against what others count, through the benchmark that prints the table."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType

import pytest

import memfit

ROOT = Path(__file__).resolve().parents[2]

# conv + linear + matmul as fvcore 0.1.5 counts them by operator, and attention; inputs 1x3x224x224
EXPECTED = {
    "resnet50": 4_089_184_256,
    "mobilenet_v2": 300_774_272,
    "vgg19": 19_632_062_464,
    "vit_b_16": 17_563_828_224,
}


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    pytest.importorskip("fvcore", reason="fvcore is not installed: pip install 'memfit[peers]'")
    pytest.importorskip("torchinfo", reason="torchinfo is not installed: pip install 'memfit[peers]'")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import peers

        return peers
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", EXPECTED)
def test_macs_are_the_known_ones(name: str) -> None:
    assert memfit.profile(f"torchvision:{name}", memory="ideal").totals["macs"] == EXPECTED[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_b_16", "swin_t", "efficientnet_b0", "convnext_tiny"])
def test_every_difference_from_the_peers_is_accounted_for(peers: ModuleType, name: str) -> None:
    logging.disable(logging.WARNING)
    try:
        row = peers.compare(name)
    finally:
        logging.disable(logging.NOTSET)
    assert row["params_equal"]
    assert row["fvcore_groups_equal"]
    assert row["unexplained_fvcore"] == 0
    assert row["torchinfo"] == row["torchinfo_rule"]
