"""The report of a search without a supernet, report.md: the genotype, the queries, their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.figures.thinning import thinned
from darts_bio.invocation import portable
from darts_bio.reports.checklist import checklist
from darts_bio.reports.findings import Findings, in_short
from darts_bio.reports.going_on import after_search
from darts_bio.reports.markdown import (
    block,
    code,
    counted,
    escaped,
    images_in_words,
    markdown_table,
    recipe,
    repeat_entry,
)
from darts_bio.reports.page import MOST_ROWS
from darts_bio.reports.search import accuracies_in_words
from darts_bio.runtime import hardware, made_by
from darts_bio.spaces import Genotype
from darts_bio.storage.logs import EVALUATIONS_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.black_box import BlackBoxSearch

BEST_FIGURE = "best.svg"
"""The figure of the accuracy over the queries in a search's run folder."""


def black_box_card(
    search: BlackBoxSearch,
    folder: RunFolder,
    genotype: Genotype,
    queries: Sequence[Mapping[str, Any]],
    known: Mapping[str, float] | None,
    next_command: str | None,
    sizes: str,
) -> str:
    """Return the report of one search in Markdown.

    Args:
        search: The search as it ended or was stopped.
        folder: Its folder.
        genotype: What it found.
        queries: The numbers of its queries as metrics.jsonl has them.
        known: The accuracies, in per cent by data set, of the genotype in the table of `--table`;
            None without a table or where the cell is not in it.
        next_command: The command line that trains the genotype; None if its images have no name.
        sizes: What is said of the size of the network that it trains.
    """
    config = search.config
    where = (
        images_in_words(config.dataset)
        if config.query is None
        else escaped(f"{portable(config.table or '')}, {config.query}")
    )
    stopped = len(queries) < search.epochs
    state = f", stopped after {len(queries)} of {search.epochs} queries" if stopped else ""
    machine = hardware(search.device)
    cost = f"{len(queries)} queries in {queries[-1]['seconds'] if queries else 0:.0f} s"
    next_step = after_search(not stopped, next_command, sizes)
    lines = [
        f"# Search on {where}, seed {config.seed}{state}",
        "",
        *in_short(
            [f"**Data:** {where}. {_halves_in_words(search)}."],
            Findings(search.space, genotype).verdicts(),
            [f"**Cost:** {cost}, on {machine}", repeat_entry(folder.command), next_step.entry],
        ),
        "## Genotype",
        "",
    ]
    lines += [*block(str(genotype)), "", "![cells](cells.svg)", ""]
    if known is not None:
        lines += [
            f"In {code(portable(config.table or ''))}, under bp: **{escaped(accuracies_in_words(known))}**",
            "",
        ]
    if search.best is not None:
        lines += _queries(search, queries)
    lines += [*next_step.section(), *recipe(config, folder.command)]
    data, machine = search.subject["data set"], f"{machine}; {made_by()}"
    lines += ["", "## Data and machine", "", f"- data: {escaped(data)}", f"- {cost}"]
    lines += [f"- {machine}", ""]
    lines += checklist(config, genotype, data=data, machine=machine, cost=cost)
    return "\n".join(lines) + "\n"


def _halves_in_words(search: BlackBoxSearch) -> str:
    """Return on which images the queried genotypes are trained and measured, without a full stop."""
    if search.config.query is not None:
        return (
            f"Accuracies are those of the column {escaped(search.config.query)}; nothing is trained"
        )
    trained, held_out = search.halves
    return (
        f"Each genotype is trained on {trained} of the training images and measured on {held_out} "
        "others, the same for all; no test image is used"
    )


def _queries(search: BlackBoxSearch, queries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the section on what was queried, at what cost, and the best so far."""
    config, best = search.config, search.best
    assert best is not None
    lines = ["## Queries", ""]
    if config.query is not None:
        lines += [
            f"Accuracies are those of the column {escaped(config.query)}; nothing was trained.",
            "",
        ]
    else:
        halves = search.halves
        lines += [
            f"Each genotype was trained from scratch for {counted(config.epochs, 'epoch')} on {halves[0]} of "
            f"the training images, and measured on {halves[1]} others, the same for all. The best "
            f"of {len(queries)} such numbers is too high for what was found: train it, and measure "
            "it on test images.",
            "",
            f"Cost: {search.images:,} training images, each counted as often as it went through a "
            "network of one candidate an edge, there and back. A search with a supernet uses "
            f"{2 * search.images // len(queries):,} with the same --epochs and --batch-size, in both "
            "halves together, and computes all candidates for each of them.",
            "",
        ]
    risen = [
        (
            str(numbers["epoch"]),
            f"{100 * numbers['best/accuracy']:.2f}",
            f"{int(numbers['cost/images']):,}",
        )
        for before, numbers in zip([None, *queries], queries, strict=False)
        if before is None or numbers["best/accuracy"] > before["best/accuracy"]
    ]
    lines += [
        f"The genotype is that of query {best.query}. All are in [{EVALUATIONS_FILE}]"
        f"({EVALUATIONS_FILE}); those that were better than all before:",
        "",
        f"![accuracy over the queries]({BEST_FIGURE})",
        "",
        *markdown_table(
            ("query", "accuracy, %", "training images so far"), thinned(risen, MOST_ROWS)
        ),
        "",
    ]
    return lines
