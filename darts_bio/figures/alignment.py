"""The figure of alignment against depth; needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path

from darts_bio.evaluation.alignment import Alignment
from darts_bio.training.run_folder import replacing

PANELS = {
    "angle to the exact, degrees": {
        "feedback_angle": "feedback K to W",
        "error_angle": "error sent down",
    },
    "cosine of the weight's gradient": {"gradient_cosine": "to the exact gradient"},
    "variance over batches / |mean|^2": {
        "gradient_variance": "under the rules",
        "exact_gradient_variance": "exact",
    },
}
"""Title of a panel -> the quantities it shows, fields of `LayerAlignment`, with their labels."""


def draw_alignment(alignment: Alignment, path: Path) -> None:
    """Write an SVG of angles, gradient cosine and gradient variance of each layer against depth.

    Raises ImportError without matplotlib, and InputError if the disk refuses.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    FigureCanvasSVG(figure)
    for axis, (title, lines) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for (name, label), mark in zip(lines.items(), ("o-", "s--"), strict=False):
            # A value is None where a layer has nothing to compare, such as no feedback.
            layers = [layer for layer in alignment.layers if getattr(layer, name) is not None]
            axis.plot(
                [layer.depth for layer in layers],
                [getattr(layer, name) for layer in layers],
                mark,
                markersize=3,
                label=label,
            )
        if "variance" in title:
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("depth of the layer")
        axis.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
