"""The command line: `darts-bio COMMAND ...`, the same as `python -m darts_bio COMMAND ...`.

All commands share one parser and treat errors alike: bad input is one line on standard error and
exit code 2, and nothing is overwritten. No PyTorch is imported before a command runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from darts_bio.cli.parser import help_width, parse
from darts_bio.config import (
    AlignmentConfig,
    AuditConfig,
    CommandConfig,
    ExportConfig,
    GenotypeConfig,
    ImageNetConfig,
    ListConfig,
    RetrainConfig,
    RobustnessConfig,
    RulesConfig,
    SearchConfig,
    TimmConfig,
)
from darts_bio.errors import InputError, unknown_name
from darts_bio.version import __version__


@dataclass(frozen=True)
class Command:
    """A command of `darts-bio`: its options, the function that runs it, and its help texts.

    >>> COMMANDS["search"].name, COMMANDS["search"].run
    ('search', 'darts_bio.cli.run:search')
    """

    config: type[CommandConfig]
    run: str
    """The function as "module:function", imported when the command runs."""
    summary: str
    """A few words that follow the command's name in the overview."""
    about: str = ""
    """Examples and remarks, shown by `--help` below the options."""

    @property
    def name(self) -> str:
        """The word that selects the command."""
        return self.config.command


COMMANDS = {
    command.name: command
    for command in (
        Command(
            SearchConfig,
            "darts_bio.cli.run:search",
            "search cells over (operation, learning rule) pairs, and write the derived genotype",
        ),
        Command(
            RetrainConfig,
            "darts_bio.cli.run:train",
            "train a genotype's network from scratch on small images, and measure it on the test "
            "images",
        ),
        Command(
            ImageNetConfig,
            "darts_bio.cli.run:train",
            "train a genotype's network from scratch on ImageNet, or on images of its kind",
        ),
        Command(
            RobustnessConfig,
            "darts_bio.cli.run:robustness",
            "attack trained networks, and list the reasons to doubt the measured robustness",
        ),
        Command(
            AlignmentConfig,
            "darts_bio.cli.run:alignment",
            "measure how near a trained network's learning is to backpropagation, layer by layer",
        ),
        Command(
            ExportConfig,
            "darts_bio.cli.tools:export",
            "write a trained network as an ONNX model, a torch.export program or a timm folder",
            "ONNX models and programs take float pixels (N, C, H, W) in [0, 1], since they contain "
            "the run's normalization, and return logits. The timm folder takes images as timm "
            "normalizes them.",
        ),
        Command(
            GenotypeConfig,
            "darts_bio.cli.tools:show_genotype",
            "show, import or draw a genotype, or show the table of shipped ones",
        ),
        Command(
            AuditConfig,
            "darts_bio.cli.tools:show_audit",
            "show which layers of a network transport weights",
        ),
        Command(
            ListConfig, "darts_bio.cli.tools:list_names", "list every name that an option takes"
        ),
        Command(
            RulesConfig,
            "darts_bio.cli.tools:show_rules",
            "show the table of learning rules, or the page of one",
        ),
        Command(
            TimmConfig,
            "darts_bio.cli.tools:run_timm",
            "run a script of timm's with this package's models registered",
        ),
    )
}
"""All commands, by name."""


def main(argv: Sequence[str] | None = None, command: str | None = None) -> int:
    """Run a command line and return its exit code.

    The code is 0 after success, 2 for bad input, and 128 plus its number for a signal.

    Args:
        argv: The words of the command line; by default those of this process.
        command: The command that all of `argv` are options of. By default `argv` begins with the
            command; the scripts of a checkout (`search/run.py`, `evaluate/*.py`) name it here.

    Example:
        >>> main(["--version"])  # doctest: +ELLIPSIS
        darts-bio ...
        0
        >>> main(["audit", "darts_v2", "--channels", "1"])  # the error goes to standard error
        2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if command is None:
            if not words or words[0] in ("-h", "--help"):
                print(_overview())
                return 0
            if words[0] in ("-V", "--version"):
                print(f"darts-bio {__version__}")
                return 0
            command, *words = words
            if command not in COMMANDS:
                raise unknown_name("command", command, COMMANDS)
        entry = COMMANDS[command]
        description = f"{entry.summary[0].upper()}{entry.summary[1:]}."
        config = parse(entry.config, words, description, entry.about)
        module, _, function = entry.run.partition(":")
        code: int = getattr(importlib.import_module(module), function)(config)
        sys.stdout.flush()  # here, so that a reader that has gone is noticed below
        return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the run handles signals itself, or at a second Ctrl-C
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. Python flushes standard output once more
        # at its exit, which would raise again: send that to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _overview() -> str:
    """Return the text of `darts-bio --help`: all commands with their summaries."""
    import textwrap

    width = help_width()
    lines = ["usage: darts-bio COMMAND [OPTIONS]   (also: python -m darts_bio COMMAND)", ""]
    for command in COMMANDS.values():
        text = textwrap.wrap(command.summary, width - 18)
        lines += [f"  {command.name:15} {text[0]}", *(" " * 18 + line for line in text[1:])]
    return "\n".join(
        [
            *lines,
            "",
            "`darts-bio COMMAND --help` shows the options of one, `darts-bio --version` the "
            "version.",
        ]
    )
