"""The commands as subprocesses, for tests that meet them as their users do, and runs that are
stopped.
"""

from __future__ import annotations

import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from darts_bio.training.engine import Listener, Progress

ROOT = Path(__file__).parent.parent
SEARCH, TRAIN = str(ROOT / "search" / "run.py"), str(ROOT / "evaluate" / "train_cifar.py")
IMAGENET = str(ROOT / "evaluate" / "train_imagenet.py")


def call(
    *command: str, cwd: Path | None = None, python: bool = True
) -> subprocess.CompletedProcess[str]:
    prefix = [sys.executable] if python else []
    return subprocess.run([*prefix, *command], capture_output=True, text=True, cwd=cwd, timeout=300)


def here(
    script: str,
    words: str,
    place: Path,
    patch: pytest.MonkeyPatch,
    capture: pytest.CaptureFixture[str],
) -> str:
    """The one line of a script's refusal, run within this process, which saves seconds of
    imports.
    """
    patch.chdir(place)
    patch.setattr(sys, "argv", [script, *shlex.split(words)])
    patch.setattr(sys, "path", [str(Path(script).parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    said = capture.readouterr()
    return refused(subprocess.CompletedProcess([], int(ended.value.code or 0), said.out, said.err))


def torchrun(*command: str) -> list[str]:
    """The command that runs a script in two processes of this machine."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *command,
    ]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


class StopAfter(Listener):
    """Asks for a stop, as Ctrl-C does, after so many steps of this process."""

    def __init__(self, steps: int | None) -> None:
        self._left = steps

    def on_step(self, progress: Progress, images: int) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGINT)
