"""The text form in which genotypes of the DARTS space are passed around in papers and code.

`from_darts_text` reads `Genotype(normal=[('sep_conv_3x3', 1), ...], ...)`, and the form of Fair DARTS
(Chu 2020, arXiv 1911.12126), whose entries name the node they lead into. The text is parsed and
never evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.errors import InputError, brief, unknown_name
from darts_bio.spaces.base import SPACES
from darts_bio.spaces.darts import INPUTS, KEPT_EDGES, DartsSpace
from darts_bio.spaces.genotype import (
    TEXT_FORMS,
    Candidate,
    Cell,
    Edge,
    Genotype,
    TextForm,
    is_node,
    pasted,
    read_candidate,
)
from darts_bio.spaces.operations import OPERATIONS

SOURCE = "DARTS text"
"""What error messages call the text."""

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
"""The fields of Genotype(...), in the order of those given without a name."""

LONGEST_LIST = 64
"""Entries a list in pasted text may describe; a cell has far fewer."""

DATE = re.compile(
    r"""\[? \d{1,4} ([-/.] \d{1,4}){1,2}            # 2020-01-02, or 01/02 in the logs of DARTS
    ([T\s]+ \d{1,2} (:\d{2}){1,2} ([.,]\d+)?      # 03:04:05,678
    (\s?[AP]M | Z | [+-]\d{2}:?\d{2})? )? [\]:]? \s+""",
    re.VERBOSE,
)
"""The date and time that a line of a log begins with."""

RULE_SUFFIXES = {"u": "usf", "br": "brsf", "fr": "frsf", "fa": "fa", "f": "frsf", "b": "brsf"}
"""Rule suffixes of operations in pasted genotypes, such as sep_conv_3x3_fr."""


def _split_suffix(op: str) -> Candidate:
    """Return the operation and the rule that a name such as sep_conv_3x3_fr stands for."""
    if op not in OPERATIONS:
        stem, _, suffix = op.rpartition("_")
        if stem in OPERATIONS and suffix in RULE_SUFFIXES:
            return Candidate(stem, RULE_SUFFIXES[suffix])
    return Candidate(op)


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, of range(...), or of list(...) or tuple(...) of either.

    Raises:
        ValueError: If it is anything else (or another error of `ast.literal_eval`).
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = node.func.id
        arguments = [_literal(argument) for argument in node.args]
        integers = all(type(argument) is int for argument in arguments)
        if function == "range" and 1 <= len(arguments) <= 3 and integers:
            # Cut before it is listed: a range may describe more numbers than memory holds.
            return list(range(*arguments)[:LONGEST_LIST])
        one_list = len(arguments) == 1 and isinstance(arguments[0], (list, tuple))
        if function in ("list", "tuple") and one_list:
            return list(arguments[0])
    return ast.literal_eval(node)


def _list(node: ast.expr, text: str, where: str) -> list[Any]:
    """Return the list that an expression describes.

    Args:
        node: The expression.
        text: The whole text, which messages quote.
        where: The place, which messages begin with.

    Raises:
        InputError: If the expression describes no list.
    """
    try:
        value = _literal(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        segment = (ast.get_source_segment(text, node) or "")[:60]
        raise InputError(f"{where}: expected a list or range(a, b), found {segment}") from None
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: expected a list or range(a, b), found {brief(value)}")
    return list(value)


def from_darts_text(text: str) -> Genotype:
    """Read a genotype of the DARTS space from the text form of the DARTS code.

    The form is `Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=..., reduce=[...],
    reduce_concat=...)`, where an assignment `NAME = Genotype(...)`, and a date before it, are
    accepted too. The lists hold two entries (operation, input) for each node, nodes counted from 2.
    A suffix _u, _br, _fr or _fa of an operation names its rule (usf, brsf, frsf, fa; also _f for
    frsf and _b for brsf); without a suffix the rule is bp. A rule on an operation without weights is
    dropped.

    In the form of Fair DARTS entries are triples (operation, node, input), any number for each node.
    The genotype is then of the space `darts(kept_edges=None)`. A node that no edge leads into is
    left out of the concatenation, and so are the edges that leave it, as in the published network.

    Raises:
        InputError: If the text is not a valid genotype of this form.

    >>> pair = "[('skip_connect_u', 0), ('sep_conv_3x3_u', 1)]"
    >>> text = f"Genotype(normal={pair}, normal_concat=range(2, 3), reduce={pair}, reduce_concat=[2])"
    >>> [str(edge.candidate) for edge in from_darts_text(text).cells["normal"].edges]
    ['skip_connect', 'sep_conv_3x3:usf']
    >>> text = text.replace(pair, "[('sep_conv_3x3', 2, 0)]").replace("[2]", "[2, 3]")
    >>> print(from_darts_text(text))
    normal:
      node 2: sep_conv_3x3:bp <- 0
    reduce:
      node 2: sep_conv_3x3:bp <- 0
    """
    text = pasted(text, SOURCE)
    date = DATE.match(text)
    if date is not None:
        text = text[date.end() :]
    values = _parse_fields(text)
    cells, kept_edges = {}, set[int | None]()
    for cell_type in DartsSpace.cell_types:
        entries, concat = _read_lists(values, cell_type, text)
        if entries and all(map(_is_triple, entries)):
            kept_edges.add(None)
            edges = _read_triples(entries, cell_type)
            cells[cell_type] = _without_isolated(Cell(edges, concat))
        else:
            kept_edges.add(KEPT_EDGES)
            cells[cell_type] = Cell(_read_pairs(entries, cell_type), concat)
    space = DartsSpace(kept_edges=None if None in kept_edges else KEPT_EDGES)
    genotype = space.normalize(
        Genotype(SPACES.spec(space), cells, provenance={"source": "imported DARTS-style text"})
    )
    space.validate(genotype, SOURCE)
    return genotype


def _parse_fields(text: str) -> dict[str, ast.expr]:
    """Return the expression of each field that is given in `Genotype(...)`.

    Raises:
        InputError: If the text is no such call, or names a field that is unknown or given twice.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{SOURCE}: expected Genotype(normal=[...], ...), found unreadable text ({error})"
        ) from None
    # Both an expression and an assignment keep what is called in `value`.
    call = getattr(body[0], "value", None) if len(body) == 1 else None
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "Genotype"
    ):
        raise InputError(f"{SOURCE}: expected one Genotype(normal=[...], ...), found {text[:60]!r}")
    if len(call.args) > len(FIELDS):
        raise InputError(
            f"{SOURCE}: expected {', '.join(FIELDS)}, found {len(call.args)} values without a name"
        )
    positional = list(zip(FIELDS, call.args, strict=False))
    named = [(keyword.arg or "**", keyword.value) for keyword in call.keywords]
    values: dict[str, ast.expr] = {}
    for name, value in positional + named:
        if name not in FIELDS:
            raise InputError(f"{SOURCE}: {unknown_name('field', name, FIELDS)}")
        if name in values:
            raise InputError(f"{SOURCE}: the field {name!r} is given twice")
        values[name] = value
    return values


def _read_lists(
    values: Mapping[str, ast.expr], cell_type: str, text: str
) -> tuple[list[Any], tuple[int, ...]]:
    """Read the two fields of a cell type: its entries, unchecked, and the concatenated nodes.

    Raises:
        InputError: If a field is missing or is no list, or if the second holds no node numbers.
    """
    for name in (cell_type, f"{cell_type}_concat"):
        if name not in values:
            raise InputError(
                f"{SOURCE}: the field {name!r} is missing (expected {', '.join(FIELDS)})"
            )
    entries = _list(values[cell_type], text, f"{SOURCE}.{cell_type}")
    concat = _list(values[f"{cell_type}_concat"], text, f"{SOURCE}.{cell_type}_concat")
    if not all(map(is_node, concat)):
        raise InputError(
            f"{SOURCE}.{cell_type}_concat: expected node numbers, found {brief(concat)}"
        )
    return entries, tuple(concat)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, (tuple, list)) and len(entry) == 3


def _read_pairs(entries: Sequence[Any], cell_type: str) -> tuple[Edge, ...]:
    """Return the edges of entries (operation, input); raise InputError if one is anything else."""
    edges = []
    for i, entry in enumerate(entries):
        where = f"{SOURCE}.{cell_type}[{i}]"
        pair = isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)
        if not (pair and is_node(entry[1])):
            raise InputError(f"{where}: expected ('operation', input), found {brief(entry)}")
        # Entries do not name their node: the first two lead into node 2, the next into node 3.
        node = INPUTS + i // KEPT_EDGES
        edges.append(Edge(node, entry[1], _candidate(entry[0], where)))
    return tuple(edges)


def _read_triples(entries: Sequence[Sequence[Any]], cell_type: str) -> tuple[Edge, ...]:
    """Return the edges of triples; raise InputError if one is not (operation, node, input)."""
    edges = []
    for i, (op, node, source) in enumerate(entries):
        where = f"{SOURCE}.{cell_type}[{i}]"
        if not (isinstance(op, str) and is_node(node) and is_node(source)):
            raise InputError(
                f"{where}: expected ('operation', node, input), found {brief(entries[i])}"
            )
        edges.append(Edge(node, source, _candidate(op, where)))
    return tuple(edges)


def _candidate(op: str, where: str) -> Candidate:
    """Return the candidate that a name such as sep_conv_3x3_fr stands for, without suffix under bp.

    Raises:
        InputError: If there is no such operation. The message begins with `where`.
    """
    named = _split_suffix(op)
    return read_candidate(named.op, named.rule or "bp", where)


def _without_isolated(cell: Cell) -> Cell:
    """Return the cell without nodes that nothing arrives at, and without the edges that leave them.

    A node is isolated if no edge leads into it, or only edges from isolated nodes.
    """
    sources: dict[int, list[int]] = {}
    for edge in cell.edges:
        sources.setdefault(edge.node, []).append(edge.input)
    isolated: set[int] = set()
    for node in range(INPUTS, max([*sources, *cell.concat]) + 1):
        if isolated.issuperset(sources.get(node, ())):
            isolated.add(node)
    edges = tuple(
        edge
        for edge in cell.edges
        # An edge from a later node is wrong, isolated or not: it is left for the space to refuse.
        if edge.input not in isolated or edge.input >= edge.node
    )
    return Cell(edges, tuple(node for node in cell.concat if node not in isolated))


TEXT_FORMS.register("darts")(
    TextForm(
        "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=..., reduce=..., "
        "reduce_concat=...), or entries ('sep_conv_3x3', 2, 1) of operation, node, input",
        "darts",
        lambda text: "Genotype(" in text,
        from_darts_text,
    )
)
