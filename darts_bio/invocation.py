"""How this program was called, so that the commands it prints can be called in the same form.

A command has three forms: `darts-bio search` where the package is installed, `python -m darts_bio
search`, and the scripts of a checkout, `python search/run.py`. From Python none of them was used;
then the first is printed.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

SCRIPTS = {
    "search": "search/run.py",
    "train": "evaluate/train_cifar.py",
    "train-imagenet": "evaluate/train_imagenet.py",
    "robustness": "evaluate/robustness.py",
    "alignment": "evaluate/alignment.py",
}
"""The path of a checkout's script, by the command that it runs."""


def spelled(command: str, program: str | None = None) -> list[str]:
    """Return the words that call `command` in the form in which this process was called.

    Args:
        command: A command of `darts-bio`, such as "train".
        program: The path this process was started by; `sys.argv[0]` by default.

    Returns:
        The words after "python", or all of them if the first is "darts-bio". A command that has no
        script is called as a module.

    >>> spelled("train", "/usr/bin/darts-bio"), spelled("train", "site-packages/darts_bio/__main__.py")
    (['darts-bio', 'train'], ['-m', 'darts_bio', 'train'])
    >>> spelled("train", "../search/run.py"), spelled("export", "../search/run.py")
    (['../evaluate/train_cifar.py'], ['-m', 'darts_bio', 'export'])
    """
    program = sys.argv[0] if program is None else program
    path = PurePath(program)
    # Python replaces "-m" in sys.argv by the module's path only once the module is found.
    if path.parts[-2:] == ("darts_bio", "__main__.py") or program == "-m":
        return ["-m", "darts_bio", command]
    if "/".join(path.parts[-2:]) in SCRIPTS.values():
        script = SCRIPTS.get(command)
        return [str(path.parent.parent / script)] if script else ["-m", "darts_bio", command]
    return ["darts-bio", command]


def named(command: str) -> str:
    """Return a command's name for a sentence, as it would be called.

    >>> import sys; before, sys.argv = sys.argv, ["search/run.py"]
    >>> named("train"), named("export")
    ('evaluate/train_cifar.py', 'python -m darts_bio export')
    >>> sys.argv = before
    """
    words = spelled(command)
    return " ".join(["python", *words] if words[0] == "-m" else words)


def line(command: str, *options: str, launcher: Sequence[str] = ("python",)) -> str:
    """Return a whole command line, quoted for a shell, with the words that launch it.

    Args:
        command: A command of `darts-bio`, such as "train".
        options: The words that follow it.
        launcher: The words of python, torchrun or srun (`process_group.launcher`).

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
    launching = [] if words[0] == "darts-bio" else list(launcher)
    if by_uv() and launching == ["python"] and words[0] != "-m":
        launching = []  # uv run starts a script by itself
    return shlex.join([*(["uv", "run"] if by_uv() else []), *launching, *words, *options])


def called(launcher: Sequence[str]) -> str:
    """Return the command line that began this process, for files that are stamped with it.

    >>> import sys; before, sys.argv = sys.argv, ["/home/me/.venv/bin/darts-bio", "search", "--seed", "1"]
    >>> called(["python"])
    'darts-bio search --seed 1'
    >>> sys.argv = ["/home/me/darts_bio/search/run.py", "--data-dir=/home/me/cifar"]
    >>> called(["/usr/bin/torchrun"])
    'torchrun search/run.py --data-dir=cifar'
    >>> sys.argv = before

    Folders are left out, since files are passed on and paths tell whose machine it was.
    """
    program, *words = sys.argv
    words = [portable(word) for word in words]
    launcher = [portable(word) for word in launcher]
    path = PurePath(program)
    if path.name == "darts-bio":
        return shlex.join(["darts-bio", *words])
    is_module = path.parts[-2:] == ("darts_bio", "__main__.py")
    name = "/".join(path.parts[-2:])
    name = name if name in SCRIPTS.values() else portable(program)
    program_words = ["-m", "darts_bio"] if is_module else [name]
    return shlex.join([*launcher, *program_words, *words])


def portable(value: Any) -> Any:
    """Return an option's value, or a word that gives it, without the folders of absolute paths.

    What a tuple holds is treated alike; anything but text stays as it is.

    >>> portable("/home/me/data/cifar"), portable("--out=/tmp/run,/tmp/b"), portable("runs/a")
    ('cifar', '--out=run,b', 'runs/a')
    >>> portable("|none~0|+|none~0|none~1|"), portable(("/a/b", 3))
    ('|none~0|+|none~0|none~1|', ('b', 3))
    """
    if isinstance(value, (tuple, list)):
        return type(value)(portable(item) for item in value)
    if not isinstance(value, str):
        return value
    # A path begins where a word, a value or an item of a list does, and so may end in a blank.
    return re.sub(
        r"(^|[=,'\"(])(?:~|[A-Za-z]:(?=[\\/]))?[\\/](?:[^,'\")]*[\\/])?([^\\/,'\")]+)[\\/]?",
        r"\1\2",
        value,
    )


def by_uv() -> bool:
    """Tell whether `uv run` started this process.

    uv leaves its own path in the environment variable UV.

    >>> before = os.environ.pop("UV", None)
    >>> by_uv()
    False
    >>> os.environ["UV"] = "/usr/bin/uv"
    >>> by_uv()
    True
    >>> _ = os.environ.pop("UV") if before is None else os.environ.update(UV=before)
    """
    return "UV" in os.environ


def watch_line(runs: Path) -> str:
    """Return the command that shows in a browser the runs in a folder.

    >>> watch_line(Path("my runs")).removeprefix("uv run ")
    "tensorboard --logdir 'my runs'"
    """
    return shlex.join([*(["uv", "run"] if by_uv() else []), "tensorboard", "--logdir", str(runs)])
