"""All that this package uses of PyTorch without being promised it, each with what happens without.

PyTorch may change a private name in any version. Nothing here may then fail or change a result: the
rules have a slower way for all that these names make fast.

    replace_saved_weight   `_raw_saved_weight` of a convolution's autograd node. Without it each
                           convolution under a rule runs as a Function in Python: a training step
                           of a network of C=16, 8 cells, on 16 images of 32x32 under fa takes 1.08
                           of the time on a CPU (1 thread, Intel Xeon with AVX-512, 9 pairs of
                           steps), and more where kernels are short.
    transforms_run         whether torch.func's transforms are at work. Without it, taken for granted
                           by `keeps_saved_tensors` and excluded by `first_derivative_only`.
    hooks_run              whether someone takes saved tensors elsewhere. Without it, taken for
                           granted.
    changes                how often a tensor was written to. Without it, always 0: that feedback was
                           changed between two passes is not noticed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def transforms_run(unknown: bool) -> bool:
    """Tell whether torch.func runs this pass (vmap, grad, jvp).

    Returns `unknown` where PyTorch does not say.
    """
    ask = getattr(torch._C, "_are_functorch_transforms_active", None)
    return unknown if ask is None else ask()


def hooks_run() -> bool:
    """Tell whether hooks take what a pass saves, as those of checkpointing and offloading do."""
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return ask is None or ask(False) is not None


def changes(tensor: Tensor) -> int:
    """Return how often a tensor has been written to in place."""
    return getattr(tensor, "_version", 0)


def replace_saved_weight(y: Tensor, stand_in: Callable[[], Tensor]) -> bool:
    """Have a convolution read `stand_in()` in its backward pass in place of the weight it saved.

    y is what the convolution has just given. Returns False, and does nothing, where PyTorch has no
    such name.

    >>> x, weight = torch.ones(1, 1, 1, requires_grad=True), torch.full((1, 1, 1), 3.0)
    >>> y = torch.conv1d(x, weight)
    >>> replace_saved_weight(y, lambda: -weight)
    True
    >>> y.backward()
    >>> y.item(), x.grad.item()
    (3.0, -3.0)
    """
    saved = getattr(y.grad_fn, "_raw_saved_weight", None)
    if saved is None:
        return False
    saved.register_hooks(_keep_nothing, lambda _: stand_in())
    return True


def _keep_nothing(weight: Tensor) -> None:
    """Return what is kept of the weight for the backward pass."""
