"""The options of commands that look at something or hand it on, and write no run folder."""

from __future__ import annotations

from darts_bio.bounded import MOST_CELLS
from darts_bio.config.common import CommandConfig, charts_option, check_charts, refuse_repeated
from darts_bio.config.options import configuration, option
from darts_bio.errors import InputError


@configuration("what is written")
class ExportConfig(CommandConfig):
    """The options of writing a trained network in the forms of other libraries.

    >>> ExportConfig(source="runs/a", onnx="a.onnx").onnx
    'a.onnx'
    """

    command = "export"

    source: str = option(
        "",
        "run folder of a training, its checkpoint.pt, or the name of a shipped network",
        metavar="RUN",
        positional=True,
    )
    onnx: str | None = option(None, "write an ONNX model", metavar="FILE")
    program: str | None = option(None, "write a program for torch.export.load", metavar="FILE.pt2")
    hub: str | None = option(
        None,
        'write a new folder for load_trained, timm.create_model("local-dir:DIR") or the Hub',
        metavar="DIR",
    )
    batch: int | None = option(
        None,
        "fix the number of images in a batch of --onnx and --program (default: any)",
        minimum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.onnx or self.program or self.hub):
            raise InputError(
                "export: expected something to write; give --onnx FILE, --program FILE.pt2 or "
                "--hub DIR"
            )
        if self.batch is not None and not (self.onnx or self.program):
            raise InputError("--batch: expected together with --onnx or --program, found neither")


@configuration("what is shown")
class GenotypeConfig(CommandConfig):
    """The options of showing and drawing a genotype, or the table of the shipped ones.

    >>> GenotypeConfig(source="darts_v2", svg="cells.svg").svg
    'cells.svg'
    """

    command = "genotype"

    source: str | None = option(
        None,
        "a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text",
        metavar="X",
        positional=True,
    )
    json: str | None = option(None, "write it as a genotype file", metavar="FILE")
    svg: str | None = option(None, "draw its cells", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None and (self.json or self.svg):
            raise InputError("genotype: --json and --svg need a genotype X to write")


@configuration("network")
class AuditConfig(CommandConfig):
    """The options of showing by which rule each weight of a genotype's network learns.

    >>> AuditConfig(source="darts_v2").channels
    36
    """

    command = "audit"

    source: str = option("", "a genotype, named as for `genotype`", metavar="X", positional=True)
    channels: int = option(36, "channels of a node in the first cell", minimum=2)
    layers: int = option(20, "cells stacked", minimum=1, below=MOST_CELLS + 1)
    rows: bool = option(False, "also list all weights, a line each")
    json: str | None = option(None, "also write it to this file as JSON", metavar="FILE")


@configuration("what is shown")
class RulesConfig(CommandConfig):
    """The options of showing the table of learning rules, or the page of one.

    >>> RulesConfig(name="usf").name
    'usf'
    """

    command = "rules"

    name: str | None = option(None, "the name of a rule", metavar="RULE", positional=True)


@configuration("what is shown")
class ListConfig(CommandConfig):
    """The options of listing every name that an option takes: only those of all commands.

    >>> ListConfig().plugin
    ()
    """

    command = "list"


@configuration("what is shown")
class RunsConfig(CommandConfig):
    """The options of listing runs.

    >>> RunsConfig(folder="runs", where="strategy=darts, rules=(fa, usf)").where
    ('strategy=darts', 'rules=(fa, usf)')
    """

    command = "runs"

    folder: str | None = option(
        None,
        "the folder in and below which runs lie (default: runs)",
        metavar="FOLDER",
        positional=True,
    )
    where: tuple[str, ...] = option(
        (),
        "list only runs for which all of these hold: NAME=VALUE, where NAME is a column or an option "
        "of the run, such as 'strategy=darts, dataset=digits'",
        metavar="A=B,...",
    )
    sort: str | None = option(
        None,
        "sort by a column, an option, or a number of the last epoch, such as test/accuracy; "
        "accuracies begin with the highest (default: by path)",
        metavar="NAME",
    )
    csv: bool = option(False, "print CSV")
    json: bool = option(False, "print JSON, with all options and numbers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.csv and self.json:
            raise InputError("runs: expected --csv or --json, found both; leave one out")


@configuration("what is compared")
class ReportConfig(CommandConfig):
    """The options of comparing runs side by side.

    >>> ReportConfig(runs=["runs/a", "runs/b"]).runs
    ('runs/a', 'runs/b')
    """

    command = "report"

    runs: tuple[str, ...] = option(
        (),
        "two or more run folders; one with several seeds stands for all of them",
        metavar="RUN ...",
        positional=True,
    )
    out: str | None = option(
        None, "folder of the report, new or empty (default: runs/report-TIME)", metavar="DIR"
    )
    charts: tuple[str, ...] = charts_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_charts(self.charts)
        if len(self.runs) < 2:
            raise InputError(
                f"report: expected two or more run folders to compare, found {len(self.runs)}"
            )
        refuse_repeated("runs", self.runs)


@configuration("what is run")
class TimmConfig(CommandConfig):
    """The options of running a script of timm's with this package's models registered.

    >>> TimmConfig(script="train.py", arguments=["--model", "darts_v2_cifar"]).arguments
    ('--model', 'darts_v2_cifar')
    """

    command = "timm"

    script: str = option(
        "", "your copy of timm's train.py, validate.py, ...", metavar="SCRIPT", positional=True
    )
    arguments: tuple[str, ...] = option(
        (), "arguments of the script", metavar="ARGS", positional="rest"
    )
