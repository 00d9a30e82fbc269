"""The command line: `darts-bio COMMAND ...`, the same as `python -m darts_bio COMMAND ...`.

All commands share one parser and treat errors alike: bad input is one line on standard error and
exit code 2, and nothing is overwritten. No PyTorch is imported before a command runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from darts_bio.cli.parser import help_width, parse
from darts_bio.config import (
    AlignmentConfig,
    AuditConfig,
    CommandConfig,
    ExportConfig,
    GenotypeConfig,
    ImageNetConfig,
    ListConfig,
    ReportConfig,
    RetrainConfig,
    RobustnessConfig,
    RulesConfig,
    RunConfig,
    RunsConfig,
    SearchConfig,
    TimmConfig,
)
from darts_bio.errors import InputError, unknown_name
from darts_bio.monitoring.stream import UnfailingStream
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
            RunsConfig,
            "darts_bio.cli.runs:list_runs",
            "list the runs below a folder: what they are, how far they are, and what they reached",
        ),
        Command(
            ReportConfig,
            "darts_bio.cli.run:report",
            "compare runs side by side: a table with a paired test, curves, cells, other options",
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
    _fill_standard_descriptors()
    with contextlib.redirect_stderr(UnfailingStream(sys.stderr)):
        try:
            return _run(words, command)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:  # before the run handles signals itself, or at a second Ctrl-C
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            return 141
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return 2
        finally:
            for stream in (sys.__stdout__, sys.__stderr__):
                _let_go(stream)


def _run(words: list[str], command: str | None) -> int:
    """Run a command line as `main` does, and return its exit code; errors are raised."""
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
    # What a run has found lies in its folder: that nobody reads along is no failure.
    output = UnfailingStream(sys.stdout) if isinstance(config, RunConfig) else sys.stdout
    with contextlib.redirect_stdout(output):
        code: int = getattr(importlib.import_module(module), function)(config)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, so that a reader that has gone is noticed by `main`
    return code


def _fill_standard_descriptors() -> None:
    """Open /dev/null in place of a standard stream that was closed before this process started.

    Its number would go to the next file that is opened, and a library's warnings into that file.
    """
    number = 0
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


def _let_go(stream: TextIO | None) -> None:
    """Send a stream to nowhere if it cannot be written.

    Python flushes it once more at its exit, and would then end with a code of its own.
    """
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
