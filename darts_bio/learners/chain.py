"""A model as a chain of blocks, each of which takes what the one before it gives.

Global learners need the values between blocks, and evaluate blocks several times in one step.
`cut` finds the blocks, `Evaluation` runs them so that a block which draws (dropout) or keeps
statistics (batch norm in training) behaves as if it had run once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, unknown_name
from darts_bio.modes import in_mode
from darts_bio.passes import refused
from darts_bio.rules import rule_carriers
from darts_bio.runtime import rng_kept, rng_state, set_rng_state


@dataclass(frozen=True)
class Block:
    """One block of a chain: a module from one tensor (N, ...) to one tensor (N, ...).

    Attributes:
        name: What error messages call it.
        module: Shared with the model, never a copy of its layers.
        parts: The modules that run in it one after the other, with their names in the model.

    >>> relu = nn.ReLU(inplace=True)
    >>> Block("1", relu, (("1", relu),)).in_place
    True
    """

    name: str
    module: nn.Module
    parts: tuple[tuple[str, nn.Module], ...]

    @property
    def in_place(self) -> bool:
        """Whether the block may overwrite its input."""
        return any(getattr(module, "inplace", False) for module in self.module.modules())


@dataclass(frozen=True)
class Chain:
    """The blocks of a model, from its input to its output.

    >>> chain = cut(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> [block.name for block in chain.blocks]
    ['0 to 2', '3']
    >>> chain(torch.ones(5, 1, 2, 2)).shape
    torch.Size([5, 2])
    """

    blocks: tuple[Block, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained, each once, in the order of the blocks."""
        found = dict.fromkeys(p for block in self.blocks for p in block.module.parameters())
        return [parameter for parameter in found if parameter.requires_grad]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the last block gives for the input x (N, ...)."""
        evaluation = Evaluation(self)
        for number in range(len(self.blocks)):
            x = evaluation(number, x)
        return x

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Put all blocks into evaluation mode within the context, without gradients."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for block in self.blocks:
                stack.enter_context(in_mode(block.module, training=False))
            yield

    def shapes(self, x: Tensor) -> list[torch.Size]:
        """Return the shape of a sample of x (N, ...), and of what each block gives for it."""
        found, evaluation = [x.shape[1:]], Evaluation(self)
        with self.evaluated():
            for number in range(len(self.blocks)):
                x = evaluation(number, x)
                found.append(x.shape[1:])
        return found

    def confirm(self, model: nn.Module, x: Tensor, *, learning: bool) -> None:
        """Raise InputError unless chain and model give the same for x (N, ...).

        So do the inputs of the model's layers have to be, as a last layer of zeros gives the same
        for any. Both are left as they were, and run from the same random state.

        Args:
            model: The model.
            x: A batch.
            learning: Whether they run in the modes that they have, so that what draws in training
                alone shows, and not in evaluation mode, where a single sample will do.
        """
        runs = []
        for run in (self, model, model):  # the chain first: it says what it cannot take
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._left_alone(model))
                if not learning:
                    stack.enter_context(self.evaluated())
                    stack.enter_context(in_mode(model, training=False))
                inputs = stack.enter_context(_inputs_of_layers(model))
                runs.append({"": [run(x)]} | inputs)
        chain, once, again = runs
        if not isinstance(once[""][0], Tensor) or _difference(once, again) is None:
            # A model that draws by other generators than PyTorch's cannot be compared as it is.
            name = _difference(chain, once)
            if name is not None:
                what = f"input of {name}" if name else f"output of {self.blocks[-1].name}"
                mode = " in training mode" if learning and model.training else ""
                raise InputError(
                    "layers: expected blocks that give what the model gives when they run one "
                    f"after the other, found another {what}{mode}; a model whose paths branch needs "
                    "each branching part whole, in one block, and each function in its forward a "
                    "module in its place"
                )

    @contextlib.contextmanager
    def _left_alone(self, model: nn.Module) -> Iterator[None]:
        """Put random states and the buffers of chain and model back at the end; no gradients."""
        modules = (model, *(block.module for block in self.blocks))
        buffers = [(buffer, buffer.clone()) for m in modules for buffer in m.buffers()]
        with torch.no_grad(), rng_kept():
            try:
                yield
            finally:
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextlib.contextmanager
def _inputs_of_layers(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Yield what the modules with parameters of their own are given within the context, by name."""
    inputs: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name and next(module.parameters(recurse=False), None) is not None:

                def note(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                    if given and isinstance(given[0], Tensor):
                        inputs.setdefault(name, []).append(given[0].clone())

                stack.callback(module.register_forward_pre_hook(note).remove)
        yield inputs


def _difference(one: Mapping[str, Sequence[Any]], other: Mapping[str, Sequence[Any]]) -> str | None:
    """Return the first name under which two hold other tensors; None if there is none.

    What only one of them holds says nothing: a model may take a layer's weight without calling it.
    """
    for name, tensors in one.items():
        if len(tensors) == len(other.get(name, ())):
            for a, b in zip(tensors, other[name], strict=True):
                same = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape
                if not (same and torch.allclose(b, a, rtol=1e-3, atol=1e-4, equal_nan=True)):
                    return name
    return None


class Evaluation:
    """The evaluation of a chain's blocks within one step of learning.

    The first evaluation of a block is an ordinary one. Each further one repeats its random draws
    (the masks of dropout), leaves the block's buffers as they are (the running statistics of batch
    norm in training mode, whose batch statistics are those of the values it is given), and does not
    move the random generators.

    >>> evaluation = Evaluation(cut(nn.Sequential(nn.Linear(8, 8), nn.Dropout())))
    >>> x = torch.ones(1, 8)
    >>> torch.equal(evaluation(0, x), evaluation(0, x))
    True
    """

    def __init__(self, chain: Chain) -> None:
        self._blocks = chain.blocks
        # By block: the generators' states before its first evaluation; None if it drew nothing.
        self._draws: dict[int, dict[str, Tensor] | None] = {}

    def __call__(self, number: int, v: Tensor) -> Tensor:
        """Return what the block of that number gives for v (N, ...).

        Raises:
            InputError: The block cannot take v, or gives something other than a tensor of real
                numbers with N samples.
        """
        block = self._blocks[number]
        if block.in_place:
            v = v.clone()
        with refused(
            f"block {block.name}: cannot take an input of shape {tuple(v.shape)}",
            "give the model what it takes, and its blocks in the order in which they run",
        ):
            result = self._repeated(number, v) if number in self._draws else self._first(number, v)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            raise InputError(
                f"block {block.name}: expected a tensor of real numbers as its output, found "
                f"{result.dtype if isinstance(result, Tensor) else type(result).__name__}"
            )
        if result.shape[:1] != v.shape[:1]:
            raise InputError(
                f"block {block.name}: expected {len(v)} samples in dimension 0 of its output, "
                f"found the shape {tuple(result.shape)}"
            )
        return result

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run all blocks on x (N, ...), and return their inputs and their outputs.

        Each output depends on its own block alone: the input of a later block is a leaf that
        requires a gradient, with the value of the output before it. x requires none.
        """
        inputs, outputs = [x.detach()], [self(0, x.detach())]
        for number in range(1, len(self._blocks)):
            inputs.append(outputs[-1].detach().requires_grad_())
            outputs.append(self(number, inputs[-1]))
        return inputs, outputs

    def _first(self, number: int, v: Tensor) -> Tensor:
        before = rng_state()
        result: Tensor = self._blocks[number].module(v)
        after = rng_state()
        drawn = any(not torch.equal(before.get(name, after[name]), after[name]) for name in after)
        self._draws[number] = before if drawn else None
        return result

    def _repeated(self, number: int, v: Tensor) -> Tensor:
        module, draws = self._blocks[number].module, self._draws[number]
        copies = {  # what the evaluation changes are these, in place of the block's own buffers
            name: buffer.clone()
            for prefix, part in module.named_modules()
            if part.training
            for name, buffer in part.named_buffers(prefix, recurse=False)
        }
        with contextlib.nullcontext() if draws is None else rng_kept():
            if draws is not None:
                set_rng_state(draws)
            result: Tensor = (
                torch.func.functional_call(module, copies, (v,)) if copies else module(v)
            )
        return result


def cut(model: nn.Module, layers: Sequence[str | nn.Module] | None = None) -> Chain:
    """Return the chain of blocks that a model is.

    An nn.Sequential, also of others, is cut in front of each module with a weight of two or more
    dimensions (linear, convolution, a whole residual block); what has none (norms, activations,
    pooling) belongs to the block before it.

    Args:
        model: The model.
        layers: The blocks of any other model, in order: names of submodules, or modules that share
            the model's layers, such as nn.Sequential(model.conv1, model.bn1, nn.ReLU()).

    Raises:
        InputError: The model is no nn.Sequential and `layers` is not given; `layers` has names that
            there are not, leaves out parameters that are trained, or has some that are not the
            model's; a rule of the model learns without the error of its layer, or takes it from the
            model's output.

    >>> model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2)})
    >>> cut(model)
    Traceback (most recent call last):
    darts_bio.errors.InputError: learner: expected an nn.Sequential, found ModuleDict; name its \
blocks in order, as in layers=["a", "b"]
    >>> [block.name for block in cut(model, layers=["a", "b"]).blocks]
    ['a', 'b']
    """
    chain = Chain(tuple(_named(model, layers) if layers is not None else _grouped(model)))
    found, own = set(chain.parameters), {p for p in model.parameters() if p.requires_grad}
    if found - own:
        raise InputError(
            "layers: expected blocks that share the model's parameters, found some that are not "
            "the model's; pass the model's own modules, not copies"
        )
    for name, parameter in model.named_parameters():
        if parameter in own - found:
            raise InputError(
                f"layers: expected every trained parameter in a block, found {name} in none; add "
                "its module, or freeze it"
            )
    for name, carrier in rule_carriers(model):
        if carrier.rule.local or carrier.rule.direct:
            raise InputError(
                f"learner: expected layers that learn by the error they are sent, found {name} "
                f"under {carrier.rule.spec}; leave such layers at bp or a feedback rule"
            )
    return chain


def flat(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of what runs one after the other in a module, in order.

    An nn.Sequential without hooks is opened, and those in it; any other module is one.

    >>> [name for name, _ in flat(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.ReLU())))]
    ['0', '1.0', '1.1']
    """
    if _opened(module) and not (module._forward_hooks or module._forward_pre_hooks):
        # Not named_children, which leaves out a module that stands there a second time.
        for child_name, child in module._modules.items():
            if child is not None:
                yield from flat(child, f"{name}.{child_name}".lstrip("."))
    else:
        yield name, module


def flattened(chain: Chain) -> Chain:
    """Return the chain whose blocks are the single modules of another's.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [block.name for block in flattened(cut(model)).blocks]
    ['0', '1', '2', '3']
    """
    parts = (part for block in chain.blocks for part in block.parts)
    return Chain(tuple(Block(name, module, ((name, module),)) for name, module in parts))


def _opened(module: nn.Module) -> bool:
    """Whether running a module's children in order is what the module does."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _grouped(model: nn.Module) -> Iterator[Block]:
    """Yield the blocks of an nn.Sequential."""
    if not _opened(model):
        names = ", ".join(f'"{name}"' for name, _ in list(model.named_children())[:2])
        raise InputError(
            f"learner: expected an nn.Sequential, found {type(model).__name__}; name its blocks in "
            f"order, as in layers=[{names or 'module, module'}]"
        )
    groups: list[list[tuple[str, nn.Module]]] = [[]]
    weighted = False  # whether the present group has a weight already
    children = ((name, child) for name, child in model._modules.items() if child is not None)
    parts = (part for name, child in children for part in flat(child, name))
    for name, module in parts:
        has_weight = any(parameter.dim() > 1 for parameter in module.parameters())
        if has_weight and weighted:
            groups.append([])
        groups[-1].append((name, module))
        weighted = weighted or has_weight
    if not weighted:
        raise InputError(
            "learner: expected a model with weights, found none in it; give it layers that learn"
        )
    for group in groups:
        first, last = group[0][0], group[-1][0]
        label = first if len(group) == 1 else f"{first} to {last}"
        yield Block(label, nn.Sequential(*(module for _, module in group)), tuple(group))


def _named(model: nn.Module, layers: Sequence[str | nn.Module]) -> Iterator[Block]:
    """Yield the blocks that `layers` names."""
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise InputError(
            f"layers: expected a list of submodules' names or of modules, found {layers!r:.80}; "
            'name the blocks in order, as in layers=["stem", "head"]'
        )
    modules = dict(model.named_modules())
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Module):
            name, module = f"{place} ({type(layer).__name__})", layer
        elif isinstance(layer, str) and layer in modules:
            name, module = layer, modules[layer]
        else:
            raise unknown_name("submodule", str(layer), [name for name in modules if name])
        yield Block(name, module, tuple(flat(module, name)))
