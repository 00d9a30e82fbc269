"""The report of a search in stages, report.md in the folder of the whole search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.config.stages import Stage
from darts_bio.reports import findings
from darts_bio.reports.card import CARD_FILE
from darts_bio.reports.going_on import after_supernet
from darts_bio.reports.markdown import (
    block,
    images_in_words,
    link,
    markdown_table,
    recipe,
    repeat_entry,
)
from darts_bio.reports.rules_of_cells import which_rule_where
from darts_bio.reports.search import choices_section, first_entries
from darts_bio.runtime import hardware
from darts_bio.spaces import Genotype
from darts_bio.storage.logs import ALPHA_FILE, read_records
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.place import candidates_by_edge
from darts_bio.training.search import Search


def stages_card(
    config: SearchConfig,
    folder: RunFolder,
    search: Search,
    genotype: Genotype,
    results: Sequence[Any],
    next_command: str | None,
    sizes: str,
) -> str:
    """Return the report in Markdown.

    Args:
        config: The options of the whole search.
        folder: Its folder.
        search: The search of the last stage so far.
        genotype: Its genotype.
        results: The `SearchResult` of each stage so far.
        next_command: The command line that trains the genotype; None if its images have no name.
        sizes: What is said of the size of the network that it trains.
    """
    history = read_records(results[-1].folder / ALPHA_FILE)
    stages = config.of_stages()
    finished = len(results) == len(stages) and results[-1].finished
    seconds = sum(result.epochs[-1]["seconds"] for result in results if result.epochs)
    cost = f"**Cost:** {seconds:.0f} s, all stages so far, on {hardware(search.device)}"
    found = findings.of_search(search, genotype, history)
    next_step = after_supernet(search.config, found, finished, next_command, sizes)
    last = [cost, repeat_entry(folder.command), next_step.entry]
    state = "" if finished else f", stopped in stage {len(results)} of {len(stages)}"
    lines = [
        f"# Search on {images_in_words(config.dataset)} in {len(stages)} stages, seed {config.seed}{state}",
        "",
        *findings.in_short(first_entries(search, results[-1].epochs), found.verdicts(), last),
        "## Genotype",
        "",
        *block(str(genotype)),
        "",
        "![cells](cells.svg)",
        "",
        *choices_section(search, found),
        *which_rule_where(genotype, config.rules),
        *next_step.section(),
        "## Stages",
        "",
        "Each stage searches among the strongest candidates, pairs of operation and rule, that the "
        "one before it left on each edge. Losses are those of the supernet in its last epoch.",
        "",
    ]
    rows = [_row(number, *stages[number - 1], result) for number, result in enumerate(results, 1)]
    head = (
        *("stage", "", "cells", "candidates kept an edge", "weights"),
        *("epochs", "train loss", "validation loss"),
    )
    lines += [*markdown_table(head, rows), "", "## Candidates of the last stage", ""]
    left = [
        (cell_type, edge, ", ".join(candidates))
        for cell_type, by_edge in candidates_by_edge(search.table, search.space.edges).items()
        for edge, candidates in by_edge.items()
    ]
    lines += [*markdown_table(("cell", "edge", "candidates"), left), ""]
    lines += recipe(config, folder.command)
    return "\n".join(lines) + "\n"


def _row(number: int, stage: Stage, options: SearchConfig, result: Any) -> tuple[str, ...]:
    """Return a stage's row of the table of stages."""
    last = result.epochs[-1] if result.epochs else {}
    losses = (last.get(name) for name in ("train/loss", "valid/loss"))
    return (
        f"{number}",
        link("search", f"stage-{number}/{CARD_FILE}"),
        f"{options.layers}",
        "all there were" if stage.candidates is None else f"{stage.candidates}",
        "kept" if stage.keeps_weights else "new",
        f"{len(result.epochs)} of {options.epochs}",
        *("-" if loss is None else f"{loss:.4f}" for loss in losses),
    )
