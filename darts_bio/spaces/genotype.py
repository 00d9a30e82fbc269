"""Genotypes, the discrete architectures that a search derives, and their JSON files.

A genotype is data, never code: a file is read as JSON and checked field by field. The names in it
(of operations, rules and fields) are a file format, so renaming one breaks files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from darts_bio.bounded import LARGEST_GENOTYPE, MOST_EDGES, MOST_NODES, parse_json
from darts_bio.errors import InputError, brief, unknown_name
from darts_bio.registry import Registry, canonical_spec, parse_spec
from darts_bio.rules import RULES
from darts_bio.spaces.operations import OPERATIONS

FORMAT = 1
"""The version of the file format, which every file states."""

LARGEST_NODE = MOST_NODES + 1
"""The largest node number that is read, of a cell with two inputs."""

LONGEST_TEXT = 100_000
"""The most characters of a pasted genotype, which has some 1,000: parsing takes 100 times its size
of memory."""


@dataclass(frozen=True)
class Candidate:
    """An operation, and the learning rule of its weights (None where it has no weights).

    >>> str(Candidate("sep_conv_3x3", "usf")), str(Candidate("max_pool_3x3"))
    ('sep_conv_3x3:usf', 'max_pool_3x3')
    """

    op: str
    rule: str | None = None

    def __str__(self) -> str:
        return self.op if self.rule is None else f"{self.op}:{self.rule}"


@dataclass(frozen=True)
class Edge:
    """A connection from node `input` to the later node `node` of a cell, and what stands on it.

    Nodes are numbered from 0, the inputs of the cell first: in the DARTS space nodes 0 and 1 are
    the outputs of the two cells before, in that of NAS-Bench-201 node 0 is the only input.

    >>> Edge(node=2, input=0, candidate=Candidate("skip_connect")).candidate.op
    'skip_connect'
    """

    node: int
    input: int
    candidate: Candidate


@dataclass(frozen=True)
class Cell:
    """A discrete cell: its edges, and the nodes whose concatenation is its output.

    >>> pool, convolution = Candidate("max_pool_3x3"), Candidate("sep_conv_3x3", "usf")
    >>> print(Cell((Edge(2, 0, pool), Edge(2, 1, convolution)), concat=(2,)))
      node 2: max_pool_3x3 <- 0,  sep_conv_3x3:usf <- 1
    """

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]

    def __str__(self) -> str:
        inputs_of: dict[int, list[str]] = {}
        for edge in self.edges:
            inputs_of.setdefault(edge.node, []).append(f"{edge.candidate} <- {edge.input}")
        return "\n".join(
            f"  node {node}: " + ",  ".join(inputs) for node, inputs in sorted(inputs_of.items())
        )


@dataclass(frozen=True)
class Genotype:
    """A discrete architecture: the cell of each type, and the space they belong to.

    `space` is a spec for `SPACES.build`. `backbone_rule` is the rule of everything outside the
    edges (stem, preprocessing, classifier, auxiliary head). `provenance` says where the genotype
    comes from; it takes no part in comparisons.

    >>> from darts_bio.spaces import load_genotype
    >>> genotype = load_genotype("bionas_darts")
    >>> genotype.space, genotype.backbone_rule, list(genotype.cells)
    ('darts', 'bp', ['normal', 'reduce'])
    >>> print(genotype.with_rule("fa").cells["normal"])
      node 2: skip_connect <- 0,  skip_connect <- 1
      node 3: sep_conv_3x3:fa <- 1,  sep_conv_3x3:fa <- 2
      node 4: sep_conv_3x3:fa <- 0,  skip_connect <- 1
      node 5: sep_conv_3x3:fa <- 1,  max_pool_3x3 <- 0
    """

    space: str
    cells: Mapping[str, Cell]
    backbone_rule: str = "bp"
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return "\n".join(f"{cell_type}:\n{cell}" for cell_type, cell in self.cells.items())

    def with_provenance(self, **provenance: Any) -> Genotype:
        """Return the same architecture with these entries as its whole provenance."""
        return replace(self, provenance=provenance)

    def with_rule(self, rule: str) -> Genotype:
        """Return the same operations with all weights, the backbone's too, under one rule."""

        def under_rule(edge: Edge) -> Edge:
            if edge.candidate.rule is None:  # no weights
                return edge
            return replace(edge, candidate=Candidate(edge.candidate.op, rule))

        cells = {
            name: Cell(tuple(map(under_rule, cell.edges)), cell.concat)
            for name, cell in self.cells.items()
        }
        return Genotype(
            self.space, cells, rule, {"source": f"{rule} on all of {dict(self.provenance)}"}
        )

    def identity(self) -> str:
        """Return a digest of everything but the provenance, equal for equal genotypes."""
        text = self.with_provenance().to_json()
        return f"digest {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def to_json(self) -> str:
        """Return the text of a genotype file, with one edge a line.

        `from_json` is the inverse. The text is a function of the genotype alone, since `identity`
        is a digest of it.
        """
        cell_texts = []
        for name, cell in self.cells.items():
            edges = ",\n        ".join(map(_edge_to_json, cell.edges))
            cell_texts.append(
                f"    {json.dumps(name)}: {{\n"
                f'      "edges": [\n        {edges}\n      ],\n'
                f'      "concat": {json.dumps(list(cell.concat))}\n'
                "    }"
            )
        cells = ",\n".join(cell_texts)
        return (
            "{\n"
            f'  "format": {FORMAT},\n'
            f'  "space": {json.dumps(self.space)},\n'
            f'  "backbone_rule": {json.dumps(self.backbone_rule)},\n'
            f'  "cells": {{\n{cells}\n  }},\n'
            f'  "provenance": {json.dumps(dict(self.provenance))}\n'
            "}\n"
        )


def _edge_to_json(edge: Edge) -> str:
    """Return an edge as a JSON object on one line."""
    return json.dumps(
        {
            "node": edge.node,
            "input": edge.input,
            "op": edge.candidate.op,
            "rule": edge.candidate.rule,
        }
    )


class _CheckedObject:
    """A decoded JSON object with known fields, whose types are checked as they are read.

    Errors name the place of whatever is wrong, as in `file.json.cells.normal.edges[3].op`.
    """

    def __init__(
        self, value: Any, where: str, fields: Mapping[str, type], optional: tuple[str, ...] = ()
    ) -> None:
        """Check which fields there are.

        Args:
            value: The decoded JSON.
            where: Its place in the file, which messages begin with.
            fields: The known fields and their types.
            optional: Those of them that may be missing.

        Raises:
            InputError: If it is no object, or if a field is unknown or missing.
        """
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
        """Return the value of a field; raise InputError if it is of another type."""
        value, expected = self.value.get(name), self.fields[name]
        if not isinstance(value, expected) or isinstance(value, bool):  # a bool is an int in Python
            kind = {int: "an integer", str: "text", list: "a list", dict: "an object"}[expected]
            raise InputError(f"{self.where}.{name}: expected {kind}, found {brief(value)}")
        return value


def pasted(text: str, source: str) -> str:
    """Return a pasted text without what editors and clipboards put around it.

    These are blanks and a byte-order mark.

    Raises:
        InputError: If the text is longer than `LONGEST_TEXT`. The message begins with `source`.
    """
    if len(text) > LONGEST_TEXT:
        raise InputError(
            f"{source}: expected at most {LONGEST_TEXT:,} characters, found {len(text):,}; paste the "
            "genotype alone"
        )
    return text.strip().removeprefix("\ufeff").strip()


def is_node(value: Any) -> bool:
    """Return whether a value can be the number of a node at all; a cell's space says more."""
    return type(value) is int and abs(value) <= LARGEST_NODE


def check_rule(spec: str, where: str) -> str:
    """Return the canonical spec of a learning rule.

    Raises:
        InputError: If there is no such rule. The message begins with `where`.
    """
    try:
        RULES.build(spec)
        return canonical_spec(spec)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def read_candidate(op: str, rule: Any, where: str) -> Candidate:
    """Return the candidate of an operation and a rule, both given by name.

    Raises:
        InputError: If one of them is not registered. The message begins with `where`.
    """
    try:
        OPERATIONS.get(op)
    except InputError as error:
        raise InputError(f"{where}.op: {error}") from None
    if rule is not None and not isinstance(rule, str):
        raise InputError(f"{where}.rule: expected the name of a rule or null, found {brief(rule)}")
    return Candidate(op, None if rule is None else check_rule(rule, f"{where}.rule"))


def check_carried_rule(edge: Edge, stride: int, where: str) -> None:
    """Check that an edge names a rule if and only if its operation has weights at that stride.

    Raises:
        InputError: If it does not. The message begins with `where`.
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
    """Return the cell of a decoded JSON object; raise InputError, naming the field, if it is none.

    Whether the edges fit together is not checked: that is the space's to judge.
    """
    cell = _CheckedObject(value, where, {"edges": list, "concat": list})
    if len(cell["edges"]) > MOST_EDGES:
        raise InputError(
            f"{where}.edges: expected at most {MOST_EDGES:,} edges, found {len(cell['edges']):,}"
        )
    edges = []
    for i, item in enumerate(cell["edges"]):
        place = f"{where}.edges[{i}]"
        entry = _CheckedObject(item, place, {"node": int, "input": int, "op": str, "rule": str})
        node, input_node, op = entry["node"], entry["input"], entry["op"]
        # A rule may be null, which stands for "no weights here": it is read past the check of its
        # type, which `read_candidate` makes up for.
        edges.append(Edge(node, input_node, read_candidate(op, item["rule"], place)))
    for node in cell["concat"]:
        if not is_node(node):
            raise InputError(f"{where}.concat: expected node numbers, found {brief(node)}")
    return Cell(tuple(edges), tuple(cell["concat"]))


def from_json(text: str, source: str) -> Genotype:
    """Read the text of a genotype file, which messages call `source`.

    Everything is checked but whether the cells belong to their space: that is what
    `Space.validate` is for, and `read_genotype` does both.

    Raises:
        InputError: If the text is no genotype. The message names the field, what was expected and
            what was found.

    >>> from darts_bio.spaces import load_genotype
    >>> text = load_genotype("darts_v1").to_json()
    >>> from_json(text, "my file") == load_genotype("darts_v1")
    True
    >>> from_json(text.replace("sep_conv_3x3", "sep_conv_9x9", 1), "my file")
    Traceback (most recent call last):
    ...
    darts_bio.errors.InputError: my file.cells.normal.edges[0].op: unknown operation 'sep_conv_9x9': ...
    """
    if len(text) > LARGEST_GENOTYPE:
        raise InputError(
            f"{source}: expected a genotype of at most {LARGEST_GENOTYPE:,} characters, found more; name "
            "the file of the genotype alone"
        )
    data = parse_json(text, source, "; restore the file or derive the genotype again")
    fields = {"format": int, "space": str, "backbone_rule": str, "cells": dict, "provenance": dict}
    document = _CheckedObject(data, source, fields, optional=("provenance",))
    if document["format"] != FORMAT:
        raise InputError(
            f"{source}.format: expected {FORMAT}, found {document['format']}; it needs another "
            "version"
        )
    cells = {
        name: _read_cell(cell, f"{source}.cells.{name}") for name, cell in document["cells"].items()
    }
    provenance = document["provenance"] if "provenance" in data else {}
    backbone_rule = check_rule(document["backbone_rule"], f"{source}.backbone_rule")
    return Genotype(document["space"], cells, backbone_rule, provenance)


def shipped_folder() -> Path:
    """Return the folder of the shipped genotypes.

    It lies inside an installed package, and beside the package in a checkout.

    >>> shipped_folder().name
    'genotypes'
    """
    package = Path(__file__).resolve().parent.parent
    installed = package / "genotypes"
    return installed if installed.is_dir() else package.parent / "genotypes"


def shipped_names() -> tuple[str, ...]:
    """Return the names of the shipped genotypes, which `load_genotype` takes.

    >>> print(*shipped_names()[:6])
    amoebanet bionas_darts cifar10_rule_aware darts_v1 darts_v2 digits_rule_aware
    """
    return tuple(sorted(path.stem for path in shipped_folder().glob("*.json")))


@dataclass(frozen=True)
class TextForm:
    """A way in which genotypes of a space are written in a line of text.

    Those registered in `TEXT_FORMS` are accepted wherever a genotype is asked for.

    >>> form = TEXT_FORMS.get("nb201")
    >>> text = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"
    >>> form.space, form.recognizes(text), form.write(form.read(text)) == text
    ('nb201', True, True)
    """

    summary: str
    """The form in a line, for listings."""

    space: str
    """The name of the space, without options."""

    recognizes: Callable[[str], bool]
    """Whether a text is meant to be of this form; `read` may refuse it yet."""

    read: Callable[[str], Genotype]
    """Returns the genotype of a text; raises InputError if it is not of this form."""

    write: Callable[[Genotype], str] | None = None
    """The inverse of `read`; None if the form is read only."""


TEXT_FORMS: Registry[TextForm] = Registry("text form of genotypes")


def text_of(genotype: Genotype) -> str | None:
    """Return a genotype in the text form of its space; None if no form of it can be written.

    >>> from darts_bio.spaces import load_genotype
    >>> text_of(load_genotype("|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3:fa~2|"))
    '|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3:fa~2|'
    >>> print(text_of(load_genotype("darts_v1")))
    None
    """
    space, _ = parse_spec(genotype.space)
    for name in TEXT_FORMS:
        form = TEXT_FORMS.get(name)
        if form.space == space and form.write is not None:
            return form.write(genotype)
    return None
