"""The scripts as subprocesses, for tests that meet them as their users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEARCH, TRAIN = str(ROOT / "search" / "run.py"), str(ROOT / "evaluate" / "train_cifar.py")
IMAGENET = str(ROOT / "evaluate" / "train_imagenet.py")


def call(*command: str, cwd: Path | None = None, python: bool = True) -> subprocess.CompletedProcess[str]:
    prefix = [sys.executable] if python else []
    return subprocess.run([*prefix, *command], capture_output=True, text=True, cwd=cwd, timeout=300)


def torchrun(*command: str) -> list[str]:
    """The command that runs a script in two processes of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
