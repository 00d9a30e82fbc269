"""Measure how trained networks' learning aligns with backpropagation, and write tables and figures.

alignment.json           the numbers of the network as it is, in the run folder
alignment.svg            the figure against the depth of layers
alignment-epochs.jsonl   the numbers of epochs, where a training measured them (`--alignment-every`)
alignment-epochs.svg     the figure of these

A comparison of several runs is a folder of its own, with comparison.md, .json and .svg.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from darts_bio.config import AlignmentConfig
from darts_bio.data.datasets import ImageData
from darts_bio.errors import InputError, first_line
from darts_bio.evaluation.alignment import Alignment, training_alignment
from darts_bio.evaluation.subjects import names_of
from darts_bio.figures.alignment import draw_by_depth, draw_over_epochs
from darts_bio.figures.charts import write_chart
from darts_bio.reports.alignment import AlignmentComparison
from darts_bio.reports.markdown import counted
from darts_bio.runtime import select_device
from darts_bio.storage.logs import EPOCHS_FILE, read_records
from darts_bio.storage.run_folder import new_folder
from darts_bio.storage.whole_files import write_text
from darts_bio.training.retrain import Retraining, config_of_run


@dataclass(frozen=True, repr=False)
class AlignmentResult:
    """The alignment of each layer of a run, and the files that hold it.

    `numbers` is the path of alignment.json, `figure` that of alignment.svg. `epochs` has the
    alignments that the training measured, by epoch, and `epochs_figure` is the path of
    alignment-epochs.svg; None where it measured none.
    """

    alignment: Alignment
    folder: Path
    numbers: Path
    figure: Path
    epochs: dict[int, Alignment]
    epochs_figure: Path | None

    def __repr__(self) -> str:
        layers = counted(len(self.alignment.layers), "layer")
        found = self.alignment.summary().items()
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in found)
        return f"{type(self).__name__}({str(self.folder)!r}, {layers}; {numbers})"


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """The alignments of several runs side by side, each run's own, and the folder of the comparison."""

    comparison: AlignmentComparison
    runs: tuple[AlignmentResult, ...]
    folder: Path

    def __repr__(self) -> str:
        networks = counted(len(self.runs), "network")
        return f"{type(self).__name__}({str(self.folder)!r}, {networks})"


def measure_alignment_of_run(
    config: AlignmentConfig, data: ImageData | None = None
) -> AlignmentResult:
    """Measure the first network of `config` on its training batches, and write the result beside it.

    `data` are the run's images, if they were handed over in Python rather than named. Raises
    InputError if the folder holds no training.
    """
    return _measure(Path(config.checkpoint[0]), config, data)


def compare_alignment_of_runs(
    config: AlignmentConfig, data: ImageData | None = None
) -> ComparisonResult:
    """Measure all networks of `config`, each on its own training batches, and compare them.

    Each result is written beside its network too. `data` is as in `measure_alignment_of_run`.
    Raises InputError if a folder holds no training, before anything is measured.
    """
    folders = [Path(checkpoint) for checkpoint in config.checkpoint]
    for each in folders:
        config_of_run(each)
    names = names_of(folders)
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint: expected each run once, found {', '.join(names)}")
    folder = new_folder("alignment", config.out, resumable=False)
    results = tuple(_measure(each, config, data) for each in folders)
    found = [result.alignment for result in results]
    comparison = AlignmentComparison(dict(zip(names, found, strict=True)))
    write_text(folder / "comparison.md", comparison.table())
    write_text(folder / "comparison.json", comparison.to_json())
    write_chart(folder / "comparison.svg", comparison.figure(), config.charts)
    return ComparisonResult(comparison, results, folder)


def _measure(folder: Path, config: AlignmentConfig, data: ImageData | None) -> AlignmentResult:
    """Measure the network of a run folder, and write its files."""
    training = Retraining.of_run(folder, select_device(config.device), config.data_dir, data)
    try:
        alignment = training_alignment(training, config.batches)
    finally:
        training.source.close()
    numbers, figure = folder / "alignment.json", folder / "alignment.svg"
    write_text(numbers, json.dumps(alignment.as_dict(), indent=2) + "\n")
    write_chart(figure, draw_by_depth({"after the training": alignment}), config.charts)
    epochs, epochs_figure = alignments_by_epoch(folder), None
    if epochs:
        epochs_figure = folder / "alignment-epochs.svg"
        write_chart(epochs_figure, draw_over_epochs(epochs), config.charts)
    return AlignmentResult(alignment, folder, numbers, figure, epochs, epochs_figure)


def alignments_by_epoch(folder: Path) -> dict[int, Alignment]:
    """Read what a training measured with `--alignment-every`, by epoch; empty if nothing.

    Raises InputError for a file that is not as a run writes it.

    >>> alignments_by_epoch(Path("runs/none"))
    {}
    """
    found = {}
    for record in read_records(folder / EPOCHS_FILE):
        try:
            if type(record["epoch"]) is not int:
                raise TypeError("epoch: expected a whole number")
            found[record["epoch"]] = Alignment.from_dict(record)
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / EPOCHS_FILE}: a record of step {record['step']}: expected an alignment as "
                f"a training writes it ({first_line(error)}); put back the file that the run wrote"
            ) from None
    return found
