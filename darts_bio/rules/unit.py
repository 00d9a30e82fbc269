"""The unit of a local rule's update: a mean over what the weight saw since its last update.

`LearningRule.update` says what the unit is. A local rule does not read the error, so nothing that a
training loop does to its loss (a scale, a division by the number of parts) reaches its update. The
update arrives as a gradient all the same, where the loop will undo these things: gradients of parts
add up, and a GradScaler divides by its scale.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from darts_bio.private_torch import loss_scale

LEAST_SCALE = 2.0**10
"""The least scale of a GradScaler that is noticed; a loop may divide its gradients by less itself."""


class UpdateUnit:
    """Keeps the gradient of a layer's weight the mean of the updates that came since its last one.

    It listens where PyTorch adds a gradient to `weight.grad`, before DistributedDataParallel
    averages it. So gradients that are asked for otherwise (torch.autograd.grad) are the updates as
    they are. A gradient of None or of zeros begins a new mean. A copy of a layer has a unit of its
    own, which listens to the copy's weight.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(3, 2, rule=RULES.build("hebbian"))
    >>> x = torch.randn(8, 3)
    >>> layer(x).sum().backward()
    >>> of_whole_batch, layer.weight.grad = layer.weight.grad, None
    >>> for part in x.chunk(4):
    ...     layer(part).sum().backward()
    >>> torch.allclose(layer.weight.grad, of_whole_batch)
    True
    """

    def __init__(self) -> None:
        self.scaler: torch.amp.GradScaler | None = None
        """What scales the loss, and will divide the gradient by its scale."""
        self._layer: Callable[[], Any] = _none
        self._weight: Callable[[], Tensor | None] = _none
        self._handles: list[RemovableHandle] = []
        self._learns = False
        """Whether the gradient on its way is an update of the rule."""
        self._latest: Tensor | None = None
        """That gradient, if there is one that it will be added to."""
        self._count: Tensor | int = 0
        """How many updates the present mean is of."""
        self.largest: Tensor | None = None
        """The largest entry of the gradient as it was left, while `watches`."""
        self.watches = True
        """Whether it is still to be seen if somebody divides the gradient: before the first update."""
        self._left: Tensor | None = None
        """That gradient, which a loop may take from the weight before the next pass."""

    def __reduce__(self) -> tuple[type[UpdateUnit], tuple[()]]:
        return UpdateUnit, ()

    def listen(self, layer: Any) -> None:
        """Listen to the weight of this layer, if it is a parameter that learns.

        Called in each pass. It warns where the first update was divided, as by a GradScaler that
        `attach` was not given.
        """
        weight = layer.carried_weight
        if self._left is not None:
            self._look_back(layer)
        if self._weight() is weight or not (
            isinstance(weight, nn.Parameter) and weight.requires_grad
        ):
            return
        self.stop()  # on a weight that the layer had before
        self._layer, self._weight = weakref.ref(layer), weakref.ref(weight)
        self._handles = [
            weight.register_hook(self._before),
            weight.register_post_accumulate_grad_hook(self._after),
        ]

    def stop(self) -> None:
        """Listen to no weight any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, gradient: Tensor) -> None:
        """Hear of a gradient that is about to be added to `weight.grad`, or to be returned."""
        layer, weight = self._layer(), self._weight()
        self._learns = bool(layer and layer.rule.local and layer.training and not layer.exact)
        added = weight is not None and weight.grad is not None
        self._latest = gradient if self._learns and added else None

    @torch.no_grad()
    def _after(self, weight: Tensor) -> None:
        """Hear that a gradient was added to `weight.grad`."""
        latest, self._latest = self._latest, None
        if self._learns and weight.grad is not None:
            self._take_mean(weight.grad, latest)
            if self._left is not None and self._left is not weight.grad:
                self.end_watch()  # of an update that no pass has looked back at
            if self.watches:
                self.largest, self._left = weight.grad.abs().max(), weight.grad

    def end_watch(self) -> None:
        """Look no more at what becomes of the gradient."""
        self.watches, self.largest, self._left = False, None, None

    def _look_back(self, layer: Any) -> None:
        """Warn if the gradient that was left was divided since; end the watch if it was used."""
        factor, weight = self.unscaled_by(), self._weight()
        if factor is not None:
            warnings.warn(
                f"{layer.rule.spec}: its update was divided by {factor:g}, as a GradScaler does, so "
                "that weights hardly move; call darts_bio.attach(model, optimizer, scaler=scaler) "
                "before the loop",
                stacklevel=2,
            )
        if factor is not None or weight is None or weight.grad is not self._left:
            self.end_watch()

    def unscaled_by(self) -> float | None:
        """Return the power of two that somebody has divided the gradient by since, if it is one."""
        left, largest = self._left, self.largest
        if left is None or largest is None or not largest > 0:
            return None
        factor = float(largest / left.abs().max())
        return factor if math.frexp(factor)[0] == 0.5 and factor >= LEAST_SCALE else None

    def _take_mean(self, mean: Tensor, latest: Tensor | None) -> None:
        """Make `mean`, to which `latest` was added if there is one, the scaled mean."""
        scale = 1.0 if self.scaler is None else loss_scale(self.scaler, mean.device)
        if latest is None:
            self._count = 1
            if self.scaler is not None:
                mean.mul_(scale)
            return
        # What was there before was zero if the sum is what came: no need to wait for a GPU.
        begun = (mean != latest).any()
        self._count = torch.where(begun, self._count + 1, 1)
        share = 1 / self._count.to(torch.promote_types(mean.dtype, torch.float32))
        # With m the mean so far and u the latest, m + u is there and m + (scale u - m) share wanted.
        rest = 1 - share
        mean.mul_(rest).add_(latest * (scale * share - rest))


def _none() -> None:
    """Stand for a reference to nothing."""
