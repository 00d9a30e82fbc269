"""What the tests of searches share: small ones, and their epochs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData
from darts_bio.spaces import SPACES
from darts_bio.strategies import STRATEGIES, Context
from darts_bio.training.engine import run_epoch as epoch  # noqa: F401
from darts_bio.training.search import Search

CPU = torch.device("cpu")
PAIR = "darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))"


def context(
    space: str = "darts", rules: tuple[str, ...] = ("fa", "usf"), epochs: int = 10, **options: Any
) -> Context:
    built = SPACES.build(space)
    return Context(built, built.table(rules), options.pop("seed", 0), CPU, epochs, 5, **options)


def begin(spec: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """A strategy, and its state at the beginning of a search of that `context`."""
    strategy = STRATEGIES.build(spec)
    return strategy, strategy.begin(context(*args, **options))


def search(data: ImageData, strategy: str = "darts", **options: Any) -> Search:
    """On the smallest space, under two rules."""
    config: dict[str, Any] = {
        "space": PAIR,
        "rules": ("fa", "usf"),
        "epochs": 4,
        "strategy": strategy,
    }
    sizes: dict[str, Any] = {
        "crop_padding": 1,
        "channels": 8,
        "layers": 3,
        "batch_size": 8,
        "lr": 0.05,
    }
    return Search(SearchConfig(**(sizes | config | options)), data, CPU)


def verdicts(report: Path) -> list[str]:
    """What a report says in words of what was found, without the mean entropy: records of alpha
    are rounded, which may round the third decimal of the mean otherwise.
    """
    lines = re.findall(r"^- \*\*\w+\?\*\* .*$", report.read_text(), re.MULTILINE)
    return [re.sub(r"is on average [\d.]+", "is on average", line) for line in lines]


def in_short(report: Path) -> list[str]:
    """The entries of the list at the head of a report."""
    section = report.read_text().partition("## In short\n\n")[2].partition("\n\n")[0]
    return [line.removeprefix("- ") for line in section.splitlines()]


def going_on(report: Path) -> str:
    """What a report says of how to go on."""
    return report.read_text().partition("\n## How to go on\n")[2].partition("\n## ")[0]


def rows_below(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, the head left out."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return rows[2:]
