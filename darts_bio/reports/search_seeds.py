"""The report of one search from several seeds, report.md: their genotypes, and where those agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.reports import findings
from darts_bio.reports.card import CARD_FILE
from darts_bio.reports.findings import Findings, in_short
from darts_bio.reports.going_on import NextStep
from darts_bio.reports.markdown import block, code, escaped, markdown_table, recipe, repeat_entry
from darts_bio.reports.search import shown


def search_seeds_card(config: SearchConfig, command: str, results: Mapping[int, Any]) -> str:
    """Return the report of several seeds in Markdown: their genotypes, and where those agree.

    `results` holds the `SearchResult` of each seed.
    """
    found = {
        seed: findings.of_folder(config, result.genotype, result.folder)
        for seed, result in results.items()
    }
    counts = Counter(
        (cell_type, edge.node, edge.input, str(edge.candidate))
        for result in results.values()
        for cell_type, cell in result.genotype.cells.items()
        for edge in cell.edges
    )
    next_step = NextStep(
        "choose among them by a short training",
        [
            "The loss of a supernet does not tell which genotype is best. The same command with "
            f"{code('--choose')} in a folder of its own searches, trains each genotype for some "
            "epochs, and the best of them in full. Or train each as its report says.",
        ],
    )
    seconds = sum(result.epochs[-1]["seconds"] for result in results.values() if result.epochs)
    lines = [
        f"# Search on {escaped(config.dataset)}, {len(results)} seeds",
        "",
        *in_short(
            [f"**Data:** {escaped(config.dataset)}; each seed's report says how they were split."],
            _of_seeds(found, counts),
            [f"**Cost:** {seconds:.0f} s, all seeds", repeat_entry(command), next_step.entry],
        ),
        *next_step.section(),
        "## Genotypes",
        "",
    ]
    for seed, result in results.items():
        lines += [
            f"### [seed {seed}](seed-{seed}/{CARD_FILE})",
            "",
            *block(str(result.genotype)),
            "",
            *found[seed].verdicts(),
            "",
        ]
    if config.table is not None:
        lines += _known_by_seed(results)
    lines += [
        "## Agreement",
        "",
        "How many of the genotypes hold each edge with its candidate:",
        "",
    ]
    # Edges that most genotypes share come first; equals in the order of cells and nodes.
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        (cell_type, f"{source} -> {node}", candidate, str(count))
        for (cell_type, node, source, candidate), count in by_count
    ]
    lines += [*markdown_table(("cell", "edge", "candidate", f"of {len(results)}"), rows), ""]
    lines += recipe(config, command)
    return "\n".join(lines) + "\n"


def _of_seeds(
    found: Mapping[int, Findings], counts: Mapping[tuple[str, int, int, str], int]
) -> list[str]:
    """Return entries on what several seeds found: do they agree, which collapsed or are undecided?

    Args:
        found: What each seed found.
        counts: How many of them have each edge with its candidate.
    """
    genotypes = {of_seed.genotype.identity() for of_seed in found.values()}
    edges = max(
        sum(len(cell.edges) for cell in of_seed.genotype.cells.values())
        for of_seed in found.values()
    )
    in_all = sum(count == len(found) for count in counts.values())

    def seeds(those: Iterable[int]) -> str:
        return ", ".join(f"seed {seed}" for seed in those) or "none"

    hollow = (
        s for s, of_seed in found.items() if of_seed.collapse.marked or of_seed.collapse.hollow
    )
    undecided = (seed for seed, of_seed in found.items() if of_seed.undecided)
    return [
        f"- **Agreed?** {len(genotypes)} of {len(found)} genotypes differ; {in_all} of {edges} edges "
        "are in all of them with the same candidate.",
        f"- **Collapsed?** {seeds(hollow)}.",
        f"- **Mostly undecided?** {seeds(undecided)}.",
    ]


def _known_by_seed(results: Mapping[int, Any]) -> list[str]:
    """Return a section on the known accuracies of the genotypes of several seeds."""
    names = list(dict.fromkeys(name for result in results.values() for name in result.known or ()))
    rows = [
        (f"{seed}", *(shown(result.known or {}, name, "{:.2f}") for name in names))
        for seed, result in results.items()
    ]
    return [
        "## Known accuracy",
        "",
        "Of the genotypes' operations under bp (-: not in the table):",
        "",
        *markdown_table(("seed", *(f"{name}, %" for name in names)), rows),
        "",
    ]
