"""What speaks against believing a measurement of robustness.

A gradient that misleads attacks makes a network look robust that is not: gradient masking (Athalye
2018, arXiv 1802.00420). `doubts` looks for signs of it (after Carlini 2019, arXiv 1902.06705):

- of single attacks: one of eps = 0 changes a prediction, or one of a large eps leaves images right;
- of attacks side by side: a stronger one leaves more right than a weaker one, one without gradient
  or made on another network fewer than all that follow the gradient, or the rule's gradient more
  than the true one;
- of gradients: they differ from the slope of the forward pass, are zero, or the rule's points
  elsewhere than the true one.

docs/robustness.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from darts_bio.config import Gradients
from darts_bio.evaluation.robustness import LARGE_EPS, Measurement

POINTS, DEVIATIONS = 0.01, 2.0
"""A difference between two accuracies on the same images counts if it is larger than this share of
them, and than so many standard deviations of what chance would bring, were both alike (McNemar's
test)."""
LEFT_AT_LARGE_EPS = 0.05
"""Share of images that may stay right at a large eps."""

SLOPE_ERROR, COSINE, VANISHING = 0.05, 0.9, 0.05
"""The largest median of slope_error, the least mean cosine of the rule's gradient, and the largest
share of images without a gradient (`gradient_check.FIGURES`)."""


@dataclass(frozen=True)
class Doubt:
    """A reason not to believe what was measured on a network.

    >>> Doubt("net", "true", "large eps", "12 % stay right at eps 128/255").as_dict()["check"]
    'large eps'

    Attributes:
        network: The network's name.
        gradients: Which measurement is in doubt: by the true gradient, or by the rule's.
        check: The name of the check that it did not pass.
        found: What was found instead.
    """

    network: str
    gradients: Gradients
    check: str
    found: str

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return asdict(self)


def excess(more: Tensor, less: Tensor) -> float | None:
    """Return the share of images by which the mask `more` (N,) has more right than `less` (N,).

    None if that is little, or chance would bring as much (McNemar's test).

    >>> images = torch.arange(100)
    >>> excess(images < 90, images < 70), excess(images < 90, images < 88)
    (0.2, None)
    """
    gained, lost = int((more & ~less).sum()), int((less & ~more).sum())
    share = (gained - lost) / max(1, len(more))
    # Were both alike, each image that differs would be as likely gained as lost, so the difference
    # would have mean 0 and variance gained + lost.
    beyond_chance = gained - lost > DEVIATIONS * (gained + lost) ** 0.5
    return share if share > POINTS and beyond_chance else None


def doubts(measured: Measurement) -> list[Doubt]:
    """Return all doubts, by network; jobs that are not done are passed over.

    >>> from darts_bio.data.datasets import load_data
    >>> from darts_bio.evaluation.robustness import Plan
    >>> networks = {"net": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))}
    >>> measured = Measurement(networks, load_data("digits").test[:20], Plan(attacks=("fgsm",), eps=(8.0,)))
    >>> doubts(measured)
    []
    """
    return [doubt for name in measured.networks for doubt in _of_network(measured, name)]


def _of_network(measured: Measurement, name: str) -> Iterator[Doubt]:
    """Yield the doubts about a network: of its checks, attacks and gradients."""
    plan = measured.plan
    # The attacks that are limited to some images are the checks.
    for job in measured.jobs:
        if job.network != name or job.kind != "attack" or not job.most:
            continue
        survived = measured.survived(job)
        if survived is None or not len(survived):
            continue
        # Without a gradient it is measured once, for all sides.
        side = plan.gradients[0] if job.gradients == "none" else job.gradients
        if job.level == 0 and not survived.all():
            lost = f"{job.what} makes {_percent(~survived)} % of right images wrong"
            yield Doubt(name, side, "eps = 0", lost)
        if job.level == LARGE_EPS and survived.float().mean() > LEFT_AT_LARGE_EPS:
            left = f"{_percent(survived)} % stay right at eps {LARGE_EPS:g}/255"
            yield Doubt(name, side, "large eps", left)
    for side in plan.gradients:
        for eps in plan.eps:
            yield from _of_attacks(measured, name, side, eps)
    yield from _of_gradients(measured, name)


def _of_attacks(measured: Measurement, name: str, side: Gradients, eps: float) -> Iterator[Doubt]:
    """Yield the doubts that comparing attacks of one eps, by gradients of one side, gives."""
    plan, at_eps = measured.plan, f"at eps {eps:g}/255"
    # By spec, the images (N,) that an attack leaves right: with a gradient, and without.
    white: dict[str, Tensor] = {}
    black: dict[str, Tensor] = {}
    for spec in plan.attacks:
        attack = plan.attack(spec)
        if attack.bounded:
            survived = measured.survived(plan.job(name, spec, eps, side))
            if survived is not None:
                (white if attack.white_box else black)[spec] = survived
    by_strength: dict[int, list[str]] = {}
    for spec in white:
        by_strength.setdefault(plan.attack(spec).strength, []).append(spec)
    by_strength.pop(0, None)  # of these nothing is promised
    for (_, weaker), (_, stronger) in pairwise(sorted(by_strength.items())):
        surplus = excess(_worst(white, stronger), _worst(white, weaker))
        if surplus is not None:
            yield Doubt(
                name,
                side,
                "stronger attacks",
                f"{' with '.join(stronger)} leaves {100 * surplus:.1f} points more right "
                f"than {' with '.join(weaker)} {at_eps}",
            )
    if not white:
        return
    after_all_white = _worst(white, list(white))
    for spec, survived in black.items():
        surplus = excess(after_all_white, survived)
        if surplus is not None:
            yield Doubt(
                name,
                side,
                "black box",
                f"{spec}, without any gradient, leaves {100 * surplus:.1f} points fewer right "
                f"than all that follow it together {at_eps}",
            )
    for other in measured.networks:
        kept = measured.transferred(other, eps) if other != name else {}
        surplus = excess(after_all_white, kept[name]) if kept else None
        if surplus is not None:
            yield Doubt(
                name,
                side,
                "transfer",
                f"images made on {other} leave {100 * surplus:.1f} points fewer right than all "
                f"attacks that follow its own gradient {at_eps}",
            )
    if side == "rule" and "true" in plan.gradients:
        for spec, survived in white.items():
            survived_true = measured.survived(plan.job(name, spec, eps, "true"))
            surplus = None if survived_true is None else excess(survived, survived_true)
            if surplus is not None:
                yield Doubt(
                    name,
                    side,
                    "masking gap",
                    f"{spec} leaves {100 * surplus:.1f} points more right than by the true "
                    f"gradient {at_eps}",
                )


def _of_gradients(measured: Measurement, name: str) -> Iterator[Doubt]:
    """Yield the doubts that a network's `gradient_check.FIGURES` give."""
    figures = measured.figures(name)
    if not figures:
        return
    error = figures["slope_error"]
    if error > SLOPE_ERROR:
        yield Doubt(
            name,
            "true",
            "slope",
            f"the gradient differs from the slope of the forward pass by {100 * error:.0f} % "
            "(median): what is differentiated is not what is computed",
        )
    for side in measured.plan.gradients:
        share = figures[f"{side}_vanishes"]
        if share > VANISHING:
            yield Doubt(name, side, "no gradient", f"it is zero for {100 * share:.0f} % of images")
    if "rule" in measured.plan.gradients and figures["cosine"] < COSINE:
        yield Doubt(name, "rule", "cosine", f"{figures['cosine']:.2f} to the true gradient (mean)")


def _worst(survived: dict[str, Tensor], specs: list[str]) -> Tensor:
    """Return the mask (N,) of images that withstand all of these attacks."""
    return torch.stack([survived[spec] for spec in specs]).all(0)


def _percent(mask: Tensor) -> str:
    """Return the share of images that a mask (N,) holds for, in per cent."""
    return f"{100 * mask.float().mean():.0f}"
