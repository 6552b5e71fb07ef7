"""What `import memfit` and `memfit --help` promise not to load, proved in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import onnx_models
import tflite_models

HEAVY = ("torch", "numpy", "rich", "matplotlib", "pandas", "torchvision", "timm", "transformers")


def loaded(code: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    """Run the code in a fresh Python and list which of the modules it loaded."""
    listing = f"import sys; print('loaded:', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{listing}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_import_memfit_loads_nothing_heavy() -> None:
    assert loaded("import memfit") == []


def test_this_check_can_fail() -> None:
    assert loaded("import memfit, fractions", ("fractions",)) == ["fractions"]


def test_help_loads_nothing_heavy() -> None:
    for arguments in (["--help"], ["--version"], ["profile", "--help"], ["profile", "--nothing", "x"]):
        assert loaded(f"from memfit.cli.main import main; main({arguments!r})") == [], arguments


def test_results_and_renderers_load_neither_torch_nor_a_plotting_library() -> None:
    assert loaded("import memfit.report, memfit.analysis.select, memfit.report.notebook") == []


def test_tflite_files_load_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    """The same listing finds torch where it is loaded: see `test_this_check_can_fail`."""
    path = tmp_path / "net.tflite"
    path.write_bytes(tflite_models.cnn())
    names = ("torch", "tensorflow", "tflite_micro", "ai_edge_litert", "memfit.formats.tflite")
    for memory in ("ideal", "mcunet", "tflm"):
        code = f"from memfit.cli.main import main; assert main(['profile', {str(path)!r}, '--memory', {memory!r}]) == 0"
        assert loaded(code, names) == ["memfit.formats.tflite"]


def test_onnx_files_load_neither_torch_nor_a_runtime(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_models.cnn())
    names = ("torch", "tensorflow", "onnxruntime", "onnxscript", "memfit.formats.onnx")
    for memory in ("ideal", "mcunet"):
        code = f"from memfit.cli.main import main; assert main(['profile', {str(path)!r}, '--memory', {memory!r}]) == 0"
        assert loaded(code, names) == ["memfit.formats.onnx"]


def test_help_is_quick() -> None:
    walls = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "memfit.cli.main", "--help"], capture_output=True, check=True)
        walls.append(time.perf_counter() - start)
    assert min(walls) < 0.4
