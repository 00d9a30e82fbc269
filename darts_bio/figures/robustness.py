"""The figures of a measurement of robustness: accuracy against eps, and attacked images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from darts_bio.evaluation.robustness import Measurement
from darts_bio.evaluation.subjects import Subject, groups_of
from darts_bio.figures.charts import Chart, Panel, Series
from darts_bio.figures.colors import group_colors
from darts_bio.figures.curves import OVER_SEEDS, with_spread
from darts_bio.figures.drawing import MARGIN, Drawing, Picture, Primitive, Text

EXAMPLES, SIDE = 4, 64
"""The number of images shown of a network, and their side in pixels."""


def draw_accuracy(subjects: Sequence[Subject], measurement: Measurement) -> Chart:
    """Draw accuracy in per cent against eps.

    There is a panel for each attack that eps bounds, and in it a line for each group of networks,
    the mean over its seeds with its spread; dashed where the attack followed the rule's gradient.
    Networks under a single rule have its color.
    """
    plan, groups = measurement.plan, groups_of(subjects)
    colors = group_colors({group: members[0].rules for group, members in groups.items()})
    panels = []
    for spec in plan.attacks:
        attack = plan.attack(spec)
        if not attack.bounded:
            continue
        # An attack that follows no gradient is measured once.
        gradients = plan.gradients if attack.white_box else plan.gradients[:1]
        lines: list[Series] = []
        for group, members in groups.items():
            for gradient in gradients:
                of_seeds = [
                    [(0.0, 100 * measurement.clean(subject.name))]
                    + [
                        (
                            eps,
                            100 * measurement.accuracy(plan.job(subject.name, spec, eps, gradient)),
                        )
                        for eps in plan.eps
                    ]
                    for subject in members
                ]
                dashed = plan.job(members[0].name, spec, plan.eps[-1], gradient).gradients == "rule"
                name = group if gradient == plan.gradients[0] else ""  # named once
                lines += with_spread(name, of_seeds, colors[group], dashed)
        panels.append(Panel(spec, lines, span=(0.0, 100.0), ticks=[0.0, *plan.eps]))
    dashes = "dashed: attacks along the rule's gradient; solid: along the exact one, or none"
    several = any(len(members) > 1 for members in groups.values())
    note = f"accuracy, % of {len(measurement.images)} images; {dashes}"
    return Chart(
        panels,
        "eps, 1/255",
        "accuracy in % against eps; dashed: by the rule's gradient",
        f"{note}; {OVER_SEEDS}" if several else note,
    )


def draw_examples(subjects: Sequence[Subject], measurement: Measurement) -> Drawing:
    """Draw a few images of the first network of each group, before and under an attack.

    The attack is the strongest one that is bounded, at the largest eps. Of each image there are
    three pictures: clean, attacked, and the difference (gray: none; black and white: eps). Above
    them stand its class and the one predicted under attack.
    """
    plan, primitives = measurement.plan, list[Primitive]()
    first_members = [members[0] for members in groups_of(subjects).values()]
    bounded = [spec for spec in plan.attacks if plan.attack(spec).bounded]
    spec = max(bounded, key=lambda spec: plan.attack(spec).strength, default="")
    y = MARGIN
    for subject in first_members if spec else []:
        job = plan.job(subject.name, spec, plan.eps[-1], plan.gradients[0])
        index = measurement.subject(job)[:EXAMPLES]
        if not len(index):
            continue
        changed = measurement.perturbed(job, index, measurement.seed)
        clean = measurement.pixels(index)
        with torch.no_grad():
            predicted = subject.model(changed).argmax(1).tolist()
        labels = measurement.images.labels[index].tolist()
        classes = subject.trained.classes
        heading = f"{subject.name}: {spec}, eps {job.level:g}/255"
        primitives.append(Text(MARGIN, y, heading, anchor="start"))
        # From [-eps, eps] to [0, 1].
        difference = (changed - clean) / (2 * job.level / 255) + 0.5
        for number, triple in enumerate(zip(clean, changed, difference, strict=True)):
            x = MARGIN + number * (3 * SIDE + 2 * MARGIN)
            for place, image in enumerate(triple):
                primitives.append(
                    Picture(x + place * (SIDE + 4), y + 26, SIDE, SIDE, _pixels(image))
                )
            change = f"{classes[labels[number]]} -> {classes[predicted[number]]}"
            primitives.append(Text(x, y + 15, change, anchor="start"))
        y += SIDE + 26 + MARGIN
    width = MARGIN + EXAMPLES * (3 * SIDE + 2 * MARGIN)
    return Drawing(
        round(width),
        round(y),
        tuple(primitives),
        "images as they are, under attack, and the difference",
    )


def _pixels(image: Tensor) -> np.ndarray:
    """Return an image (C, H, W) of values in [0, 1] as pixels (H, W, 3) uint8."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    # One channel is shown as gray; of any other number than three the first is shown.
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)
