"""LearningMethod: how a whole model learns; Learner: a method at work on a model.

A learning rule (`darts_bio.rules`) is the property of one layer and acts within loss.backward(). A
method here takes the place of loss.backward(): it looks at the model as a chain of blocks, and
leaves what the weights learn by in their `.grad`, as backpropagation would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.learners.chain import Chain, cut
from darts_bio.passes import refused
from darts_bio.registry import Registry
from darts_bio.rules.weights import check_model

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the model's output (N, ...) and the targets y to a scalar, the mean over the N samples."""


class Outcome(NamedTuple):
    """The loss of a step, a scalar, and the logits (N, ...) of its forward pass.

    >>> loss, logits = Outcome(torch.tensor(2.3), torch.zeros(4, 10))
    >>> logits.shape
    torch.Size([4, 10])
    """

    loss: Tensor
    logits: Tensor


class Objective:
    """The loss of a batch as a function of the model's output, with the targets that it is for.

    >>> y = torch.tensor([1, 0])
    >>> objective = Objective(F.cross_entropy, y)
    >>> objective(torch.zeros(2, 3, requires_grad=True)).exp()
    tensor(3., grad_fn=<ExpBackward0>)
    >>> objective.targets(torch.zeros(2, 3))
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """

    def __init__(self, loss: Loss, y: Tensor) -> None:
        self._loss, self._y = loss, y

    def __call__(self, output: Tensor) -> Tensor:
        """Return the loss of the model's output (N, ...), a scalar: the mean over the samples.

        Raises InputError where the targets do not go with the output.
        """
        y = self._y
        with refused(
            f"learner: y: the loss cannot take an output of {tuple(output.shape)} and targets of "
            f"{tuple(y.shape)} of {y.dtype}",
            "give targets that loss(output, y) takes",
        ):
            value = self._loss(output, y)
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
            raise InputError(
                "learner: loss: expected a scalar that depends on the model's output, found "
                f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}; "
                "return the mean over the samples"
            )
        return value

    def targets(self, output: Tensor) -> Tensor:
        """Return the targets in the shape of the model's output (N, K, ...), classes one-hot.

        Raises InputError where they are neither classes nor of that shape.
        """
        y = self._y
        if y.shape == output.shape:
            return y.to(output)
        if not _are_classes(y, output):
            raise InputError(
                f"learner: y: expected classes {_classes(output)} as whole numbers, or targets "
                f"{tuple(output.shape)}, found {tuple(y.shape)} of {y.dtype}; this method hands "
                "the targets themselves to the layers: give them in the shape of the output"
            )
        _check_classes(y, output)
        classes = torch.arange(output.shape[1], device=y.device)
        places = classes.view(-1, *(1 for _ in output.shape[2:]))  # (K, 1, ...) beside (N, 1, ...)
        return (y.unsqueeze(1) == places).to(output)


class LearningMethod:
    """How a whole model learns.

    Subclasses are frozen dataclasses whose fields are the options of the method. Registered by
    `@LEARNERS.register("name")` they can be named in specs, `name(option=value)`; `learner` takes
    them unregistered too:

    >>> from dataclasses import dataclass
    >>> from darts_bio.learners import Evaluation, learner
    >>> @dataclass(frozen=True)
    ... class LastBlock(LearningMethod):
    ...     def backward(self, chain, state, x, loss):
    ...         inputs, outputs = Evaluation(chain).forward(x)
    ...         value = loss(outputs[-1])
    ...         value.backward(inputs=chain.parameters)
    ...         return value, outputs[-1]
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = learner(model, LastBlock()).backward(torch.ones(1, 4), torch.tensor([0]))
    >>> model[0].weight.grad is None, model[2].weight.grad is None
    (True, False)
    """

    needs_example: ClassVar[bool] = False
    """Whether `state` needs to see an input, for the shapes in the model."""

    def state(self, chain: Chain, example: Tensor | None, seed: int) -> nn.Module:
        """Return the tensors that this method keeps beside the model; by default none.

        Args:
            chain: The model.
            example: An input (N, ...) where `needs_example`.
            seed: That of all draws.
        """
        return nn.Module()

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        """Add to the `.grad` of the chain's parameters, and of those of `state`.

        Args:
            chain: The model.
            state: What the method of that name returned.
            x: The input (N, ...).
            loss: Maps the model's output to the loss, a mean over the samples, and knows the
                targets.

        Returns:
            The loss and the output of the forward pass.
        """
        raise NotImplementedError(f"{type(self).__name__}.backward")


LEARNERS: Registry[type[LearningMethod]] = Registry("learner", base=LearningMethod)
"""The methods that `learner` knows by name."""


class Learner(nn.Module):
    """A learning method at work on a model, made by `learner`.

    As a module it holds what the method keeps beside the model, and nothing of the model itself:
    its `state_dict()` belongs beside that of the model in a checkpoint, and its `parameters()`,
    where there are any, are learned by the method's own losses and wait for an optimizer.

    Attributes:
        method: The method with its options.
        chain: The model as the method sees it.
        state: What the method keeps.

    >>> from darts_bio.learners import learner
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(learner(model, "pepita").state_dict())
    ['state.feedback']
    """

    def __init__(
        self,
        method: LearningMethod,
        model: nn.Module,
        loss: Loss | None,
        layers: Sequence[str | nn.Module] | None,
        example: Tensor | None,
        seed: int,
    ) -> None:
        super().__init__()
        check_model(model, "learner")
        if loss is not None and not callable(loss):
            raise InputError(
                "learner: loss: expected a function of the output and the targets, such as "
                f"torch.nn.functional.mse_loss, found {loss!r:.80}"
            )
        if example is not None:
            _require_samples("example", example)
        self.method = method
        # In a tuple, so that the model does not become a part of this module.
        self._model = (model,)
        # An nn.Sequential is its modules one after the other, unless it has hooks.
        hooked = bool(model._forward_hooks or model._forward_pre_hooks)
        self._confirmed = layers is None and not hooked
        self.chain, self._loss = cut(model, layers), loss
        # What stands in the blocks for functions of the model, such as F.dropout.
        own = set(model.modules())
        in_blocks = (module for block in self.chain.blocks for module in block.module.modules())
        self._in_place_of_functions = [module for module in in_blocks if module not in own]
        if example is None and method.needs_example:
            example = _smallest_input(self.chain, self.spec)
        elif example is not None:
            self._confirm(example, learning=False)
        self.state = method.state(self.chain, example, seed)

    @property
    def spec(self) -> str:
        """The method as `learner` takes it: its name, and the options not at their defaults."""
        return LEARNERS.spec(self.method)

    def backward(self, x: Tensor, y: Tensor) -> Outcome:
        """Add to the parameters' `.grad` what the method wants in place of the gradient.

        It is used as loss.backward() is: after the optimizer's zero_grad() and before its step();
        several calls before a step accumulate.

        Args:
            x: The input (N, ...).
            y: The targets, as the loss takes them; for cross entropy classes (N,), whole numbers,
                or their shares (N, K).

        Returns:
            The loss and the logits of the forward pass.

        Raises:
            InputError: x is not what the model takes, or y not what the loss takes, or a module of
                the model has been replaced since `learner` was called.

        >>> from darts_bio.learners import learner
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> teacher = learner(model, "pc")
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> losses = []
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     losses.append(teacher.backward(x, y).loss.item())
        ...     optimizer.step()
        >>> losses[-1] < losses[0]
        True
        """
        for name, value in (("x", x), ("y", y)):
            _require_samples(name, value)
        if torch.is_inference_mode_enabled():
            raise InputError(
                "learner: expected a step outside of torch.inference_mode, within which PyTorch "
                "computes no gradient, found one within; leave it before (no_grad may stay)"
            )
        self._check_parameters(self.chain.parameters)
        for module in self._in_place_of_functions:  # which model.eval() does not reach
            module.training = self._model[0].training
        self._confirm(x, learning=True)
        self._confirmed = True
        with torch.enable_grad():
            loss, logits = self.method.backward(
                self.chain, self.state, x.detach(), Objective(self._loss or _cross_entropy, y)
            )
        return Outcome(loss.detach(), logits.detach())

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        """Return the loss, a scalar, of the model's output (N, ...) and the targets y.

        Raises InputError where y does not go with the output.

        >>> from darts_bio.learners import learner
        >>> teacher = learner(nn.Sequential(nn.Linear(4, 2)), "pc")
        >>> teacher.loss(torch.zeros(3, 2, requires_grad=True), torch.tensor([0, 1, 1])).exp()
        tensor(2., grad_fn=<ExpBackward0>)
        """
        return Objective(self._loss or _cross_entropy, y)(output)

    def _check_parameters(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise InputError unless the chain's trained parameters are the model's.

        So it does if there are none, or if what the method keeps is of another type or device.
        """
        if not parameters:
            raise InputError(
                "learner: expected parameters that require a gradient, found none; unfreeze some"
            )
        known = set(parameters)
        for name, parameter in self._model[0].named_parameters():
            if parameter.requires_grad and parameter not in known:
                raise InputError(
                    f"learner: expected the model's modules as they were when it was made, found "
                    f"{name} new; call learner(model, {self.spec!r}, ...) again"
                )

        kinds = {(p.dtype, p.device) for p in parameters}
        for name, tensor in self.state.state_dict(keep_vars=True).items():
            if (tensor.dtype, tensor.device) not in kinds:
                dtype, device = next(iter(kinds))
                raise InputError(
                    f"learner {self.spec}: expected {name} in {dtype} on {device}, as the model is, "
                    f"found {tensor.dtype} on {tensor.device}; convert the learner as the model: "
                    f"teacher.to('{device}', {dtype})"
                )

    def extra_repr(self) -> str:
        return f"{self.spec}, blocks={[block.name for block in self.chain.blocks]}"

    def _confirm(self, x: Tensor, *, learning: bool) -> None:
        """Compare chain and model, where the blocks were named by the user or the model has hooks."""
        if not self._confirmed:
            self.chain.confirm(self._model[0], x, learning=learning)


def learner(
    model: nn.Module,
    spec: str | LearningMethod,
    *,
    loss: Loss | None = None,
    layers: Sequence[str | nn.Module] | None = None,
    example: Tensor | None = None,
    seed: int = 0,
) -> Learner:
    """Return what trains a model by a global learner: call its `backward(x, y)` in any loop.

    The model itself is not changed. All of its trained parameters must lie in the blocks that it is
    cut into. Of several processes each fills the gradients of its own batch: average them before
    the optimizer's step.

    Args:
        model: An nn.Sequential, which is cut in front of each module with a weight, or any model
            whose blocks `layers` names.
        spec: The method: "pc", "dual_propagation", "pepita", "dtp", "drtp", with options as in
            "pc(steps=50, rate=0.05)".
        loss: Maps the model's output and the targets to their loss, a scalar, the mean over
            samples; cross entropy by default.
        layers: The blocks, in order: names of submodules, or modules that share the model's layers.
            That they give what the model gives is checked with the first batch.
        example: A batch of inputs, of which only the shape counts. Learners that keep state for a
            model which begins with anything but a linear layer need it.
        seed: That of the state which is drawn: equal seeds draw equal state, on any device.

    Raises:
        InputError: For a method that there is not, and a model that is no chain of blocks.

    >>> import darts_bio
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    >>> loss, logits = darts_bio.learner(model, "pc").backward(x, y)
    >>> model[0].weight.grad.shape
    torch.Size([3, 4])
    """
    if isinstance(spec, LearningMethod):
        method = spec
    elif isinstance(spec, str):
        method = LEARNERS.build(spec)
    else:
        raise InputError(f"learner: expected the spec of a method, such as 'pc', found {spec!r}")
    return Learner(method, model, loss, layers, example, seed)


def _require_samples(name: str, value: Any) -> None:
    """Raise InputError unless an argument is a tensor of one sample or more."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"learner: {name}: expected a tensor of one sample or more, found "
            f"{type(value).__name__}; convert it (torch.as_tensor)"
        )
    if value.dim() == 0 or len(value) == 0:
        raise InputError(
            f"learner: {name}: expected a tensor of one sample or more, found the shape "
            f"{tuple(value.shape)}; leave empty batches out, and put a single sample into a batch "
            "(unsqueeze(0))"
        )


def _smallest_input(chain: Chain, spec: str) -> Tensor:
    """Return zeros (1, features) for a chain that begins with a linear layer."""
    for _, module in chain.blocks[0].parts:
        if isinstance(module, nn.Linear):
            return module.weight.new_zeros(1, module.in_features)
        if next(module.parameters(), None) is not None:
            break
    raise InputError(
        f"learner {spec}: expected a model that begins with a linear layer, or an example of its "
        "input, found neither; give learner(..., example=x), a batch of inputs"
    )


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of logits (N, K, ...) with classes (N, ...), or with their shares.

    Raises InputError where y is neither.
    """
    if _are_classes(y, output):
        _check_classes(y, output)
        return F.cross_entropy(output, y.long())
    if y.shape != output.shape or not y.is_floating_point():
        if y.shape == _classes(output) or y.shape == output.shape:
            mend = "convert them: y.long() for classes, y.float() for shares"
        elif y.numel() == len(output) and output.dim() == 2:
            mend = "y.flatten() has the shape of classes"
        else:
            mend = "give each sample of x its class"
        raise InputError(
            f"learner: y: expected classes {tuple(_classes(output))} as whole numbers, or their "
            f"shares {tuple(output.shape)}, found {tuple(y.shape)} of {y.dtype}; {mend}"
        )
    return F.cross_entropy(output, y)


def _classes(output: Tensor) -> torch.Size:
    """Return the shape of classes for an output: (N, K, ...) -> (N, ...)."""
    return output.shape[:1] + output.shape[2:]


def _are_classes(y: Tensor, output: Tensor) -> bool:
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return whole and y.shape == _classes(output)


def _check_classes(y: Tensor, output: Tensor) -> None:
    """Raise InputError unless classes are those of the output; -100 leaves out, as in PyTorch."""
    wrong = y[((y < 0) | (y >= output.shape[1])) & (y != -100)]
    if len(wrong):
        raise InputError(
            f"learner: y: expected classes 0 to {output.shape[1] - 1}, found {int(wrong[0])}; "
            "number classes from 0, and give the model an output for each"
        )
