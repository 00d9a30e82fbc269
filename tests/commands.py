"""The commands as subprocesses, for tests that meet them as their users do, and runs that are
stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from several import import_for_forks

from darts_bio.training.listeners import Listener, Progress

ROOT = Path(__file__).parent.parent
SEARCH, TRAIN = str(ROOT / "search" / "run.py"), str(ROOT / "evaluate" / "train_cifar.py")
IMAGENET = str(ROOT / "evaluate" / "train_imagenet.py")


def call(
    *command: str, cwd: Path | None = None, python: bool = True
) -> subprocess.CompletedProcess[str]:
    prefix = [sys.executable] if python else []
    return subprocess.run([*prefix, *command], capture_output=True, text=True, cwd=cwd, timeout=300)


def forked(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `call` returns, by a fork of this process, which has PyTorch imported already: that takes
    most of the seconds that a small command takes.
    """
    if sys.platform != "linux":
        return call(*command, cwd=cwd)
    import_for_forks()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process: Any = multiprocessing.get_context("fork").Process(
            target=_command, args=(command, cwd, files)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [file.read_text() for file in files]
    return subprocess.CompletedProcess(list(command), process.exitcode, *texts)


def _command(command: tuple[str, ...], cwd: Path | None, files: list[Path]) -> None:
    """Be the process of that command: Python's arguments, `-m` and a module or a script first."""
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    warnings.resetwarnings()
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    os.chdir(cwd or Path.cwd())
    is_module = command[0] == "-m"
    sys.argv = list(command[is_module:])
    sys.path.insert(0, "" if is_module else str(Path(command[0]).parent))
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


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
