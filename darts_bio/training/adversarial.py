"""Adversarial training: examples are made anew at each step, against the network as it then is.

An example begins near its image and climbs: a number of steps along the sign of the gradient at the
pixels, clipped to a ball of radius eps around the image and to the range of pixels. An `Adversary`
says where the climb begins, what it raises, and which loss is then descended;
`AdversarialExamples` does the climbing for the batches of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.config import Gradients
from darts_bio.data.batches import Normalization
from darts_bio.draws import drawn_for_part
from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.modes import frozen, in_mode
from darts_bio.registry import Registry
from darts_bio.rules import true_gradients
from darts_bio.runtime import autocast, generator, send

Loss = Callable[[Any, Tensor], Tensor]
"""Maps a network's output in training, which may be a tuple, and the targets to a scalar loss."""


def check_reach(where: str, steps: int, step: float, eps: float) -> None:
    """Raise InputError unless that many steps of that length can reach eps.

    `step` and `eps` are in 1/255 of a pixel's range; `where` is what the message begins with.

    >>> check_reach("attack pgd", steps=7, step=2.0, eps=8.0)
    >>> check_reach("attack pgd", steps=3, step=2.0, eps=8.0)
    Traceback (most recent call last):
    darts_bio.errors.InputError: attack pgd: 3 steps of 2/255 end before eps 8/255; take more or \
longer ones
    """
    if step * steps < eps * (1 - 1e-9):  # with a tolerance: 3 * 0.7 is rounded to less than 2.1
        raise InputError(
            f"{where}: {steps} steps of {step:g}/255 end before eps {eps:g}/255; take more or "
            "longer ones"
        )


@dataclass(frozen=True)
class Adversary:
    """A way to make adversarial examples, and the loss that is learned from them.

    Subclasses define `start`, `climbed` and `loss`, and are registered in `ADVERSARIES`.

    Attributes:
        eps: The largest change of a pixel, in 1/255 of its range.
        step: The length of a step of the climb, in 1/255 of a pixel's range.
        steps: How many steps the climb takes.
        gradient: What the climb follows: "true", the exact gradient, or "rule", what the learning
            rules of the network send down.

    >>> ADVERSARIES.build("pgd(eps=4, step=1)")
    PGD(eps=4.0, step=1.0, steps=7, gradient='true')
    """

    eps: float = 8.0
    step: float = 2.0
    steps: int = 10
    gradient: Gradients = "true"

    needs_clean: ClassVar[bool] = False
    """Whether the clean images pass through the network as well, before the climb and in training.
    """

    def __post_init__(self) -> None:
        where = f"--adversarial {ADVERSARIES.name_of(self)}"
        check_number(f"{where}: eps", self.eps, above=0, below=256)
        check_number(f"{where}: step", self.step, above=0, below=256)
        check_whole(f"{where}: steps", self.steps)
        if self.gradient not in get_args(Gradients):
            raise unknown_name(f"gradient of {where}", str(self.gradient), get_args(Gradients))
        check_reach(where, self.steps, self.step, self.eps)

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        """Draw where the climb begins: changes of images (N, C, H, W), in units of eps.

        `source` is a generator on the CPU, where the changes are drawn.
        """
        raise NotImplementedError(f"{type(self).__name__}.start")

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        """Return what the climb raises, a scalar: summed over images, so that each climbs alone.

        Args:
            logits: The network's logits (N, K) of the examples.
            targets: Labels (N,), or the classes' shares (N, K).
            clean: The logits (N, K) of the clean images if `needs_clean`, else None.
        """
        raise NotImplementedError(f"{type(self).__name__}.climbed")

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        """Return the loss, a scalar, that the weights descend.

        Args:
            output: The network's output for the examples, in training.
            clean: Its output for the clean images if `needs_clean`, else None.
            targets: Labels (N,), or the classes' shares (N, K).
            loss: The loss of an ordinary training.
        """
        raise NotImplementedError(f"{type(self).__name__}.loss")


ADVERSARIES: Registry[type[Adversary]] = Registry("adversary", base=Adversary)
"""The adversaries that `--adversarial` knows."""


@ADVERSARIES.register("pgd")
@dataclass(frozen=True)
class PGD(Adversary):
    """The loss on examples of projected gradient descent (Madry 2018, arXiv 1706.06083).

    >>> PGD(eps=8, step=2).steps
    7
    """

    steps: int = 7

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        # Uniform in the ball: [-1, 1) times eps.
        return 2 * torch.rand(shape, generator=source) - 1

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="sum")

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        return loss(output, targets)


@ADVERSARIES.register("trades")
@dataclass(frozen=True)
class TRADES(Adversary):
    """The loss on clean images plus beta times how far predictions move (arXiv 1901.08573).

    How far is the Kullback-Leibler divergence from the predictions on clean images to those on the
    examples, which the climb raises (Zhang 2019).

    >>> TRADES().beta, TRADES.needs_clean
    (6.0, True)
    """

    beta: float = 6.0
    needs_clean = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("--adversarial trades: beta", self.beta, above=0)

    def start(self, shape: torch.Size, source: torch.Generator) -> Tensor:
        # The paper's start, 0.001 in pixels of [0, 1], here in units of eps.
        return 0.001 / (self.eps / 255) * torch.randn(shape, generator=source)

    def climbed(self, logits: Tensor, targets: Tensor, clean: Any) -> Tensor:
        return _divergence(clean, logits)

    def loss(self, output: Any, clean: Any, targets: Tensor, loss: Loss) -> Tensor:
        moved = _divergence(logits_of(clean), logits_of(output)) / len(targets)
        return loss(clean, targets) + self.beta * moved


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """Return KL(clean predictions || predictions), summed over images, of logits (N, K) each."""
    return F.kl_div(
        F.log_softmax(logits.float(), 1),
        F.log_softmax(clean.float(), 1),
        reduction="sum",
        log_target=True,
    )


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a network gives in training, without those of an auxiliary head.

    >>> logits_of((torch.ones(1, 2), torch.zeros(1, 2)))
    tensor([[1., 1.]])
    """
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


class AdversarialExamples:
    """The maker of adversarial examples for a run's batches.

    Images and examples are normalized by each channel's mean and standard deviation; bounds and
    steps are converted to these units. Examples are made in evaluation mode, so that batch norms
    use and keep their statistics and no path is dropped, and are a function of the network, the
    images, the seed and the step.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> plain = Normalization(torch.zeros(1), torch.ones(1))
    >>> maker = AdversarialExamples(PGD(eps=51, step=51), network, plain, seed=0, amp="none")
    >>> x, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    >>> examples = maker.made(x, labels, maker.starts(0, x))
    >>> print(f"{(examples - x).abs().max():.1f}")
    0.2
    """

    def __init__(
        self,
        adversary: Adversary,
        network: nn.Module,
        normalization: Normalization,
        *,
        seed: int,
        amp: str,
    ) -> None:
        self.adversary, self._network, self._seed, self._amp = adversary, network, seed, amp
        # (C,) -> (C, 1, 1), against images (N, C, H, W)
        mean, std = (value.view(-1, 1, 1) for value in (normalization.mean, normalization.std))
        # Pixels 0 and 1, and a change of 1/255, as the network sees them.
        self._black, self._white, self._unit = -mean / std, (1 - mean) / std, 1 / (255 * std)

    def starts(self, t: int, x: Tensor) -> Tensor:
        """Draw where the climbs of step t begin: changes (N, C, H, W) in units of eps.

        x: this process' share (N, C, H, W) of the batch.
        """
        source = generator("cpu", "adversary", self._seed, t)
        drawn = drawn_for_part(
            len(x), lambda k: self.adversary.start(torch.Size((k, *x.shape[1:])), source)
        )
        return send(drawn, x.device)

    def made(self, x: Tensor, targets: Tensor, start: Tensor) -> Tensor:
        """Return the adversarial examples (N, C, H, W) of images.

        Args:
            x: Normalized images (N, C, H, W).
            targets: Labels (N,), or the classes' shares (N, K).
            start: What `starts` drew for these images.
        """
        adversary = self.adversary
        bound, step = adversary.eps * self._unit, adversary.step * self._unit
        # The ball of radius eps, cut to the range of pixels.
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
                # The sum ties the result to the pixels where no error is sent down to them: the
                # gradient is then 0, and the example stays as it is.
                (gradient,) = torch.autograd.grad(raised + 0 * example.sum(), example)
                with torch.no_grad():
                    example = torch.clamp(example + step * gradient.sign(), low, high)
        return example.detach()

    def _logits(self, x: Tensor) -> Tensor:
        """Return the network's logits (N, K) of images (N, C, H, W), in the run's precision."""
        with autocast(x.device, self._amp):
            return logits_of(self._network(x))
