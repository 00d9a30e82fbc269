"""What speaks against believing a measurement of robustness (Carlini 2019, arXiv 1902.06705;
Athalye 2018, arXiv 1802.00420).

A gradient that misleads attacks makes a network look robust that is not: gradient masking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from darts_bio.evaluation.attacks import Gradients
from darts_bio.evaluation.robustness import LARGE_EPS, Measurement

POINTS, DEVIATIONS = 0.01, 2.0
"""A difference between two accuracies on the same images counts if it is larger than this share of
them, and than so many standard deviations of what chance would bring, were both alike (McNemar's
test)."""
LEFT_AT_LARGE_EPS = 0.05
SLOPE_ERROR, COSINE, VANISHING = 0.05, 0.9, 0.05


@dataclass(frozen=True)
class Doubt:
    """`gradients` says which measurement is in doubt: by the true gradient, or by the rule's."""

    network: str
    gradients: Gradients
    check: str
    found: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def excess(more: Tensor, less: Tensor) -> float | None:
    """The share of images (N,) by which `more` has more right than `less`; None if chance brings as
    much.
    """
    gained, lost = int((more & ~less).sum()), int((less & ~more).sum())
    share = (gained - lost) / max(1, len(more))
    return share if share > POINTS and gained - lost > DEVIATIONS * (gained + lost) ** 0.5 else None


def doubts(measured: Measurement) -> list[Doubt]:
    """All that there are, by network. Jobs that are not done are passed over."""
    return [doubt for name in measured.networks for doubt in _of_network(measured, name)]


def _of_network(measured: Measurement, name: str) -> Iterator[Doubt]:
    plan = measured.plan
    for job in measured.jobs:
        if job.network != name or job.kind != "attack" or not job.most:
            continue
        rows = measured.survived(job)
        if rows is None or not len(rows):
            continue
        if job.level == 0 and not rows.all():
            yield Doubt(
                name,
                "true",
                "eps = 0",
                f"{job.what} makes {_percent(~rows)} % of right images wrong",
            )
        side: Gradients = "rule" if job.gradients == "rule" else "true"
        if job.level == LARGE_EPS and rows.float().mean() > LEFT_AT_LARGE_EPS:
            yield Doubt(
                name, side, "large eps", f"{_percent(rows)} % stay right at eps {LARGE_EPS:g}/255"
            )
    for side in plan.gradients:
        for eps in plan.eps:
            yield from _of_attacks(measured, name, side, eps)
    yield from _of_gradients(measured, name)


def _of_attacks(measured: Measurement, name: str, side: Gradients, eps: float) -> Iterator[Doubt]:
    plan, at = measured.plan, f"at eps {eps:g}/255"
    white: dict[str, Tensor] = {}
    black: dict[str, Tensor] = {}
    for spec in plan.attacks:
        attack = plan.attack(spec)
        if attack.bounded:
            found = measured.survived(plan.job(name, spec, eps, side))
            if found is not None:
                (white if attack.white_box else black)[spec] = found
    by_strength: dict[int, list[str]] = {}
    for spec in white:
        by_strength.setdefault(plan.attack(spec).strength, []).append(spec)
    by_strength.pop(0, None)
    for (_, weaker), (_, stronger) in pairwise(sorted(by_strength.items())):
        more = excess(_worst(white, stronger), _worst(white, weaker))
        if more is not None:
            yield Doubt(
                name,
                side,
                "stronger attacks",
                f"{' with '.join(stronger)} leaves {100 * more:.1f} points more right "
                f"than {' with '.join(weaker)} {at}",
            )
    if not white:
        return
    best = _worst(white, list(white))
    for spec, found in black.items():
        more = excess(best, found)
        if more is not None:
            yield Doubt(
                name,
                side,
                "black box",
                f"{spec}, without any gradient, leaves {100 * more:.1f} points fewer right "
                f"than all that follow it together {at}",
            )
    for other in measured.networks:
        kept = measured.transferred(other, eps) if other != name else {}
        more = excess(best, kept[name]) if kept else None
        if more is not None:
            yield Doubt(
                name,
                side,
                "transfer",
                f"images made on {other} leave {100 * more:.1f} points fewer right than all "
                f"attacks that follow its own gradient {at}",
            )
    if side == "rule" and "true" in plan.gradients:
        for spec, ruled in white.items():
            true = measured.survived(plan.job(name, spec, eps, "true"))
            more = None if true is None else excess(ruled, true)
            if more is not None:
                yield Doubt(
                    name,
                    side,
                    "masking gap",
                    f"{spec} leaves {100 * more:.1f} points more right than by the true gradient "
                    f"{at}",
                )


def _of_gradients(measured: Measurement, name: str) -> Iterator[Doubt]:
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
    """What withstands all of these."""
    return torch.stack([survived[spec] for spec in specs]).all(0)


def _percent(rows: Tensor) -> str:
    return f"{100 * rows.float().mean():.0f}"
