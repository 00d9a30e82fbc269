"""The report of a search, report.md: the genotype, the numbers of each epoch, the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.distributed import world_size
from darts_bio.figures.thinning import thinned
from darts_bio.invocation import portable
from darts_bio.networks import parameters
from darts_bio.networks.pooled import rule_shares
from darts_bio.reports import findings
from darts_bio.reports.checklist import checklist
from darts_bio.reports.choices import choices, left_out
from darts_bio.reports.findings import Findings, in_short
from darts_bio.reports.going_on import after_supernet
from darts_bio.reports.markdown import (
    block,
    code,
    counted,
    escaped,
    images_in_words,
    markdown_table,
    recipe,
    repeat_entry,
    slowed,
)
from darts_bio.reports.page import MOST_ROWS
from darts_bio.reports.rules_of_cells import which_rule_where
from darts_bio.reports.time_lapse import HEADING, HINT, equal_shares
from darts_bio.runtime import hardware, made_by
from darts_bio.spaces import Genotype, to_nb201_text
from darts_bio.spaces.base import by_operation
from darts_bio.storage.logs import ALPHA_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.search import Search

KNOWN_FIGURE = "known.svg"
"""The figure of the known accuracies in a search's run folder."""
ENERGY_OF_GPU = (
    "Energy was not measured; it is at most these hours times the power limit that `nvidia-smi -q "
    "-d POWER` gives for the board."
)
"""The sentence on the energy that a search on a GPU took."""


def search_card(
    search: Search,
    folder: RunFolder,
    genotype: Genotype,
    epochs: Sequence[Mapping[str, Any]],
    finished: bool,
    known: Mapping[str, float] | None,
    history: Sequence[Mapping[str, Any]],
    next_command: str | None,
    sizes: str = "",
) -> str:
    """Return the report of one search in Markdown.

    Args:
        search: The search as it ended or was stopped.
        folder: Its folder.
        genotype: What it found.
        epochs: The numbers of its epochs as metrics.jsonl has them.
        finished: Whether it came to its end.
        known: The accuracies, in per cent by data set, of the cell in the table of `--table`; None
            without a table or where the cell is not in it.
        history: The records of alpha.jsonl; none of a search that trains nothing.
        next_command: The command line that trains the genotype; None if its images have no name.
        sizes: What is said of the size of the network that it trains.
    """
    config = search.config
    state = (
        "" if finished else f", stopped after {len(epochs)} of {counted(config.epochs, 'epoch')}"
    )
    cost = _cost(search, epochs)
    found = findings.of_search(search, genotype, history)
    next_step = after_supernet(search.config, found, finished, next_command, sizes)
    last = [f"**Cost:** {cost}", repeat_entry(folder.command), next_step.entry]
    lines = [
        f"# Search on {images_in_words(config.dataset)}, seed {config.seed}{state}",
        "",
        *in_short(first_entries(search, epochs), found.verdicts(), last),
        "## Genotype",
        "",
        *block(str(genotype)),
        "",
        "![cells](cells.svg)",
        "",
        *_legend(genotype),
        *choices_section(search, found),
        *which_rule_where(genotype, config.rules),
        *next_step.section(),
    ]
    if not search.strategy.finished:
        lines += _shares(search, genotype)
    if search.objective.bound is not None:
        bound = search.objective.bound
        lines += [
            f"{bound.name}: {bound.share_of(genotype.cells):.3f} of the parameters of the cells' "
            f"layers, where {bound.share:g} is allowed, which is spent where it is worth most: a "
            "rule then need not be the one of largest share. Counted in a network of "
            f"{config.layers} cells, as searched; with other --layers the share is another.",
            "",
        ]
    if history:
        lines += [
            f"## {HEADING}",
            "",
            f"[{ALPHA_FILE}]({ALPHA_FILE}) has the share of each candidate on its edge after each "
            "epoch.",
            "",
            HINT,
            "",
        ]
    if epochs:
        rows = [_row(numbers) for numbers in thinned(epochs, MOST_ROWS)]
        head = (
            "epoch",
            "train loss",
            "train accuracy, %",
            "validation loss",
            "validation accuracy, %",
        )
        lines += [
            "## Numbers",
            "",
            "Of the supernet, which all candidates share: no measure of the genotype. "
            f"{escaped(search.split_in_words)}."
            f"{_left_out(epochs)}",
            "",
        ]
        lines += [*markdown_table(head, rows), ""]
    if config.table is not None:
        lines += _known(config, genotype, epochs, known)
    data, machine = search.subject["data set"], f"{hardware(search.device)}; {made_by()}"
    lines += [*recipe(config, folder.command), "", "## Data and machine", ""]
    lines += [f"- data: {escaped(data)}", f"- {escaped(search.split_in_words)}"]
    lines += slowed(search.optimizer.scale)
    lines += [f"- supernet of {parameters(search.supernet):,} weights", f"- {machine}", ""]
    lines += checklist(config, genotype, data=data, machine=machine, cost=cost)
    return "\n".join(lines) + "\n"


def choices_section(search: Search, found: Findings) -> list[str]:
    """Return the section on what was chosen on each edge; none of a strategy that draws."""
    if not found.decided:
        return []
    return ["## Choices", "", *choices(found.decided), *left_out(search, found.genotype)]


def first_entries(search: Search, epochs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the first entries of a report's head: a search's images, and whether nothing was learned."""
    of = f"{images_in_words(search.config.dataset)}. {escaped(search.split_in_words)}"
    nothing = findings.unlearned(search, epochs)
    return [f"**Data:** {of}.", *([f"**Warning:** {nothing}."] if nothing else [])]


def _cost(search: Search, epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return in a sentence what the search took so far."""
    machine = hardware(search.device)
    if not epochs:
        return f"Nothing was trained yet, on {machine}."
    last, processes = epochs[-1], world_size()
    hours = last["seconds"] / 3600
    images = last["step"] * search.images_per_step
    cost = (
        f"{last['step']} steps, {images:,} images (both halves) in {last['seconds']:.0f} s "
        f"({last['images_per_second']:.0f} a second) by {counted(processes, 'process', 'processes')} "
        f"on {machine}"
    )
    if search.device.type != "cuda":
        return f"{cost}. Energy was not measured."
    return f"{cost}: {hours * processes:.2f} hours of one GPU. {ENERGY_OF_GPU}"


def _legend(genotype: Genotype) -> list[str]:
    """Return a paragraph on the names in the figure of the cells, and in the text."""
    said = []
    # Where an edge leads into node 1, as in nb201, a cell has one input.
    if all(edge.node > 1 for cell in genotype.cells.values() for edge in cell.edges):
        said.append("In the figure c_k-2 and c_k-1 are the inputs 0 and 1 of the text.")
    skips = [
        str(edge.candidate)
        for cell in genotype.cells.values()
        for edge in cell.edges
        if edge.candidate.op == "skip_connect" and edge.candidate.rule is not None
    ]
    if skips:
        names = ", ".join(code(name) for name in dict.fromkeys(skips))
        said.append(f"In a reduce cell {names} is a skip of stride 2, which has weights.")
    return [" ".join(said), ""] if said else []


def _left_out(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence where a table does not show all epochs."""
    if len(epochs) <= MOST_ROWS:
        return ""
    return f" Shown are {MOST_ROWS} of {len(epochs)} epochs; metrics.jsonl has all."


def _shares(search: Search, genotype: Genotype) -> list[str]:
    """Return a section that tells how sure the search is of each edge of its genotype."""
    shares, table = search.shares(), search.table
    equal_of = equal_shares(table, search.strategy_state.context.factorised)
    rows = []
    for cell_type, cell in genotype.cells.items():
        for edge in cell.edges:
            number = search.space.edges.index((edge.node, edge.input))
            of_edge = shares[cell_type][number].double().cpu()
            pools = by_operation(table.rows[cell_type][number])
            pool = next(pool for pool in pools if pool.op == edge.candidate.op)
            of_pool = of_edge[list(pool.columns)]
            of_rules = sorted(
                zip(rule_shares(of_pool).tolist(), pool.rules, strict=False), reverse=True
            )
            equal = sum(equal_of[cell_type][number][column] for column in pool.columns)
            rows.append(
                (
                    cell_type,
                    f"{edge.input} -> {edge.node}",
                    edge.candidate.op,
                    f"{float(of_pool.sum() / of_edge.sum()):.3f}",
                    f"{equal:.3f}",
                    edge.candidate.rule or "-",
                    ", ".join(f"{rule} {share:.2f}" for share, rule in of_rules) or "-",
                )
            )
    head = (
        "cell",
        "edge",
        "operation",
        "share of the operation on its edge",
        "with equal shares",
        "rule",
        "shares of the rules, given the operation",
    )
    return [
        "## How sure it is",
        "",
        "Shares of alpha when the search ended: of the operation, all its rules together, among all "
        "on its edge, and of the rules given the operation; the share of a pair is the product of "
        "both. Near to equal shares nothing has been decided.",
        "",
        *markdown_table(head, rows),
        "",
    ]


def _known(
    config: SearchConfig,
    genotype: Genotype,
    epochs: Sequence[Mapping[str, Any]],
    known: Mapping[str, float] | None,
) -> list[str]:
    """Return a section on the known accuracies of the cells that alpha stood for."""
    others = ", ".join(rule for rule in config.rules if rule != "bp")
    cell = to_nb201_text(genotype, rules=False)
    lines = [
        "## Known accuracy",
        "",
        f"In {code(portable(config.table or ''))}, of the operations of the cell under bp: the benchmark trained all "
        "cells by backpropagation."
        + (f" What they reach under {others} it does not know." if others else ""),
        "",
    ]
    if not known:
        lines += [f"The genotype's cell is not in the table: `{cell}`", ""]
    else:
        lines += [f"The genotype's, `{cell}`: **{escaped(accuracies_in_words(known))}**", ""]
    names = list(dict.fromkeys(n for numbers in epochs for n in numbers if n.startswith("known/")))
    if names:
        rows = [
            (str(numbers["epoch"]), *(shown(numbers, name, "{:.2f}", 100) for name in names))
            for numbers in thinned(epochs, MOST_ROWS)
        ]
        lines += [
            "Of the cell that alpha stood for after each epoch (-: not in the table)."
            f"{_left_out(epochs)}",
            "",
        ]
        lines += [f"![known accuracy over the epochs]({KNOWN_FIGURE})", ""]
        head = ("epoch", *(f"{name.removeprefix('known/')}, %" for name in names))
        lines += [*markdown_table(head, rows), ""]
    return lines


def accuracies_in_words(known: Mapping[str, float]) -> str:
    """Return known accuracies, in per cent by data set, in words.

    >>> accuracies_in_words({"cifar10": 91.25, "cifar100": 68.5})
    'cifar10 91.25 %, cifar100 68.50 %'
    """
    return ", ".join(f"{name} {value:.2f} %" for name, value in known.items())


def _row(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """Return an epoch's row of the table of numbers."""
    return (
        str(numbers["epoch"]),
        shown(numbers, "train/loss", "{:.4f}"),
        shown(numbers, "train/accuracy", "{:.2f}", 100),
        shown(numbers, "valid/loss", "{:.4f}"),
        shown(numbers, "valid/accuracy", "{:.2f}", 100),
    )


def shown(numbers: Mapping[str, Any], name: str, form: str, scale: float = 1.0) -> str:
    """Return an epoch's number times `scale` in this form; "-" where it was not measured."""
    return form.format(scale * numbers[name]) if name in numbers else "-"
