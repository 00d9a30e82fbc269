"""The supernet: a function of its weights w and of the edge weights it is lent.

`supernet(x, edge_weights)` maps images (N, C, H, W) to logits (N, num_classes). `edge_weights`
holds a tensor (edges, candidates) per cell type. Where it comes from is the strategy's business:
the supernet knows nothing of alpha (`strategies.base` tells its life).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.modes import restored
from darts_bio.networks.backbone import CellNetwork
from darts_bio.networks.cells import SkipDropout
from darts_bio.networks.lanes import OwnedWeights, owned_weights
from darts_bio.networks.mixed import MixedCell
from darts_bio.networks.pooled import LEFT_OUT, PooledRows, RulePlaces
from darts_bio.networks.reference import ReferenceCell
from darts_bio.networks.stacking import StackedBatchNorm
from darts_bio.rules import rule_carriers
from darts_bio.rules.feedback import Scale
from darts_bio.rules.mixed_feedback import MixedFeedback, share_feedback
from darts_bio.rules.mixture import RuleMixture
from darts_bio.rules.shared_feedback import SharedFeedback
from darts_bio.rules.stacked import StackedConv2d
from darts_bio.rules.tangents import forward_mode
from darts_bio.spaces import CandidateTable, Space

EdgeWeights = Mapping[str, Tensor]
"""The weight of each candidate on each edge: a tensor (edges, candidates) per cell type."""


def _for_this_pass(edge_weights: EdgeWeights) -> tuple[EdgeWeights, EdgeWeights]:
    """Return the edge weights as rules' shares depend on them, and as operations' gains do.

    Only one of both is differentiated. In an ordinary pass it is gains. In a forward-mode pass it is
    shares: the loss at given weights does not depend on them, but the step of training does.
    """
    constant = {cell_type: weights.detach() for cell_type, weights in edge_weights.items()}
    return (edge_weights, constant) if forward_mode() else (constant, edge_weights)


def single_columns(edge_weights: EdgeWeights) -> dict[str, list[int]] | None:
    """Return the one column of each edge that has a weight, or LEFT_OUT where none has.

    Returns None if some edge has several.

    Args:
        edge_weights: (edges, candidates) per cell type.

    >>> single_columns({"cell": torch.tensor([[0.0, 0.5], [0.0, 0.0]])})
    {'cell': [1, -1]}
    >>> single_columns({"cell": torch.tensor([[0.5, 0.5]])}) is None
    True
    """
    columns = {}
    for t, weights in edge_weights.items():
        some = weights != 0
        if bool((some.sum(1) > 1).any()):
            return None
        columns[t] = torch.where(some.any(1), some.int().argmax(1), LEFT_OUT).tolist()
    return columns


class SuperNet(CellNetwork):
    """All candidates of a space on every edge (Liu 2019, arXiv 1806.09055).

    It holds w; alpha is the strategy's.

    With `partial` = k > 1 only 1/k of a node's channels goes through the candidates of an edge. The
    others pass by times the sum of the edge's weights (so 1 for a softmax, and beta where the
    strategy weights edges by a beta), max-pooled at stride 2, and channels are shuffled (PC-DARTS,
    arXiv 1907.05737, section 3.2).

    Args:
        space: The space that is searched.
        rules: The learning rules of the candidates.
        channels: The channels of a node in the first cell.
        layers: The number of cells.
        num_classes: The number of logits.
        in_channels: The channels of the images.
        backbone_rule: The learning rule of stem, cell inputs, reductions and classifier.
        partial: k, of which one part of the channels goes through the candidates.
        shared: None for weights of each (operation, rule)'s own. Else the rules of an operation
            share its weights, and this is the scale, "match" or "init", in which their kernels are
            mixed (`rules.mixture`).
        cell: The form of the cells; all forms compute the same.
        table: The candidates, where they are not all that the space has under the rules.
        skip_rate: The rate of a dropout behind skip connections (`cells.SkipDropout`), a scalar
            tensor that may change in place; None for no dropout.

    Raises:
        InputError: If `channels` cannot be divided so, or if a cell type has no cell.

    >>> import torch
    >>> from darts_bio.networks import SuperNet
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> supernet = SuperNet(space, ["bp", "fa"], channels=4, layers=3, num_classes=10)
    >>> edges, candidates = supernet.table.shape("cell")
    >>> equal = torch.full((edges, candidates), 1 / candidates)
    >>> supernet(torch.zeros(2, 3, 8, 8), {"cell": equal}).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        space: Space,
        rules: Sequence[str],
        *,
        channels: int,
        layers: int,
        num_classes: int,
        in_channels: int = 3,
        backbone_rule: str = "bp",
        partial: int = 1,
        shared: Scale | None = None,
        cell: type[MixedCell] | type[ReferenceCell] = MixedCell,
        table: CandidateTable | None = None,
        skip_rate: Tensor | None = None,
    ) -> None:
        # Edges of stride 2, which need even numbers, are in cells that have doubled the channels.
        if partial < 1 or channels % partial:
            raise InputError(
                f"--channels: expected a multiple of {max(1, partial)}, since one in k={partial} goes "
                f"through the candidates, found {channels}; use another --channels, or another k"
            )
        unused = space.unused(layers)
        if unused:
            raise InputError(
                f"--layers: expected a cell of each type of the space, found none of "
                f"{', '.join(unused)} among {layers} cells; use more --layers, or fewer cells in "
                "--space"
            )
        table = table or space.table(rules)
        super().__init__(
            space,
            layers,
            lambda cell_type, c: cell(
                space, cell_type, table.rows[cell_type], c, partial, shared, skip_rate
            ),
            {cell_type: len(space.outputs) for cell_type in space.cell_types},
            channels=channels,
            num_classes=num_classes,
            in_channels=in_channels,
            backbone_rule=backbone_rule,
            supernet=True,
        )
        self.table, self.partial, self.shared = table, partial, shared
        self._drawn: Mapping[str, Sequence[int]] | None = None
        self.memory_format = cell.memory_format
        mixed = [
            (cell_type, cell)
            for cell_type, cell in zip(self.plan, self.cells, strict=True)
            if isinstance(cell, MixedCell)
        ]
        self.feedback = share_feedback(
            [layer for _, cell in mixed for layer in cell.stacked_layers()]
        )
        self.rule_places = self._rule_places(mixed) if shared else None

    @property
    def shares_weights(self) -> bool:
        """Whether the rules of an operation share its weights."""
        return self.shared is not None

    def owned_weights(self) -> OwnedWeights:
        """Return the operations that have weights, and which rows of the parameters are theirs.

        Weights of stem, cell inputs, reductions and classifier belong to none of them.

        >>> from darts_bio.networks import SuperNet
        >>> from darts_bio.spaces import SPACES
        >>> space = SPACES.build("nb201")
        >>> supernet = SuperNet(space, ["bp", "fa"], channels=4, layers=3, num_classes=10)
        >>> owned = supernet.owned_weights()
        >>> len(owned.operations)  # 3 cells of 6 edges with 2 convolutions under 2 rules
        72
        >>> print(owned.operations[-1])
        cell 2 (cell), edge 5, nor_conv_3x3:fa
        """
        return owned_weights(
            self.plan,
            list(self.cells),
            self.table.rows,
            list(self.feedback),
            self.shares_weights,
        )

    def _rule_places(self, cells: Sequence[tuple[str, MixedCell]]) -> RulePlaces:
        """Return where the shares of stacked layers' rules stand; `cells` are (cell type, cell).

        Raises InputError if a layer is not stacked, or is under another rule than the mixture.
        """
        homes: dict[StackedConv2d, tuple[str, PooledRows]] = {}
        for cell_type, cell in cells:
            for name, carrier in rule_carriers(cell):
                raise InputError(
                    "--weights shared: expected operations that can be batched, found layer "
                    f"{name} of the {cell_type} cell, under {carrier.rule.spec}, that cannot; "
                    "leave the operation out, or use --weights own and another strategy than "
                    "rule_aware"
                )
            for layer in cell.stacked_layers():
                for rule in layer.rules:
                    if not isinstance(rule, RuleMixture):
                        raise InputError(
                            "--weights shared: expected operations with all layers under the rule "
                            f"that they are given, found layer {layer.names[0]} of the {cell_type} "
                            f"cell under {rule.spec}; leave the operation out, or use --weights own "
                            "and another strategy than rule_aware"
                        )
            assert cell.pooled is not None
            homes |= dict.fromkeys(cell.stacked_layers(), (cell_type, cell.pooled))
        return RulePlaces(self.table, homes, [cast(MixedFeedback, f) for f in self.feedback])

    @contextlib.contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Have batch norms use each batch's own statistics and keep none of them, without dropout.

        Passes within the context, in training mode, leave no trace.
        """
        norms = [
            module
            for module in self.modules()
            if isinstance(module, (nn.BatchNorm2d, StackedBatchNorm))
        ]
        dropouts = [module for module in self.modules() if isinstance(module, SkipDropout)]
        with restored(norms, "track_running_stats"), restored(dropouts, "training"):
            for norm in norms:
                norm.track_running_stats = False
            for dropout in dropouts:
                dropout.training = False
            yield

    @property
    def is_drawn(self) -> bool:
        """Whether passes compute one candidate an edge at present (`drawn`)."""
        return self._drawn is not None

    @contextlib.contextmanager
    def drawn(self, columns: Mapping[str, Sequence[int]] | None) -> Iterator[None]:
        """Compute one candidate an edge within the context, the others being without weight.

        Their weights get no gradient, as edge weights and as w, and their batch norms' statistics
        stay.

        Args:
            columns: For each cell type and edge the candidate's column in the table, or LEFT_OUT
                where the edge brings nothing and has no weight; None computes all, as ever.

        >>> from darts_bio.networks import SuperNet
        >>> from darts_bio.spaces import SPACES
        >>> space = SPACES.build("nb201")
        >>> supernet = SuperNet(space, ["bp", "fa"], channels=4, layers=3, num_classes=10).double()
        >>> columns, images = [1, 2, 3, 4, 5, 6], torch.randn(2, 3, 8, 8).double()
        >>> single = {"cell": torch.eye(7)[columns].double()}
        >>> with supernet.drawn({"cell": columns}):
        ...     logits = supernet(images, single)
        >>> bool((logits - supernet(images, single)).abs().max() < 1e-12)
        True
        """
        self._drawn = columns
        try:
            yield
        finally:
            self._drawn = None

    def forward(self, x: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes).

        Args:
            x: The images.
            edge_weights: (edges, candidates) per cell type.
        """
        # What stacked layers share of their feedback is lent to them before a pass.
        if self.rule_places is None:
            for feedback in self.feedback:
                cast(SharedFeedback, feedback).lend()
        elif torch.is_grad_enabled():  # otherwise no error is sent
            of_rules, edge_weights = _for_this_pass(edge_weights)
            places = self.rule_places(of_rules)
            for feedback, shares in zip(self.feedback, places, strict=True):
                cast(MixedFeedback, feedback).lend(shares)
        older, newer = self.stem(x.contiguous(memory_format=self.memory_format))
        for inputs, cell, cell_type in zip(self.inputs, self.cells, self.plan, strict=True):
            drawn = None if self._drawn is None else self._drawn[cell_type]
            older, newer = newer, cell(inputs(older, newer), edge_weights[cell_type], drawn)
        logits = self.classify(newer)
        for feedback in self.feedback:
            logits = cast(SharedFeedback, feedback).settle(logits)
        return logits
