"""Which einsums of an activation and a weight are linear layers.

>>> plan = as_linear("nd,dhk->nhk", place=1)
>>> plan.free, plan.summed, plan.kept
('hk', 'd', 'n')
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearEinsum:
    """An einsum of an activation x and a weight in which the weight is a matrix.

    Its rows are the indices that the result has from the weight, `free`; its columns those that are
    summed over with x, `summed`. `kept` are the indices of x that the result keeps.
    """

    of_weight: str
    of_x: str
    of_result: str
    free: str
    summed: str
    kept: str

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as a matrix (free indices together, summed indices together)."""
        rows = [self.of_weight.index(i) for i in self.free]
        columns = [self.of_weight.index(i) for i in self.summed]
        outputs = weight.permute(*rows, *columns)
        return outputs.reshape(-1, *outputs.shape[len(rows) :]).flatten(1)

    def features(self, x: Tensor) -> Tensor:
        """Return x as (each kept index, summed indices together)."""
        ordered = x.permute([self.of_x.index(i) for i in self.kept + self.summed])
        return ordered.reshape(*ordered.shape[: len(self.kept)], -1)

    def result(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's output y, (each kept index, free indices together), as the einsum's."""
        sizes = [weight.shape[self.of_weight.index(i)] for i in self.free]
        y = y.reshape(*y.shape[:-1], *sizes)  # (kept..., free...)
        return y.permute([(self.kept + self.free).index(i) for i in self.of_result])


def as_linear(equation: str, place: int) -> LinearEinsum | None:
    """Return an einsum of two tensors as a linear layer; None if it is another bilinear function.

    It is a linear layer if each index of the weight is either summed over with x or free.

    Args:
        equation: The equation, with an arrow and without an ellipsis; any other returns None.
        place: Which of both tensors is the weight, 0 or 1.

    >>> as_linear("nhd,hdk->nhk", place=1) is None  # each head h has a matrix of its own
    True
    """
    equation = equation.replace(" ", "")
    if "..." in equation or "->" not in equation:
        return None
    operands, of_result = equation.split("->")
    of_operands = operands.split(",")
    of_weight, of_x = of_operands[place], of_operands[1 - place]
    if any(len(set(indices)) != len(indices) for indices in (of_weight, of_x)):
        return None  # a diagonal
    summed = "".join(i for i in of_weight if i in of_x and i not in of_result)
    free = "".join(i for i in of_weight if i in of_result and i not in of_x)
    kept = "".join(i for i in of_x if i not in summed)
    is_matrix = len(summed) + len(free) == len(of_weight) and summed != ""
    if not is_matrix or any(i not in of_result for i in kept):
        return None
    return LinearEinsum(of_weight, of_x, of_result, free, summed, kept)
