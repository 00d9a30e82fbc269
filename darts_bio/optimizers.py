"""PyTorch's SGD and Adam, without the compiler, and SGD along signs (Batch Manhattan).

`torch.optim` wraps the methods below so that `torch.compile` leaves them alone, and the first call
of such a wrapper imports the compiler, which takes as long as the import of PyTorch itself. The
classes here call the method inside the wrapper (`inspect.unwrap` follows `__wrapped__`), so the
numbers are PyTorch's own, bit for bit. They are not meant for use within a compiled function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

from darts_bio.private_torch import signs


def _inside(method: Any) -> Callable[..., Any]:
    """Return a bound method without its wrappers, or the method itself if it has none."""
    return MethodType(inspect.unwrap(method.__func__), method.__self__)


class Eager(torch.optim.Optimizer):
    """A mixin that keeps the compiler out of an optimizer's methods.

    It stands before an optimizer of PyTorch's among the bases.

    >>> class RMSprop(Eager, torch.optim.RMSprop):
    ...     '''RMSprop that never imports the compiler.'''
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> weight.grad = torch.ones(1)
    >>> RMSprop([weight], lr=0.1, alpha=0.0).step()
    >>> weight.data
    tensor([0.9000])
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _inside(super().add_param_group)(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        _inside(super().zero_grad)(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = _inside(super().state_dict)()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _inside(super().load_state_dict)(state_dict)

    @torch.no_grad()  # PyTorch's wrapper, which is left out here, turns gradients off
    def step(self, closure: Any = None) -> Any:
        return _inside(super().step)(closure)


class SGD(Eager, torch.optim.SGD):
    """`torch.optim.SGD`, which never imports the compiler.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = SGD([weight], lr=0.1)
    >>> weight.grad = torch.tensor([2.0])
    >>> optimizer.step()
    >>> weight.data
    tensor([0.8000])
    """


class Adam(Eager, torch.optim.Adam):
    """`torch.optim.Adam`, which never imports the compiler.

    >>> alpha = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = Adam([alpha], lr=0.1)
    >>> alpha.grad = torch.tensor([2.0])
    >>> optimizer.step()
    >>> alpha.data
    tensor([-0.1000])
    """


class BatchManhattan(SGD):
    """SGD along the sign of a batch's gradient, Batch Manhattan (Liao 2016, arXiv 1510.05067).

    With v = 0 at first, each step is

        v <- momentum v + sign(gradient) + weight_decay w,    w <- w - lr v,

    in the form of their code (github.com/willwx/sign-symmetry): the sign is taken before momentum
    and decay. It is that of the whole gradient that a step finds, after parts were added up, scales
    undone and processes averaged. The size of a gradient has no say, which asymmetric feedback gets
    wrong layer by layer; so clipping has none either, and rates are far lower than those of SGD
    (1e-4 to 1e-3). A gradient of 0 has the sign 0. `.grad` is left as it was.

    It takes the arguments of `torch.optim.SGD`, and goes with any rule, `attach` and GradScaler.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = BatchManhattan([weight], lr=0.1)
    >>> weight.grad = torch.tensor([20.0, -0.001])
    >>> optimizer.step()
    >>> weight.data
    tensor([0.9000, 1.1000])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A GradScaler leaves it to a fused SGD to undo the scale, which a sign has not.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients: list[Any] = [parameter.grad for parameter in found]
        try:
            for parameter, sign in zip(found, signs(gradients), strict=True):
                parameter.grad = sign
            _inside(super().step)()  # hooks have been called for this step: they wrap that one too
        finally:
            for parameter, gradient in zip(found, gradients, strict=True):
                parameter.grad = gradient
        return loss


_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
"""The options of a parameter group that say how, not what, an optimizer computes."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load into an optimizer what the `state_dict` of one like it returned.

    The state may come from another kind of device: the optimizer keeps its own implementation
    (`foreach`, `fused` and the like), and a learning rate that is a tensor stays the same tensor,
    since a recorded CUDA graph reads it.

    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> saved = SGD([weight], lr=0.5, foreach=True).state_dict()
    >>> optimizer = SGD([weight], lr=0.1, foreach=False)
    >>> load_optimizer(optimizer, saved)
    >>> optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["foreach"]
    (0.5, False)
    """
    groups: list[dict[str, Any]] = []
    rates: list[float | torch.Tensor] = []
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        kept = {name: group[name] for name in _IMPLEMENTATION if name in group}
        groups.append({**saved, **kept})
        if isinstance(group["lr"], torch.Tensor):
            rates.append(group["lr"].fill_(saved["lr"]))
        else:
            rates.append(float(saved["lr"]))
    optimizer.load_state_dict({**state, "param_groups": groups})
    # `load_state_dict` puts copies in the place of the groups' values: the tensors go back in.
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
