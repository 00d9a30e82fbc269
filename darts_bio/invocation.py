"""How this program was called, so that the commands it prints can be called in the same form.

A command has three forms: `darts-bio search` where the package is installed, `python -m darts_bio
search`, and the scripts of a checkout, `python search/run.py`. From Python none of them was used;
then the first is printed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

SCRIPTS = {
    "search": "search/run.py",
    "train": "evaluate/train_cifar.py",
    "train-imagenet": "evaluate/train_imagenet.py",
    "robustness": "evaluate/robustness.py",
    "alignment": "evaluate/alignment.py",
}
"""The scripts of a checkout, by the command that each of them is."""


def spelled(command: str, program: str | None = None) -> list[str]:
    """Give the words that call `command` as this process was called, by default by sys.argv[0].

    >>> spelled("train", "/usr/bin/darts-bio"), spelled("train", "site-packages/darts_bio/__main__.py")
    (['darts-bio', 'train'], ['-m', 'darts_bio', 'train'])
    >>> spelled("train", "../search/run.py"), spelled("export", "../search/run.py")
    (['../evaluate/train_cifar.py'], ['-m', 'darts_bio', 'export'])
    """
    program = sys.argv[0] if program is None else program
    path = PurePath(program)
    if path.parts[-2:] == ("darts_bio", "__main__.py") or program == "-m":
        return ["-m", "darts_bio", command]
    if "/".join(path.parts[-2:]) in SCRIPTS.values():
        script = SCRIPTS.get(command)
        return [str(path.parent.parent / script)] if script else ["-m", "darts_bio", command]
    return ["darts-bio", command]


def named(command: str) -> str:
    """Name a command in a sentence, as it would be called.

    >>> import sys; before, sys.argv = sys.argv, ["search/run.py"]
    >>> named("train"), named("export")
    ('evaluate/train_cifar.py', 'python -m darts_bio export')
    >>> sys.argv = before
    """
    words = spelled(command)
    return " ".join(["python", *words] if words[0] == "-m" else words)


def line(command: str, *options: str, launcher: Sequence[str] = ("python",)) -> str:
    """Write the whole command, as a shell reads it, with what launches it: `launcher` is python,
    torchrun or srun.

    >>> import sys; before, sys.argv = sys.argv, ["/usr/bin/darts-bio"]
    >>> line("train", "--genotype", "my run").removeprefix("uv run ")
    "darts-bio train --genotype 'my run'"
    >>> line("train", "--resume", launcher=("torchrun", "--nproc-per-node", "2")).removeprefix("uv run ")
    'torchrun --nproc-per-node 2 -m darts_bio train --resume'
    >>> sys.argv = before
    """
    words = spelled(command)
    if words[0] == "darts-bio" and list(launcher) != ["python"]:
        words = ["-m", "darts_bio", command]  # torchrun starts Python's modules and files only
    started = [] if words[0] == "darts-bio" else list(launcher)
    if by_uv() and started == ["python"] and words[0] != "-m":
        started = []  # uv run starts a script by itself
    return shlex.join([*(["uv", "run"] if by_uv() else []), *started, *words, *options])


def called(launcher: Sequence[str]) -> str:
    """Write the command line that began this process, for what is stamped with it.

    >>> import sys; before, sys.argv = sys.argv, ["/home/me/.venv/bin/darts-bio", "search", "--seed", "1"]
    >>> called(["python"])
    'darts-bio search --seed 1'
    >>> sys.argv = before
    """
    program, *words = sys.argv
    path = PurePath(program)
    if path.name == "darts-bio":
        return shlex.join(["darts-bio", *words])
    module = path.parts[-2:] == ("darts_bio", "__main__.py")
    return shlex.join([*launcher, *(["-m", "darts_bio"] if module else [program]), *words])


def by_uv() -> bool:
    """Tell whether `uv run` started this, which leaves its path in the environment."""
    return "UV" in os.environ


def watch_line(runs: Path) -> str:
    """Write the command that shows the runs in a folder in a browser."""
    return shlex.join([*(["uv", "run"] if by_uv() else []), "tensorboard", "--logdir", str(runs)])
