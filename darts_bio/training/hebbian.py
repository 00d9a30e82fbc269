"""Hebbian pretraining: the procedure by which soft Hebbian layers learn features, without labels.

The published procedure (SoftHebb: Journe 2023, arXiv 2209.11883, section 4 and appendix B), beside
the update itself, which is the rule `hebbian(rate=norm, step=max)`:

1. a layer's input is normalized by a batch norm without gain and bias, and its output goes through
   the triangle activation (`Triangle`; Coates 2011): `hebbian_block`;
2. weights start large, with channels of norm `radius`, from which the rule takes them to 1;
3. plain descent in small batches, once through the images;
4. layer after layer: one learns on what those before it have become, and then stays as it is.

The last differs from the authors' shortest program, which moves all layers in the same pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number, check_whole
from darts_bio.modes import frozen, in_mode, undisturbed
from darts_bio.rules import RULES, RuleConv2d, RuleLayer, rule_carriers
from darts_bio.rules.hebbian import Hebbian, norms
from darts_bio.rules.weights import SUFFIX
from darts_bio.runtime import generator

Images = Tensor | Iterable[Any]


class Triangle(nn.Module):
    """Return max(0, u - mean of u over channels)^power, for u (N, C, ...).

    >>> Triangle(power=2)(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[0., 0., 9.]])
    """

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        check_number("Triangle: power", power, above=0)
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        return (u - u.mean(1, keepdim=True)).relu() ** self.power

    def extra_repr(self) -> str:
        return f"power={self.power}"


def hebbian_block(
    in_channels: int,
    channels: int,
    kernel_size: int,
    *,
    temperature: float = 1.0,
    power: float = 1.0,
    pool: nn.Module | None = None,
) -> nn.Sequential:
    """Build a block of the published network: (N, in_channels, H, W) to (N, channels, H/2, W/2).

    That is a batch norm without gain and bias, a convolution under
    `hebbian(rate=norm, step=max)`, `Triangle` and pooling.

    Args:
        in_channels: The channels of its input.
        channels: The channels that compete.
        kernel_size: The side of their windows, an odd number; the input is padded by reflection.
        temperature: What multiplies the responses in the softmax (the authors' t_invert).
        power: That of the triangle activation.
        pool: The pooling, by default the largest of 4x4 in steps of 2.

    >>> block = hebbian_block(3, 96, 5, power=0.7)
    >>> block(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 96, 16, 16])
    """
    kernel_size = check_whole("hebbian_block: kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise InputError(
            f"hebbian_block: expected an odd kernel_size, found {kernel_size}: with an even one "
            "the map would change its size"
        )
    rule = RULES.build(f"hebbian(rate=norm, step=max, temperature={temperature})")
    convolution = RuleConv2d(
        in_channels,
        channels,
        kernel_size,
        padding=kernel_size // 2,
        padding_mode="reflect",
        bias=False,
        rule=rule,
    )
    layers: dict[str, nn.Module] = {
        "norm": nn.BatchNorm2d(in_channels, affine=False),
        "convolution": convolution,
        "activation": Triangle(power),
        "pool": nn.MaxPool2d(4, 2, 1) if pool is None else pool,
    }
    return nn.Sequential(OrderedDict(layers))


def hebbian_pretraining(
    model: nn.Module,
    images: Images,
    *,
    lr: float | Sequence[float] = 0.08,
    radius: float = 25.0,
    epochs: int = 1,
    batch_size: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Teach the layers of a model that are under `hebbian`, one after the other, without labels.

    They may be those of `hebbian_block`, of a model that was converted, or of a network of cells.
    Each is drawn anew, learns by plain descent on the images, and is then frozen (requires_grad is
    False), so that any training of the rest goes on from there. Batch norms up to it follow the
    images on the way; everything else stays as it is. The order is that in which the model calls
    the layers. A pass ends at the layer that learns.

    The defaults are those of the published first layer. Where there are far fewer steps than its
    5,000, weights need a smaller radius to settle.

    Args:
        model: Called with a batch of images.
        images: (N, ...), of which batches are drawn in an order of `seed`; or an iterable of
            batches, such as a DataLoader, gone through once for each layer and epoch. Of a batch
            that is a tuple or a list the first is taken.
        lr: The learning rate, or one for each layer (0.08, 0.005 and 0.01 in the published
            network).
        radius: The norm that the weights of a channel begin with, in the mean of squares. They
            are drawn from a normal distribution.
        epochs: How often a layer sees the images.
        batch_size: Of batches drawn from a tensor. What does not fill one is left out.
        seed: Weights and order are functions of it.

    Returns:
        The mean norm of each layer's channels afterwards, by its name: about 1 once it has settled.

    Raises:
        InputError: If there is no layer under `hebbian`, or one that the model does not call or
            whose step has no bound, or a weight under it that is no layer's (attention), and for
            values out of bounds.

    Example: 8 features of 5x5 pixels, learned from noise.

        >>> model = nn.Sequential(hebbian_block(3, 8, 5), nn.Flatten(), nn.Linear(128, 10))
        >>> learned = hebbian_pretraining(model, torch.rand(200, 3, 8, 8), radius=2)
        >>> list(learned), [name for name, p in model.named_parameters() if p.requires_grad]
        (['0.convolution'], ['2.weight', '2.bias'])
    """
    where = "hebbian_pretraining"
    check_number(f"{where}: radius", radius, above=0)
    epochs = check_whole(f"{where}: epochs", epochs)
    batch_size = check_whole(f"{where}: batch_size", batch_size)
    if isinstance(images, Tensor) and not (images.is_floating_point() and len(images)):
        raise InputError(
            f"{where}: expected images of a floating type, found {tuple(images.shape)} of "
            f"{images.dtype}: convert and scale them as the model takes them"
        )
    if isinstance(images, Iterator):
        raise InputError(
            f"{where}: expected images that can be gone through for each layer, found a "
            f"{type(images).__name__}, which ends after once: hand over a list or a DataLoader"
        )
    with in_mode(model, training=True):
        first = next(_batches(images, batch_size, seed, 0), None)
        if first is None:
            raise InputError(f"{where}: expected at least one batch of images, found none")
        layers = _in_order(model, first)
        rates = [lr] * len(layers) if isinstance(lr, (int, float)) else list(lr)
        if len(rates) != len(layers):
            raise InputError(
                f"{where}: expected one lr, or one for each of {', '.join(layers)}; "
                f"found {len(rates)}"
            )
        for rate in rates:
            check_number(f"{where}: lr", rate, above=0)
        for rate, (name, layer) in zip(rates, layers.items(), strict=True):
            _draw(layer, radius, generator("cpu", "hebbian", seed, name))
            for epoch in range(epochs):
                for x in _batches(images, batch_size, seed, epoch):
                    update = _update(model, layer, x)
                    with torch.no_grad():
                        layer.used_weight.sub_(update, alpha=rate)
    for layer in layers.values():
        layer.used_weight.requires_grad_(False)
    return {name: norms(layer.used_weight).mean().item() for name, layer in layers.items()}


def _in_order(model: nn.Module, x: Tensor) -> dict[str, RuleLayer]:
    """Return the layers under `hebbian` by name, in the order of their first call."""
    layers: dict[str, RuleLayer] = {}
    for name, carrier in rule_carriers(model):
        rule = carrier.rule
        if not isinstance(rule, Hebbian):
            continue
        if not isinstance(carrier, RuleLayer) or "weight" not in carrier._parameters:
            raise InputError(
                f"hebbian_pretraining: {name.removesuffix(SUFFIX)} is no convolution or linear layer of its own that "
                "could be drawn anew; leave it under another rule"
            )
        if rule.form == "soft" and rule.step != "max":
            raise InputError(
                f"hebbian_pretraining: {name} learns by {rule.spec}, whose steps have no "
                "bound: use hebbian(rate=norm, step=max)"
            )
        layers[name] = carrier
    if not layers:
        raise InputError(
            "hebbian_pretraining: the model has no layer under hebbian; put some under it: "
            'convert(model, {"fc": "bp", "*": "hebbian(rate=norm, step=max)"})'
        )
    called: list[nn.Module] = []

    def note(layer: nn.Module, inputs: Any) -> None:
        called.append(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        # Batch norms are not to count this pass.
        with undisturbed(model, training=True), torch.no_grad():
            model(x.to(next(iter(layers.values())).used_weight.device))
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name, layer in layers.items() if layer not in called]
    if idle:
        raise InputError(
            f"hebbian_pretraining: expected a model that calls all layers under hebbian, found no "
            f"call of {', '.join(idle)}; leave what it does not call under another rule"
        )
    return dict(sorted(layers.items(), key=lambda item: called.index(item[1])))


def _draw(layer: RuleLayer, radius: float, draws: torch.Generator) -> None:
    """Draw a layer's weights from a normal distribution, in channels of norm `radius`."""
    weight = layer.used_weight
    fan_in = weight[0].numel()
    drawn = torch.randn(weight.shape, generator=draws) * (radius / fan_in**0.5)
    with torch.no_grad():
        weight.copy_(drawn)


def _batches(images: Images, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yield the batches of an epoch: of a tensor in an order of the seed, all of the same size."""
    if not isinstance(images, Tensor):
        yield from (b[0] if isinstance(b, (tuple, list)) else b for b in images)
        return
    order = torch.randperm(len(images), generator=generator("cpu", "order", seed, epoch))
    for part in order.split(batch_size):
        if len(part) == min(batch_size, len(images)):
            yield images[part.to(images.device)]


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a pass at the layer that learns, with its output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _update(model: nn.Module, layer: RuleLayer, x: Tensor) -> Tensor:
    """Return what the rule of a layer wants subtracted from its weight, for a batch of images."""

    def reached(module: nn.Module, inputs: Any, output: Tensor) -> None:
        raise _Reached(output)

    weight = layer.used_weight
    handle = layer.register_forward_hook(reached)
    with torch.enable_grad(), frozen(model):
        weight.requires_grad_(True)
        try:
            model(x.to(weight.device))
        except _Reached as end:
            # A local rule does not read the error: any function of the output tells its update.
            return torch.autograd.grad(end.output.sum(), weight)[0]
        finally:
            handle.remove()
    raise AssertionError("the layer was called before")
