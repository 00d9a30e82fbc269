"""PyTorch's SGD and Adam, without the compiler.

`torch.optim` wraps the methods below so that `torch.compile` leaves them alone, and the first call
of such a wrapper imports the compiler, which takes as long as the import of PyTorch itself. Here
what stands inside the wrapper is called (`inspect.unwrap`: wrappers name it as `__wrapped__`), so
that the numbers are PyTorch's own, bit for bit. Nothing of that is for use within a function that
is compiled.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


def _inside(method: Any) -> Callable[..., Any]:
    """Give a bound method without its wrappers: itself if it has none."""
    return MethodType(inspect.unwrap(method.__func__), method.__self__)


class Eager(torch.optim.Optimizer):
    """Mixed in before an optimizer of PyTorch's, has its methods do without the compiler."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _inside(super().add_param_group)(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        _inside(super().zero_grad)(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = _inside(super().state_dict)()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _inside(super().load_state_dict)(state_dict)

    @torch.no_grad()  # as PyTorch's wrapper has it
    def step(self, closure: Any = None) -> Any:
        return _inside(super().step)(closure)


class SGD(Eager, torch.optim.SGD):
    """`torch.optim.SGD`."""


class Adam(Eager, torch.optim.Adam):
    """`torch.optim.Adam`."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `state_dict` returned, perhaps on another kind of device: how the optimizer
    computes stays as it is.
    """
    form = ("foreach", "fused", "capturable", "differentiable")
    groups, rates = [], []
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        rate = (
            own["lr"].fill_(saved["lr"])
            if isinstance(own["lr"], torch.Tensor)
            else float(saved["lr"])
        )
        groups.append({**saved, **{name: own[name] for name in form if name in own}})
        rates.append(rate)
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
