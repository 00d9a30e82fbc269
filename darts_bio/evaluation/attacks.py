"""Attacks on classifiers of images, by torchattacks, under names and options of ours.

All work on pixels (N, C, H, W) in [0, 1], so a network brings its normalisation with it
(`Trained.on_pixels`), and eps is a share of that range. What an attack does is a function of the
network, the images and a seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number, check_whole, install_hint
from darts_bio.modes import frozen, undisturbed
from darts_bio.registry import Registry
from darts_bio.rules import rule_carriers, true_gradients
from darts_bio.runtime import derive_seed, generator, seeded
from darts_bio.training.adversarial import check_reach

Gradients = Literal["true", "rule"]
"""By which derivative an attack climbs: the exact one, or what the learning rules send down to the
image."""


@dataclass(frozen=True)
class Attack:
    """What is asked of torchattacks. Members of `ATTACKS` are frozen dataclasses; their fields are
    the options.
    """

    white_box: ClassVar[bool] = True
    """Whether it follows a gradient."""

    bounded: ClassVar[bool] = True
    """Whether no pixel changes by more than eps."""

    strength: ClassVar[int] = 0
    """What has more of it should not leave more images right, under the same gradients; 0 where
    nothing is promised."""

    least_classes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for f in fields(self):
            if isinstance(f.default, int):
                check_whole(f"attack {self.name}: {f.name}", getattr(self, f.name))

    @property
    def name(self) -> str:
        return ATTACKS.name_of(self)

    @property
    def tries(self) -> int:
        """How often an image that withstands is attacked, each time with other draws."""
        return getattr(self, "restarts", 1)

    def check(self, eps: float) -> None:
        """Raises InputError if the attack cannot reach eps, a share of a pixel's range."""

    def refuse_few(self, classes: int) -> None:
        """Raises InputError if the attack asks for more classes."""
        if classes < self.least_classes:
            raise InputError(
                f"attack {self.name}: expected at least {self.least_classes} classes, found "
                f"{classes}; leave it out"
            )

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        """torchattacks' object, from `library`, which is that package."""
        raise NotImplementedError(f"{type(self).__name__}.build")


ATTACKS: Registry[type[Attack]] = Registry("attack")


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of eps along the sign of the gradient (Goodfellow 2015, arXiv 1412.6572)."""

    strength = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.FGSM(model, eps=eps)


@dataclass(frozen=True)
class _Steps(Attack):
    """Steps along the sign of the gradient, of a length `step` in 1/255 of a pixel's range, or of
    2.5 eps / steps.
    """

    steps: int = 20
    step: float | None = None
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None:
            check_number(f"attack {self.name}: step", self.step, above=0, below=256)

    def length(self, eps: float) -> float:
        """Of a step, as a share of a pixel's range."""
        return 2.5 * eps / self.steps if self.step is None else self.step / 255

    def check(self, eps: float) -> None:
        check_reach(f"attack {self.name}", self.steps, 255 * self.length(eps), 255 * eps)


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD(_Steps):
    """Projected gradient descent on the cross entropy, from a random start (Madry 2018, arXiv
    1706.06083).
    """

    strength = 2

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.PGD(
            model, eps=eps, alpha=self.length(eps), steps=self.steps, random_start=True
        )


@ATTACKS.register("tpgd")
@dataclass(frozen=True)
class TPGD(_Steps):
    """PGD on the divergence from the clean image's prediction, without labels (Zhang 2019, arXiv
    1901.08573).
    """

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.TPGD(model, eps=eps, alpha=self.length(eps), steps=self.steps)


@dataclass(frozen=True)
class _APGD(Attack):
    strength = 3
    loss: ClassVar[str]
    steps: int = 50
    restarts: int = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.APGD(model, eps=eps, steps=self.steps, loss=self.loss, seed=seed)


@ATTACKS.register("apgd_ce")
@dataclass(frozen=True)
class APGDCE(_APGD):
    """PGD that chooses its steps by itself, on the cross entropy (Croce 2020, arXiv 2003.01690)."""

    loss = "ce"


@ATTACKS.register("apgd_dlr")
@dataclass(frozen=True)
class APGDDLR(_APGD):
    """The same on the difference of logits ratio, which does not saturate; of three classes or
    more.
    """

    loss = "dlr"
    least_classes = 3


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Attack):
    """Random squares, kept where they help: no gradient (Andriushchenko 2020, arXiv 1912.00049)."""

    white_box = False
    queries: int = 1000
    restarts: int = 1

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.Square(model, eps=eps, n_queries=self.queries, seed=seed)


@ATTACKS.register("one_pixel")
@dataclass(frozen=True)
class OnePixel(Attack):
    """A pixel or a few, changed without bound, by evolution: no gradient (Su 2019, arXiv
    1710.08864).
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
    """APGD, APGD against each class, FAB, Square of 5000 queries (Croce 2020, arXiv 2003.01690); of
    four classes up.
    """

    strength = 4
    least_classes = 4

    def build(self, library: Any, model: nn.Module, eps: float, classes: int, seed: int) -> Any:
        return library.AutoAttack(model, eps=eps, n_classes=classes, seed=seed)


class Victim(nn.Module):
    """What an attack is given of a classifier of pixels: its logits, and the derivative that is
    asked for.

    Where no error reaches the image the gradient is zero. With `draws` > 1 and gradients of the
    rule it is the mean over that many draws of the feedback that is drawn anew at every weight
    update (brsf): expectation over transformation (Athalye 2018, arXiv 1707.07397).
    """

    def __init__(
        self, model: nn.Module, gradients: Gradients, draws: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        self.model, self.exact, self.seed, self.drawn = model, gradients == "true", seed, 0
        self.draws = draws if gradients == "rule" and redraws(model) else 1

    def forward(self, pixels: Tensor) -> Tensor:
        if self.draws > 1 and torch.is_grad_enabled() and pixels.requires_grad:
            logits: Tensor = _Expected.apply(pixels, self)
        else:
            with true_gradients(self.model) if self.exact else contextlib.nullcontext():
                logits = self.model(pixels)
        return logits + 0 * pixels.flatten(1).sum(1, keepdim=True)

    def redraw(self) -> None:
        self.drawn += 1
        for name, carrier in rule_carriers(self.model):
            if carrier.rule.redraws and carrier.feedback:
                device = next(iter(carrier.feedback.values())).device
                carrier.renew_feedback(
                    generator(device, "expectation", self.seed, name, self.drawn)
                )


def redraws(model: nn.Module) -> bool:
    """Whether any feedback of the model is drawn anew at every weight update."""
    return any(carrier.rule.redraws for _, carrier in rule_carriers(model))


class _Expected(torch.autograd.Function):
    """The forward pass does not depend on the feedback, so that the mean of the derivatives is that
    of the mean.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, victim: Victim) -> Tensor:
        ctx.victim = victim
        ctx.save_for_backward(pixels)
        return victim.model(pixels)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        (pixels,) = ctx.saved_tensors
        total = torch.zeros_like(pixels)
        for _ in range(ctx.victim.draws):
            ctx.victim.redraw()
            with torch.enable_grad():
                x = pixels.detach().requires_grad_()
                (sent,) = torch.autograd.grad(ctx.victim.model(x), x, error, allow_unused=True)
            if sent is not None:
                total += sent
        return total / ctx.victim.draws, None


def torchattacks() -> Any:
    """The package. Raises InputError if it is not installed."""
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
    """Images (N, C, H, W) in [0, 1], as an attack on a classifier of pixels changes them.

    The model is attacked in evaluation mode and left as it was, random states too. Of several
    restarts an image keeps the first that is misclassified. Raises InputError if the attack asks
    for more classes, or cannot reach eps.
    """
    attack.check(eps)
    library, found = torchattacks(), pixels.clone()
    with undisturbed(model, training=False), frozen(model):
        with torch.no_grad():
            classes = model(pixels[:1]).shape[1]
        attack.refuse_few(classes)
        left = torch.arange(len(pixels), device=pixels.device)
        for number in range(attack.tries):
            own = derive_seed("attack", seed, number) % 2**32
            with _drawing(own, pixels.device):
                victim = Victim(model, gradients, draws, own).eval()
                changed = attack.build(library, victim, eps, classes, own)(
                    pixels[left], labels[left]
                ).detach()
            found[left] = changed
            with torch.no_grad():
                left = left[model(changed).argmax(1) == labels[left]]
            if not len(left):
                break
    return found


@contextlib.contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Within it all default generators start from the seed, that of the images' GPU too."""
    with seeded(seed), torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield
