"""Operations that stop learning before they overfit (OLES; Jiang, NeurIPS 2023).

Operations with weights fit the training half while alpha is judged on the validation half, so that
in the end skip connections win. `oles` compares, operation by operation, the direction of the
gradient of its weights on the training batch with that on the validation batch. Where the two have
agreed too little over some batches, the operation's weights stay as they are from then on: neither
gradient, momentum nor decay moves them, while the statistics of their batch norms go on, and alpha
does. (Momentum's buffer goes on, and the weights are put back after each step: `WeightOptimizer.held`.
`networks.lanes` knows which rows of a stacked parameter are whose.) An operation is one of a single
cell, on one edge; under several rules each pair (operation, rule) is one of its own, but where they
share weights.

The published code (PasaLab/oles) and the formula of the paper differ. By the formula the score is
the cosine between the gradients g on the training batch and h on the validation batch. In the code
h is added to a gradient that was not reset, so that the score is that between g and g + h. The
published threshold, 0.4, fits the latter only. With `--strategy darts` in `darts(nodes=2)` under
bp, 8 channels, 5 cells, digits, batches of 64, rate 0.025, one seed, nothing stopped, the mean
score of the 100 operations over 20 batches is 0.09 in the first window and 0.04 in the seventh by
the formula, below 0.4 for all of them; by the code it is 0.64 and 0.47, below 0.4 for 6 % and 27 %.
So `against` is "sum" unless it is said otherwise. As in the code, a cosine is that along the outputs
of a weight, averaged over its other dimensions, and skip connections have no score.

Otherwise than in the code, both gradients are taken at the same w and edge weights (there h is one
step younger), by the rules' errors, and are not clipped, and a window is as many batches as it
says (there 21 scores divided by 20). An operation without a gradient in a step, since it was not
drawn, has no score in that step.

The paper has the validation gradient for nothing, since its alpha's pass computes that of w beside;
here alpha's pass leaves it out, so a step takes one further pass and backward pass on the
validation batch: 1.63 (1.57 to 1.76) of the time of a step of darts, 1.22 (1.16 to 1.37) of darts'
second order, 1.57 (0.95 to 1.61) of gdas (median and range of 7 pairs of steps in turn,
`darts(nodes=2)` under bp and fa, 8 channels, 5 cells, digits, batches of 64; Intel Xeon, one
thread, processor time, other jobs beside).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.networks import SuperNet
from darts_bio.networks.lanes import OwnedFeedback, OwnedRows
from darts_bio.spaces import Candidate
from darts_bio.strategies.base import Context
from darts_bio.strategies.regularizers import (
    REGULARIZERS,
    Lookout,
    Regularizer,
    RegularizerState,
)

Against = Literal["sum", "validation"]
"""What a training gradient is compared with: its sum with the validation gradient, or the latter."""


def is_scored(name: str) -> bool:
    """Tell whether an operation of this name, if it has weights, is one that may be stopped.

    A skip connection has some at stride 2, but is not among those that overfit, as published.

    >>> is_scored("sep_conv_3x3"), is_scored("skip_connect")
    (True, False)
    """
    return name != "skip_connect"


class OlesState(RegularizerState):
    """The scores of the present window, and which operations are stopped.

    All are (operations,) tensors on the search's device, in the order of
    `SuperNet.owned_weights`: `sums` of the scores so far, `counts` of the batches that they come
    from, and `stopped`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def attend(self, supernet: SuperNet) -> dict[nn.Parameter, Tensor]:
        """Begin with the operations of a supernet; return the masks of their parameters."""
        device, owned = self.context.device, supernet.owned_weights()
        self.operations = owned.operations
        count = len(owned.operations)
        self.sums = torch.zeros(count, dtype=torch.float64, device=device)
        self.counts = torch.zeros(count, dtype=torch.int64, device=device)
        self.stopped = torch.zeros(count, dtype=torch.bool, device=device)
        self.scored = torch.tensor([is_scored(o.name) for o in owned.operations], device=device)
        self.agreement = Agreement(owned.weights, count, device)
        # The masks of all parameters are views of one tensor.
        every: list[OwnedRows | OwnedFeedback] = [*owned.weights, *owned.feedback]
        rows = [of_parameter.by_row() for of_parameter in every]
        self._owner_of_row = torch.cat(rows).to(device)
        self._stopped_rows = torch.zeros(len(self._owner_of_row), dtype=torch.bool, device=device)
        masks = self._stopped_rows.split([len(owners) for owners in rows])
        return {
            of_parameter.parameter: mask.view(-1, *[1] * (of_parameter.parameter.dim() - 1))
            for of_parameter, mask in zip(every, masks, strict=True)
        }

    def set_masks(self) -> None:
        """Set the masks of parameters, in place, to those of the operations that are stopped."""
        self._stopped_rows.copy_(self.stopped[self._owner_of_row])

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "stopped": self.stopped}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(saved[name])
        self.set_masks()


class Agreement:
    """How far two gradients of the operations of a supernet agree.

    Args:
        weights: The parameters, and the operations that own their rows.
        count: The number of operations.
        device: Where the gradients are.
    """

    def __init__(self, weights: Sequence[OwnedRows], count: int, device: torch.device) -> None:
        self.parameters = len(weights)
        # Lanes of one shape are compared together, whatever parameter they stand in.
        self._shapes: dict[tuple[int, int], list[int]] = {}
        for number, of in enumerate(weights):
            shape = (of.rows, of.parameter.numel() // len(of.parameter))
            self._shapes.setdefault(shape, []).append(number)
        order = [number for same in self._shapes.values() for number in same]
        places: list[list[int]] = [[] for _ in range(count)]
        for lane, owner in enumerate(o for number in order for o in weights[number].owners):
            places[owner].append(lane)
        most = max(map(len, places))
        # (operations, most): the lanes of each operation, padded by one that is always 0.
        lanes = sum(map(len, places))
        table = [own + [lanes] * (most - len(own)) for own in places]
        self._table = torch.tensor(table, device=device)
        self._sizes = torch.tensor([len(own) for own in places], device=device)

    def __call__(self, train: Sequence[Tensor], valid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the score of each operation, and whether it had a gradient: both (operations,).

        For a weight (outputs, ...) of an operation the score is the cosine between both gradients
        along the outputs, averaged over the other dimensions; for the operation it is the mean
        over its weights.

        Args:
            train: A gradient for each parameter.
            valid: Likewise.
        """
        cosines, some = [], []
        for (rows, width), numbers in self._shapes.items():
            one, other = (
                torch.cat([gradients[i].reshape(-1, rows, width) for i in numbers])
                for gradients in (train, valid)
            )
            cosines.append(F.cosine_similarity(one, other, dim=1).mean(1).double())
            some.append((one != 0).flatten(1).any(1) | (other != 0).flatten(1).any(1))
        nothing = torch.zeros_like(self._sizes[:1])
        of_lanes = torch.cat([*cosines, nothing.double()])
        has_gradient = torch.cat([*some, nothing.bool()])
        return of_lanes[self._table].sum(1) / self._sizes, has_gradient[self._table].any(1)


@REGULARIZERS.register("oles")
@dataclass(frozen=True)
class Oles(Regularizer[OlesState]):
    """Weights of an operation that stay once its gradients on both halves disagree (OLES, 2023).

    Attributes:
        threshold: The mean cosine below which an operation is stopped.
        window: Over how many batches the mean is taken.
        against: What the training gradient is compared with: sum, its sum with the validation
            gradient (the published code), or validation, that alone (the paper's formula, for
            which a threshold near 0 is in place).

    >>> REGULARIZERS.build("oles(threshold=0.3)")
    Oles(threshold=0.3, window=20, against='sum')
    """

    threshold: float = 0.4
    window: int = 20
    against: Against = "sum"

    def __post_init__(self) -> None:
        check_number(f"{self.where}: threshold", self.threshold, below=1)
        check_whole(f"{self.where}: window", self.window)
        if self.against not in get_args(Against):
            raise unknown_name("value of against in oles", str(self.against), get_args(Against))

    def begin(self, context: Context) -> OlesState:
        candidates = {c for rows in context.table.rows.values() for row in rows for c in row}
        if not any(map(_has_score, candidates)):
            raise InputError(
                f"{self.where}: expected an operation with weights in the space, found none beside "
                "skip connections; leave the regularizer out, or use another --space"
            )
        steps = context.epochs * context.steps_per_epoch
        if steps < self.window:
            raise InputError(
                f"{self.where}: window: expected at most the {steps} steps of the search, found "
                f"{self.window}, so that no operation could be stopped; lower it, or raise --epochs"
            )
        return OlesState(context)

    def attend(self, state: OlesState, supernet: SuperNet) -> Mapping[nn.Parameter, Tensor]:
        return state.attend(supernet)

    @torch.no_grad()
    def compare(self, state: OlesState, train: Sequence[Tensor], valid: Sequence[Tensor]) -> None:
        # Behind the weights stands learned feedback, which is stopped with them and has no score.
        count = state.agreement.parameters
        one, other = train[:count], valid[:count]
        if self.against == "sum":
            other = [g + h for g, h in zip(one, other, strict=True)]
        scores, present = state.agreement(one, other)
        present = present & state.scored
        state.sums += torch.where(present, scores, 0)
        state.counts += present
        complete = state.counts == self.window
        state.stopped |= complete & (state.sums < self.threshold * self.window)
        state.sums.masked_fill_(complete, 0)
        state.counts.masked_fill_(complete, 0)
        state.set_masks()

    def after_epoch(
        self, state: OlesState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        share = float(state.stopped.sum()) / float(state.scored.sum())
        return False, {"regularizer/stopped": share}


def _has_score(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.rule is not None and is_scored(candidate.op)
