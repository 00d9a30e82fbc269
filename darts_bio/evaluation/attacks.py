"""Attacks on classifiers of images, by torchattacks, under names and options of this package.

An attack changes images so that a classifier errs, within a threat model:

| name | norm | bound | follows | paper |
|---|---|---|---|---|
| fgsm | L-infinity | eps | the gradient, one step | Goodfellow 2015, arXiv 1412.6572 |
| pgd | L-infinity | eps | the gradient | Madry 2018, arXiv 1706.06083 |
| tpgd | L-infinity | eps | the gradient, without labels | Zhang 2019, arXiv 1901.08573 |
| apgd_ce, apgd_dlr | L-infinity | eps | the gradient | Croce 2020, arXiv 2003.01690 |
| square | L-infinity | eps | logits alone | Andriushchenko 2020, arXiv 1912.00049 |
| one_pixel | L0 | 1 pixel, of any color | logits alone | Su 2019, arXiv 1710.08864 |
| autoattack | L-infinity | eps | four attacks in turn | Croce 2020, arXiv 2003.01690 |

Pixels (N, C, H, W) are in [0, 1], so a network brings its normalization with it
(`Trained.on_pixels`). eps bounds the change of every value, as a share of that range: command
lines and papers give it in 1/255, and 8/255 is customary for CIFAR-10. What an attack returns is a
function of the network, the images, eps and a seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from darts_bio.config import Gradients
from darts_bio.errors import (
    InputError,
    brief,
    check_number,
    check_whole,
    install_hint,
    unknown_name,
)
from darts_bio.evaluation.pixels import refuse_other_pixels
from darts_bio.evaluation.victim import Victim
from darts_bio.modes import frozen, undisturbed
from darts_bio.passes import refused_by
from darts_bio.registry import Registry
from darts_bio.runtime import derive_seed, seeded
from darts_bio.training.adversarial import check_reach


@dataclass(frozen=True)
class Attack:
    """The options of an attack, and how torchattacks' object is built from them.

    Members of `ATTACKS` are frozen dataclasses; their fields are the options of a spec.

    >>> attack = ATTACKS.build("pgd(steps=40, restarts=5)")
    >>> attack.name, attack.white_box, attack.bounded, attack.tries
    ('pgd', True, True, 5)
    """

    white_box: ClassVar[bool] = True
    """Whether it follows a gradient."""

    bounded: ClassVar[bool] = True
    """Whether no pixel changes by more than eps."""

    strength: ClassVar[int] = 0
    """Its place in an order of strength: of two attacks by the same gradients the one with more of
    it should not leave more images right. 0 where nothing is promised."""

    least_classes: ClassVar[int] = 2
    """The classes that a classifier must have at least."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if isinstance(f.default, int):
                check_whole(f"attack {self.name}: {f.name}", getattr(self, f.name))

    @property
    def name(self) -> str:
        """The name it is registered by."""
        return ATTACKS.name_of(self)

    @property
    def tries(self) -> int:
        """How often an image that withstands is attacked, each time with other draws."""
        return getattr(self, "restarts", 1)

    def check(self, eps: float) -> None:
        """Raise InputError if the attack cannot reach eps, a share of a pixel's range."""

    def refuse_few(self, classes: int) -> None:
        """Raise InputError if the attack needs more classes than the classifier has."""
        if classes < self.least_classes:
            raise InputError(
                f"attack {self.name}: expected at least {self.least_classes} classes, found "
                f"{classes}; leave it out"
            )

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        """Return what maps pixels (N, C, H, W) and labels (N,) to changed pixels.

        Args:
            library: The package torchattacks.
            model: From pixels in [0, 1] to logits.
            eps: The bound, a share of a pixel's range.
            classes: How many the model tells apart.
            seed: That of the attack's own draws, where it takes one; the default generators are
                seeded besides.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")


ATTACKS: Registry[type[Attack]] = Registry("attack", base=Attack)
"""The attacks, by the name that --attacks takes."""


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of eps along the sign of the gradient (Goodfellow 2015, arXiv 1412.6572).

    Threat model: L-infinity, every value within eps; white box. Returned is where the step ends,
    for every image.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 1])
    >>> changed = perturb(FGSM(), model, pixels, labels, eps=8 / 255)
    >>> [round(255 * change.item(), 2) for change in (changed - pixels).abs().aminmax()]
    [8.0, 8.0]
    """

    strength = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.FGSM(model, eps=eps)


@dataclass(frozen=True)
class _Steps(Attack):
    """An attack by steps along the sign of the gradient, each followed by a projection.

    Attributes:
        steps: How many.
        step: Their length in 1/255 of a pixel's range; by default 2.5 eps / steps.
        restarts: How often an image that withstands is attacked.
    """

    steps: int = 20
    step: float | None = None
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None:
            check_number(f"attack {self.name}: step", self.step, above=0, below=256)

    def length(self, eps: float) -> float:
        """Return the length of a step, as a share of a pixel's range."""
        return 2.5 * eps / self.steps if self.step is None else self.step / 255

    def check(self, eps: float) -> None:
        check_reach(f"attack {self.name}", self.steps, 255 * self.length(eps), 255 * eps)


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(_Steps):
    """Projected gradient descent from a random start (Madry 2018, arXiv 1706.06083).

    It climbs cross entropy. Threat model: L-infinity, every value within eps of the clean image's
    and in [0, 1]; white box. Returned is where the last step ends, for every image. Options are
    those of `_Steps`: 20 steps of 2.5 eps / 20 by default.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> changed = perturb(PGD(steps=5), model, pixels, labels, eps=8 / 255)
    >>> loss = nn.functional.cross_entropy
    >>> bool(loss(model(changed), labels) > loss(model(pixels), labels))
    True
    >>> round(255 * (changed - pixels).abs().max().item(), 2)
    8.0
    """

    strength = 2

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.PGD(
            model, eps=eps, alpha=self.length(eps), steps=self.steps, random_start=True
        )


@ATTACKS.register("tpgd")
@dataclass(frozen=True)
class TPGD(_Steps):
    """PGD on the divergence from the clean image's prediction (Zhang 2019, arXiv 1901.08573).

    Threat model: L-infinity, every value within eps; white box; it makes no use of the labels. The
    start is normal noise of 0.001. Returned is where the last step ends, for every image. Options
    are those of `_Steps`.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels = torch.rand(2, 3, 4, 4)
    >>> one, other = (
    ...     perturb(TPGD(steps=5), model, pixels, labels, eps=8 / 255)
    ...     for labels in (torch.tensor([0, 1]), torch.tensor([2, 3]))
    ... )
    >>> torch.equal(one, other), round(255 * (one - pixels).abs().max().item(), 2)
    (True, 8.0)
    """

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.TPGD(model, eps=eps, alpha=self.length(eps), steps=self.steps)


@dataclass(frozen=True)
class _APGD(Attack):
    """Auto-PGD: projected gradient steps with momentum, whose length is halved where they stall.

    Attributes:
        steps: How many.
        restarts: How often an image that withstands is attacked.
    """

    strength = 3
    loss: ClassVar[str]
    steps: int = 50
    restarts: int = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.APGD(model, eps=eps, steps=self.steps, loss=self.loss, seed=seed)


@ATTACKS.register("apgd_ce")
@dataclass(frozen=True)
class APGDCE(_APGD):
    """Auto-PGD, which chooses its step lengths, on cross entropy (Croce 2020, arXiv 2003.01690).

    Threat model: L-infinity, every value within eps; white box. Returned is a misclassified image
    where one was found, and the clean image elsewhere.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 3])
    >>> changed = perturb(APGDCE(steps=5), model, pixels, labels, eps=8 / 255)
    >>> withstood = model(changed).argmax(1) == labels
    >>> torch.equal(changed[withstood], pixels[withstood])
    True
    """

    loss = "ce"


@ATTACKS.register("apgd_dlr")
@dataclass(frozen=True)
class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (Croce 2020, arXiv 2003.01690); 3 classes or more.

    That loss does not change with the scale of the logits, where cross entropy saturates and its
    gradient vanishes. It compares three logits, hence as many classes. Threat model and what is
    returned are those of apgd_ce.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    >>> perturb(APGDDLR(), model, torch.rand(1, 3, 4, 4), torch.tensor([0]), eps=8 / 255)
    Traceback (most recent call last):
    darts_bio.errors.InputError: attack apgd_dlr: expected at least 3 classes, found 2; leave it out
    """

    loss = "dlr"
    least_classes = 3


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Attack):
    """Random squares, kept where they help: no gradient (Andriushchenko 2020, arXiv 1912.00049).

    Threat model: L-infinity, every value within eps; black box, `queries` passes of the classifier
    at most. Returned is a misclassified image where one was found, and the clean image elsewhere.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> changed = perturb(Square(queries=20), model, pixels, labels, eps=8 / 255)
    >>> bool((changed - pixels).abs().max() < 8.001 / 255)
    True

    Attributes:
        queries: Squares that are tried on an image, in each restart.
        restarts: How often an image that withstands is attacked.
    """

    white_box = False
    queries: int = 1000
    restarts: int = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.Square(model, eps=eps, n_queries=self.queries, seed=seed)


@ATTACKS.register("one_pixel")
@dataclass(frozen=True)
class OnePixel(Attack):
    """One pixel or a few, of any color, by evolution: no gradient (Su 2019, arXiv 1710.08864).

    Threat model: L0, at most `pixels` pixels, each with all its channels changed at will, so eps
    does not count; black box. Returned is the best individual of the last generation, for every
    image.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> changed = perturb(OnePixel(steps=2, population=10), model, pixels, labels, eps=0.0)
    >>> (changed != pixels).any(1).sum((1, 2)).tolist()
    [1, 1]

    Attributes:
        pixels: How many may change.
        steps: Generations.
        population: Individuals of a generation.
    """

    white_box = False
    bounded = False
    pixels: int = 1
    steps: int = 10
    population: int = 100

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.OnePixel(
            model, pixels=self.pixels, steps=self.steps, popsize=self.population
        )


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """APGD, targeted APGD, targeted FAB, then Square (Croce 2020, arXiv 2003.01690); 4 classes up.

    It is torchattacks' version "standard": Square has 5000 queries, and each attack is made on the
    images that the ones before have left right. The targeted loss compares four logits, hence as
    many classes. Threat model: L-infinity, every value within eps; three white boxes and a black
    one. Returned is a misclassified image where one was found, and the clean image elsewhere.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels = torch.rand(2, 3, 4, 4)
    >>> labels = model(pixels).argmax(1)
    >>> changed = perturb(AutoAttack(), model, pixels, labels, eps=64 / 255)
    >>> (model(changed).argmax(1) == labels).tolist()
    [False, False]
    """

    strength = 4
    least_classes = 4

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.AutoAttack(model, eps=eps, n_classes=classes, seed=seed)


def torchattacks() -> Any:
    """Return the package torchattacks; raises InputError if it is not installed.

    >>> torchattacks().__name__
    'torchattacks'
    """
    try:
        import torchattacks as library
    except ImportError as error:
        raise InputError(
            f"attacks need torchattacks ({error}); {install_hint('attacks')}"
        ) from None
    return library


def perturb(
    attack: Attack,
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    *,
    gradients: Gradients = "true",
    draws: int = 1,
    seed: int = 0,
) -> Tensor:
    """Return images as an attack on a classifier of pixels changes them.

    The model is attacked in evaluation mode and left as it was, random states too.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    >>> pixels, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> changed = perturb(ATTACKS.build("pgd(steps=5)"), model, pixels, labels, eps=2 / 255)
    >>> tuple(changed.shape), round(255 * (changed - pixels).abs().max().item(), 2)
    ((2, 3, 4, 4), 2.0)

    Args:
        attack: A member of `ATTACKS`, built from a spec.
        model: From pixels in [0, 1] to logits.
        pixels: The images (N, C, H, W), in [0, 1].
        labels: Their classes (N,).
        eps: The bound on the change of each value, a share of a pixel's range.
        gradients: By which derivative it climbs.
        draws: Draws of random feedback that the rule's gradient is the mean of (`Victim`).
        seed: That of all draws.

    Returns:
        Images (N, C, H, W) in [0, 1]; where there are restarts, of each image the first result that
        is misclassified, or else the last.

    Raises:
        InputError: If an argument is not what it is said to be above, or the model cannot take the
            pixels, or hides from autograd how its logits depend on them, which the attack follows;
            or the attack needs more classes, or cannot reach eps.
    """
    if not isinstance(attack, Attack):
        found = type(attack).__name__ if isinstance(attack, nn.Module) else brief(attack)
        raise InputError(
            "attack: expected an attack, such as ATTACKS.build('pgd(steps=50)'), found "
            f"{found}; call perturb(attack, model, pixels, labels, eps)"
        )
    if not isinstance(model, nn.Module):
        raise InputError(
            f"attack: expected a torch.nn.Module, found {type(model).__name__}; call a function in "
            "the forward of one, which has a mode and buffers that are put back"
        )
    check_number("attack: eps", eps)
    if eps > 1:
        raise InputError(
            f"attack: eps: expected a share of a pixel's range, from 0 to 1, found {eps}; divide "
            "what is in 1/255 by 255"
        )
    if gradients not in get_args(Gradients):
        raise unknown_name("gradients of an attack", str(gradients), get_args(Gradients))
    draws = check_whole("attack: draws", draws)
    seed = check_whole("attack: seed", seed, least=0)
    attack.check(eps)
    refuse_other_pixels("attack", pixels)
    # As of an own loop, whatever is around it: attacks differentiate, on tensors that allow it.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        undisturbed(model, training=False),
        frozen(model),
    ):
        pixels, library = pixels.detach().clone(), torchattacks()
        result = pixels.clone()
        if not len(pixels):
            return result
        classes = _classes(attack, model, pixels[:1])
        attack.refuse_few(classes)
        labels = _checked_labels(labels, len(pixels), classes).to(pixels.device)
        remaining = torch.arange(len(pixels), device=pixels.device)  # numbers of images still right
        for number in range(attack.tries):
            try_seed = derive_seed("attack", seed, number) % 2**32  # NumPy takes 32 bits
            with _drawing(try_seed, pixels.device):
                victim = Victim(model, gradients, draws, try_seed).eval()
                built = attack.build(library, victim, eps, classes, try_seed)
                changed = built(pixels[remaining], labels[remaining]).detach()
            result[remaining] = changed
            with torch.no_grad():
                remaining = remaining[model(changed).argmax(1) == labels[remaining]]
            if not len(remaining):
                break
    return result


def _classes(attack: Attack, model: nn.Module, pixels: Tensor) -> int:
    """Return how many classes a model tells apart, by its logits of one image (1, C, H, W).

    Raises InputError if it cannot take the image or returns something else, or if the attack
    follows a gradient that autograd does not see: the images would come back unchanged, as if they
    withstood.
    """
    pixels = pixels.detach().requires_grad_(attack.white_box)
    with torch.set_grad_enabled(attack.white_box), refused_by(model, pixels, "attack"):
        logits = model(pixels)
    is_tensor = isinstance(logits, Tensor)
    if not is_tensor or logits.dim() != 2 or len(logits) != 1 or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} of {logits.dtype}" if is_tensor else type(logits).__name__
        raise InputError(
            f"attack: expected logits (1, classes) of an image from the model, found {found}; wrap "
            "it in a module that returns its logits alone"
        )
    if not logits.isfinite().all():
        raise InputError(
            f"attack: expected finite logits, found {logits.detach().sum().item()} among those of the "
            "first image; the weights may have diverged: attack an earlier state of the model"
        )
    if attack.white_box and not logits.requires_grad:
        raise InputError(
            f"attack {attack.name}: expected logits that depend on the images, found ones that "
            "autograd sees no dependence of; leave torch.no_grad() or detach() out of the model's "
            "forward, or take an attack by logits alone, such as square"
        )
    return int(logits.shape[1])


def _checked_labels(labels: Tensor, count: int, classes: int) -> Tensor:
    """Return labels (N,) of any whole numbers as int64.

    Raises InputError unless they are a tensor of `count` numbers of `classes` classes.
    """
    if not isinstance(labels, Tensor):
        raise InputError(
            f"attack: labels: expected a tensor of {count} classes, found {type(labels).__name__}; "
            "make it one by torch.as_tensor"
        )
    found = f"{tuple(labels.shape)} of {labels.dtype}"
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.shape == (count,) and whole:
        labels = labels.detach().long().clone()
        if labels.min() >= 0 and labels.max() < classes:
            return labels
        found = f"{labels.min()} to {labels.max()}"
    raise InputError(
        f"attack: labels: expected a class from 0 to {classes - 1}, a whole number, for each of "
        f"{count} images, found {found}"
    )


@contextlib.contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Start all default generators from the seed, the GPU's too; put them back at the end."""
    with seeded(seed), torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
