"""A network's two passes as CUDA graphs: recorded once, then replayed with no Python between the kernels.

A step of a search is thousands of small kernels, and a GPU that waits for Python to launch each of them idles most of
the time. All that changes from step to step changes in place, outside the graphs: weights (by the optimiser), feedback
(`draw_feedback`, which therefore needs no generator inside them), drop path's probability. What is chosen by Python in
the forward pass makes a recording of its own: see `_situation`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, first_line
from darts_bio.networks import EdgeWeights
from darts_bio.networks.cells import DropPath
from darts_bio.rules import rule_carriers
from darts_bio.rules.pointwise import warn_of_strided_pointwise


class _Pass(nn.Module):
    """The network as a function of tensors alone. PyTorch puts a recording in the place of this module's `forward`."""

    def __init__(self, network: nn.Module, cell_types: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.cell_types = network, cell_types
        self.training = network.training

    def forward(self, x: Tensor, *edge_weights: Tensor) -> Any:
        if not self.cell_types:
            return self.network(x)
        return self.network(x, dict(zip(self.cell_types, edge_weights, strict=True)))


class Replayed:
    """A network whose passes are replayed on a GPU. Called like the network, with images and, for a supernet, edge
    weights, all of the same shapes at each call.

    The first call in a situation records it. Recordings share their memory, so a backward pass has to follow its
    forward pass before the next one, and a gradient is good until the next pass. Without gradients (evaluation), and
    with feedback that is held, the network runs as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._carriers = [carrier for _, carrier in rule_carriers(network)]
        self._drops = [module for module in network.modules() if isinstance(module, DropPath)]
        self._recordings: dict[Hashable, nn.Module] = {}
        self._pool: Any = None

    def __call__(self, x: Tensor, edge_weights: EdgeWeights | None = None) -> Any:
        inputs = {} if edge_weights is None else dict(edge_weights)
        if not torch.is_grad_enabled() or any(carrier.held is not None for carrier in self._carriers):
            return self.network(x, inputs) if inputs else self.network(x)
        tensors = (x, *inputs.values())
        situation = (tuple(inputs), self._situation(tensors))
        if situation not in self._recordings:
            self._recordings[situation] = self._record(tuple(inputs), tensors)
        output = self._recordings[situation](*tensors)
        # The recording's own output is overwritten at its next replay.
        return tuple(part.clone() for part in output) if isinstance(output, tuple) else output.clone()

    def _situation(self, tensors: tuple[Tensor, ...]) -> Hashable:
        """All that Python looks at in a forward pass, beside the values of tensors."""
        device = tensors[0].device.type
        return (
            self.network.training,
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in tensors),
            tuple(parameter.requires_grad for parameter in self.network.parameters()),
            tuple(carrier.exact for carrier in self._carriers),
            any(drop.probability > 0 for drop in self._drops),
        )

    def _record(self, cell_types: tuple[str, ...], tensors: tuple[Tensor, ...]) -> nn.Module:
        samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)
        module = _Pass(self.network, cell_types)
        buffers = list(self.network.buffers())
        before = [buffer.clone() for buffer in buffers]
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.random.fork_rng([tensors[0].device] if tensors[0].is_cuda else []):
                torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True, pool=self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"the network's passes cannot be recorded as CUDA graphs ({first_line(error)}); a plug-in may wait for "
                "the GPU or copy from the CPU in its forward pass. Mend it, or use --no-graphs"
            ) from None
        for buffer, value in zip(buffers, before, strict=True):  # the passes before the recording moved statistics
            buffer.copy_(value)
        return module


def on_device(network: nn.Module, device: torch.device, graphs: bool) -> Callable[..., Any]:
    """The network as a run calls it in training: replayed where that is asked for and there is a GPU."""
    warn_of_strided_pointwise(network)
    return Replayed(network) if graphs and device.type == "cuda" else network
