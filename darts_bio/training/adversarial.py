"""Training on adversarial examples, which are made anew at each step against the network as it then
is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.data.batches import Normalisation
from darts_bio.distributed import rank, world_size
from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.modes import frozen, in_mode
from darts_bio.registry import Registry
from darts_bio.rules import true_gradients
from darts_bio.runtime import autocast, generator, send

Loss = Callable[[Any, Tensor], Tensor]
"""Of what a network gives in training, and targets."""


def check_reach(where: str, steps: int, step: float, eps: float) -> None:
    """Raises InputError if steps of that length end before eps, both in 1/255 of a pixel's
    range.
    """
    if step * steps < eps * (1 - 1e-9):  # 3 * 0.7 is rounded to less than 2.1
        raise InputError(
            f"{where}: {steps} steps of {step:g}/255 end before eps {eps:g}/255; take more or "
            "longer ones"
        )


@dataclass(frozen=True)
class Adversary:
    """How examples are made, and what is learned from them. `eps`, the largest change of a pixel,
    and `step` are in 1/255 of a pixel's range; `gradient` is true, the exact one, or rule, what the
    learning rules send down.
    """

    eps: float = 8.0
    step: float = 2.0
    steps: int = 10
    gradient: str = "true"

    needs_clean: ClassVar[bool] = False
    """Whether the images as they are pass through the network as well: before the climb, and in
    training."""

    def __post_init__(self) -> None:
        where = f"--adversarial {ADVERSARIES.name_of(self)}"
        check_number(f"{where}: eps", self.eps, above=0, below=256)
        check_number(f"{where}: step", self.step, above=0, below=256)
        check_whole(f"{where}: steps", self.steps)
        if self.gradient not in ("true", "rule"):
            raise unknown_name(f"gradient of {where}", str(self.gradient), ("true", "rule"))
        check_reach(where, self.steps, self.step, self.eps)

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        """Where the climb begins: a change (N, C, H, W) in units of eps."""
        raise NotImplementedError(f"{type(self).__name__}.start")

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        """The sum over images of what the example is to raise. `clean`: the logits of the images as
        they are, if that is needed.
        """
        raise NotImplementedError(f"{type(self).__name__}.climbed")

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        """What is descended, by what the network gives for the examples and, if that is needed, for
        the images.
        """
        raise NotImplementedError(f"{type(self).__name__}.loss")


ADVERSARIES: Registry[type[Adversary]] = Registry("adversary")


@ADVERSARIES.register("pgd")
@dataclass(frozen=True)
class PGD(Adversary):
    """The loss on examples of projected gradient descent (Madry 2018, arXiv 1706.06083)."""

    steps: int = 7

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        return 2 * torch.rand(shape, generator=source) - 1

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="sum")

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        return loss(output, targets)


@ADVERSARIES.register("trades")
@dataclass(frozen=True)
class TRADES(Adversary):
    """The loss on clean images, and beta times how far predictions move (Zhang 2019, arXiv
    1901.08573).
    """

    beta: float = 6.0
    needs_clean = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("--adversarial trades: beta", self.beta, above=0)

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        return 0.001 / (self.eps / 255) * torch.randn(shape, generator=source)

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        return _divergence(clean, logits)

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        moved = _divergence(logits_of(clean), logits_of(output)) / len(targets)
        return loss(clean, targets) + self.beta * moved


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler's, from the predictions on clean images to these, summed over images."""
    return F.kl_div(
        F.log_softmax(logits.float(), 1),
        F.log_softmax(clean.float(), 1),
        reduction="sum",
        log_target=True,
    )


def logits_of(output: Any) -> Tensor:
    """Of what a network gives in training: the logits, without those of an auxiliary head."""
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


class AdversarialExamples:
    """Examples for the images of a run's batches, normalised as these are.

    They are made in evaluation mode, so that batch norms use and keep their statistics and no path
    is dropped, and are a function of the network, the images, the seed and the step.
    """

    def __init__(
        self,
        adversary: Adversary,
        network: nn.Module,
        normalisation: Normalisation,
        *,
        seed: int,
        amp: str,
    ) -> None:
        self.adversary, self._network, self._seed, self._amp = adversary, network, seed, amp
        mean, std = (value.view(-1, 1, 1) for value in (normalisation.mean, normalisation.std))
        self._black, self._white, self._unit = -mean / std, (1 - mean) / std, 1 / (255 * std)

    def starts(self, t: int, x: Tensor) -> Tensor:
        """Where the climbs of step t begin, for this process' share x (N, C, H, W) of the batch."""
        number, own = rank(), len(x)
        # Drawn for the whole batch, so that an image's draw does not depend on how many processes
        # there are.
        shape = torch.Size((own * world_size(), *x.shape[1:]))
        drawn = self.adversary.start(shape, generator("cpu", "adversary", self._seed, t))
        return send(drawn[number * own : (number + 1) * own], x.device)

    def made(self, x: Tensor, targets: Tensor, start: Tensor) -> Tensor:
        """The examples of images (N, C, H, W), with labels (N,) or the classes' shares (N, K)."""
        adversary, bound = self.adversary, self.adversary.eps * self._unit
        low, high = torch.maximum(x - bound, self._black), torch.minimum(x + bound, self._white)
        example = torch.clamp(x + bound * start, low, high)
        exact = (
            true_gradients(self._network)
            if adversary.gradient == "true"
            else contextlib.nullcontext()
        )
        with in_mode(self._network, training=False), frozen(self._network), exact:
            with torch.no_grad():
                clean = self._logits(x) if adversary.needs_clean else None
            for _ in range(adversary.steps):
                example = example.detach().requires_grad_()
                raised = adversary.climbed(self._logits(example).float(), targets, clean)
                # Where no error is sent down to the images the example stays as it is.
                (gradient,) = torch.autograd.grad(raised + 0 * example.sum(), example)
                with torch.no_grad():
                    example = torch.clamp(
                        example + adversary.step * self._unit * gradient.sign(), low, high
                    )
        return example.detach()

    def _logits(self, x: Tensor) -> Tensor:
        with autocast(x.device, self._amp):
            return logits_of(self._network(x))
