"""Fair DARTS (Chu 2020, arXiv 1911.12126): candidates that do not compete.

Each candidate has its own sigmoid(alpha) as its weight, in place of a share of a softmax. The
zero-one loss -w mean (sigmoid(alpha) - 1/2)^2 drives the weights away from the middle. The options
are those of the published code (github.com/xiaomi-automl/FairDARTS); its search has no `none` and a
recipe of its own for w, both of which `--protocol fair_darts` brings.

The published derivation ("threshold_sparse") keeps, of the two strongest edges into a node, those
whose best candidate reaches a threshold. That is `threshold=0.85`, in a space whose nodes may have
fewer edges, as `darts(kept_edges=None)`; without it a node keeps as many edges as its space asks for.
As in the published network, edges from a node that none leads into are left out. In a cell in which
nothing reaches the threshold, as early in a search, the strongest edge from an input stays, where
the published derivation returns an empty cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.registry import parse_spec, write_spec
from darts_bio.spaces import SPACES
from darts_bio.spaces.darts import KEPT_EDGES
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy


class FairState(AlphaState):
    """Alpha, and which entries of its flattened tables are candidates and not padding."""

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        # Indices rather than a mask: to select by a mask, Python waits for the GPU to say how many
        # entries there are, which a recorded step cannot.
        self.present = {
            t: context.table.mask(t).flatten().nonzero().squeeze(1).to(context.device)
            for t in context.table.rows
        }
        """(candidates of all edges,) indices into the flattened (edges, candidates), per type."""


@STRATEGIES.register("fair_darts")
@dataclass(frozen=True)
class FairDarts(GradientStrategy):
    """Independent candidates: sigmoid of alpha with a zero-one loss (Chu 2020).

    `zero_one` is the weight w of the zero-one loss, and `threshold` the least sigmoid(alpha) of an
    edge in a genotype (0.85 as published, and 0 for none); the other options are those of
    `GradientStrategy`.

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("fair_darts")  # doctest: +NORMALIZE_WHITESPACE
    {'zero_one': 10.0, 'threshold': 0.0, 'lr': 0.003, 'betas': (0.9, 0.999), 'weight_decay': 0.001,
     'init': 0.001}
    >>> STRATEGIES.build("fair_darts(zero_one=1)").zero_one
    1.0
    """

    zero_one: float = 10.0
    threshold: float = 0.0
    _: KW_ONLY
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        check_number(f"{self.where}: zero_one", self.zero_one)
        check_number(f"{self.where}: threshold", self.threshold, below=1)
        super().__post_init__()

    @property
    def drops_edges(self) -> bool:  # type: ignore[override]
        return self.threshold > 0

    def mean_weights(self, state: AlphaState) -> EdgeWeights:
        return {t: logits.sigmoid() * state.masks[t] for t, logits in state.alpha.items()}

    def begin(self, context: Context) -> FairState:
        """Make the state of a new search.

        Raises:
            InputError: If there is a threshold, and nodes of the space need all their edges.
        """
        if self.drops_edges and not context.space.optional_edges:
            name, options = parse_spec(SPACES.spec(context.space))
            # Of the spaces of this package, this one alone has the option.
            options = options if name == "darts" else {}
            remedy = write_spec("darts", {**options, "kept_edges": None})
            raise InputError(
                f"{self.where}: threshold: expected a space whose nodes may have fewer edges, found "
                f'the {context.space.where} with all of them; use --space "{remedy}", or leave the '
                "threshold out"
            )
        return FairState(self, context)

    def own_penalty(self, state: AlphaState) -> Tensor:
        assert isinstance(state, FairState)
        sigmoids = torch.cat(
            [logits.sigmoid().flatten()[state.present[t]] for t, logits in state.alpha.items()]
        )
        return -self.zero_one * (sigmoids - 0.5).square().mean()

    def strengths(self, state: AlphaState) -> EdgeWeights:
        # Divided by the number of candidates of the edge: a space that compares edges takes rows
        # for shares, and multiplies them by that number.
        return {
            t: weights / state.masks[t].sum(1, keepdim=True)
            for t, weights in self.mean_weights(state).items()
        }

    @torch.no_grad()
    def final_weights(self, state: AlphaState) -> EdgeWeights:
        weights = super().final_weights(state)
        if not self.drops_edges:
            return weights
        kept = {}
        for t, sigmoids in self.mean_weights(state).items():
            stays = torch.zeros(len(sigmoids), 1, device=sigmoids.device, dtype=sigmoids.dtype)
            stays[self._kept_edges(state.context, t, weights[t].tolist(), sigmoids.tolist())] = 1.0
            kept[t] = weights[t] * stays
        return kept

    def _kept_edges(
        self,
        context: Context,
        cell_type: str,
        weights: Sequence[Sequence[float]],
        sigmoids: Sequence[Sequence[float]],
    ) -> list[int]:
        """Return the edges that reach the threshold, of the strongest of each node."""
        space, rows = context.space, context.table.rows[cell_type]
        best = [space.strongest(row, own)[0] for row, own in zip(rows, sigmoids, strict=True)]
        # As a space that compares edges does: shares by the number of candidates.
        scores = [
            (len(row) - row.count(None)) * space.strongest(row, own)[0]
            for row, own in zip(rows, weights, strict=True)
        ]
        kept: list[int] = []
        for edges in space.incoming():
            strongest = sorted(edges, key=lambda e: -scores[e])[:KEPT_EDGES]
            kept += [e for e in strongest if best[e] >= self.threshold]
        nodes = {node for node, _ in space.edges}
        from_inputs = [e for e, (_, source) in enumerate(space.edges) if source not in nodes]
        if not set(kept) & set(from_inputs):
            kept.append(max(from_inputs, key=lambda e: scores[e]))
        return kept
