"""The figures of a measurement of robustness: accuracy against eps, and images that were
attacked.
"""

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
"""Images shown of a network, and their side in pixels."""


def draw_accuracy(subjects: Sequence[Subject], measured: Measurement) -> Drawing:
    """Accuracy in % against eps: a panel for each attack that is bounded by it, a line for each
    group (the mean of its seeds), dashed by the rule's gradient.
    """
    plan, groups = measured.plan, groups_of(subjects)
    panels: dict[str, list[Series]] = {}
    for spec in plan.attacks:
        if not plan.attack(spec).bounded:
            continue
        curves = []
        for number, (group, members) in enumerate(groups.items()):
            for side in plan.gradients if plan.attack(spec).white_box else plan.gradients[:1]:
                points = [(0.0, statistics.mean(100 * measured.clean(s.name) for s in members))]
                for eps in plan.eps:
                    jobs = [plan.job(s.name, spec, eps, side) for s in members]
                    points.append(
                        (eps, statistics.mean(100 * measured.accuracy(job) for job in jobs))
                    )
                color, dashed = COLORS[number % len(COLORS)], jobs[0].gradients == "rule"
                curves.append(
                    Series(group if side == plan.gradients[0] else "", points, color, dashed)
                )
        panels[spec] = curves
    label = "accuracy in % against eps; dashed: by the rule's gradient"
    return draw_panels(panels, [0.0, *plan.eps], "eps, 1/255", label, span=(0.0, 100.0))


def draw_examples(subjects: Sequence[Subject], measured: Measurement) -> Drawing:
    """Of the first network of each group a few images: clean, under the strongest attack at the
    largest eps, and the difference (gray: none, black and white: eps).
    """
    plan, primitives = measured.plan, list[Primitive]()
    firsts = [members[0] for members in groups_of(subjects).values()]
    spec = max(
        (s for s in plan.attacks if plan.attack(s).bounded),
        key=lambda s: plan.attack(s).strength,
        default="",
    )
    y = MARGIN
    for subject in firsts if spec else []:
        job = plan.job(subject.name, spec, plan.eps[-1], plan.gradients[0])
        index = measured.subject(job)[:EXAMPLES]
        if not len(index):
            continue
        changed = measured.perturbed(job, index, measured.seed)
        clean = measured.pixels(index)
        with torch.no_grad():
            predicted = subject.model(changed).argmax(1).tolist()
        names = [subject.trained.classes[label] for label in measured.images.labels[index].tolist()]
        primitives.append(
            Text(MARGIN, y, f"{subject.name}: {spec}, eps {job.level:g}/255", anchor="start")
        )
        difference = (changed - clean) / (2 * job.level / 255) + 0.5
        for number, triple in enumerate(zip(clean, changed, difference, strict=True)):
            x = MARGIN + number * (3 * SIDE + 2 * MARGIN)
            for place, image in enumerate(triple):
                primitives.append(
                    Picture(x + place * (SIDE + 4), y + 26, SIDE, SIDE, _picture(image))
                )
            found = subject.trained.classes[predicted[number]]
            primitives.append(Text(x, y + 15, f"{names[number]} -> {found}", anchor="start"))
        y += SIDE + 26 + MARGIN
    width = MARGIN + EXAMPLES * (3 * SIDE + 2 * MARGIN)
    return Drawing(
        round(width),
        round(y),
        tuple(primitives),
        "images as they are, under attack, and the difference",
    )


def _picture(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, 3) uint8."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
