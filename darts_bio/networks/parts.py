"""The parts of a batched cell: operations on all edges that leave a node (`networks.plan`).

A part reads the node's output, x (N, C, H, W), and makes of it what each edge receives,
(N, H', W', E, C), by the weights of its lanes. Where one candidate an edge was drawn, a part is
asked for a subset of its lanes alone, one an edge at most, and returns (N, H', W', lanes, C).
Suffixes of tensors are those of `networks.stacking`.

A candidate with a layer that is not known here runs alone, and so does one that is more than its
layers (`forms.candidate_form`). To have it stacked, these functions must know the layer:

    `forms._layer_form`   names its kind, and in `geometry` all that members must agree in
    `plan._stacks`        says where it may stand: the first layer but for ReLUs takes the node's x
                          (N, C, H, W) for all members, any other takes (N, M*C, H, W)
    `_stacked_layer`      builds the one module that stands for those of M members; where it holds
                          something for each of them, it is a `rules.stacked.Stacked`, and computes
                          the members `present` alone, with what `of_present` selects
    `_convolutions`       of `networks.candidates` yields those in it, in the order of `_stacked_layer`

Members are in the order (rule, edge) throughout. Convolutions under rules are `StackedConv2d`s, by
which `MixedCell.stacked_layers` finds them for their feedback. Maps may come taken apart
(`StackedLayers.forward`): a layer that brings pixels together needs their spacing, and convolutions
alone are told it. The cell must go on equalling `reference.ReferenceCell`, in drawn passes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple, cast

from torch import Tensor, nn

from darts_bio.networks.candidates import BuiltCandidate
from darts_bio.networks.forms import Form, leaves
from darts_bio.networks.stacking import (
    FoldedNorm,
    LaneWeights,
    StackedBatchNorm,
    StackedEvenAndOdd,
    by_member,
)
from darts_bio.rules.pointwise import sampled
from darts_bio.rules.stacked import Stacked, StackedConv2d, Subset, joined_products, only

RUN_BYTES = 2**21
"""How many bytes operations may write before their common batch norm, on a CPU.

What a product writes should be in the cache when the norm reads it. All operations of a node at
once take 0.92 of the time of one by one at 8 channels and 16x16 pixels (4 MB), but 1.1 of it at 16
channels and 32x32 (37 MB); anything from 1 to 8 MB is as good as the better of the two (Intel Xeon
with AVX-512, one thread, 9 and 3 steps in turn)."""


class NodeMaps:
    """A node's output x (N, C, H, W) in the forms in which parts read it, each made once."""

    def __init__(self, x_nchw: Tensor) -> None:
        self._x = x_nchw
        self._rectified: Tensor | None = None
        self._others: dict[tuple[bool, int, bool], Tensor] = {}

    def plain(self, rectified: bool = False) -> Tensor:
        """Return x, or ReLU(x)."""
        if not rectified:
            return self._x
        if self._rectified is None:
            self._rectified = self._x.relu()
        return self._rectified

    def sampled(self, rectified: bool, d: int) -> Tensor:
        """Return every d-th pixel."""
        key = (rectified, d, True)
        if key not in self._others:
            self._others[key] = sampled(self.plain(rectified), (d, d))
        return self._others[key]

    def taken_apart(self, rectified: bool, d: int) -> Tensor:
        """Return the pixels that are d apart as maps of their own (`take_apart`)."""
        key = (rectified, d, False)
        if key not in self._others:
            self._others[key] = take_apart(self.plain(rectified), d)
        return self._others[key]


def stacked_within(module: nn.Module) -> list[Stacked]:
    """Return the layers within a module that can compute a subset of their members."""
    return [layer for layer in module.modules() if isinstance(layer, Stacked)]


class StackedLayers(nn.Module):
    """Layers of one operation under R rules on E edges, M = R*E members side by side in each."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        convolutions = [layer for layer in layers if isinstance(layer, StackedConv2d)]
        self.spacing, self.strided = pixel_spacing(convolutions)
        for before, layer in pairwise(layers):
            if isinstance(layer, nn.ReLU):  # nobody else keeps what a norm gives
                layer.inplace = isinstance(before, (StackedBatchNorm, FoldedNorm))
        # The ReLU that comes first is the node's: it serves all of its parts.
        self.rectified = isinstance(layers[0], nn.ReLU)
        self.layers = nn.ModuleList(layers[1:] if self.rectified else layers)

    def forward(self, maps: NodeMaps) -> tuple[Tensor, int]:
        """Return the members' maps, and d, which says whether they were taken apart.

        With d = 1 they are whole, (N, M*C, H', W'). With d > 1 each map is d*d maps of every d-th
        pixel, (d*d*N, M*C, H'/d, W'/d).
        """
        x = maps.plain(self.rectified)
        spacing, apart = self.spacing, 1
        if spacing > 1 and self.strided:
            y = maps.sampled(self.rectified, spacing)  # no other pixel is read
        elif spacing > 1 and x.shape[2] % spacing == 0 and x.shape[3] % spacing == 0:
            y, apart = maps.taken_apart(self.rectified, spacing), spacing
        else:
            y, spacing = x, 1
        for layer in self.layers:
            y = layer(y, spacing) if isinstance(layer, StackedConv2d) else layer(y)
        return y, apart


class StackedOperation(nn.Module):
    """One operation, stacked, and its mixture.

    The weight of a member is the gain of its last batch norm, so that weighting costs no pass over
    the maps; an operation that does not end with one is multiplied.
    """

    def __init__(self, layers: Sequence[nn.Module], members: int, edges: int) -> None:
        super().__init__()
        has_norm = isinstance(layers[-1], (StackedBatchNorm, FoldedNorm))
        self.layers = StackedLayers(layers[:-1] if has_norm else layers)
        self.norm = cast("StackedBatchNorm | FoldedNorm", layers[-1]) if has_norm else None
        self.members, self.edges = members, edges
        self._stacked = stacked_within(self)

    def forward(self, maps: NodeMaps, weights: LaneWeights, subset: Subset | None = None) -> Tensor:
        """Return (N, H', W', E, C)."""
        with only(self._stacked, subset):
            return self._mixture(maps, weights, subset)

    def _mixture(self, maps: NodeMaps, weights: LaneWeights, subset: Subset | None) -> Tensor:
        y_nMhw, apart = self.layers(maps)
        members = self.members if subset is None else len(subset.numbers)
        edges = self.edges if subset is None else members
        if self.norm is not None:
            return put_together(self.norm.mix(y_nMhw, weights, edges), apart)
        y_nhwrec = by_member(y_nMhw, members).unflatten(3, (-1, edges))  # M -> R, E
        weights_re1 = weights.factors.view(-1, edges, 1)
        return put_together((y_nhwrec * weights_re1).sum(3, dtype=y_nMhw.dtype), apart)


class JoinedOperation(NamedTuple):
    """What `JoinedOperations` joins: layers, a product if it is stacked, and a batch norm.

    `norms` and `norm_names` are the batch norms of its lanes, the names those in the reference.
    """

    layers: nn.Module
    product: StackedConv2d | None
    norms: list[nn.BatchNorm2d | StackedBatchNorm]
    norm_names: list[str]

    @classmethod
    def stacked(cls, layers: Sequence[nn.Module]) -> JoinedOperation:
        """Return one of `stacked_layers`."""
        *before, product, norm = layers
        assert isinstance(product, StackedConv2d)
        assert isinstance(norm, StackedBatchNorm)
        return cls(StackedLayers(before), product, [norm], list(norm.names))

    @classmethod
    def shared(cls, candidates: Sequence[nn.Module], names: Sequence[str]) -> JoinedOperation:
        """Return one of candidates that are computed once; `names` says where they stand."""
        rows = [list(leaves(each, name)) for each, name in zip(candidates, names, strict=True)]
        before = nn.Sequential(*(layer for _, layer in rows[0][:-1]))
        norm_names, norms = zip(*(row[-1] for row in rows), strict=True)
        return cls(before, None, list(norms), list(norm_names))


class JoinedOperations(nn.Module):
    """Several operations and their mixture, by one batch norm and one sum for all of them.

    On a CPU they are divided into runs that fit its cache, each with a norm and sum of its own.

    A stacked operation ends with a pointwise convolution and a batch norm, a shared one with a
    batch norm. What they give before it is written side by side, that of a shared operation once
    for each of its lanes. Then comes one batch norm with the lanes' weights as its gain, and one
    sum over operations and rules. A batch norm does not care how pixels are ordered, so maps that
    were taken apart are put together after the sum.

    For max_pool, sep_conv and dil_conv under fa and usf, on edges 0 and 1, at C channels:

        written       pool 0, 1 | sep fa 0, 1, usf 0, 1 | dil fa 0, 1, usf 0, 1: 10*C channels
        normalized    gain: the weights of these 10 lanes, each C times
        summed        the first 6 lanes as (3, 2): three for each edge; the last 4 as (2, 2), whose
                      pixels are put in order as they are added
    """

    def __init__(self, operations: Sequence[JoinedOperation], edges: int) -> None:
        """Join operations on E = `edges` edges, those of equal spacing one after the other."""
        super().__init__()
        self.layers = nn.ModuleList(operation.layers for operation in operations)
        self.products = nn.ModuleList(
            operation.product or nn.Identity() for operation in operations
        )
        self.norm = StackedBatchNorm(
            [norm for operation in operations for norm in operation.norms],
            [name for operation in operations for name in operation.norm_names],
        )
        self.lanes = [len(operation.norm_names) for operation in operations]
        self.channels = len(self.norm.get_buffer("running_mean")) // sum(self.lanes)
        self.edges = edges
        self._stacked = [
            stacked_within(layers) + stacked_within(product)
            for layers, product in zip(self.layers, self.products, strict=True)
        ]

    def forward(self, maps: NodeMaps, weights: LaneWeights) -> Tensor:
        """Return (N, H', W', E, C)."""
        runs = self._runs(maps.plain())
        lanes = [sum(self.lanes[number] for number in run) for run in runs]
        gains = weights.by_channel.split([n * self.channels for n in lanes])
        total_nhwec: Tensor | None = None
        first = 0
        for run, gain, n in zip(runs, gains, lanes, strict=True):
            counts = [self.lanes[number] for number in run]
            of_run = slice(first, first + n)
            total_nhwec = self._add(total_nhwec, run, counts, self.edges, maps, gain, of_run)
            first += n
        assert total_nhwec is not None
        return total_nhwec

    def drawn(self, number: int, maps: NodeMaps, weights: LaneWeights, subset: Subset) -> Tensor:
        """Return a subset of the lanes of one operation, `number`: (N, H', W', lanes, C)."""
        first, count = sum(self.lanes[:number]), len(subset.numbers)
        in_norm = Subset(tuple(first + lane for lane in subset.numbers), first + subset.places)
        with only(self._stacked[number], subset), only([self.norm], in_norm):
            gain, every = weights.by_channel, slice(None)
            return self._add(None, [number], [count], count, maps, gain, every)

    def _runs(self, x_nchw: Tensor) -> list[list[int]]:
        """Divide the operations into runs, each of which is normalized together."""
        if x_nchw.device.type == "cuda":
            return [list(range(len(self.layers)))]  # 0.70 of the kernels and copies of one by one
        pixels = x_nchw.shape[0] * x_nchw.shape[2] * x_nchw.shape[3]
        runs: list[list[int]] = []
        room = 0
        for number, lanes in enumerate(self.lanes):
            size = pixels * lanes * self.channels * x_nchw.element_size()
            if size > room:
                runs.append([])
                room = RUN_BYTES
            runs[-1].append(number)
            room -= size
        return runs

    def _add(
        self,
        total_nhwec: Tensor | None,
        run: Sequence[int],
        counts: Sequence[int],
        edges: int,
        maps: NodeMaps,
        gain: Tensor,
        lanes: slice,
    ) -> Tensor:
        """Add the mixture of the operations of a run to a total.

        Args:
            total_nhwec: The total of other runs; None if there are none.
            run: The numbers of the operations.
            counts: How many lanes each of them has.
            edges: On how many edges they are.
            maps: The node's output.
            gain: The weights of all of these lanes, each C times.
            lanes: Where these lanes stand in the batch norm.
        """
        inputs, apart = [], []
        for number in run:
            layers = self.layers[number]
            y, d = layers(maps) if isinstance(layers, StackedLayers) else (layers(maps.plain()), 1)
            inputs.append(y)
            apart.append(d)
        n, _, h, w = inputs[0].shape
        size = (n // apart[0] ** 2, h * apart[0], w * apart[0])
        products = [self.products[number] for number in run]
        convolutions = [layer if isinstance(layer, StackedConv2d) else None for layer in products]
        y_nMhw = joined_products(inputs, convolutions, counts, size)
        y_nMhw = self.norm(y_nMhw, gain, lanes)
        y_nhwmc = by_member(y_nMhw, sum(counts))
        y_nhwrec = y_nhwmc.unflatten(3, (-1, edges))  # lanes -> R of all operations, E
        # One sum for each group of operations whose pixels are ordered alike.
        groups = [list(group) for _, group in groupby(zip(apart, counts, strict=True), _apart)]
        sizes = [sum(count for _, count in group) // edges for group in groups]
        for group, group_nhwrec in zip(groups, y_nhwrec.split(sizes, dim=3), strict=True):
            y_nhwec = group_nhwrec.sum(3, dtype=y_nMhw.dtype)
            total_nhwec = _plus(total_nhwec, y_nhwec, _apart(group[0]))
        assert total_nhwec is not None
        return total_nhwec


def _apart(operation: tuple[int, int]) -> int:
    return operation[0]


def _plus(total_nhwec: Tensor | None, y_nhwec: Tensor, d: int) -> Tensor:
    """Add y, whose pixels lie in the order of maps taken apart by d, to the total (N, H, W, E, C).

    Pixels are reordered by views of y and of the total, so that y is not copied, unless there is no
    total yet. Of the suffixes, i and j count the pixels of a block of d x d, h and w the blocks.
    """
    if d > 1:
        n, h, w, edges, channels = y_nhwec.shape
        y_nhwec = y_nhwec.reshape(d * d * n, h // d, w // d, edges, channels)
        if total_nhwec is None:
            return put_together(y_nhwec, d)
        total_nhiwjec = total_nhwec.unflatten(2, (-1, d)).unflatten(1, (-1, d))
        return (total_nhiwjec + _in_blocks(y_nhwec, d)).flatten(3, 4).flatten(1, 2)
    return y_nhwec if total_nhwec is None else total_nhwec + y_nhwec


class SharedOperation(nn.Module):
    """An operation without weights, computed once and weighted for each of E edges.

    Where K candidates of a row are this operation (in the paper's layout there is an identity for
    each rule), an edge receives it times the sum of their weights.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], edges: int) -> None:
        """Take the place of the modules at `names` in the reference, `module` being one of them."""
        super().__init__()
        self.module, self.names, self.edges = module, tuple(names), edges

    def forward(self, maps: NodeMaps, weights: LaneWeights, subset: Subset | None = None) -> Tensor:
        """Return, by the weights of K*E lanes, (N, H', W', E, C)."""
        y_nhwc = self.module(maps.plain()).permute(0, 2, 3, 1)
        weights_ke = weights.factors.view(-1, self.edges if subset is None else len(subset.numbers))
        one = len(weights_ke) == 1
        weights_e = weights_ke[0] if one else weights_ke.sum(0, dtype=weights_ke.dtype)
        return y_nhwc.unsqueeze(3) * weights_e.unsqueeze(1)


def stacked_layers(
    candidates: Sequence[BuiltCandidate], names: Sequence[str], edges: int
) -> list[nn.Module]:
    """Return one layer for each place in the row of layers of candidates.

    These are in the order (rule, edge) and stand at `names` in the reference.
    """
    members = [
        list(leaves(candidate.module, name))
        for candidate, name in zip(candidates, names, strict=True)
    ]
    # Members are ordered (rule, edge): every E-th begins a new rule.
    forms = [candidate.form for candidate in candidates[::edges]]
    # For each convolution in turn, the weights of all members.
    weights = zip(*(candidate.weights for candidate in candidates), strict=True)
    layers: list[nn.Module] = []
    first = True
    for place, of_place in enumerate(zip(*members, strict=True)):
        layer_names, modules = zip(*of_place, strict=True)
        layers.append(_stacked_layer(modules, weights, layer_names, forms, place, first))
        first = first and forms[0][place].kind == "relu"
    return layers


def _stacked_layer(
    modules: Sequence[nn.Module],
    weights: Iterator[tuple[Tensor, ...]],
    names: Sequence[str],
    forms: Sequence[Form],
    place: int,
    first: bool,
) -> nn.Module:
    """Return the layers at one place as one; `first` tells whether they read the node itself.

    Each convolution takes those of its members from `weights`.
    """
    kind = forms[0][place].kind
    rules = [form[place].rules for form in forms]
    if kind == "relu":
        return nn.ReLU()
    if kind == "norm":
        return StackedBatchNorm(modules, names)  # type: ignore[arg-type]
    if kind == "even and odd":
        halves = next(weights), next(weights)
        even, odd = zip(*rules, strict=True)
        return StackedEvenAndOdd(modules[0], halves, names, (even, odd))  # type: ignore[arg-type]
    of_members = [rule for (rule,) in rules]
    return StackedConv2d(modules[0], next(weights), names, of_members, first)  # type: ignore[arg-type]


def fold(layers: Sequence[nn.Module]) -> list[nn.Module]:
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
    """Return how far apart the pixels are that an operation brings together.

    That is d, and whether only every d-th pixel is read; (1, False) if it brings neighbors
    together.

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
    return _in_blocks(y_nhwec, d).flatten(3, 4).flatten(1, 2)  # W/d, j -> W and H/d, i -> H


def _in_blocks(y_nhwec: Tensor, d: int) -> Tensor:
    """View maps taken apart, (d*d*N, H/d, W/d, E, C), as (N, H/d, d, W/d, d, E, C)."""
    y_ijnhwec = y_nhwec.unflatten(0, (d, d, -1))
    return y_ijnhwec.permute(2, 3, 0, 4, 1, 5, 6)
