"""The parts of a batched cell: one operation on all edges that leave a node (`networks.plan`).

Both kinds map the maps of the node, x (N, C, H, W), and the weights of their lanes to what each edge
receives, (N, H', W', E, C). Suffixes of tensors are those of `networks.stacking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from darts_bio.networks.forms import Form, candidate_form, leaves
from darts_bio.networks.stacking import (
    FoldedNorm,
    LaneWeights,
    StackedBatchNorm,
    StackedEvenAndOdd,
    by_member,
)
from darts_bio.rules.pointwise import sampled
from darts_bio.rules.stacked import StackedConv2d


class StackedOperation(nn.Module):
    """One operation under R rules on E edges, M = R*E members side by side in each layer.

    The weight of a member is the gain of its last batch norm, so that weighting costs no pass over
    the maps; an operation that does not end with one is multiplied.
    """

    def __init__(
        self, candidates: Sequence[nn.Module], names: Sequence[str], edges: int, folded: bool
    ) -> None:
        """Stack `candidates`, in the order (rule, edge), which stand at `names` in the reference.

        `folded` folds pointwise convolutions and the batch norms behind them (`FoldedNorm`).
        """
        super().__init__()
        layers = _stacked_layers(candidates, names, edges)
        dilated = [layer for layer in layers if isinstance(layer, StackedConv2d)]
        self.spacing, self.strided = pixel_spacing(dilated)
        if folded:
            layers = _fold(layers)
        for before, layer in pairwise(layers):
            if isinstance(layer, nn.ReLU):  # nobody else keeps what a norm gives
                layer.inplace = isinstance(before, (StackedBatchNorm, FoldedNorm))
        # The ReLU that comes first is the node's: it serves all of its parts.
        self.rectified = isinstance(layers[0], nn.ReLU)
        self.layers = nn.ModuleList(layers[1:] if self.rectified else layers)
        self.members, self.edges = len(candidates), edges

    def forward(self, x_nchw: Tensor, rectified_nchw: Tensor, weights: LaneWeights) -> Tensor:
        """Map x, or ReLU(x) where the operation begins with it, to (N, H', W', E, C)."""
        y = rectified_nchw if self.rectified else x_nchw
        spacing, maps = self.spacing, 1
        if spacing > 1 and self.strided:
            y = sampled(y, (spacing, spacing))  # no other pixel is read
        elif spacing > 1 and y.shape[2] % spacing == 0 and y.shape[3] % spacing == 0:
            y, maps = take_apart(y, spacing), spacing
        else:
            spacing = 1
        for layer in self.layers[:-1]:
            y = layer(y, spacing) if isinstance(layer, StackedConv2d) else layer(y)
        last = self.layers[-1]
        if isinstance(last, (StackedBatchNorm, FoldedNorm)):
            return put_together(last.mix(y, weights, self.edges), maps)
        y_nMhw = last(y, spacing) if isinstance(last, StackedConv2d) else last(y)
        y_nhwrec = by_member(y_nMhw, self.members).unflatten(3, (-1, self.edges))  # M -> R, E
        weights_re1 = weights.factors.view(-1, self.edges, 1)
        return put_together((y_nhwrec * weights_re1).sum(3), maps)


class SharedOperation(nn.Module):
    """An operation without weights, computed once and weighted for each of E edges.

    Where K candidates of a row are this operation (in the paper's layout there is an identity for
    each rule), an edge receives it times the sum of their weights.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], edges: int) -> None:
        """Take the place of the modules at `names` in the reference, `module` being one of them."""
        super().__init__()
        self.module, self.names, self.edges = module, tuple(names), edges

    def forward(self, x_nchw: Tensor, rectified_nchw: Tensor, weights: LaneWeights) -> Tensor:
        """Map x, by the weights of K*E lanes, to (N, H', W', E, C)."""
        y_nhwc = self.module(x_nchw).permute(0, 2, 3, 1)
        weights_ke = weights.factors.view(-1, self.edges)
        weights_e = weights_ke[0] if len(weights_ke) == 1 else weights_ke.sum(0)
        return y_nhwc.unsqueeze(3) * weights_e.unsqueeze(1)


def _stacked_layers(
    candidates: Sequence[nn.Module], names: Sequence[str], edges: int
) -> list[nn.Module]:
    """Return one layer for each place in the candidates' row of layers."""
    members = [list(leaves(module, name)) for module, name in zip(candidates, names, strict=True)]
    # Members are ordered (rule, edge): every E-th begins a new rule.
    forms = [candidate_form(module) for module in candidates[::edges]]
    layers: list[nn.Module] = []
    first = True
    for place, of_place in enumerate(zip(*members, strict=True)):
        layer_names, modules = zip(*of_place, strict=True)
        layers.append(_stacked_layer(modules, layer_names, forms, place, first))
        first = first and forms[0][place].kind == "relu"
    return layers


def _stacked_layer(
    modules: Sequence[nn.Module],
    names: Sequence[str],
    forms: Sequence[Form],
    place: int,
    first: bool,
) -> nn.Module:
    """Return the layers at one place as one. `first` tells whether they read the node itself, which
    all members share.
    """
    kind = forms[0][place].kind
    rules = [form[place].rules for form in forms]
    if kind == "relu":
        return nn.ReLU()
    if kind == "norm":
        return StackedBatchNorm(modules, names)  # type: ignore[arg-type]
    if kind == "even and odd":
        even, odd = zip(*rules, strict=True)
        return StackedEvenAndOdd(modules, names, (even, odd))  # type: ignore[arg-type]
    return StackedConv2d(modules, names, [rule for (rule,) in rules], first)  # type: ignore[arg-type]


def _fold(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Fold each pointwise convolution with a batch norm that follows it."""
    folded: list[nn.Module] = []
    for layer in layers:
        before = folded[-1] if folded else None
        is_product = isinstance(before, StackedConv2d) and before.products
        if is_product and isinstance(layer, StackedBatchNorm):
            folded[-1] = FoldedNorm(before, layer)  # type: ignore[arg-type]
        else:
            folded.append(layer)
    return folded


def pixel_spacing(convolutions: Sequence[StackedConv2d]) -> tuple[int, bool]:
    """Return how far apart the pixels are that an operation brings together, and whether it reads
    only every such pixel; (1, False) if it brings neighbors together.

    Where all windows are dilated by d, the pixels that are d apart form d*d maps that never meet.
    Each can be convolved by itself without dilation, for which libraries have fast kernels. At
    stride d, only one of these maps is read at all.
    """
    windows = [layer for layer in convolutions if layer.weight.shape[2:] != (1, 1)]
    dilations = {value for layer in windows for value in layer.dilation}
    strides = {value for layer in convolutions for value in layer.stride}
    if len(dilations) != 1:
        return 1, False
    (d,) = dilations
    if any(value % d for layer in windows for value in layer.padding):
        return 1, False
    if strides == {1}:
        return d, False
    first_is_strided = convolutions[0] is windows[0] and set(windows[0].stride) == {d}
    return (d, True) if first_is_strided and len(windows) == 1 else (1, False)


def take_apart(x_nchw: Tensor, d: int) -> Tensor:
    """Make maps of their own of pixels that are d apart: (N, C, H, W) -> (d*d*N, C, H/d, W/d).

    Image n at part (i, j), the pixels (i + d*a, j + d*b), becomes image (i*d + j)*N + n:

    >>> import torch
    >>> x = torch.arange(16).view(1, 1, 4, 4)
    >>> take_apart(x, 2)[1]  # even rows, odd columns
    tensor([[[ 1,  3],
             [ 9, 11]]])
    """
    x_nchiwj = x_nchw.unflatten(3, (-1, d)).unflatten(2, (-1, d))  # H -> H/d, i and W -> W/d, j
    x_ijnhwc = x_nchiwj.permute(3, 5, 0, 2, 4, 1)
    return x_ijnhwc.flatten(0, 2).permute(0, 3, 1, 2)


def put_together(y_nhwec: Tensor, d: int) -> Tensor:
    """Undo `take_apart`, channels last: (d*d*N, H/d, W/d, E, C) -> (N, H, W, E, C)."""
    if d == 1:
        return y_nhwec
    y_ijnhwec = y_nhwec.unflatten(0, (d, d, -1))
    y_nhiwjec = y_ijnhwec.permute(2, 3, 0, 4, 1, 5, 6)
    return y_nhiwjec.flatten(3, 4).flatten(1, 2)  # W/d, j -> W and H/d, i -> H
