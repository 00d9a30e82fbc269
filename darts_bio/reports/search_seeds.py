"""The report of one search from several seeds, report.md: their genotypes, and where those agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.reports import findings
from darts_bio.reports.card import CARD_FILE
from darts_bio.reports.findings import Findings, in_short, unchanged_in_words
from darts_bio.reports.going_on import NextStep, longer_or_faster, move_faster
from darts_bio.reports.markdown import (
    block,
    code,
    counted,
    images_in_words,
    markdown_table,
    recipe,
    repeat_entry,
)
from darts_bio.reports.search import shown
from darts_bio.spaces import Genotype
from darts_bio.spaces.genotype import Edge


def search_seeds_card(config: SearchConfig, command: str, results: Mapping[int, Any]) -> str:
    """Return the report of several seeds in Markdown: their genotypes, and where those agree.

    `results` holds the `SearchResult` of each seed.
    """
    found = {
        seed: findings.of_folder(config, result.genotype, result.folder)
        for seed, result in results.items()
    }
    next_step = _next_step(config, found)
    seconds = sum(result.epochs[-1]["seconds"] for result in results.values() if result.epochs)
    lines = [
        f"# Search on {images_in_words(config.dataset)}, {len(results)} seeds",
        "",
        *in_short(
            [
                f"**Data:** {images_in_words(config.dataset)}; each seed's report says how they were split."
            ],
            _of_seeds(found),
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
    lines += _agreement([result.genotype for result in results.values()])
    lines += recipe(config, command)
    return "\n".join(lines) + "\n"


def _of_seeds(found: Mapping[int, Findings]) -> list[str]:
    """Return entries on what several seeds found: do they agree, which collapsed or are undecided?

    Args:
        found: What each seed found.
    """
    genotypes = [of_seed.genotype for of_seed in found.values()]
    different = len({genotype.identity() for genotype in genotypes})

    def in_all(part: Callable[[str, Edge], Hashable]) -> int:
        """Return how many edges agree in a part of what is known of them, in all genotypes."""
        held = [
            {
                part(cell_type, edge)
                for cell_type, cell in genotype.cells.items()
                for edge in cell.edges
            }
            for genotype in genotypes
        ]
        return len(set.intersection(*held))

    edges = max(sum(len(cell.edges) for cell in genotype.cells.values()) for genotype in genotypes)
    wired = in_all(lambda t, edge: (t, edge.node, edge.input))
    alike = in_all(lambda t, edge: (t, edge.node, edge.input, edge.candidate.op))
    same = in_all(lambda t, edge: (t, edge.node, edge.input, edge.candidate))

    def each(said: Callable[[Findings], str]) -> str:
        return "; ".join(f"seed {seed}: {said(of_seed)}" for seed, of_seed in found.items())

    def collapsed(of_seed: Findings) -> str:
        collapse = of_seed.collapse
        answer = "yes" if collapse.marked or collapse.hollow else "no"
        kinds = ", ".join(f"{kind.kind} {kind.total} of {kind.edges}" for kind in collapse.kinds)
        return f"{answer} ({kinds} without weights)"

    def undecided(of_seed: Findings) -> str:
        open_edges = sum(decision.undecided for decision in of_seed.decided)
        return f"{open_edges} of {counted(len(of_seed.decided), 'edge')}"

    def settled(of_seed: Findings) -> str:
        if len(of_seed.history) < 2:
            return "cannot be told"
        return "no" if of_seed.unsettled else unchanged_in_words(of_seed.history)

    lines = [
        f"- **Agreed?** {'Yes' if different == 1 else 'No'}: {counted(different, 'genotype')} of "
        f"{len(found)} seeds. Of {edges} edges {wired} are in all of them, {alike} with the same "
        f"operation, {same} with the same rule too, or both without weights.",
        f"- **Collapsed?** {each(collapsed)}.",
    ]
    if any(of_seed.decided for of_seed in found.values()):
        lines.append(f"- **Undecided?** {each(undecided)}.")
    if any(of_seed.history for of_seed in found.values()):
        lines.append(f"- **Settled?** {each(settled)}.")
    return lines


def _next_step(config: SearchConfig, found: Mapping[int, Findings]) -> NextStep:
    """Return what to do with several genotypes: choose, unless most of them are still a guess."""
    choose = (
        "The loss of a supernet does not tell which genotype is best. The same command with "
        f"{code('--choose')} and another {code('--out')} searches, trains each genotype for some epochs, "
        "and the best of them in full. Or train each as its report says."
    )
    guesses = sum(of_seed.undecided or of_seed.unsettled for of_seed in found.values())
    if 2 * guesses <= len(found):
        return NextStep("choose among them by a short training", [choose])
    longer = (
        f"Of {len(found)} seeds {guesses} are mostly undecided or have just changed. Search longer "
        f"first: the same command with `--epochs {2 * config.epochs}` and another `--out`."
    )
    # A rate of alpha that is larger decides more; it does not settle what has just changed.
    if 2 * sum(of_seed.undecided for of_seed in found.values()) <= len(found):
        return NextStep("search longer", [longer, "", choose])
    longer = " ".join(filter(None, (longer, move_faster(config))))
    return NextStep(longer_or_faster(config), [longer, "", choose])


def _agreement(genotypes: Sequence[Genotype]) -> list[str]:
    """Return the section on the edges that several genotypes hold with the same candidate."""
    counts = Counter(
        (cell_type, edge.node, edge.input, str(edge.candidate))
        for genotype in genotypes
        for cell_type, cell in genotype.cells.items()
        for edge in cell.edges
    )
    # Edges that most genotypes share come first; equals in the order of cells and nodes.
    rows = [
        (cell_type, f"{source} -> {node}", candidate, str(count))
        for (cell_type, node, source, candidate), count in sorted(
            counts.items(), key=lambda item: (-item[1], item[0])
        )
        if count > 1
    ]
    lines = ["## Agreement", ""]
    if not rows:
        return [*lines, "No two genotypes hold an edge with the same candidate.", ""]
    lines += ["Edges that several genotypes hold with the same candidate, and how many do:", ""]
    head = ("cell", "edge", "candidate", f"of {len(genotypes)}")
    return [*lines, *markdown_table(head, rows), ""]


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
