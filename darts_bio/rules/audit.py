"""The audit of a model: which of its weights learn by which rule, and what carries their errors.

>>> import torch
>>> from torch import nn
>>> from darts_bio.rules import audit, convert
>>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
>>> print(audit(convert(plain, {"0": "fa", "*": "bp"}), inputs=torch.ones(1, 3, 8, 8)))
rule  weights  parameters   share  error carried by
----  -------  ----------  ------  ----------------
bp          1       2,890  92.8 %  values
fa          1         224   7.2 %  fixed feedback
Looked at in a forward pass of the input (1, 3, 8, 8): every weight stands in a product under its rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import nn

from darts_bio.rules.base import Carries, LearningRule
from darts_bio.rules.carriers import DirectOperation, learned_feedback
from darts_bio.rules.looks import Look, look
from darts_bio.rules.weights import Weight, check_model, weights_in

PLAIN = "bp (plain)"
"""The rule of a weight that has none, in tables."""


@dataclass(frozen=True)
class AuditRow:
    """A weight that multiplies activations, as a row of an `Audit`."""

    name: str
    """Its name in the model: that of its layer, with its own where the layer has several."""

    kind: str
    """PyTorch's name of the layer, such as Conv2d."""

    rule: str | None
    """The spec of its rule; None where it has none, which means backpropagation."""

    parameters: int
    """Its entries and those of its bias, without those that an earlier row counts (tied weights)
    and feedback."""

    carries: Carries
    """What carries the error down past it."""

    local: bool
    """Whether it learns by what it sees alone, without the error."""

    products: tuple[str, ...] | None
    """The functions of PyTorch in which it was seen to multiply an activation; None where nobody has
    looked."""

    @property
    def transports(self) -> bool:
        """Whether its own values carry the error down."""
        return self.carries == "values"


@dataclass(frozen=True, repr=False)
class Audit:
    """The weights of a model and their rules, as `audit` returns them.

    >>> from darts_bio.rules import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    >>> result = audit(convert(model, {"0": "usf"}))
    >>> result
    rule        weights  parameters   share  error carried by
    ----------  -------  ----------  ------  ----------------
    bp (plain)        1       2,890  92.8 %  values
    usf               1         224   7.2 %  signs
    No forward pass was looked at: give audit(model, inputs=...) one.
    >>> [(row.name, row.rule, row.carries) for row in result.rows]
    [('0', 'usf', 'signs'), ('2', None, 'values')]
    >>> result.transported, result.parameters, f"{100 * result.share:.1f} %"
    (2890, 3114, '92.8 %')
    """

    rows: tuple[AuditRow, ...]
    """The weights, in the model's order."""

    other: int
    """The number of parameters that are in no row (norms, embeddings, tokens)."""

    given: str | None
    """What the model was given in the forward pass that was looked at; None where nobody has looked.
    """

    @property
    def parameters(self) -> int:
        """The number of parameters of all rows; feedback is not counted."""
        return sum(row.parameters for row in self.rows)

    @property
    def transported(self) -> int:
        """The number of parameters of weights whose own values carry the error down."""
        return self.carried["values"]

    @property
    def share(self) -> float:
        """The fraction `transported` / `parameters`, in [0, 1]; 0 without weights."""
        return self.transported / max(1, self.parameters)

    @property
    def carried(self) -> dict[Carries, int]:
        """The number of parameters by what carries the error past them."""
        sizes: dict[Carries, int] = dict.fromkeys(get_args(Carries), 0)
        for row in self.rows:
            sizes[row.carries] += row.parameters
        return sizes

    @property
    def unseen(self) -> list[str]:
        """The names of weights that were looked for in vain: they multiplied no activation."""
        return [row.name for row in self.rows if row.products == ()]

    def __repr__(self) -> str:
        """Return the summary: a line for each rule, and what was looked at."""
        groups: dict[tuple[str, str], list[AuditRow]] = {}
        for row in self.rows:
            groups.setdefault((row.rule or PLAIN, row.carries), []).append(row)
        sizes = {key: sum(row.parameters for row in rows) for key, rows in groups.items()}
        table = [
            (
                rule,
                f"{len(groups[rule, carries]):,}",
                f"{size:,}",
                f"{100 * size / max(1, self.parameters):.1f} %",
                carries,
            )
            for (rule, carries), size in sorted(sizes.items(), key=lambda item: -item[1])
        ]
        header = ("rule", "weights", "parameters", "share", "error carried by")
        lines = [*_aligned([header, *table], right=(1, 2, 3)), *self._remarks()]
        return "\n".join(lines)

    def _remarks(self) -> Iterator[str]:
        """Yield what the table does not say, a line each."""
        if self.other:
            yield (
                f"{self.other:,} more parameters, of norms, embeddings and the like, multiply no "
                "activation by a matrix."
            )
        if self.rows and self.rows[-1].local:
            yield (
                f"{self.rows[-1].name or 'The model'}, the last weight, learns by "
                f"{self.rows[-1].rule}, which sees no labels: a readout has to learn by the error "
                "(bp)."
            )
        if self.given is None:
            yield "No forward pass was looked at: give audit(model, inputs=...) one."
        elif self.unseen:
            names = ", ".join(self.unseen[:6]) + (", ..." if len(self.unseen) > 6 else "")
            yield (
                f"In a forward pass of {self.given} {len(self.unseen)} weights multiplied nothing: "
                f"{names}."
            )
        else:
            yield (
                f"Looked at in a forward pass of {self.given}: every weight stands in a product "
                "under its rule."
            )

    def table(self) -> str:
        """Return the table of all weights, a line each."""
        header = ("weight", "kind", "rule", "parameters", "error carried by", "stands in")
        rows = [
            (
                row.name or "(the model)",
                row.kind,
                row.rule or PLAIN,
                f"{row.parameters:,}",
                row.carries,
                "?" if row.products is None else ", ".join(row.products) or "nothing",
            )
            for row in self.rows
        ]
        return "\n".join(_aligned([header, *rows], right=(3,)))

    def to_json(self) -> str:
        """Return the audit as JSON: the counts by what carries errors, and the rows."""
        content = {
            "given": self.given,
            "parameters": self.parameters,
            "other_parameters": self.other,
            "carried": self.carried,
            "weights": [asdict(row) for row in self.rows],
        }
        return json.dumps(content, indent=1) + "\n"


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    """Return the lines of a table with a header; the columns `right` hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(values: Sequence[str]) -> str:
        texts = [
            value.rjust(width) if place in right else value.ljust(width)
            for place, (value, width) in enumerate(zip(values, widths, strict=True))
        ]
        return "  ".join(texts).rstrip()

    header, *body = rows
    return [line(header), "  ".join("-" * width for width in widths), *map(line, body)]


def audit(model: nn.Module, inputs: Any = None) -> Audit:
    """Return which weights of a model learn by which rule, after a look at one forward pass.

    Printed, the result is a summary by rule; `table()` has a line for each weight, `to_json()` is
    for programs. Within an operation under a direct rule the error is exact, so only its lowest layer
    is counted as under that rule.

    Args:
        model: The model; it stays as it is.
        inputs: What to give it in the pass that is looked at: a tensor, a tuple of positional or a
            dict of keyword arguments. By default inputs of likely shapes are tried, on a copy
            without numbers.

    Raises:
        InputError: If it is no model, or cannot run on the inputs given.

    >>> import torch
    >>> from darts_bio.rules import convert
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(10))
    >>> _ = model(torch.ones(1, 3, 32, 32))
    >>> print(audit(convert(model, {"0": "usf"})).table())
    weight  kind    rule        parameters  error carried by  stands in
    ------  ------  ----------  ----------  ----------------  ---------
    0       Conv2d  usf                224  signs             conv2d
    2       Linear  bp (plain)      72,010  values            linear
    """
    check_model(model, "audit")
    return _audit(model, look(model, inputs))


def count_rules(model: nn.Module) -> Audit:
    """Return what `audit` does without a look at a forward pass: the layers that PyTorch knows.

    >>> count_rules(nn.Sequential(nn.Linear(4, 3))).transported
    15
    """
    return _audit(model, None)


def _audit(model: nn.Module, sight: Look | None) -> Audit:
    """Return the audit of a model, with what a look has seen of it."""
    counted = {id(parameter) for parameter in learned_feedback(model)}  # feedback is no weight

    def count_new(parameters: Any) -> int:
        """Return the size of the parameters not counted before: a tied weight counts once."""
        new = [parameter for parameter in parameters if id(parameter) not in counted]
        counted.update(map(id, new))
        return sum(parameter.numel() for parameter in new)

    # The rules of operations under a direct rule, by the identity of their lowest layer.
    direct_rules: dict[int, LearningRule] = {}
    for operation in model.modules():
        if isinstance(operation, DirectOperation):
            direct_rules[id(next(weights_in(operation)).owner)] = operation.rule
    rows = []
    for weight in weights_in(model):
        seen = None if sight is None else sight.weights.get(weight.path)
        stands_in = seen.products + seen.undefined if seen else ()
        known = weight.carrier is not None if sight is None else bool(stands_in)
        if weight.loose and not known:
            continue  # nothing tells that it multiplies activations
        own_rule = None if weight.carrier is None else weight.carrier.rule
        rule = direct_rules.get(id(weight.owner), own_rule)
        rows.append(
            AuditRow(
                name=weight.name,
                kind=weight.kind,
                rule=None if rule is None else rule.spec,
                parameters=count_new(_parameters_of(weight)),
                carries="values" if rule is None else rule.carries,
                local=rule is not None and rule.local,
                products=None if sight is None else stands_in,
            )
        )
    given = None if sight is None else sight.given
    return Audit(tuple(rows), other=count_new(model.parameters()), given=given)


def _parameters_of(weight: Weight) -> Iterator[nn.Parameter]:
    """Yield the parameters that a weight's row counts: the weight, and the bias beside it."""
    owner = weight.owner
    if not weight.loose and weight.attribute == "weight":  # a layer of its own
        yield from owner.parameters()
        return
    for name in {weight.attribute: 0, weight.attribute.replace("weight", "bias"): 0}:
        parameter = owner._parameters.get(name)
        if parameter is not None:
            yield parameter


__all__ = ["Audit", "AuditRow", "audit", "count_rules"]
