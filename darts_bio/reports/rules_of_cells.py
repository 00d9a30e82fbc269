"""Which learning rules the cells of a genotype have, and what carries errors past their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from darts_bio.reports.markdown import code, counted, markdown_table
from darts_bio.rules import RULES
from darts_bio.spaces import Genotype


def transport_in_words(genotype: Genotype) -> str:
    """Return in words whether weights carry errors in the cells and around them, and what else does.

    >>> from darts_bio.spaces import load_genotype
    >>> print(transport_in_words(load_genotype("bionas_darts").with_rule("fa")).partition(";")[0])
    No, neither around the cells nor on their edges. There errors are carried down by fixed feedback \
on 6 edges (`fa` 6)
    """
    rules = Counter(
        edge.candidate.rule
        for cell in genotype.cells.values()
        for edge in cell.edges
        if edge.candidate.rule is not None
    )
    backbone = genotype.backbone_rule
    inside = any(RULES.build(rule).transports_weights for rule in rules)
    outside = RULES.build(backbone).transports_weights
    signs_inside = any(RULES.build(rule).carries == "signs" for rule in rules)
    signs = signs_inside or RULES.build(backbone).carries == "signs"
    answer = {
        (True, True): "Yes, around the cells and on their edges",
        (True, False): "Yes, but only on the cells' edges",
        (False, True): "Yes, but only around the cells, not on their edges"
        + (", where signs alone are transported" if signs_inside else ""),
        (False, False): "Of signs alone, one bit a weight"
        if signs
        else "No, neither around the cells nor on their edges",
    }[inside, outside]
    by_carrier: dict[str, Counter[str]] = {}
    for rule, count in rules.items():
        by_carrier.setdefault(_carrier(rule), Counter())[rule] += count
    each = ", ".join(
        f"by {carrier} on {counted(of_rule.total(), 'edge')} "
        f"({', '.join(f'{code(rule)} {n}' for rule, n in of_rule.most_common())})"
        for carrier, of_rule in sorted(by_carrier.items(), key=lambda item: -item[1].total())
    )
    within = f"There errors are carried down {each}" if rules else "No edge has weights"
    around = f"in stem, preprocessing and classifier by {_carrier(backbone)} ({code(backbone)})"
    return f"{answer}. {within}; {around}."


def which_rule_where(genotype: Genotype, searched: Sequence[str]) -> list[str]:
    """Return the section that counts the edges of each learning rule, and says what the rule is.

    Args:
        genotype: The genotype.
        searched: The rules that were searched among, which may be on no edge.
    """
    counts = {
        cell_type: Counter(edge.candidate.rule for edge in cell.edges)
        for cell_type, cell in genotype.cells.items()
    }
    present = {rule for of_type in counts.values() for rule in of_type if rule is not None}
    rules = sorted(present | set(searched))
    rows = [
        (
            rule,
            _name(rule),
            _carrier(rule),
            *(str(of_type[rule]) for of_type in counts.values()),
        )
        for rule in rules
    ]
    if any(None in of_type for of_type in counts.values()):
        without = (str(of_type[None]) for of_type in counts.values())
        rows.append(("none (no weights)", "", "exact derivatives", *without))
    head = (
        *("learning rule", "its name", "what carries errors down"),
        *(f"edges in {cell_type}" for cell_type in counts),
    )
    lines = ["## Which rule where", "", *markdown_table(head, rows), ""]
    operations = Counter(
        edge.candidate.op
        for cell in genotype.cells.values()
        for edge in cell.edges
        if edge.candidate.rule is None
    )
    if operations:
        names = ", ".join(f"{count} {op}" for op, count in operations.most_common())
        lines += [f"Without weights: {names}.", ""]
    return lines


def _name(rule: str) -> str:
    """Return the full name of a rule: what stands before the colon in its first line."""
    return (RULES.build(rule).__doc__ or "").partition("\n")[0].partition(":")[0]


def _carrier(rule: str) -> str:
    """Return in words what carries an error down past a layer under a rule."""
    carries = RULES.build(rule).carries
    return {"values": "the weights' values", "signs": "the weights' signs"}.get(carries, carries)
