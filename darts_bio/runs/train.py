"""Train a genotype's network from scratch, from a configuration to the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from darts_bio.config import TrainingConfig
from darts_bio.data.datasets import ImageData
from darts_bio.data.sources import Source, source_of
from darts_bio.distributed import rank, world_size
from darts_bio.errors import InputError, one_line
from darts_bio.evaluation.alignment import Alignment, training_alignment
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.charts import write_chart
from darts_bio.figures.curves import draw_curves
from darts_bio.monitoring.boards import TrainingBoard
from darts_bio.networks import parameters
from darts_bio.process_group import TIMEOUT, refuse_differences
from darts_bio.reports import page
from darts_bio.reports.card import CURVES_FIGURE, model_card, seeds_card
from darts_bio.reports.markdown import counted
from darts_bio.rules import count_rules
from darts_bio.runs.files import epochs_of
from darts_bio.runs.records import EpochsFile
from darts_bio.runs.rollbacks import going_back
from darts_bio.runs.running import (
    Result,
    SeedResults,
    Watching,
    beginning,
    each_seed,
    perform,
    started,
)
from darts_bio.runtime import (
    hardware,
    made_by,
    precision_notes,
    select_device,
    threads_that_pay,
)
from darts_bio.spaces import (
    GENOTYPE_FILE,
    SPACES,
    Genotype,
    Space,
    load_genotype,
    read_genotype,
)
from darts_bio.storage.logs import EPOCHS_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.parallel import shared_otherwise
from darts_bio.training.retrain import Retraining, new_network

ALIGNMENT_BATCHES = 4
"""The number of training batches that `--alignment-every` measures on."""


@dataclass(frozen=True, repr=False)
class TrainResult(Result):
    """The result of a training: the network after the last epoch, and its accuracy.

    `network` is in evaluation mode, on the run's device. It is the `Network` of `genotype`; if
    `train` was given a network of another kind, `genotype` is None. With `ema` it is the network of
    averaged weights. `accuracy`, in [0, 1], is that on the test images after the last epoch, NaN if
    it was not measured; with `test_at_end=False` it is that on the held-out images. `measured` says
    in words what was measured, `images` on how many images, 0 if that is unknown. No epoch or
    weight is selected by the test images. `parameters`
    counts those of the network, the auxiliary head included.
    """

    network: nn.Module
    genotype: Genotype | None
    accuracy: float
    measured: str
    images: int
    parameters: int


def train(
    config: TrainingConfig,
    command: str,
    genotype: Genotype | None = None,
    data: ImageData | None = None,
    watching: Watching | None = None,
    network: Callable[[TrainingConfig, Source], nn.Module] | None = None,
) -> TrainResult | SeedResults[TrainResult]:
    """Train the network of a genotype, once or for several seeds, alone or under torchrun.

    Args:
        config: The options of the training.
        command: The command or call that the run folder records.
        genotype: A genotype to train in place of the one that the configuration names.
        data: Images to train on in place of the data set that the configuration names.
        watching: How the run is shown; by default it is not.
        network: Makes a network of another kind, from the options and the images of a seed's run.
            It maps normalized images (N, C, H, W) to logits (N, classes), or to a pair of the
            logits and those of an auxiliary head. The run then has no genotype; the configuration's
            `genotype` is only a name for the network.

    Raises:
        InputError: For options that cannot be met, or processes started differently.
    """
    watching = watching or Watching()
    with started(config) as config:
        device = select_device(config.device)
        if network is not None:
            build, trained_genotype = network, None
        else:
            if config.out and config.resume:
                # A run keeps the genotype it began with, whatever has become of the file it was
                # read from.
                genotype = read_genotype(Path(config.out, GENOTYPE_FILE))
            trained_genotype = genotype or load_genotype(config.genotype)
            build = partial(_network_of, trained_genotype)

        @going_back
        def run(
            seed_config: TrainingConfig, open_folder: Callable[[], RunFolder], number: int
        ) -> TrainResult:
            source = source_of(seed_config, device, data)
            try:
                model = build(seed_config, source)
                if seed_config.auxiliary and "auxiliary" not in dict(model.named_children()):
                    raise InputError(
                        "--auxiliary: expected 0, since this network has no auxiliary head, found "
                        f"{seed_config.auxiliary}"
                    )
                task = Retraining(seed_config, model, source, device)
                refuse_differences(
                    {f"the {name}": text for name, text in task.subject.items()}, within=TIMEOUT
                )
                seed = (seed_config.seed, number, config.seeds)
                sizes = (seed_config.batch_size, seed_config.channels, source.image_size)
                with threads_that_pay(device, *sizes):
                    return _perform(task, open_folder(), watching, seed)
            finally:
                source.close()

        def open_folder(folder_config: TrainingConfig) -> RunFolder:
            return RunFolder.open("train", folder_config, command, genotype=trained_genotype)

        if config.seeds == 1:
            return run(config, lambda: open_folder(config), 0)
        parent, results = each_seed(config, open_folder, run)
        if rank() == 0 and all(result.finished for result in results.values()):
            curves = draw_curves([result.epochs for result in results.values()])
            write_chart(parent.path / CURVES_FIGURE, curves, config.charts)
            page.write_report(parent.path, seeds_card(config, command, results))
        return SeedResults(parent.path, results)


def _network_of(genotype: Genotype, config: TrainingConfig, source: Source) -> nn.Module:
    """Build the network of a genotype: `new_network` with the genotype first, for `partial`."""
    return new_network(config, genotype, source)


def _unused_cells(task: Retraining) -> list[str]:
    """Return a line on the cells of a genotype that a network of so many layers does not have."""
    if task.genotype is None:
        return []
    space: Space = SPACES.build(task.genotype.space)
    layers = task.config.layers
    unused = space.unused(layers)
    if not unused:
        return []
    return [
        f"note: a network of {layers} cells has none of {', '.join(unused)}; with --layers "
        f"{len(space.cell_types)} each cell of the genotype has its place"
    ]


def _perform(
    task: Retraining, folder: RunFolder, watching: Watching, seed: tuple[int, int, int]
) -> TrainResult:
    """Run one training and write its folder; `seed` is (its seed, its number, their count)."""

    def introduction(progress: Progress) -> list[str]:
        config = task.config
        if progress.step == progress.steps:
            return [f"{folder.path}: done already, after {counted(progress.epochs, 'epoch')}"]
        lines = [
            f"training on {config.dataset or config.data_dir}, {task.device}: {progress.steps} "
            "steps in "
            f"{counted(progress.epochs, 'epoch')}; "
            f"network of {parameters(task.network):,} parameters",
            *precision_notes(task.device, config.amp),
        ]
        if task.genotype is not None and (note := task.genotype.provenance.get("note")):
            lines.append(one_line(f"note on this genotype: {note}"))
        lines += _unused_cells(task)
        if task.began_with != world_size():
            lines.append(shared_otherwise(task.began_with, world_size()))
        return [*lines, *beginning(progress, folder, watching, seed)]

    meter = AlignmentMeter(task)
    outcome, exit_code = perform(
        task,
        folder,
        [CellsFigure(task, folder), EpochsFile(folder.path / EPOCHS_FILE, meter.record)],
        watching,
        introduction,
        lambda: TrainingBoard(task, folder, lambda: meter.latest),
        {
            "parameters": parameters(task.network),
            "transport": count_rules(task.network).share,
            "images": task.images_measured,
            "machine": f"{hardware(task.device)}; {made_by()}",
        },
        news=_UnreadableFiles(task),
        extra=meter,
    )
    if rank() == 0:
        write_report(task, folder, outcome.step)
    network: nn.Module = task.network if task.averaged is None else task.averaged.module
    return TrainResult(
        folder.path,
        epochs_of(folder.path, outcome.step),
        outcome.step,
        outcome.finished,
        exit_code,
        network.eval(),
        task.genotype,
        outcome.numbers.get(task.result, float("nan")),
        task.result_in_words,
        task.images_measured,
        parameters(task.network),
    )


class AlignmentMeter:
    """A measurement of the alignment with backpropagation, every `--alignment-every` epochs.

    The last epoch is always measured, unless the option is 0.
    """

    def __init__(self, training: Retraining) -> None:
        self._training = training
        self.latest: Alignment | None = None
        """The alignment after the epoch that has just ended; None if it was not measured."""

    def __call__(self, progress: Progress) -> Numbers:
        """Measure if this epoch is to be measured, and return the summary (else no numbers)."""
        every, self.latest = self._training.config.alignment_every, None
        if every == 0 or (progress.epoch % every and progress.epoch != progress.epochs):
            return {}
        self.latest = training_alignment(self._training, ALIGNMENT_BATCHES)
        return {f"alignment/{name}": value for name, value in self.latest.summary().items()}

    def record(self) -> dict[str, Any] | None:
        """Return the latest alignment as plain data; None if the epoch was not measured."""
        return None if self.latest is None else self.latest.as_dict()


class CellsFigure(Listener):
    """A listener that draws the cells that are trained into cells.svg, at the start."""

    def __init__(self, training: Retraining, folder: RunFolder) -> None:
        self._genotype, self._path = training.genotype, folder.path / "cells.svg"

    def on_start(self, progress: Progress) -> None:
        if self._genotype is not None:
            write_text(self._path, draw_genotype(self._genotype).svg())


class _UnreadableFiles:
    """The console's news of image files that could not be read: each file is named once."""

    def __init__(self, training: Retraining) -> None:
        self._training, self._named = training, set[str]()

    def __call__(self) -> list[str]:
        """Return a line for each file that has turned out to be unreadable since the last call."""
        new = {name: why for name, why in self._training.damaged.items() if name not in self._named}
        self._named |= new.keys()
        return [
            one_line(f"passed over, since it cannot be read: {name} ({why})")
            for name, why in new.items()
        ]


def write_report(training: Retraining, folder: RunFolder, step: int) -> None:
    """Write curves.svg and the report, a model card, as of `step` steps, if an epoch has ended."""
    records = epochs_of(folder.path, step)
    if records:
        charts = training.config.charts
        write_chart(folder.path / CURVES_FIGURE, draw_curves([records]), charts)
        page.write_report(folder.path, model_card(training, folder, records))
