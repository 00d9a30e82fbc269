"""The feedback family: the ordinary weight gradient, and an error sent down by a kernel K.

With dy the error that arrives at a layer y = W*x + b, and convT(dy; K) the gradient of x with
kernel K in place of W, the layer's input receives convT(dy; K), and each rule below is the K it
chooses. The weight gets its ordinary gradient, conv_w(x, dy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from darts_bio.errors import check_number, check_whole, unknown_name
from darts_bio.rules.base import RULES, InitialLaw, LearningRule

Scale = Literal["init", "match"]

LEAST_SAMPLES = 64
"""The least number of samples that a weight mirror is shown at once."""


@RULES.register("bp")
@dataclass(frozen=True)
class Backpropagation(LearningRule):
    """Backpropagation: K = W, the exact gradient (Rumelhart 1986).

    State: none.

    Cost: 1, the yardstick for the other rules.

    When: the control of every experiment, and the layers that need not be plausible (a readout, a
    stem).

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 1, rule=RULES.build("bp"))
        >>> x = torch.ones(1, 3, requires_grad=True)
        >>> layer(x).sum().backward()
        >>> torch.equal(x.grad, layer.weight)
        True
    """

    carries = "values"
    elementwise = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight


@dataclass(frozen=True)
class Feedback(LearningRule):
    """The base of rules that carry the error by a kernel K of their own, in one of two scales.

    With `scale="init"`, the published form, K stays as it is drawn, of the scale of W's
    initialization. With `scale="match"` its norm follows that of W, layer by layer: K |W| / |K|.
    """

    scale: Scale = "init"

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise unknown_name("scale of a rule", str(self.scale), get_args(Scale))

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """Whether `kernel` treats each weight by itself: a norm reads all of a layer's weights."""
        return self.scale == "init"

    def scaled(self, kernel: Tensor, weight: Tensor) -> Tensor:
        """Return the kernel in the rule's scale, of the same shape."""
        if self.scale == "init":
            return kernel
        # A kernel of zeros stays one: 0 / tiny, not 0 / 0.
        norm = kernel.norm().clamp_min(torch.finfo(kernel.dtype).tiny)
        return kernel * (weight.norm() / norm)


@RULES.register("fa")
@dataclass(frozen=True)
class FeedbackAlignment(Feedback):
    """Feedback alignment: K = B, a fixed draw from W's initialization (Lillicrap 2016).

    B is drawn independently of W (arXiv 1411.0247), so it is at 90 degrees to W at the start. W
    slowly turns towards B, which makes the errors useful.

    State: B, shaped like W, a buffer.

    Cost: that of bp; B is as large as W.

    When: the classical baseline without any weight transport. It works in shallow nets and fails in
    deep convolutional ones (Bartunov 2018, arXiv 1807.04587).

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 1, rule=RULES.build("fa"))
        >>> x = torch.ones(1, 3, requires_grad=True)
        >>> layer(x).sum().backward()
        >>> torch.equal(x.grad, layer.feedback_kernel)
        True
    """

    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": law.sample(generator)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["kernel"], weight)


@RULES.register("usf")
@dataclass(frozen=True)
class UniformSignFeedback(Feedback):
    """Uniform sign feedback: K = s sign(W), s the std of W's initialization (Liao 2016).

    K has the signs of the weights and one magnitude (arXiv 1510.05067). It is at 30 degrees to
    uniform W at the start. s does not follow W as W grows; with `scale=match` it does.

    State: s, one number a layer, a buffer.

    Cost: that of bp, and one pass over W a step.

    When: the best of the family where signs may be shared: near bp even on ImageNet (Xiao 2018,
    arXiv 1811.03567).

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 1, rule=RULES.build("usf"))
        >>> x = torch.ones(1, 3, requires_grad=True)
        >>> layer(x).sum().backward()
        >>> torch.equal(x.grad, layer.feedback_scale * layer.weight.sign())
        True
    """

    carries = "signs"
    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"scale": torch.as_tensor(law.std)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["scale"] * weight.sign(), weight)


@RULES.register("frsf")
@dataclass(frozen=True)
class FixedRandomSignFeedback(Feedback):
    """Fixed random-magnitude sign feedback: K = |M| sign(W), M drawn once (Liao 2016).

    M is an independent draw from W's initialization (arXiv 1510.05067), so K is at 41 degrees to
    uniform W at the start.

    State: |M|, shaped like W, a buffer.

    Cost: that of bp, and one pass over W a step; |M| is as large as W.

    When: signs are shared and magnitudes are not.

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 1, rule=RULES.build("frsf"))
        >>> x = torch.ones(1, 3, requires_grad=True)
        >>> layer(x).sum().backward()
        >>> torch.equal(x.grad, layer.feedback_magnitude * layer.weight.sign())
        True
    """

    carries = "signs"
    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"magnitude": law.sample(generator).abs_()}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["magnitude"] * weight.sign(), weight)


@RULES.register("brsf")
@dataclass(frozen=True)
class BatchRandomSignFeedback(FixedRandomSignFeedback):
    """Batch-wise random-magnitude sign feedback: K = |M| sign(W), M redrawn each step (Liao 2016).

    M is drawn from W's initialization anew after each weight update (arXiv 1510.05067).

    State: |M|, shaped like W, a buffer; what a draw depends on, `draw_feedback` says.

    Cost: that of frsf, and a draw as large as W a step.

    When: as frsf, where feedback must not be a fixed code that W can adapt to.

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear, draw_feedback
        >>> layer = RuleLinear(3, 1, rule=RULES.build("brsf"))
        >>> first = layer.feedback_magnitude.clone()
        >>> draw_feedback(layer, seed=0, update=1)  # a training loop calls it after each update
        >>> torch.equal(layer.feedback_magnitude, first)
        False
    """

    renews = True


@RULES.register("kolen_pollack")
@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """Kolen-Pollack: K = B, and B gets the steps and the decay of W, so B -> W (Akrout 2019).

    B is a parameter whose gradient is dW, the gradient of W, so any optimizer moves both by the
    same step (arXiv 1904.05391). Weight decay is what makes their difference vanish: for SGD and
    AdamW it shrinks by the factor (1 - lr decay) a step. Without weight decay it stays what it
    was. B starts as an independent draw from W's initialization.

    So 1/e of the difference is left after 1 / (lr decay) steps: with lr 0.1 and decay 5e-4 after
    20,000, with the defaults of AdamW (1e-3 and 0.01) after 100,000. The angle between B and W
    closes sooner, and without decay, too: both add up the same steps, beside which what
    they began with grows small. The optimizer has to hold B, and in the group of W or one of the
    same learning rate and weight decay: groups that are picked by name or by module easily leave B
    out. `attach` warns of each.

    State: B, shaped like W, a parameter (not counted among the model's, not counted when our own
    training clips gradients). Beside a W that is frozen it stays as it is.

    Cost: that of bp, and the optimizer moves twice as many tensors.

    When: no weight is ever transported, and yet the errors become exact: near bp once B has
    converged.

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 1, rule=RULES.build("kolen_pollack"))
        >>> layer(torch.rand(8, 3)).square().mean().backward()
        >>> torch.equal(layer.feedback_kernel.grad, layer.weight.grad)
        True
        >>> before = (layer.weight - layer.feedback_kernel).norm()
        >>> with torch.no_grad():  # a step of SGD with weight decay 0.5
        ...     for parameter in layer.parameters():
        ...         parameter -= 0.1 * (parameter.grad + 0.5 * parameter)
        >>> after = (layer.weight - layer.feedback_kernel).norm()
        >>> print(f"{after / before:.2f} of the difference is left")
        0.95 of the difference is left
    """

    carries = "learned feedback"
    learned = ("kernel",)
    decays_to_weight = True
    stacks = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        feedback = state["kernel"]
        if self.scale == "init":
            return feedback
        # The value is the scaled B, the derivative that of B: the gradient that B gets is dW as it
        # is, not dW through the scale.
        return feedback + (self.scaled(feedback, weight) - feedback).detach()


@RULES.register("weight_mirror")
@dataclass(frozen=True)
class WeightMirror(FeedbackAlignment):
    """Weight mirror: K = B, and B <- (1 - r) B + r E[y x^T] for noise x, y = W x (Akrout 2019).

    After each weight update the layer is shown noise x and B moves towards the correlation of its
    responses y with x. The noise is normal, of variance 1, one window of the layer a sample,
    without bias; since E[y x^T] = W, B follows W through the layer's activity alone (arXiv
    1904.05391; here with one rate r for growth and decay, so that B has the scale of W too). After
    n renewals the mean of B is W (1 - (1 - r)^n) + B_0 (1 - r)^n. As E is a mean over finitely many
    samples, an angle of about atan sqrt(fan_in r / (2 samples)) remains. r is the option `rate`.

    `samples`, the number of samples, is by default 64, or a quarter of fan_in if that is more: so
    the angle that remains is at most 18 degrees, however wide the layer is.

    `phase` is the number of renewals before the first weight update: the paper mirrors before it
    trains. It is 0 by default, which means to begin as feedback alignment and turn to W within
    about 2 / r updates. `draw_feedback(model, seed)` goes through the phase, as `convert` and our
    own training do.

    State: B, shaped like W, a buffer; it starts as an independent draw from W's initialization.

    Cost: that of bp, and two products of `samples` windows with W a step, also for each renewal of
    the phase; in a wide layer that sees few windows this may be as much as its forward pass.

    When: as Kolen-Pollack, without asking for weight decay or for equal steps on both sides. With
    batch norm let the learning rate fall, as under any rule (docs/models.md).

    Example:

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear, draw_feedback
        >>> layer = RuleLinear(4, 4, rule=RULES.build("weight_mirror"))
        >>> for update in range(1, 101):  # a training loop calls it after each weight update
        ...     draw_feedback(layer, seed=0, update=update)
        >>> weight, feedback = layer.weight.flatten(), layer.feedback_kernel.flatten()
        >>> bool(torch.cosine_similarity(weight, feedback, dim=0) > 0.95)
        True
    """

    rate: float = 0.05
    samples: int | None = None
    phase: int = 0  # type: ignore[misc]
    carries = "learned feedback"
    renews = True
    elementwise = False
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("weight_mirror: rate", self.rate, above=0, most=1)
        if self.samples is not None:
            check_whole("weight_mirror: samples", self.samples)
        check_whole("weight_mirror: phase", self.phase, least=0)

    def count_samples(self, fan_in: int) -> int:
        """Return the number of samples of a renewal for a layer of that many inputs a window."""
        return max(LEAST_SAMPLES, fan_in // 4) if self.samples is None else self.samples

    def renew(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        law: InitialLaw,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return B moved by `rate` towards the mean of y x^T over fresh noise."""
        matrix = weight.flatten(1)  # (O, I, *window) -> (O, fan_in): a convolution as a product
        samples = self.count_samples(matrix.shape[1])
        noise_shape = (samples, matrix.shape[1])
        x = torch.randn(noise_shape, generator=generator, device=generator.device).to(matrix)
        y = x @ matrix.t()  # (samples, O)
        mean_product = y.t() @ x / samples  # E[y x^T], (O, fan_in)
        return {"kernel": torch.lerp(state["kernel"], mean_product.view_as(weight), self.rate)}
