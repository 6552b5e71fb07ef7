"""The table of boards and GPUs: every row sound, every name found, and the command that lists them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest

from memfit.analysis.boards import targets
from memfit.cli.main import main
from memfit.cli.train import read_budget
from memfit.errors import UsageError
from memfit.targets import KINDS, find, load

GIB = 1 << 30
KEYS = tuple(load())

FROM_THE_DATA_SHEETS = {
    # key: RAM for one array, flash, core; looked up apart from the table
    "stm32f746": (320, 1024, "Cortex-M7"),
    "stm32h743": (512, 2048, "Cortex-M7"),
    "stm32l4r5": (640, 2048, "Cortex-M4"),
    "nrf52840": (256, 1024, "Cortex-M4"),
    "nano33ble": (256, 960, "Cortex-M4"),
    "rp2040": (264, 2048, "Cortex-M0+"),
    "rp2350": (520, 4096, "Cortex-M33"),
    "esp32": (320, 4096, "Xtensa LX6"),
    "max78000": (128, 512, "Cortex-M4"),
}


@pytest.mark.parametrize("key", KEYS)
def test_every_row_is_sound(key: str) -> None:
    target = load()[key]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key)
    assert target.kind in KINDS
    assert 0 < target.bank_bytes <= target.ram_bytes <= target.total_ram_bytes
    if target.banks:
        assert target.total_ram_bytes == sum(bank.nbytes for bank in target.banks)
        assert any(bank.nbytes == target.bank_bytes for bank in target.banks)
        assert len({bank.name for bank in target.banks}) == len(target.banks)
    assert target.link.startswith("https://")
    assert target.pointer_bits == 64 or (target.kind == "mcu" and target.pointer_bits == 32)
    assert (target.checked is None) == (target.seen is None)
    if target.checked is not None:
        assert date.fromisoformat(target.checked) <= date(2100, 1, 1)
    if target.kind == "gpu":
        assert target.ram_bytes % GIB == 0
        assert target.flash_bytes is None
        assert target.reported_bytes is None or 0.9 * target.ram_bytes < target.reported_bytes <= target.ram_bytes
    else:
        assert target.reported_bytes is None
        assert target.ram_bytes < 16 << 20
    assert target.mhz >= 16


@pytest.mark.parametrize(("key", "expected"), FROM_THE_DATA_SHEETS.items())
def test_well_known_boards(key: str, expected: tuple[int, int, str]) -> None:
    target = find(key)
    assert (target.ram_bytes, target.flash_bytes, target.core) == (expected[0] << 10, expected[1] << 10, expected[2])


def test_no_name_means_two_things() -> None:
    plain = [re.sub(r"[-_.\s]", "", name) for key, t in load().items() for name in (key, *t.aliases)]
    assert len(plain) == len(set(plain))
    assert all(name == name.lower() for name in plain)


@pytest.mark.parametrize(
    ("name", "key"),
    [("STM32F746", "stm32f746"), ("arduino nano 33 ble", "nano33ble"), ("H_100", "h100"), ("a100", "a100-80gb"),
     ("RTX 4090", "rtx4090"), ("esp32-S3", "esp32s3")],
)  # fmt: skip
def test_names_are_found_however_they_are_written(name: str, key: str) -> None:
    assert find(name).key == key


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find("stm32f747")
    assert caught.value.received == "'stm32f747'"
    assert "stm32f746" in (caught.value.todo or "")
    with pytest.raises(UsageError, match="memfit targets"):
        find("")


def test_the_list_is_filtered_and_adds_up() -> None:
    whole = targets()
    parts = [targets(kind=kind) for kind in KINDS]
    assert whole.totals["count"] == len(whole.rows) == sum(part.totals["count"] for part in parts) == len(KEYS)
    large = targets(min_ram=1 << 20)
    assert {row["name"] for row in large.rows} == {key for key in KEYS if load()[key].ram_bytes >= 1 << 20}
    with pytest.raises(UsageError, match="no such kind"):
        targets(kind="fpga")


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["targets", "--kind", "mcu", "--min-ram", "256KiB", "--sort", "ram_bytes", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == "targets"
    sizes = [row["ram_bytes"] for row in told["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    assert told["totals"]["count"] == len(sizes)
    assert {"name", "what", "kind", "core", "mhz", "ram_bytes", "flash_bytes", "checked", "link"} <= set(
        told["rows"][0]
    )
    for format in ("table", "md", "csv"):
        assert main(["targets", "--where", "core=Cortex-M7", "--format", format]) == 0
        out = capsys.readouterr().out
        assert "stm32f746" in out
        assert "nrf52840" not in out
    assert main(["targets", "-o", str(tmp_path / "targets.csv")]) == 0
    assert len((tmp_path / "targets.csv").read_text().splitlines()) == len(KEYS) + 1


@pytest.mark.parametrize("arguments", [["--min-ram", "much"], ["--kind", "fpga"], ["--sort", "price"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", *arguments]) == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_gpu_is_a_budget() -> None:
    assert read_budget("a100-80gb") == 80 * GIB
    assert read_budget("H100") == 81_559 << 20
    assert read_budget("rtx3090") == 24 * GIB
    assert read_budget("24GiB") == 24 * GIB
    for name in ("stm32f746", "h101"):
        with pytest.raises(UsageError, match="--budget"):
            read_budget(name)


def test_the_list_needs_neither_numpy_nor_torch_nor_time() -> None:
    code = (
        "import sys\nfrom memfit.cli.main import main\nassert main(['targets', '--format', 'csv']) == 0\n"
        "print('loaded:', *[n for n in ('torch', 'numpy', 'rich') if n in sys.modules])"
    )
    walls = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        walls.append(time.perf_counter() - start)
        assert done.stdout.splitlines()[-1] == "loaded:"
    assert min(walls) < 0.6  # 0.1 on an idle machine


def test_the_documentation_counts_right() -> None:
    root = Path(__file__).parents[2]
    rows = load().values()
    mcus, gpus, checked = (
        sum(t.kind == "mcu" for t in rows), sum(t.kind == "gpu" for t in rows), sum(t.checked is not None for t in rows)
    )  # fmt: skip
    text = " ".join((root / "docs/targets.md").read_text().split())
    assert f"the {len(KEYS)} boards, chips and GPUs" in text
    assert f"{mcus} microcontrollers, {gpus} GPUs" in text
    assert f"{checked} of {len(KEYS)} rows" in text
    assert f"lists {len(KEYS)} boards and GPUs" in " ".join((root / "README.md").read_text().split())
