"""The candidates of a supernet's edges: what each is built from, and the weights that it draws.

A supernet of 8 cells has thousands of candidates. Few of them differ in anything but their weights,
and a cell that stacks them (`networks.mixed`) wants nothing else of most. So `CandidateBuilder` builds
one module for all of a built-in operation that are built alike, and has its layers draw once for
each candidate: the weights are those that modules built one after the other would have, and are
made several times as fast.

>>> import torch
>>> from darts_bio.networks.candidates import CandidateBuilder, row_blueprints
>>> from darts_bio.spaces import SPACES
>>> row = SPACES.build("darts").table(("fa",)).rows["normal"][0]
>>> blueprint = row_blueprints(row, channels=4, stride=1)[-1]
>>> blueprint.op, blueprint.rules
('dil_conv_5x5', ('fa',))
>>> builder, _ = CandidateBuilder(), torch.manual_seed(1)
>>> built = [builder.build(blueprint), builder.build(blueprint)]
>>> _ = torch.manual_seed(1)
>>> modules = [blueprint.build(), blueprint.build()]
>>> [torch.equal(one.weights[1], module[2].weight) for one, module in zip(built, modules)]
[True, True]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from darts_bio.networks.cells import SkipDropout, build_operation
from darts_bio.networks.forms import Form, candidate_form, leaves
from darts_bio.networks.plan import way_of
from darts_bio.rules import RULES, RuleConv2d
from darts_bio.rules.feedback import Scale
from darts_bio.rules.mixture import RuleMixture
from darts_bio.spaces.base import Row, by_operation
from darts_bio.spaces.operations import OPERATIONS, EvenAndOdd


@dataclass(frozen=True)
class Blueprint:
    """What the module of a candidate is built from; equal where modules are built alike.

    The `skip_rate` does not count, as nothing that draws weights has such a dropout.

    Attributes:
        op: The operation.
        rules: The rule of its layers, or those that share its weights; none where it has none.
        scale: The scale in which rules that share weights are mixed; None where none share.
        channels: The channels of its input and output.
        stride: 1 or 2.
        supernet: Whether it is built as a search has it (`cells.build_candidate`).
        skip_rate: The rate of the dropout behind a skip connection; None for no dropout.
    """

    op: str
    rules: tuple[str, ...]
    scale: Scale | None
    channels: int
    stride: int
    supernet: bool
    skip_rate: Tensor | None = field(compare=False)

    def build(self) -> nn.Module:
        """Build the module, which draws its weights from PyTorch's generator."""
        rules = tuple(RULES.build(rule) for rule in self.rules)
        if not rules:
            rule = RULES.build("bp")  # an operation without weights has no use for it
        elif self.scale is None:
            (rule,) = rules
        else:
            rule = RuleMixture(rules, self.scale)
        module = build_operation(self.op, rule, self.channels, self.stride, self.supernet)
        if self.skip_rate is None or not isinstance(module, nn.Identity):
            return module
        return nn.Sequential(module, SkipDropout(self.skip_rate))


def row_blueprints(
    row: Row,
    channels: int,
    stride: int,
    *,
    shared: Scale | None = None,
    normalizes_pools: bool = True,
    skip_rate: Tensor | None = None,
) -> list[Blueprint]:
    """Return what the modules of an edge are built from, in the order of its row.

    There is one for each candidate; where rules share weights, one for each operation.

    Args:
        row: The candidates of the edge; padding, None, stands at its end.
        channels: The channels that go through them.
        stride: The stride of the edge, 1 or 2.
        shared: The scale in which the rules of an operation are mixed; None for weights of each
            candidate's own.
        normalizes_pools: Whether operations without weights end with a batch norm.
        skip_rate: The rate of the dropout behind skip connections; None for no dropout.
    """
    if shared is not None:
        parts = [(pool.op, pool.rules) for pool in by_operation(row)]
    else:
        parts = [
            (candidate.op, () if candidate.rule is None else (candidate.rule,))
            for candidate in row
            if candidate is not None
        ]
    return [
        Blueprint(op, rules, shared, channels, stride, normalizes_pools or bool(rules), skip_rate)
        for op, rules in parts
    ]


class BuiltCandidate(NamedTuple):
    """The module of a candidate, what it is made of, and the weights that were drawn for it.

    `weights` are those of its convolutions, from its input on. Where it can be stacked, `module` may
    stand for other candidates, too, and its own weights mean nothing.
    """

    module: nn.Module
    form: Form
    weights: tuple[Tensor, ...]


class CandidateBuilder:
    """Builds candidates in the order in which a reference does (`networks.reference`).

    Building a built-in operation draws what its convolutions draw, from its input on, and nothing
    else. Of the operations of others nobody knows what building them does: they may start from
    weights of their own, or draw from another generator. Each of them is built.
    """

    def __init__(self) -> None:
        self._prototypes: dict[Blueprint, BuiltCandidate] = {}

    def build(self, blueprint: Blueprint) -> BuiltCandidate:
        """Return a candidate with the weights that `blueprint.build()` would draw now.

        PyTorch's generator moves on as if it had been built.
        """
        if blueprint in self._prototypes:
            module, form, _ = self._prototypes[blueprint]
            for layer in _convolutions(module):
                layer.reset_parameters()
            return BuiltCandidate(module, form, _weights(module))
        module = blueprint.build()
        built = BuiltCandidate(module, candidate_form(module), _weights(module))
        if OPERATIONS.get(blueprint.op).is_built_in and way_of(built.form) == "stacked":
            self._prototypes[blueprint] = built
        return built


def _weights(module: nn.Module) -> tuple[Tensor, ...]:
    """Return copies of the weights of a module's convolutions, from its input on."""
    return tuple(layer.weight.detach().clone() for layer in _convolutions(module))


def _convolutions(module: nn.Module) -> Iterator[RuleConv2d]:
    """Yield the convolutions under rules of a module that is layers in a row, from its input on."""
    for _, layer in leaves(module):
        if isinstance(layer, RuleConv2d):
            yield layer
        elif isinstance(layer, EvenAndOdd):
            yield layer.even
            yield layer.odd
