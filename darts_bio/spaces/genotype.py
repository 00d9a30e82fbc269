"""Genotypes: frozen, validated, JSON files.

A genotype is data, never code. The names in a file (operations, rules, fields) are a file format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.registry import Registry, canonical_spec, parse_spec
from darts_bio.rules import RULES
from darts_bio.spaces.operations import OPERATIONS

FORMAT = 1
LARGEST_NODE = 9999


@dataclass(frozen=True)
class Candidate:
    """An operation and the learning rule its weights use; rule None where the operation has no
    weights.
    """

    op: str
    rule: str | None = None

    def __str__(self) -> str:
        return self.op if self.rule is None else f"{self.op}:{self.rule}"


@dataclass(frozen=True)
class Edge:
    """From node `input` to node `node` of a cell. Nodes 0 and 1 are the outputs of the two cells
    before.
    """

    node: int
    input: int
    candidate: Candidate


@dataclass(frozen=True)
class Cell:
    """The edges that are kept, and the nodes whose concatenation is the cell's output."""

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]

    def __str__(self) -> str:
        nodes: dict[int, list[str]] = {}
        for edge in self.edges:
            nodes.setdefault(edge.node, []).append(f"{edge.candidate} <- {edge.input}")
        return "\n".join(
            f"  node {node}: " + ",  ".join(inputs) for node, inputs in sorted(nodes.items())
        )


@dataclass(frozen=True)
class Genotype:
    """A discrete architecture: the cell of each type, in the space named.

    `backbone_rule` is the rule of everything outside the edges (stem, preprocessing, classifier,
    auxiliary head). `provenance` says where it comes from; it takes no part in comparisons.
    """

    space: str
    cells: Mapping[str, Cell]
    backbone_rule: str = "bp"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return "\n".join(f"{cell_type}:\n{cell}" for cell_type, cell in self.cells.items())

    def with_provenance(self, **provenance: Any) -> Genotype:
        return replace(self, provenance=provenance)

    def with_rule(self, rule: str) -> Genotype:
        """The same operations, all under one learning rule, and the backbone too."""

        def under_rule(edge: Edge) -> Edge:
            return (
                edge
                if edge.candidate.rule is None
                else replace(edge, candidate=Candidate(edge.candidate.op, rule))
            )

        cells = {
            name: Cell(tuple(map(under_rule, cell.edges)), cell.concat)
            for name, cell in self.cells.items()
        }
        return Genotype(
            self.space, cells, rule, {"source": f"{rule} on all of {dict(self.provenance)}"}
        )

    def identity(self) -> str:
        """A digest of everything but the provenance."""
        text = self.with_provenance().to_json()
        return f"digest {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def to_json(self) -> str:
        """The text of a genotype file, one edge a line."""

        def edge(e: Edge) -> str:
            return json.dumps(
                {"node": e.node, "input": e.input, "op": e.candidate.op, "rule": e.candidate.rule}
            )

        cells = ",\n".join(
            f'    {json.dumps(name)}: {{\n      "edges": [\n        '
            + ",\n        ".join(map(edge, cell.edges))
            + f'\n      ],\n      "concat": {json.dumps(list(cell.concat))}\n    }}'
            for name, cell in self.cells.items()
        )
        return (
            f'{{\n  "format": {FORMAT},\n  "space": {json.dumps(self.space)},\n'
            f'  "backbone_rule": {json.dumps(self.backbone_rule)},\n  "cells": {{\n{cells}\n  }},\n'
            f'  "provenance": {json.dumps(dict(self.provenance))}\n}}\n'
        )


class _Reader:
    """Reads fields out of decoded JSON, naming the place of whatever is wrong."""

    def __init__(
        self, value: Any, where: str, fields: Mapping[str, type], optional: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(value, dict):
            raise InputError(
                f"{where}: expected an object with {', '.join(fields)}, found {brief(value)}"
            )
        for name in value:
            if name not in fields:
                raise InputError(f"{where}: {unknown_name('field', name, fields)}")
        for name in fields:
            if name not in value and name not in optional:
                raise InputError(
                    f"{where}: the field {name!r} is missing (expected {', '.join(fields)})"
                )
        self.value, self.where, self.fields = value, where, fields

    def __getitem__(self, name: str) -> Any:
        value, expected = self.value.get(name), self.fields[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            kind = {int: "an integer", str: "text", list: "a list", dict: "an object"}[expected]
            raise InputError(f"{self.where}.{name}: expected {kind}, found {brief(value)}")
        return value


def brief(value: Any) -> str:
    """A value in at most 60 characters, for messages."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python prints, or deeper than it walks
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def is_node(value: Any) -> bool:
    """Whether this can be a node's number at all; a cell's space says more."""
    return type(value) is int and abs(value) <= LARGEST_NODE


def check_rule(spec: str, where: str) -> str:
    """The rule's canonical spec, or InputError with `where` before it if there is no such rule."""
    try:
        RULES.build(spec)
        return canonical_spec(spec)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which JSON itself would let a later field replace an earlier one of the
    same name.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InputError(
            f"the field {next(n for n in names if names.count(n) > 1)!r} is given twice"
        )
    return found


def read_candidate(op: str, rule: Any, where: str) -> Candidate:
    """A candidate of registered names, or InputError that names the place `where`."""
    try:
        OPERATIONS.get(op)
    except InputError as error:
        raise InputError(f"{where}.op: {error}") from None
    if rule is not None and not isinstance(rule, str):
        raise InputError(f"{where}.rule: expected the name of a rule or null, found {brief(rule)}")
    return Candidate(op, None if rule is None else check_rule(rule, f"{where}.rule"))


def check_carried_rule(edge: Edge, stride: int, where: str) -> None:
    """Raises InputError unless the edge names a rule if, and only if, its operation has weights at
    that stride.
    """
    op, rule = edge.candidate.op, edge.candidate.rule
    carries = OPERATIONS.get(op).carries_rule(stride)
    if carries and rule is None:
        raise InputError(f"{where}.rule: expected the name of a rule for {op}, found null")
    if not carries and rule is not None:
        raise InputError(
            f"{where}.rule: expected null, since {op} has no weights here, found {rule!r}"
        )


def _read_cell(value: Any, where: str) -> Cell:
    cell = _Reader(value, where, {"edges": list, "concat": list})
    edges = []
    for i, item in enumerate(cell["edges"]):
        place = f"{where}.edges[{i}]"
        # A rule of null stands for "no weights here", so its presence is asked for and its type is
        # checked by hand.
        entry = _Reader(item, place, {"node": int, "input": int, "op": str, "rule": str})
        edges.append(
            Edge(entry["node"], entry["input"], read_candidate(entry["op"], item["rule"], place))
        )
    for node in cell["concat"]:
        if not is_node(node):
            raise InputError(f"{where}.concat: expected node numbers, found {brief(node)}")
    return Cell(tuple(edges), tuple(cell["concat"]))


def from_json(text: str, source: str) -> Genotype:
    """Reads a genotype file's text. `source` names it in errors.

    Checks everything but the cells' form, which is the space's to judge. Raises InputError naming
    the field, what was expected and what was found.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except (ValueError, RecursionError) as error:
        place = (
            f"line {error.lineno}, column {error.colno}: "
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        reason = getattr(error, "msg", None) or first_line(error)
        raise InputError(
            f"{source}: not a JSON file ({place}{reason}); restore the file or derive the genotype "
            "again"
        ) from None
    fields = {"format": int, "space": str, "backbone_rule": str, "cells": dict, "provenance": dict}
    top = _Reader(data, source, fields, optional=("provenance",))
    if top["format"] != FORMAT:
        raise InputError(
            f"{source}.format: expected {FORMAT}, found {top['format']}; it needs another version"
        )
    cells = {
        name: _read_cell(cell, f"{source}.cells.{name}") for name, cell in top["cells"].items()
    }
    provenance = top["provenance"] if "provenance" in data else {}
    backbone_rule = check_rule(top["backbone_rule"], f"{source}.backbone_rule")
    return Genotype(top["space"], cells, backbone_rule, provenance)


def shipped_folder() -> Path:
    """Where the shipped genotypes lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "genotypes"
    return installed if installed.is_dir() else package.parent / "genotypes"


def shipped_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.json")))


@dataclass(frozen=True)
class TextForm:
    """A way in which genotypes of a space are written in a line of text.

    `recognizes` tells whether a text is meant to be one; `read` raises InputError if it is none
    after all; `write`, where there is one, is its inverse.
    """

    summary: str
    space: str
    recognizes: Callable[[str], bool]
    read: Callable[[str], Genotype]
    write: Callable[[Genotype], str] | None = None


TEXT_FORMS: Registry[TextForm] = Registry("text form of genotypes")


def text_of(genotype: Genotype) -> str | None:
    """Write a genotype in the text form of its space; None if that has none."""
    space, _ = parse_spec(genotype.space)
    forms = [TEXT_FORMS.get(name) for name in TEXT_FORMS]
    return next(
        (form.write(genotype) for form in forms if form.write is not None and form.space == space),
        None,
    )
