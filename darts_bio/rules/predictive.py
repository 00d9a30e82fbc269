"""A local autoencoder in the manner of predictive coding: the output learns to predict the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.errors import check_whole
from darts_bio.rules.base import RULES, Operator
from darts_bio.rules.hebbian import LocalRule


@RULES.register("predictive")
@dataclass(frozen=True)
class PredictiveCoding(LocalRule):
    """Local autoencoder (after Rao 1999): W += mean conv_w(e, y) / (|y|^2 + |e|^2 / |W|^2).

    It is an autoencoder of each layer's input, and not the predictive coding that learns from
    labels: that relaxes a whole graph with its target clamped (Whittington 2017), which is not
    defined for one edge of a cell, and is the global learner `pc`. This local form is our choice;
    its name stands in genotype files.

    A layer predicts its own input x from y by its transposed map, as in Rao & Ballard (1999), with
    the error e = x - convT(y; W): y starts from W x and takes `steps` steps of steepest descent on
    |e|^2 / 2, each as long as is best for its sample (so no rate is needed, and it cannot diverge).
    The relaxed y serves the update alone; the layer's output is W x.

    The update is that of normalized least mean squares, a mean over samples: what a sample wants is
    divided by its |y|^2, so that its length does not depend on the scale of y, which is large where
    W is small. |e|^2 / |W|^2 beside it bounds what a sample wants that W hardly sees, to |W| / 2;
    in this place |e|^2 is summed over the windows that an output channel reads, and a mean over
    these channels. The bias stays as it is.

    State: none beside W. It learns in training mode only.

    Cost: 3 + 2 `steps` passes through the layer in the backward pass, in place of the input's
    gradient.

    When: as hebbian, where features should keep what their input holds.

    Example: a layer of 2 channels learns to keep 6 inputs that vary in 2 directions.

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
        >>> layer = RuleLinear(6, 2, bias=False, rule=RULES.build("predictive"))
        >>> for _ in range(100):
        ...     layer.zero_grad()
        ...     layer(x).sum().backward()
        ...     layer.weight.data -= layer.weight.grad
        >>> prediction = x @ torch.linalg.pinv(layer.weight) @ layer.weight
        >>> bool((x - prediction).norm() < 0.01 * x.norm())
        True
    """

    steps: int = 4
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("predictive: steps", self.steps, least=0)

    def update(self, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        """Return -mean conv_w(e, y) / (|y|^2 + |e|^2 / |W|^2) after the relaxation of y."""
        y = operator.apply(x, weight)
        error = x - operator.transposed(y, x, weight)
        tiny = torch.finfo(x.dtype).tiny  # 0 / tiny = 0 where nothing is left to descend
        for _ in range(self.steps):
            # The slope of -|e|^2 / 2 in y is W e. A step of length a along it changes e by
            # -a convT(slope; W), so |e|^2 is least for a = |slope|^2 / |convT(slope; W)|^2.
            slope = operator.apply(error, weight)
            change = operator.transposed(slope, x, weight)
            lengths = operator.energies(slope) / operator.energies(change).clamp_min(tiny)
            y = operator.moved(y, lengths, slope)
            error = operator.moved(error, -lengths, change)
        # A share of each sample in the mean, by which its y is multiplied.
        ones = torch.ones_like(weight)
        # At each position of each output channel, the root of the energy of the window it reads.
        in_windows = operator.apply(error.square(), ones).clamp_min(0).sqrt()
        channels = operator.weight_energy(ones) / weight[0].numel()  # of one layer
        of_weight = (channels * operator.weight_energy(weight)).clamp_min(tiny)
        unseen = operator.energies(in_windows) / of_weight
        energies = (operator.energies(y) + unseen).clamp_min(tiny)
        shares = 1 / (len(energies) * energies)
        y = operator.moved(torch.zeros_like(y), shares, y)
        return -operator.correlation(error, y, weight)
