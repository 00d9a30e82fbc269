"""Several runs side by side: a table, a paired test, curves, cells, and the options that differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from darts_bio.evaluation.paired import EXACT, paired_p
from darts_bio.reports.card import CURVES_FIGURE
from darts_bio.reports.markdown import Markdown, escaped, markdown_table
from darts_bio.reports.run_table import COLUMNS
from darts_bio.storage.run_summary import RunSummary
from darts_bio.storage.status import FINISHED

OF_A_PLACE = ("seed", "seeds", "device", "data_dir", "workers", "plugin")
"""Options that are not listed as different: what they change is in the table, or nothing."""


@dataclass(frozen=True)
class Compared:
    """A run that is compared.

    Attributes:
        name: Tells it from the others.
        run: What is told of it; of several seeds of all together.
        seeds: The runs of its seeds; the run itself where it is one of one seed.
        epochs: The numbers of the epochs of each seed that has some, first to last.
        cells: The file names of figures of its cells, by what they show.
        missing: Why there is no figure, in words; "" if there is.
    """

    name: str
    run: RunSummary
    seeds: Sequence[RunSummary]
    epochs: Sequence[Sequence[Mapping[str, float]]] = ()
    cells: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def side_by_side(runs: Sequence[Compared]) -> str:
    """Return the report in Markdown.

    >>> from pathlib import Path
    >>> runs = [
    ...     RunSummary(Path(name), "train", "finished", seeds=(seed,), test=(accuracy,))
    ...     for name, seed, accuracy in (("a", 0, 0.9), ("b", 0, 0.8))
    ... ]
    >>> text = side_by_side([Compared(run.path.name, run, [run]) for run in runs])
    >>> text.splitlines()[0]
    '# a, b side by side'
    """
    names = [escaped(each.name) for each in runs]
    lines = [f"# {', '.join(names)} side by side", ""]
    found = doubts(runs)
    if found:
        lines += ["**Their numbers are not comparable:**", ""]
        lines += [f"- {escaped(doubt)}" for doubt in found]
    else:
        lines += [
            "Runs of one kind, all at their end, on the same data and after equally many epochs."
        ]
    rows = [
        [
            f"{number} {escaped(each.name)}",
            *(escaped(show(each.run)) or "-" for show in COLUMNS.values()),
        ]
        for number, each in enumerate(runs, 1)
    ]
    lines += ["", *markdown_table(("run", *COLUMNS), rows), ""]
    if any(len(each.seeds) > 1 for each in runs):
        lines += ["Of several seeds: mean +- standard deviation of the accuracy.", ""]
    lines += [*_tests(runs), ""]
    if any(epochs for each in runs for epochs in each.epochs):
        lines += ["## Curves", "", f"![numbers over the epochs]({CURVES_FIGURE})", ""]
    lines += [*_cells(runs), "## Options that differ", ""]
    differing = list(_differing(runs))
    if differing:
        lines += markdown_table(("option", *names), differing)
    else:
        lines += ["None."]
    return "\n".join(lines) + "\n"


def doubts(runs: Sequence[Compared]) -> list[str]:
    """Return why runs cannot be compared, in words, a line each; none if they can.

    >>> from pathlib import Path
    >>> runs = [RunSummary(Path(name), "train", "finished", dataset=name) for name in "ab"]
    >>> doubts([Compared(run.path.name, run, [run]) for run in runs])
    ['other data sets: a of a, b of b']
    """

    def values(of: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in of.items())

    lines = []
    for title, show in (
        ("other kinds of runs", lambda run: run.kind or "unknown"),
        ("other data sets", lambda run: f"of {run.dataset or 'unknown'}"),
        ("other numbers of epochs asked for", lambda run: f"{run.epochs or 'unknown'}"),
        ("other numbers of epochs done", lambda run: f"{run.epoch}"),
    ):
        of = {each.name: show(each.run) for each in runs}
        if len(set(of.values())) > 1:
            lines.append(f"{title}: {values(of)}")
    data = {
        each.name: " / ".join(sorted({part.data or "not recorded" for part in each.seeds}))
        for each in runs
    }
    if len(set(data.values())) > 1 and not any("data sets" in line for line in lines):
        lines.append(f"other images of the data set: {values(data)}")
    unfinished = {each.name: each.run.state for each in runs if each.run.state != FINISHED}
    if unfinished:
        lines.append(f"not at their end: {values(unfinished)}")
    return lines


def _tests(runs: Sequence[Compared]) -> list[str]:
    """Return the section on the differences between runs, and whether chance makes such ones."""
    rows, fewest = [], 0
    for first, second in itertools.combinations(runs, 2):
        names = [escaped(first.name), escaped(second.name)]
        for measured in ("test", "held_out"):
            pairs = _by_seed(first, second, measured)
            if pairs:
                break
        if not pairs:
            rows.append([*names, "-", "0", "-", "-"])
            continue
        differences = [100 * (a - b) for a, b in pairs]
        mean = f"{fmean(differences):+.2f}"
        p = "-"
        if len(pairs) > 1:
            mean += f" +- {stdev(differences):.2f}"
            p = f"{paired_p(differences):.3g}"
            fewest = min(fewest or len(pairs), len(pairs))
        rows.append([*names, measured.replace("_", "-"), str(len(pairs)), mean, p])
    head = ("run", "minus", "accuracy", "n", "difference, points", "p")
    lines = ["## Differences", "", *markdown_table(head, rows), ""]
    if not fewest:
        return [
            *lines,
            "No test: it takes two seeds or more that both runs have; a run keeps no answers to "
            "single images. A difference between single seeds may be that of the seeds.",
        ]
    return [
        *lines,
        "Of the same seeds, pair by pair: mean +- standard deviation of n differences. p is that of "
        "the two-sided sign-flip test: the share of all 2^n signs of the differences (beyond "
        f"n = {EXACT} of a million drawn ones) whose sum is as far from 0. No p is below 2 / 2^n, here "
        f"{2 / 2**fewest:.3g} where n = {fewest}. It is not corrected for the number of pairs of runs.",
    ]


def _by_seed(first: Compared, second: Compared, measured: str) -> list[tuple[float, float]]:
    """Return the accuracies of both for each seed that both have, in the order of seeds."""
    tables = [
        {run.seeds[0]: run.value(measured) for run in each.seeds if len(run.seeds) == 1}
        for each in (first, second)
    ]
    return [
        (tables[0][seed], tables[1][seed])
        for seed in sorted(tables[0].keys() & tables[1].keys())
        if tables[0][seed] is not None and tables[1][seed] is not None
    ]


def _cells(runs: Sequence[Compared]) -> list[str]:
    """Return the section with the figures of the cells, a column a run."""
    if not any(each.cells for each in runs):
        return []
    lines = ["## Cells", ""]
    columns = [
        [
            Markdown(f"{escaped(title)} ![{escaped(title)}]({file})")
            for title, file in each.cells.items()
        ]
        or [escaped(each.missing)]
        for each in runs
    ]
    rows = itertools.zip_longest(*columns, fillvalue="")
    return [*lines, *markdown_table([escaped(each.name) for each in runs], list(rows)), ""]


def _differing(runs: Sequence[Compared]) -> Iterator[list[str]]:
    """Yield a row (option, value in each run) for each option that runs do not share."""
    for name in dict.fromkeys(name for each in runs for name in each.run.options):
        values = [_option(each.run.options, name) for each in runs]
        if len(set(values)) > 1 and name not in OF_A_PLACE:
            yield [escaped(name), *map(escaped, values)]


def _option(options: Mapping[str, Any], name: str) -> str:
    """Return an option's value as text, cut to a reasonable length; "-" where there is none."""
    value = options.get(name)
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if value in (None, "", []):
        return "-"
    return shown if len(shown) <= 100 else shown[:97] + "..."
