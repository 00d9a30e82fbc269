"""Weights that take their rule along into whatever product a model's own code puts them in.

A layer under a rule is computed by the layer itself. But models also multiply by a weight directly:

    F.linear(x, self.qkv.weight, bias)       a layer's weight, and another bias
    torch.addmm(self.bias, x, self.weight)   a weight (inputs, outputs)
    nn.MultiheadAttention, nn.LSTM           several weights in one module

There the weight is handed to the code as a `CarriedWeight`: the same numbers, with a `Standing` that
says whose rule it is under. PyTorch asks it about each function that it is an argument of
(`__torch_function__`), and then

- in a product with an activation (`PRODUCTS`), the error of the activation goes as the rule says;
- a view or a cast of it (`VIEWS`) stands under the same rule: its kernel is the rule's kernel at the
  viewed weight, with the feedback viewed likewise;
- what is computed from it and other parameters in its own shape (weight standardization, a mask,
  the sum with an adapter) is a weight under the same rule; in another shape it is not, and may stand
  in no product with an activation;
- any other function of it and an activation is one that the rule says nothing about, and raises.

>>> from darts_bio.rules import RuleLinear, RULES
>>> layer = RuleLinear(3, 2, rule=RULES.build("fa"))
>>> weight = carry(layer.weight, Standing(layer))
>>> x = torch.ones(1, 3, requires_grad=True)
>>> (x @ weight.T).sum().backward()
>>> torch.equal(x.grad[0], layer.feedback_kernel.sum(0))
True
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.private_torch import backward_runs
from darts_bio.rules import recurrent
from darts_bio.rules.carriers import WeightedCarrier, computed_weight
from darts_bio.rules.einsums import as_linear
from darts_bio.rules.uses import BilinearUse, ConvolutionUse, LinearUse, Use, each, pass_under_rule

View = Callable[[Tensor], Tensor]
"""A view or a cast, as a function of the tensor."""


@dataclass(frozen=True)
class Standing:
    """Whose rule a weight is under, and how it was viewed since.

    Subclasses may replace what is done in a product (`rules.looks`).
    """

    carrier: WeightedCarrier
    views: tuple[View, ...] = ()
    computed: bool = False
    """Whether the weight is computed from the carrier's, and not a view of it."""
    reshaped: bool = False
    """Whether what was computed has another shape, so that the rule's feedback has none for it."""

    @property
    def source(self) -> int:
        """What tells weights apart, whatever views of them there are."""
        return id(self.carrier)

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor shaped like the carrier's weight as the weight stands now."""
        for view in self.views:
            tensor = view(tensor)
        return tensor

    def after(self, view: View) -> Self:
        """Return the standing of a view of this weight."""
        return replace(self, views=(*self.views, view))

    def after_computation(self, reshaped: bool) -> Self:
        """Return the standing of what is computed from this weight and others."""
        return replace(self, computed=True, reshaped=self.reshaped or reshaped)

    def multiply(self, x: Tensor, use: Use, form: View, name: str) -> Tensor:
        """Compute a product with an activation x under the rule.

        Args:
            x: The activation, as the use takes it.
            use: The product; its weight is the weight as it stands, in the form of the use.
            form: Maps the weight as it stands to the form that the use takes.
            name: The function of PyTorch that was called.
        """
        if self.reshaped:
            self.refuse(f"a {name} by what is computed from the weight in another shape")
        carrier = self.carrier
        if self.computed and carrier.rule.learned and not (carrier.rule.direct or carrier.exact):
            raise computed_weight(carrier.rule, name)
        return pass_under_rule(carrier, use, x, lambda weight: self._kernel(weight, form))

    def _kernel(self, weight: Tensor, form: View) -> Tensor | None:
        """Return what carries the error in the place of a weight, of its shape."""
        return self.carrier.kernel_at(weight, lambda tensor: form(self.view(tensor)))

    def meet(self) -> None:
        """Note that another weight is computed with this one."""

    def refuse(self, name: str) -> None:
        """Raise InputError since the rule says nothing about a function; bp says all."""
        if self.carrier.rule.carries == "values" and not self.carrier.rule.local:
            return
        raise InputError(
            f"{self.carrier.rule.spec}: {name} is no product that this rule could carry an error "
            "through; leave the weight at None or bp by a pattern of convert, or have it look at "
            "the forward pass (inputs=...)"
        )


class CarriedWeight(Tensor):
    """A weight in the hands of a model's code, with its `Standing`."""

    standing: Standing

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = keywords or {}
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__  # type: ignore[attr-defined]
            return (_view if name in VIEWED_ATTRIBUTES else _plainly)(function, arguments, keywords)
        if not torch.is_grad_enabled() or name in READS or name.startswith("__set__"):
            return _plainly(function, arguments, keywords)
        if name in VIEWS:
            return _view(function, arguments, keywords)
        if name in COMPOSED:
            return COMPOSED[name](function)(*arguments, **keywords)
        if name in PRODUCTS:
            product = PRODUCTS[name](*arguments, **keywords)
            if product is not None:
                return product
        return _compute(function, name, arguments, keywords)


def carry(weight: Tensor, standing: Standing) -> CarriedWeight:
    """Return a weight that stands under a rule; gradients of it are the weight's."""
    carried = weight.as_subclass(CarriedWeight)
    carried.standing = standing
    return carried


_here = threading.local()


def enter_code(module: nn.Module, arguments: Any) -> None:
    """Note, as a forward pre-hook, that a module's own code begins to run."""
    _here.depth = _here.depth + 1 if _in_code() else 1
    if _here.depth == 1 and not torch.compiler.is_compiling():
        _here.caller = sys._getframe(1)  # it runs the hooks and the code alike


def leave_code(module: nn.Module, arguments: Any, output: Any) -> None:
    """Note, as a forward hook, that a module's own code has ended."""
    _here.depth = max(0, getattr(_here, "depth", 0) - 1)
    if _here.depth == 0:
        _here.caller = None


def _in_code() -> bool:
    """Tell whether the code of a module runs in this thread.

    PyTorch calls no hook behind code that Ctrl-C ends (KeyboardInterrupt), or another exception that
    is no Exception: then the frame that has called the code is gone.
    """
    if not getattr(_here, "depth", 0):
        return False
    if torch.compiler.is_compiling():
        return True
    caller = getattr(_here, "caller", None)
    if caller is None:  # code that was compiled runs some of its own uncompiled
        return True
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame is not caller:
        frame = frame.f_back
    if frame is None:
        _here.depth, _here.caller = 0, None
    return frame is not None


def handed_out(weight: Tensor, carrier: WeightedCarrier) -> Tensor:
    """Return a carrier's weight as code that asks for it gets it.

    In the forward pass of a model, or where checkpointing repeats a part of it, it stands under the
    carrier's rule; elsewhere (in optimizers, initialization, a training loop) it is the parameter
    itself.
    """
    if not torch.is_grad_enabled():
        return weight
    if carrier.exact and carrier.observer is None:  # PyTorch's own products are exact
        return weight
    # Gradient checkpointing runs code of a forward pass once more in the backward pass.
    if _in_code() or (not torch.compiler.is_compiling() and backward_runs()):
        return carry(weight, Standing(carrier))
    return weight


def stored_weight(owner: nn.Module, name: str) -> Tensor:
    """Return the weight that a module keeps: a parameter, or what was computed from one.

    Pruning, hooks that compute a weight before each pass and the replicas of nn.DataParallel put
    tensors that are no parameters in its place.
    """
    weight = owner._parameters.get(name)
    if weight is None:
        weight = vars(owner).get(name)
    if weight is None:  # not there yet
        raise AttributeError(name)
    return weight


def stored_property(name: str, read: Callable[[Any], Tensor]) -> property:
    """Return a property for a weight that is read by `read`, and kept where `stored_weight` looks."""

    def write(owner: nn.Module, value: Any) -> None:
        vars(owner)[name] = value  # parameters never come here: nn.Module keeps them itself

    def delete(owner: nn.Module) -> None:
        if vars(owner).pop(name, None) is None:
            raise AttributeError(name)

    return property(read, write, delete)


def plain(tensor: Any) -> Any:
    """Return a carried weight as a plain tensor, and anything else as it is."""
    if not isinstance(tensor, CarriedWeight):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():  # compilers know no as_subclass(Tensor)
        return tensor.view_as(tensor)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, also those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _plainly(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Any:
    """Call a function with weights as plain tensors."""
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*arguments, **keywords)
    return plain(result)  # in-place functions return the weight itself


def _view(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Any:
    """Call a function that views or casts its first argument, or cuts it into several."""
    result = _plainly(function, arguments, keywords)
    weight, *rest = arguments
    if not isinstance(weight, CarriedWeight):
        return result  # another tensor takes the weight's shape or type
    standing = weight.standing
    if isinstance(result, Tensor):
        return carry(result, standing.after(lambda tensor: function(tensor, *rest, **keywords)))

    def of_part(number: int) -> View:
        return lambda tensor: function(tensor, *rest, **keywords)[number]

    return tuple(carry(part, standing.after(of_part(i))) for i, part in enumerate(result))


def _compute(
    function: Callable[..., Any],
    name: str,
    arguments: Sequence[Any],
    keywords: Mapping[str, Any],
) -> Any:
    """Call a function that is neither a view nor a product: it computes from weights."""
    tensors = list(_tensors([*arguments, *keywords.values()]))
    weights = [tensor for tensor in tensors if isinstance(tensor, CarriedWeight)]
    others = [t for t in tensors if not isinstance(t, (CarriedWeight, nn.Parameter))]
    result = _plainly(function, arguments, keywords)
    same_shape = [w for w in weights if isinstance(result, Tensor) and result.shape == w.shape]
    # What needs a gradient, and is neither a parameter nor computed from parameters alone, is an
    # activation. A buffer, such as a mask, needs none, nor do images: these change the shape.
    if any(other.requires_grad or (other.dim() and not same_shape) for other in others):
        weights[0].standing.refuse(f"torch's {name}")
        return result
    if len({weight.standing.source for weight in weights}) > 1:
        for weight in weights:
            weight.standing.meet()
    of = same_shape[0] if same_shape else weights[0]
    standing = of.standing.after_computation(reshaped=not same_shape)
    if isinstance(result, Tensor):
        return carry(result, standing) if result.requires_grad else result
    if isinstance(result, tuple) and all(isinstance(part, Tensor) for part in result):
        return type(result)(carry(part, standing) for part in result)
    return result


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Multiply x (..., I) by a weight (O, I); where x is the weight, by that as `_matmul` does."""
    if not isinstance(weight, CarriedWeight):
        if isinstance(weight, nn.Parameter):
            return None
        product = _matmul(x, weight.mT if weight.dim() > 1 else weight)
        return product if product is None or bias is None else product + plain(bias)
    use = LinearUse(plain(weight), plain(bias))
    return weight.standing.multiply(plain(x), use, _as_it_is, "linear")


def _as_it_is(tensor: Tensor) -> Tensor:
    """Return a weight that stands in a product as the use takes it."""
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    """Return a weight (I, O) as a linear layer takes it, (O, I)."""
    return tensor.mT


def _matmul(x: Any, other: Any) -> Any:
    """Multiply two matrices, one of which is a weight."""
    if isinstance(x, CarriedWeight) == isinstance(other, CarriedWeight):
        return None  # weights among themselves, or a bias
    if isinstance(other, CarriedWeight):
        if other.dim() == 2:  # (..., I) x (I, O)
            use = LinearUse(plain(other).mT, None)
            return other.standing.multiply(x, use, _transposed, "matmul")
        return _bilinear(x, other, torch.matmul, "matmul")
    if x.dim() == 2 and other.dim() == 1:  # (O, I) x (I)
        return x.standing.multiply(other, LinearUse(plain(x), None), _as_it_is, "matmul")
    if x.dim() == 2:  # (O, I) x (..., I, N)
        use = LinearUse(plain(x), None)
        return x.standing.multiply(other.mT, use, _as_it_is, "matmul").mT
    return _bilinear(other, x, lambda other, x: torch.matmul(x, other), "matmul")


def _bilinear(
    x: Tensor, weight: CarriedWeight, function: Callable[[Tensor, Tensor], Tensor], name: str
) -> Tensor:
    """Compute a function of x and a weight that is linear in both, and no linear layer."""
    use = BilinearUse(plain(weight), function, name)
    return weight.standing.multiply(x, use, _as_it_is, name)


def _reversed_matmul(weight: Any, x: Any) -> Any:
    """Compute x @ weight as Python calls it on the weight."""
    return _matmul(x, weight)


def _inner(x: Any, other: Any) -> Any:
    """Sum over the last dimension of two tensors, one of which is a weight of two dimensions."""
    if isinstance(x, CarriedWeight) or other.dim() != 2:
        return None
    return _matmul(x, other.mT)


def _addmm(bias: Any, x: Any, other: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Multiply two matrices and add a third tensor, which is no weight's business."""
    product = _matmul(x, other)
    if product is None:
        return None
    return beta * plain(bias) + (product if alpha == 1 else alpha * product)


def _convolution(
    dimensions: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Convolve over that many dimensions, with PyTorch's arguments."""
    if not isinstance(weight, CarriedWeight):
        return None
    if padding == "same":
        spread, window = each(dilation, dimensions), weight.shape[2:]
        margins = [d * (side - 1) for d, side in zip(spread, window, strict=True)]
        # F.pad counts from the last dimension, (before, after); an odd margin goes after.
        x = F.pad(plain(x), [n for m in reversed(margins) for n in (m // 2, m - m // 2)])
        padding = 0
    around = 0 if padding == "valid" else padding
    return _convolve(dimensions, x, weight, bias, stride, around, dilation, groups, None)


def _transposed_convolution(
    dimensions: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Convolve, transposed, over that many dimensions, with PyTorch's arguments."""
    if not isinstance(weight, CarriedWeight):
        return None
    geometry = (stride, padding, dilation, groups, each(output_padding, dimensions))
    return _convolve(dimensions, x, weight, bias, *geometry)


def _convolve(
    dimensions: int,
    x: Tensor,
    weight: CarriedWeight,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    output_padding: tuple[int, ...] | None,
) -> Tensor:
    """Convolve x, with or without a batch, padded by zeros; transposed with an `output_padding`."""
    unbatched = x.dim() == dimensions + 1
    x = plain(x).unsqueeze(0) if unbatched else plain(x)
    steps, around, spread = (each(value, dimensions) for value in (stride, padding, dilation))
    tensors = (plain(weight), plain(bias))
    use = ConvolutionUse(*tensors, steps, around, spread, groups, output_padding)
    name = f"conv{dimensions}d" if output_padding is None else f"conv_transpose{dimensions}d"
    y = weight.standing.multiply(x, use, _as_it_is, name)
    return y.squeeze(0) if unbatched else y


def _einsum(equation: str, *operands: Any) -> Any:
    """Compute an einsum of an activation and a weight, as a linear layer where it is one."""
    tensors = list(operands[0]) if len(operands) == 1 else list(operands)
    weights = [tensor for tensor in tensors if isinstance(tensor, CarriedWeight)]
    if len(weights) != 1 or not isinstance(equation, str):
        return None
    weight = weights[0]
    place = next(i for i, tensor in enumerate(tensors) if tensor is weight)
    if len(tensors) != 2:
        return None
    x = tensors[1 - place]
    linear = as_linear(equation, place)
    if linear is not None:
        use = LinearUse(linear.matrix(plain(weight)), None)
        y = weight.standing.multiply(linear.features(x), use, linear.matrix, "einsum")
        return linear.result(y, weight)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum(equation, *((weight, x) if place == 0 else (x, weight)))

    return _bilinear(x, weight, function, "einsum")


def _undispatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return one of torch.nn.functional's Python functions without its question to subclasses.

    The functions that it calls ask them then.
    """
    assert isinstance(function, types.FunctionType)
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _by_names(product: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Return a product that may be given its first arguments by PyTorch's names of them."""

    def run(*arguments: Any, out: Tensor | None = None, **keywords: Any) -> Any:
        if out is not None:  # autograd has no gradient for it either
            return None
        named = [keywords.pop(name) for name in names[len(arguments) :] if name in keywords]
        return product(*arguments, *named, **keywords)

    return run


def _as_steps(
    run: Callable[..., Any], kind: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what replaces a recurrent function by one of `rules.recurrent`."""
    return lambda function: functools.partial(run, kind)


VIEWED_ATTRIBUTES = {"T", "mT", "H", "mH", "real"}
"""Attributes of a tensor that are views of it; `real` is, since no weight under a rule is complex."""

VIEWS = {
    *("t", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel"),
    *("__getitem__", "select", "narrow", "chunk", "split", "unbind", "tensor_split"),
    *("expand", "expand_as", "view_as", "reshape_as", "alias", "clone", "contiguous"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
}
"""Functions that give a weight another shape, type or place, by name."""

READS = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "data_ptr"),
    *("is_floating_point", "is_complex", "get_device", "element_size", "storage_offset"),
    *("detach", "requires_grad_", "__len__", "__repr__", "__format__", "register_hook", "backward"),
    *("embedding", "embedding_bag", "dtype", "untyped_storage", "is_same_size", "new_zeros"),
    *("new_empty", "new_ones", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like"),
    *("_is_view", "is_pinned", "is_shared", "__hash__", "__deepcopy__", "__reduce_ex__"),
}
"""Functions that multiply no activation by a weight, by name: questions, look-ups, and `detach`."""

COMPOSED: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    # Not made once and for all: compilers inline such a copy, and then lose the rule of its out_proj.
    "multi_head_attention_forward": _undispatched,
    **{kind: _as_steps(recurrent.run, kind) for kind in recurrent.STEPS},
    **{f"{kind}_cell": _as_steps(recurrent.run_cell, kind) for kind in recurrent.STEPS},
}
"""Functions that consist of products and views, and how they are run as these."""

PRODUCTS: dict[str, Callable[..., Any]] = {
    "linear": _by_names(_linear, "input", "weight"),
    "matmul": _by_names(_matmul, "input", "other"),
    "inner": _by_names(_inner, "input", "other"),
    "mm": _by_names(_matmul, "input", "mat2"),
    "bmm": _by_names(_matmul, "input", "mat2"),
    "mv": _by_names(_matmul, "input", "vec"),
    "__matmul__": _matmul,
    "__rmatmul__": _reversed_matmul,
    "addmm": _by_names(_addmm, "input", "mat1", "mat2"),
    "addmv": _by_names(_addmm, "input", "mat", "vec"),
    "baddbmm": _by_names(_addmm, "input", "batch1", "batch2"),
    "einsum": _einsum,
    **{
        f"{kind}{n}d": _by_names(functools.partial(run, n), "input", "weight")
        for kind, run in (("conv", _convolution), ("conv_transpose", _transposed_convolution))
        for n in (1, 2, 3)
    },
}
"""Products by the name of PyTorch's function; each returns None where no activation is multiplied."""

MULTIPLYING = {
    *PRODUCTS,
    *("tensordot", "kron", "outer", "dot", "vdot", "linalg_vecdot", "addr", "bilinear", "cdist"),
    *("linalg_multi_dot", "chain_matmul", "addbmm", "matmul.default", "mm.default"),
    *("linear.default", "convolution", "conv_tbc"),
}
"""Functions that multiply an activation by a matrix, by name, also those without a rule."""
