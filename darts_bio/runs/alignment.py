"""A measurement of the alignment with backpropagation, from a run folder to a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from darts_bio.config import AlignmentConfig
from darts_bio.data.datasets import ImageData
from darts_bio.evaluation.alignment import Alignment, training_alignment
from darts_bio.figures.alignment import draw_alignment
from darts_bio.runtime import select_device
from darts_bio.training.retrain import Retraining
from darts_bio.training.run_folder import write_text


@dataclass(frozen=True)
class AlignmentResult:
    """What was measured, layer by layer, and the files that hold it: alignment.json, and
    alignment.svg where matplotlib is installed (`figure` is None where it is not).
    """

    alignment: Alignment
    folder: Path
    numbers: Path
    figure: Path | None


def measure_alignment_of_run(
    config: AlignmentConfig, data: ImageData | None = None
) -> AlignmentResult:
    """Measure a trained network on training batches of its own run, and write the result into the
    run's folder.

    `data` are the run's images, where they were handed over.

    Raises InputError if the folder holds no training.
    """
    folder = Path(config.checkpoint)
    training = Retraining.of_run(folder, select_device(config.device), config.data_dir, data)
    try:
        alignment = training_alignment(training, config.batches)
    finally:
        training.source.close()
    numbers, figure = folder / "alignment.json", folder / "alignment.svg"
    write_text(numbers, json.dumps(alignment.as_dict(), indent=2) + "\n")
    try:
        draw_alignment(alignment, figure)
    except ImportError:
        return AlignmentResult(alignment, folder, numbers, None)
    return AlignmentResult(alignment, folder, numbers, figure)
