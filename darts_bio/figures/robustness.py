"""The figures of a measurement of robustness: accuracy against eps, and attacked images."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from darts_bio.evaluation.robustness import Measurement
from darts_bio.evaluation.subjects import Subject, groups_of
from darts_bio.figures.curves import COLORS, Series, draw_panels
from darts_bio.figures.drawing import MARGIN, Drawing, Picture, Primitive, Text

EXAMPLES, SIDE = 4, 64
"""The number of images shown of a network, and their side in pixels."""


def draw_accuracy(subjects: Sequence[Subject], measurement: Measurement) -> Drawing:
    """Draw accuracy in per cent against eps.

    There is a panel for each attack that eps bounds, and in it a line for each group of networks,
    the mean over its seeds; dashed where the attack followed the rule's gradient.
    """
    plan, groups = measurement.plan, groups_of(subjects)
    panels: dict[str, list[Series]] = {}
    for spec in plan.attacks:
        attack = plan.attack(spec)
        if not attack.bounded:
            continue
        # An attack that follows no gradient is measured once.
        gradients = plan.gradients if attack.white_box else plan.gradients[:1]
        curves = []
        for number, (group, members) in enumerate(groups.items()):
            color = COLORS[number % len(COLORS)]
            clean = statistics.mean(100 * measurement.clean(subject.name) for subject in members)
            for gradient in gradients:
                points = [(0.0, clean)]
                for eps in plan.eps:
                    jobs = [plan.job(subject.name, spec, eps, gradient) for subject in members]
                    accuracy = statistics.mean(100 * measurement.accuracy(job) for job in jobs)
                    points.append((eps, accuracy))
                name = group if gradient == plan.gradients[0] else ""  # named once
                curves.append(Series(name, points, color, dashed=jobs[0].gradients == "rule"))
        panels[spec] = curves
    label = "accuracy in % against eps; dashed: by the rule's gradient"
    return draw_panels(panels, [0.0, *plan.eps], "eps, 1/255", label, span=(0.0, 100.0))


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
