"""The text form in which the DARTS space's genotypes are passed around in papers and code.

It is parsed, never evaluated.
"""

from __future__ import annotations

import ast
from typing import Any

from darts_bio.errors import InputError, unknown_name
from darts_bio.spaces.darts import INPUTS, KEPT_EDGES, DartsSpace
from darts_bio.spaces.genotype import (
    TEXT_FORMS,
    Candidate,
    Cell,
    Edge,
    Genotype,
    TextForm,
    brief,
    is_node,
    read_candidate,
)
from darts_bio.spaces.operations import OPERATIONS

LONGEST_LIST = 64
"""Entries a list in pasted text may describe; a cell has far fewer."""

RULE_SUFFIXES = {"u": "usf", "br": "brsf", "fr": "frsf", "fa": "fa", "f": "frsf", "b": "brsf"}
"""Rule suffixes of operations in pasted genotypes, such as sep_conv_3x3_fr."""


def _split_suffix(op: str) -> Candidate:
    if op not in OPERATIONS:
        stem, _, suffix = op.rpartition("_")
        if stem in OPERATIONS and suffix in RULE_SUFFIXES:
            return Candidate(stem, RULE_SUFFIXES[suffix])
    return Candidate(op)


def _literal(node: ast.expr) -> Any:
    """A literal, or range(a, b), or list(range(a, b)). Raises ValueError or the like for anything
    else.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_literal(argument) for argument in node.args]
        if (
            node.func.id == "range"
            and 1 <= len(arguments) <= 3
            and all(type(a) is int for a in arguments)
        ):
            return list(range(*arguments)[:LONGEST_LIST])
        if (
            node.func.id in ("list", "tuple")
            and len(arguments) == 1
            and isinstance(arguments[0], (list, tuple))
        ):
            return list(arguments[0])
    return ast.literal_eval(node)


def _list(node: ast.expr, text: str, where: str) -> list[Any]:
    try:
        value = _literal(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        found = (ast.get_source_segment(text, node) or "")[:60]
        raise InputError(f"{where}: expected a list or range(a, b), found {found}") from None
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: expected a list or range(a, b), found {brief(value)}")
    return list(value)


def from_darts_text(text: str) -> Genotype:
    """Reads `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=..., reduce=[...],
    reduce_concat=...)`.

    Two entries a node, nodes counted from 2. A suffix _u, _br, _fr or _fa on an operation is its
    rule (usf, brsf, frsf, fa; skips also _f, _b); without a suffix the rule is bp. An assignment
    `NAME = Genotype(...)` is accepted. A rule on an operation without weights is dropped. Raises
    InputError for anything that is not a valid genotype.

    >>> pair = "[('skip_connect_u', 0), ('sep_conv_3x3_u', 1)]"
    >>> text = f"Genotype(normal={pair}, normal_concat=range(2, 3), reduce={pair}, reduce_concat=[2])"
    >>> [str(edge.candidate) for edge in from_darts_text(text).cells["normal"].edges]
    ['skip_connect', 'sep_conv_3x3:usf']
    """
    source = "DARTS text"
    text = text.strip()
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{source}: expected Genotype(normal=[...], ...), found unreadable text ({error})"
        ) from None
    call = getattr(body[0], "value", None) if len(body) == 1 else None
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "Genotype"
    ):
        raise InputError(f"{source}: expected one Genotype(normal=[...], ...), found {text[:60]!r}")
    fields = ("normal", "normal_concat", "reduce", "reduce_concat")
    if len(call.args) > len(fields):
        raise InputError(
            f"{source}: expected {', '.join(fields)}, found {len(call.args)} values without a name"
        )
    values: dict[str, ast.expr] = {}
    given = [
        *zip(fields, call.args, strict=False),
        *((k.arg or "**", k.value) for k in call.keywords),
    ]
    for name, value in given:
        if name not in fields:
            raise InputError(f"{source}: {unknown_name('field', name, fields)}")
        if name in values:
            raise InputError(f"{source}: the field {name!r} is given twice")
        values[name] = value
    cells = {}
    for cell_type in ("normal", "reduce"):
        for name in (cell_type, f"{cell_type}_concat"):
            if name not in values:
                raise InputError(
                    f"{source}: the field {name!r} is missing (expected {', '.join(fields)})"
                )
        edges = []
        for i, entry in enumerate(_list(values[cell_type], text, f"{source}.{cell_type}")):
            where = f"{source}.{cell_type}[{i}]"
            pair = (
                isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)
            )
            if not (pair and is_node(entry[1])):
                raise InputError(f"{where}: expected ('operation', input), found {brief(entry)}")
            candidate = _split_suffix(entry[0])
            candidate = read_candidate(candidate.op, candidate.rule or "bp", where)
            edges.append(Edge(INPUTS + i // KEPT_EDGES, entry[1], candidate))
        concat = _list(values[f"{cell_type}_concat"], text, f"{source}.{cell_type}_concat")
        if not all(map(is_node, concat)):
            raise InputError(
                f"{source}.{cell_type}_concat: expected node numbers, found {brief(concat)}"
            )
        cells[cell_type] = Cell(tuple(edges), tuple(concat))
    space = DartsSpace()
    genotype = space.normalise(
        Genotype("darts", cells, provenance={"source": "imported DARTS-style text"})
    )
    space.validate(genotype, source)
    return genotype


TEXT_FORMS.register("darts")(
    TextForm(
        "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=..., reduce=..., "
        "reduce_concat=...)",
        "darts",
        lambda text: "Genotype(" in text,
        from_darts_text,
    )
)
