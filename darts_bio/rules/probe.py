"""Whether a rule of the user's own does what it says: its kernel, looked at on a small weight.

An audit believes what a rule says of itself. A kernel that is W, of a rule that says nothing of
`carries`, would count as fixed feedback.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.runtime import generator, rng_kept

LAW = InitialLaw(torch.Size((4, 3, 3, 3)), bound=27**-0.5)
"""The law of the weights of a probe: those of a small convolution."""

_sound: set[tuple[type, str]] = set()
"""The rules in which no mistake was found, by class and spec."""


def check_kernel(rule: LearningRule) -> None:
    """Raise InputError if a rule that is no built-in one says of its kernel what is not so."""
    if type(rule).__module__.startswith("darts_bio."):
        return
    key = (type(rule), rule.spec)
    if key in _sound:
        return
    with torch.device("cpu"), rng_kept(), torch.no_grad():
        mistake = mistake_in(rule)
    if mistake is not None:
        raise InputError(f"learning rule {rule.spec}: {mistake}")
    _sound.add(key)


def mistake_in(rule: LearningRule) -> str | None:
    """Return what of a rule's kernel is other than the rule says, and what to do; None if nothing.

    Nothing is said of rules that are local, direct or learn their feedback, and of kernels that are
    drawn anew in each pass, or fail here. A norm of the weight may be in any kernel.

    >>> from darts_bio.rules import RULES
    >>> class Same(LearningRule):
    ...     def kernel(self, weight, state):
    ...         return weight
    >>> print(mistake_in(Same()))
    kernel: expected one that does not depend on the weight, as carries = 'fixed feedback' says, found \
one that follows its values; set carries = 'values'
    >>> any(mistake_in(RULES.build(name)) for name in RULES)
    False
    """
    if rule.local or rule.direct or rule.learned or rule.carries == "learned feedback":
        return None
    try:
        inspect.signature(rule.kernel).bind(None, None)
    except TypeError:
        return (
            "kernel: expected a method of (self, weight, state), found one of "
            f"{inspect.signature(type(rule).kernel)}; have it take these"
        )
    source = generator("cpu", "probe")
    first, second, sizes = (LAW.sample(source) for _ in range(3))
    try:
        state, of_second = rule.state(LAW, source), rule.state(LAW, source)
        kernel, again = rule.kernel(first, state), rule.kernel(first, state)
    except Exception:  # such as of a rule for matrices alone
        return None
    if not isinstance(kernel, Tensor) or kernel.shape != first.shape:
        found = tuple(kernel.shape) if isinstance(kernel, Tensor) else type(kernel).__name__
        return (
            f"kernel: expected a tensor of the weight's shape, {tuple(LAW.shape)}, found {found}; return "
            "one (only a rule with local = True sends nothing)"
        )
    if again is None or not kernel.isfinite().all() or not torch.equal(kernel, again):
        return None
    if not _parallel(kernel, rule.kernel(second, state)):
        resized = rule.kernel(first * (2 + sizes / LAW.bound), state)  # by factors of 1 to 3
        follows = "signs" if _parallel(kernel, resized) else "values"
        if rule.carries not in ("values", follows):
            alone = rule.carries == "signs"
            expected = "follows its signs alone" if alone else "does not depend on the weight"
            return (
                f"kernel: expected one that {expected}, as carries = {rule.carries!r} says, found "
                f"one that follows its {follows}; set carries = {follows!r}"
            )
    return _mistake_together(rule, (first, 3 * second), (state, of_second))


def _mistake_together(
    rule: LearningRule, weights: tuple[Tensor, Tensor], states: tuple[dict[str, Tensor], ...]
) -> str | None:
    """Return what is wrong with the kernel of two weights in one flat tensor, if that is promised."""
    if not rule.elementwise:
        return None
    # What is one number is common to all weights.
    both = [states[0], states[1] | {k: v for k, v in states[0].items() if v.dim() == 0}]
    flat = {
        name: value if value.dim() == 0 else torch.cat([state[name].flatten() for state in both])
        for name, value in states[0].items()
    }
    each = [rule.kernel(weight, state) for weight, state in zip(weights, both, strict=True)]
    try:
        together = rule.kernel(torch.cat([weight.flatten() for weight in weights]), flat)
        same = torch.allclose(together, torch.cat([one.flatten() for one in each]), rtol=1e-4)  # type: ignore[arg-type,union-attr]
    except Exception:  # such as of a shape that it asks for
        same = False
    return (
        None
        if same
        else (
            "kernel: expected each entry to depend on the same entry of the weight alone, as elementwise "
            "= True says, found two weights in one tensor to have another kernel than each by itself; "
            "set elementwise = False"
        )
    )


def _parallel(kernel: Tensor, other: Tensor | None) -> bool:
    """Return whether two kernels are the same but for their norms."""
    return other is not None and torch.allclose(
        kernel / kernel.norm(), other / other.norm(), atol=1e-4, equal_nan=True
    )
