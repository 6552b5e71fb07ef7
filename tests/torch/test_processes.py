"""What only a fresh process can show: what gets imported, and what a user's own file may import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import memfit


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def modules_after(arguments: list[str], cwd: Path) -> set[str]:
    """Names of the modules in a process that ran one command line."""
    code = f"import sys; from memfit.cli.main import main; main({arguments!r}); print('MODULES', *sys.modules)"
    done = python("-c", code, cwd=cwd)
    assert not done.returncode, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "net.memfit.json"
    memfit.save_graph(memfit.capture("torchvision:mobilenet_v2", "1x3x32x32"), path)
    return path


def test_a_saved_graph_is_profiled_without_torch(saved: Path) -> None:
    for memory in ("eager", "ideal", "mcunet"):
        modules = modules_after(["profile", saved.name, "--memory", memory], saved.parent)
        assert "memfit.memory.profile" in modules
        assert "torch" not in modules


def test_the_check_above_can_fail(saved: Path) -> None:
    assert "torch" in modules_after(["profile", "torchvision:mobilenet_v2", "--memory", "ideal"], saved.parent)


def test_a_common_network_does_without_the_compiler(saved: Path) -> None:
    modules = modules_after(["profile", "torchvision:swin_v2_t"], saved.parent)
    assert "torch._dynamo" not in modules


def test_a_users_file_may_import_torchvision_and_timm(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import timm, torch, torchvision\n"
        "def net():\n"
        "    head = torchvision.models.resnet18(num_classes=10)\n"
        "    return head, torch.zeros(1, 3, 64, 64)\n"
    )
    done = python("-m", "memfit", "profile", "net.py:net", "--format", "json", cwd=tmp_path)
    assert not done.returncode, done.stderr
    assert '"params": 11181642' in done.stdout
