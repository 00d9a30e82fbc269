"""All that this package uses of PyTorch without being promised it, and what happens without.

PyTorch may change a private name in any version. Nothing here may then fail: there is a slower way
for all that these names make fast.

    replace_saved_weight   A convolution's autograd node reads a rule's kernel in place of the weight
                           that it saved. Without it each convolution under a rule is a Function in
                           Python. A training step under fa then takes 1.05 (1.00 to 1.21) of the
                           CPU time at 16 channels, 8 cells, 16 images of 32x32, and 1.28 (1.10 to
                           1.61) at 2 images of 8x8, where kernels are short (n = 11 and 21, one
                           thread of an Intel Xeon with AVX-512).
    transforms_run         Tells whether torch.func's transforms are at work. Without it the Function
                           is taken, as if they were, and differentiating it within
                           torch.func raises what differentiating it twice does.
    hooks_run              Tells whether someone takes saved tensors elsewhere. Without it, likewise.
    changes                Counts how often a tensor was written to. Without it, 0: that feedback was
                           changed between a forward pass and its backward pass is not noticed.
    copy_all, add_all,     Do for a list of tensors what a loop does. The 511 weights of the
    norms, signs           protocol's supernet are a few kernels on a GPU in place of 511. On a CPU
                           the norms take 3.9 ms in place of 9.1; copies gain nothing.
    after_backward         Calls a function at the end of the backward pass under way. Without it dfa
                           cannot tell that an output's error is of an earlier pass.
    backward_runs          Tells whether a backward pass is under way. Without it code that multiplies
                           by a weight under a rule cannot be checkpointed by itself.
    loss_scale             Reads a GradScaler's scale where it lies. Without it Python waits for a GPU.
    gamma_draws            Draws from a generator of ours. Without it draws are others, from a global
                           generator that is put back.

`training.graphs` uses torch.utils._python_dispatch and torch.utils._pytree beside these, which
PyTorch documents for users in spite of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    """Return how often a tensor has been written to in place; 0 in inference mode, which counts not."""
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


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


def after_backward(function: Callable[[], None]) -> None:
    """Have a function called at the end of the backward pass that is under way.

    Nothing is called where PyTorch has no such name.

    >>> x = torch.ones(1, requires_grad=True)
    >>> handle = x.register_hook(lambda _: after_backward(lambda: print("done")))
    >>> (2 * x).sum().backward()
    done
    """
    engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)
    if hasattr(engine, "queue_callback"):
        engine.queue_callback(function)


def backward_runs() -> bool:
    """Tell whether this thread is in a backward pass; False where PyTorch does not say.

    >>> x = torch.ones(1, requires_grad=True)
    >>> handle = x.register_hook(lambda _: print(backward_runs()))
    >>> x.sum().backward(), backward_runs()
    True
    (None, False)
    """
    ask = getattr(torch._C, "_current_graph_task_id", None)
    return ask is not None and ask() != -1


def copy_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy each value into its target, which is of the same shape.

    >>> targets = [torch.zeros(2), torch.zeros(1)]
    >>> copy_all(targets, [torch.ones(2), torch.full((1,), 5.0)])
    >>> targets
    [tensor([1., 1.]), tensor([5.])]
    """
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(list(targets), list(values))
        return
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def add_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Add each value to its target, in place.

    >>> targets = [torch.ones(2), torch.zeros(1)]
    >>> add_all(targets, [torch.ones(2), torch.ones(1)])
    >>> targets
    [tensor([2., 2.]), tensor([1.])]
    """
    together = getattr(torch, "_foreach_add_", None)
    if together is not None:
        together(list(targets), list(values))
        return
    for target, value in zip(targets, values, strict=True):
        target.add_(value)


def norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the Euclidean norm of each tensor, on its device.

    >>> norms([torch.tensor([3.0, 4.0]), torch.zeros(2)])
    [tensor(5.), tensor(0.)]
    """
    together = getattr(torch, "_foreach_norm", None)
    if together is not None:
        return list(together(list(tensors)))
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]


def signs(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the sign of each entry of each tensor.

    >>> signs([torch.tensor([3.0, -4.0]), torch.zeros(2)])
    [tensor([ 1., -1.]), tensor([0., 0.])]
    """
    together = getattr(torch, "_foreach_sign", None)
    if together is not None:
        return list(together(list(tensors)))
    return [tensor.sign() for tensor in tensors]


def loss_scale(scaler: torch.amp.GradScaler, device: torch.device) -> Tensor | float:
    """Return what a GradScaler multiplies losses by, on a device; 1 if it has not done so yet.

    >>> scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    >>> _ = scaler.scale(torch.ones(()))
    >>> float(loss_scale(scaler, torch.device("cpu")))
    8.0
    """
    ask = getattr(scaler, "_get_scale_async", None)
    scale = scaler.get_scale() if ask is None else ask()
    if scale is None or not scaler.is_enabled():
        return 1.0
    return scale.to(device, non_blocking=True) if isinstance(scale, Tensor) else float(scale)


def gamma_draws(concentration: Tensor, source: torch.Generator) -> Tensor:
    """Draw from gamma distributions of rate 1, with the gradient for their concentrations.

    >>> concentration = torch.full((10_000,), 3.0)
    >>> draws = gamma_draws(concentration, torch.Generator().manual_seed(0))
    >>> bool((draws.mean() - 3).abs() < 0.06)  # three standard errors are 0.052
    True
    """
    draw = getattr(torch, "_standard_gamma", None)
    if draw is not None:
        return draw(concentration, generator=source)
    seed = int(torch.randint(2**31, (), generator=source, device=source.device))
    with torch.random.fork_rng([source.device] if source.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return torch.distributions.Gamma(concentration, torch.ones_like(concentration)).rsample()
