"""Rules that share a layer's weight, by a mixture of their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.rules.base import Carries, InitialLaw, LearningRule
from darts_bio.rules.feedback import Scale


@dataclass(frozen=True)
class RuleMixture(LearningRule):
    """Several rules on one weight: K = sum over rules r of p_r K_r, for shares p that sum to 1.

    All rules see the same forward pass and the same weight, and differ in the kernel alone. It is
    what an operation of the supernet is under while its rules are searched among (`--weights
    shared`), so it has no name in `RULES`.

    With `scale="match"` each K_r is first brought to the norm of W. As kernels of different norms
    make steps of different lengths, the longest would win otherwise.

    State: the shares p, (R,), and that of each rule r, under names that begin with its number.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> mixture = RuleMixture((RULES.build("bp"), RULES.build("usf")))
    >>> layer = RuleLinear(3, 1, rule=mixture)
    >>> _ = layer.feedback["share"].copy_(torch.tensor([0.75, 0.25]))
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> weight = layer.weight.detach()
    >>> usf = weight.sign() * weight.norm() / 3**0.5  # three signs have norm sqrt(3)
    >>> torch.allclose(x.grad, 0.75 * weight + 0.25 * usf)
    True

    Raises:
        InputError: If one of the rules cannot be mixed; it says why.
    """

    rules: tuple[LearningRule, ...]
    scale: Scale = "match"

    stacks = True

    def __post_init__(self) -> None:
        for rule in self.rules:
            reason = why_unmixable(rule)
            if reason is not None:
                raise InputError(
                    f"--rules {rule.spec}: cannot share its weights with other rules (--weights "
                    f"shared, or --strategy rule_aware): {reason}; leave it out, or use --weights "
                    "own and a strategy that goes with it"
                )

    @property
    def carries(self) -> Carries:  # type: ignore[override]
        """The closest to weight transport of what carries the rules' errors."""
        carried = {rule.carries for rule in self.rules}
        return next(kind for kind in get_args(Carries) if kind in carried)

    @property
    def renews(self) -> bool:  # type: ignore[override]
        return any(rule.renews for rule in self.rules)

    @property
    def phase(self) -> int:  # type: ignore[override]
        """The longest of the rules' phases, as they are renewed together."""
        return max(rule.phase for rule in self.rules)

    @property
    def learned(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{r}_{name}" for r, rule in enumerate(self.rules) for name in rule.learned)

    @property
    def spec(self) -> str:
        return " + ".join(rule.spec for rule in self.rules)

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        shares = torch.full((len(self.rules),), 1 / len(self.rules), device=generator.device)
        return {"share": shares} | self._named([r.state(law, generator) for r in self.rules])

    def renew(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        law: InitialLaw,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        renewed = [
            rule.renew(weight, of_rule, law, generator) if rule.renews else {}
            for rule, of_rule in zip(self.rules, self.states(state), strict=True)
        ]
        return self._named(renewed)

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        states = self.states(state)
        kernels = [
            rule.kernel(weight, of_rule) for rule, of_rule in zip(self.rules, states, strict=True)
        ]
        learned = [states[r][name] for r, rule in enumerate(self.rules) for name in rule.learned]
        stacked = torch.stack([kernel.detach() for kernel in kernels])  # type: ignore[union-attr]
        mixed = mixed_kernel(
            weight.detach().unsqueeze(0),
            stacked.unsqueeze(1),
            state["share"].unsqueeze(0),
            self.scale,
        )
        return with_learned(mixed.squeeze(0), learned)

    def states(self, state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the state of each rule, under the names that the rule knows."""
        states: list[dict[str, Tensor]] = [{} for _ in self.rules]
        for name, value in state.items():
            number, _, of_rule = name.partition("_")
            if of_rule:
                states[int(number)][of_rule] = value
        return states

    def _named(self, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            f"{r}_{name}": value for r, state in enumerate(states) for name, value in state.items()
        }


def why_unmixable(rule: LearningRule) -> str | None:
    """Return why a rule's kernel cannot be mixed with others; None if it can.

    >>> from darts_bio.rules import RULES
    >>> why_unmixable(RULES.build("usf")) is None
    True
    >>> why_unmixable(RULES.build("hebbian"))
    'it is local, so it needs a weight that learns by it alone'
    """
    if rule.local:
        return "it is local, so it needs a weight that learns by it alone"
    if rule.direct:
        return "it is direct: the error does not go through the layers that a kernel stands for"
    if not rule.batched:
        return "it promises neither `elementwise` nor `stacks`"
    return None


def mixed_kernel(weights: Tensor, kernels: Tensor, shares: Tensor, scale: Scale) -> Tensor:
    """Mix the kernels of R rules for M members at once.

    Args:
        weights: (M, *shape).
        kernels: (R, M, *shape).
        shares: (M, R). The result is differentiable at them.
        scale: "match" to bring each kernel to the norm of its member's weight first.

    Returns:
        (M, *shape).

    >>> weights, shares = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5, 0.5]])
    >>> kernels = torch.tensor([[[1.0, 0.0]], [[0.0, 10.0]]])
    >>> mixed_kernel(weights, kernels, shares, "match")  # kernels of norm 5
    tensor([[2.5000, 2.5000]])
    >>> mixed_kernel(weights, kernels, shares, "init")
    tensor([[0.5000, 5.0000]])
    """
    r, m = kernels.shape[:2]
    kernels_rmn = kernels.reshape(r, m, -1)
    factors_rm = shares.t()
    if scale == "match":
        # A kernel of zeros stays one: 0 / tiny, not 0 / 0.
        tiny = torch.finfo(kernels.dtype).tiny
        norms_rm = kernels_rmn.norm(dim=2).clamp_min(tiny)
        factors_rm = factors_rm * (weights.reshape(m, -1).norm(dim=1) / norms_rm)
    return (factors_rm.unsqueeze(2) * kernels_rmn).sum(0).view_as(weights)


def with_learned(kernel: Tensor, learned: list[Tensor]) -> Tensor:
    """Return the kernel, whose gradient each piece of learned feedback receives as it is.

    Feedback that is learned makes the weight's steps, whatever its share of the kernel is.
    """
    return sum((feedback - feedback.detach() for feedback in learned), kernel)
