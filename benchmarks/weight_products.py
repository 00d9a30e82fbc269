"""Which weights of a model are factors of a product, seen from below PyTorch's functions.

An oracle for `darts_bio.rules.audit`, with no code in common: it does not look at modules and their
code, but at the operations of ATen that a forward pass is made of.

>>> import torch
>>> from torch import nn
>>> sorted(weight_products(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), torch.ones(2, 4)))
['0.weight']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

FACTORS = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "matmul", "linear", "convolution"), (0, 1)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "addmv", "addr"), (1, 2)),
}
"""The places of the two factors among the arguments of each product of ATen, by its name."""


class _Trace(TorchDispatchMode):
    """Follows parameters through a forward pass, and notes those that multiply something else."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._sources: Any = WeakIdKeyDictionary()  # names of the parameters a tensor is made from
        self._activations: Any = WeakIdKeyDictionary()  # tensors that depend on the input
        self._alive: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                self._sources[parameter] = frozenset([name])
        for tensor in tree_leaves(inputs):
            self._activations[tensor] = True

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        result = function(*arguments, **(keywords or {}))
        given = [t for t in tree_leaves((arguments, keywords)) if isinstance(t, Tensor)]
        places = FACTORS.get(function.overloadpacket.__name__)
        if places is not None:
            first, second = (arguments[place] for place in places)
            for factor, other in ((first, second), (second, first)):
                if other in self._activations or other in self._sources:
                    self.found |= self._sources.get(factor, frozenset())
        active = any(tensor in self._activations for tensor in given)
        sources = frozenset().union(*(self._sources.get(t, frozenset()) for t in given))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            self._alive.append(tensor)
            if active:
                self._activations[tensor] = True
            elif sources:
                self._sources[tensor] = sources
        return result


def weight_products(model: nn.Module, inputs: Any) -> set[str]:
    """Return the names of parameters that are multiplied by an activation in a forward pass.

    A parameter counts where it is a factor itself, or one is computed from it and other parameters
    alone (standardized, masked, cut in parts); factors that are computed from parameters count as
    activations of each other. Products entry by entry, as with the gain of a norm, do not count, nor
    does what PyTorch computes by a kernel of its own, such as a recurrent layer on the CPU; on the
    meta device few things are.

    Args:
        model: The model, of which parameters of at least two dimensions are followed.
        inputs: A tensor, or a dict of keyword arguments.
    """
    with _Trace(model, inputs) as trace:
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return trace.found
