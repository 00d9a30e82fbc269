"""Run a search, from its configuration to the genotype."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from darts_bio.config import RetrainConfig, SearchConfig, flag
from darts_bio.config.options import plain
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.data.given import GIVEN
from darts_bio.distributed import first_before_the_others, rank, world_size
from darts_bio.errors import InputError
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.charts import write_chart
from darts_bio.figures.curves import draw_known
from darts_bio.figures.drawing import Drawing
from darts_bio.invocation import line, portable
from darts_bio.monitoring.boards import FitBoard, GenotypeBoard, SearchBoard
from darts_bio.monitoring.console import Console
from darts_bio.networks import parameters
from darts_bio.process_group import TIMEOUT, launcher, refuse_differences
from darts_bio.reports import page
from darts_bio.reports.findings import unlearned
from darts_bio.reports.markdown import counted
from darts_bio.reports.search import KNOWN_FIGURE, search_card
from darts_bio.reports.search_seeds import search_seeds_card
from darts_bio.reports.stages import stages_card
from darts_bio.reports.time_lapse import alpha_record, time_lapse
from darts_bio.runs.black_box import EvaluationsFile, is_black_box, write_report
from darts_bio.runs.black_box import introduction as introduction_of_queries
from darts_bio.runs.files import epochs_of
from darts_bio.runs.fitting import misfits
from darts_bio.runs.options import complete
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
from darts_bio.runs.stages import each_stage, numbers_of, write_numbers
from darts_bio.runtime import select_device, threads_that_pay
from darts_bio.spaces import SPACES, Genotype, Nb201Table, to_nb201_text
from darts_bio.storage.logs import ALPHA_FILE, read_records
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text
from darts_bio.training.black_box import BlackBoxSearch
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers
from darts_bio.training.search import Search
from darts_bio.version import __version__

CELLS_FIGURE = "cells.svg"


@dataclass(frozen=True, repr=False)
class SearchResult(Result):
    """The result of a search: the derived genotype, the numbers of each epoch, the run folder.

    A strategy without a supernet makes a query where others have an epoch.

    `known` holds the accuracies of the cell, in per cent by data set, from the NAS-Bench-201 table
    given by `table`; None without a table or where the cell is not in it. With a table `epochs`
    has them too, as a share (`known/cifar10`, ...), of the cell that alpha stood for after each.
    `next_options` are the options with which `train` retrains the genotype on the data set that was
    searched on, all of its training images.
    """

    genotype: Genotype
    known: Mapping[str, float] | None
    next_options: Mapping[str, Any]


def search(
    config: SearchConfig,
    command: str,
    data: ImageData | None = None,
    watching: Watching | None = None,
    place: Callable[[], Path] | None = None,
) -> SearchResult | SeedResults[SearchResult]:
    """Search as the configuration says, alone or with the other processes of torchrun.

    Several processes divide each batch among them; where there are several seeds, they divide the
    searches instead, unless `share` is "batch".

    Args:
        config: The options of the search.
        command: The command or call that the run folder records.
        data: Images to search on in place of the data set that the configuration names.
        watching: How the run is shown; by default it is not.
        place: Returns the folder of a new run whose configuration names none. It is called by all
            processes, and once a search is built, so that bad input leaves no folder.

    Raises:
        InputError: For options that cannot be met, or processes started differently.
    """
    watching = watching or Watching()
    with started(config) as config:
        divide_seeds = config.share == "seeds" and config.seeds > 1 and world_size() > 1
        if divide_seeds and config.seeds < world_size():
            raise InputError(
                f"--seeds: expected at least one for each of {world_size()} processes, found "
                f"{config.seeds}; start "
                f"{config.seeds} processes, or use --share batch to have all share each search"
            )
        # Only the first process writes to the terminal; TensorBoard shows the searches of all.
        if divide_seeds and rank() > 0:
            watching = replace(watching, console=None)
        remark = (
            f"{world_size()} processes, each with other seeds; shown are the searches of the first"
        )
        table = None if config.table is None else Nb201Table(Path(config.table))
        queries = is_black_box(config)
        device = select_device(config.device)
        with first_before_the_others():  # the first process may have to download the data set
            first_images = data or images_of(config)
        if world_size() > 1:
            refuse_differences({"the data set": first_images.identity()}, within=TIMEOUT)

        @going_back
        def run(
            seed_config: SearchConfig, open_folder: Callable[[], RunFolder], number: int
        ) -> SearchResult:
            # Unless `data_seed` is given, `train_images` draws a subset for each seed.
            same_images = data is not None or seed_config.seed_of_images == config.seed_of_images
            images = first_images if same_images else images_of(seed_config)
            remarks = [remark] if divide_seeds else []

            def run_one(
                task: Search | BlackBoxSearch, folder: RunFolder, more: Sequence[str]
            ) -> SearchResult:
                seed = (seed_config.seed, number, config.seeds)
                return _perform(task, folder, watching, images, table, seed, [*more, *remarks])

            if queries:
                return run_one(
                    BlackBoxSearch(seed_config, images, device, table), open_folder(), []
                )
            if seed_config.stages:
                return _in_stages(seed_config, images, device, open_folder, run_one)
            return run_one(Search(seed_config, images, device), open_folder(), [])

        def open_folder(folder_config: SearchConfig) -> RunFolder:
            if place is not None and folder_config.out is None:
                folder_config = replace(folder_config, out=str(place()))
            return RunFolder.open("search", folder_config, command)

        size = first_images.image_size
        with threads_that_pay(device, config.batch_size, config.channels, size):
            if config.seeds == 1:
                return run(config, lambda: open_folder(config), 0)
            parent, results = each_seed(config, open_folder, run, divide_seeds)
        if rank() == 0:
            page.write_report(parent.path, search_seeds_card(config, command, results))
        return SeedResults(parent.path, results)


def images_of(config: SearchConfig) -> ImageData:
    """Load the data set that a configuration names."""
    return load_data(
        config.dataset,
        config.data_dir,
        config.image_size,
        config.train_images,
        config.seed_of_images,
    )


def _in_stages(
    config: SearchConfig,
    images: ImageData,
    device: torch.device,
    open_folder: Callable[[], RunFolder],
    run_one: Callable[[Search, RunFolder, Sequence[str]], SearchResult],
) -> SearchResult:
    """Run a search in stages, and write the folder of the whole; `run_one` makes one stage."""
    result: SearchResult | None = None

    def after(folder: RunFolder, task: Search, results: list[SearchResult]) -> None:
        nonlocal result
        last, numbers = results[-1], numbers_of(results)
        options = next_options(folder.path, task.config, images)
        steps = sum(each.step for each in results)
        finished = last.finished and len(results) == len(config.stages)
        if rank() == 0:
            genotype = SearchFiles(task, folder).write(steps, finished)
            command = shown_command(folder.path, options)
            sizes = sizes_in_words(task.config, options)
            card = stages_card(config, folder, task, genotype, results, command, sizes)
            page.write_report(folder.path, card)
            write_numbers(folder, numbers)
        result = replace(
            last,
            folder=folder.path,
            epochs=numbers,
            step=steps,
            finished=finished,
            genotype=last.genotype if rank() > 0 else genotype,
            next_options=options,
        )

    each_stage(config, images, device, open_folder, run_one, after)
    assert result is not None
    return result


def _perform(
    task: Search | BlackBoxSearch,
    folder: RunFolder,
    watching: Watching,
    data: ImageData,
    table: Nb201Table | None,
    seed: tuple[int, int, int],
    remarks: Sequence[str],
) -> SearchResult:
    """Run one search and write its folder; `seed` is (its seed, its number from 0, their count)."""

    def introduction(progress: Progress) -> list[str]:
        lines = (
            introduction_of_queries(task)
            if isinstance(task, BlackBoxSearch)
            else _introduction(task, progress)
        )
        return [*lines, *beginning(progress, folder, watching, seed), *remarks]

    files, meter = SearchFiles(task, folder), KnownAccuracy(task, table)

    def board() -> FitBoard:
        if isinstance(task, BlackBoxSearch):
            return GenotypeBoard(task, folder, files.figure)
        return SearchBoard(task, folder, files.figure)

    outcome, exit_code = perform(
        task,
        folder,
        [files, *_records(task, folder)],
        watching,
        introduction,
        board,
        {} if isinstance(task, BlackBoxSearch) else {"parameters": parameters(task.supernet)},
        news=meter.news,
        extra=meter,
        epoch="query" if isinstance(task, BlackBoxSearch) else "epoch",
    )
    epochs = epochs_of(folder.path, outcome.step)
    genotype = task.genotype()
    known = None if table is None else table.accuracies(genotype)
    options = next_options(folder.path, task.config, data)
    if rank() == 0:
        genotype = files.write(outcome.step, outcome.finished)
        figure = draw_known(epochs)
        if figure is not None:
            write_chart(folder.path / KNOWN_FIGURE, figure, task.config.charts)
        command = shown_command(folder.path, options)
        sizes = sizes_in_words(task.config, options)
        if isinstance(task, BlackBoxSearch):
            write_report(task, folder, genotype, epochs, known, command, sizes)
        else:
            history = read_records(folder.path / ALPHA_FILE, outcome.step)
            card = search_card(
                task,
                folder,
                genotype,
                epochs,
                outcome.finished,
                known,
                history,
                command,
                sizes,
            )
            factorised = task.strategy_state.context.factorised
            widget = (
                time_lapse(history, task.table, task.space.edges, factorised) if history else None
            )
            page.write_report(folder.path, card, widget)
            if watching.console is not None and (nothing := unlearned(task, epochs)):
                Console(watching.console).say(f"warning: {nothing}")
    return SearchResult(
        folder.path,
        epochs,
        outcome.step,
        outcome.finished,
        exit_code,
        genotype,
        known,
        options,
    )


def _records(task: Search | BlackBoxSearch, folder: RunFolder) -> list[Listener]:
    """Return the listeners that write a line for each epoch, or each query."""
    if isinstance(task, BlackBoxSearch):
        return [EvaluationsFile(task, folder)]
    return [EpochsFile(folder.path / ALPHA_FILE, lambda: alpha_record(task))]


def _introduction(task: Search, progress: Progress) -> list[str]:
    """Return the console's lines on a search with a supernet."""
    tables = ", ".join(
        f"{cell_type} {edges} edges x {candidates} candidates"
        for cell_type in task.table.rows
        for edges, candidates in [task.table.shape(cell_type)]
    )
    return [
        f"search on {task.config.dataset}, {task.device}: {progress.steps} steps in "
        f"{counted(progress.epochs, 'epoch')}; "
        f"supernet of {parameters(task.supernet):,} weights ({tables})",
        *task.notes(),
    ]


class KnownAccuracy:
    """A look, after each epoch, into the table for the cell that alpha then stands for."""

    def __init__(self, search: Search | BlackBoxSearch, table: Nb201Table | None) -> None:
        self._search, self._table = search, table
        # Cells that the table lacks, and how many of them the console has named.
        self._missing: list[str] = []
        self._named = 0

    def __call__(self, progress: Progress) -> Numbers:
        """Return the accuracies by data set, as shares; none without a table or for other cells."""
        if self._table is None:
            return {}
        genotype = self._search.genotype()
        known = self._table.accuracies(genotype)
        cell = to_nb201_text(genotype, rules=False)
        if known is None and cell not in self._missing:
            self._missing.append(cell)
        return {f"known/{name}": value / 100 for name, value in (known or {}).items()}

    def news(self) -> list[str]:
        """Return a line for each cell that has turned out to be missing since the last call."""
        new, self._named = self._missing[self._named :], len(self._missing)
        return [f"not in the table {self._search.config.table}: {cell}" for cell in new]


class SearchFiles(Listener):
    """A listener that writes the current genotype of a search and its figure after each epoch."""

    def __init__(self, search: Search | BlackBoxSearch, folder: RunFolder) -> None:
        self.search, self.folder = search, folder
        self._drawn: Genotype | None = None  # the genotype that cells.svg shows
        self._latest: tuple[Genotype, Drawing] | None = None  # the last figure, and what it is of

    def figure(self) -> Drawing:
        """Return the figure of the present genotype, drawn once for all who ask."""
        genotype = self.search.genotype()
        if self._latest is None or self._latest[0] != genotype:
            self._latest = genotype, draw_genotype(genotype)
        return self._latest[1]

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        # Of thousands of queries in a table few change what is found.
        looks_up = isinstance(self.search, BlackBoxSearch)
        if not (looks_up and self.search.genotype() == self._drawn):
            self.write(progress.step, progress.step == progress.steps)

    def write(self, step: int, finished: bool) -> Genotype:
        """Write genotype.json and cells.svg as of `step` steps, and return the genotype."""
        note = {} if finished else {"note": "that of a search which had not finished"}
        genotype = self.search.genotype().with_provenance(
            command=self.folder.command,
            **{name: portable(value) for name, value in self.folder.config.identity().items()},
            steps=step,
            **note,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            versions={"darts_bio": __version__, "torch": torch.__version__},
        )
        write_text(self.folder.genotype_path, genotype.to_json())
        if genotype != self._drawn:
            write_text(self.folder.path / CELLS_FIGURE, self.figure().svg())
            self._drawn = genotype
        return genotype


def next_options(folder: Path, config: SearchConfig, data: ImageData) -> dict[str, Any]:
    """Return the options with which `train` retrains the genotype in `folder` on its data set.

    They are those of the recipe, not of the search: all training images, whatever `--train-images`
    left the search, as networks of other sizes (`sizes_in_words` says so).
    """
    # Images handed over in Python have to be given to `train` again, which then fits the recipe.
    if config.dataset == GIVEN:
        return {}
    options = {}
    for name in ("dataset", "data_dir", "image_size", "plugin"):
        value = getattr(config, name)
        if value not in (None, ()):
            options[name] = value
    # The space is given, since it cannot be read from the genotype yet: a process other than the
    # first may be here before genotype.json is written.
    retrain = complete(RetrainConfig, {"genotype": str(folder), **options}, space=config.space)
    return options | unfit_options(retrain, config, data)


def sizes_in_words(config: SearchConfig, options: Mapping[str, Any]) -> str:
    """Return sentences on the training with `next_options`: its network, its epochs, its images.

    >>> print(sizes_in_words(SearchConfig(dataset="digits", channels=4), {"dataset": "digits"})[:82])
    That is a network of 3 cells and 16 channels, the size of the recipe for digits, t
    """
    retrain = complete(RetrainConfig, {"genotype": "found", **options}, space=config.space)
    size = f"That is a network of {retrain.layers} cells and {retrain.channels} channels"
    length = f"trained for {counted(retrain.epochs, 'epoch')}"
    if config.query is not None:  # nothing was trained
        return f"{size}, {length}."
    images = ""
    if config.train_images is not None:
        length += " on all training images"
        images = (
            f" The search had {config.train_images} of the training images: `--train-images "
            f"{config.train_images} --data-seed {config.seed_of_images}` trains on these alone."
        )
        if "batch_size" in options:
            images += (
                f" A batch of {retrain.batch_size} is all of these: to train on all images by the "
                "recipe's batch leave `--batch-size` out."
            )
    if (retrain.layers, retrain.channels) == (config.layers, config.channels):
        return f"{size}, as the search had, {length}.{images}"
    own = " ".join(
        f"--{name} {getattr(config, name)}"
        for name in ("layers", "channels")
        if getattr(config, name) != getattr(retrain, name)
    )
    return (
        f"{size}, the size of the recipe for {config.dataset}, {length}. The search had {config.layers} cells "
        f"and {config.channels} channels: `{own}` trains one of the search's own size.{images}"
    )


def train_command(folder: Path, options: Mapping[str, Any]) -> str:
    """Return the command line that trains the genotype in `folder` with these options.

    >>> options = {"dataset": "digits", "flip": False}
    >>> train_command(Path("found"), options).removeprefix("uv run ").split()[-5:]
    ['--genotype', 'found', '--dataset', 'digits', '--no-flip']
    """
    words = [flag("genotype"), str(folder)]
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), _option_word(value)]
    return line("train", *words, launcher=launcher())


def shown_command(folder: Path, options: Mapping[str, Any]) -> str | None:
    """Return the `train_command` as a report shows it: without the folders of this machine.

    None without options: the images have no name.
    """
    if not options:
        return None
    shown = {name: portable(value) for name, value in options.items()}
    return train_command(Path(portable(str(folder))), shown)


def _option_word(value: object) -> str:
    """Return an option's value as the command line reads it."""
    value = plain(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def unfit_options(retrain: RetrainConfig, config: SearchConfig, data: ImageData) -> dict[str, Any]:
    """Return new values, by name, for options that do not fit the cells or images of a search.

    Args:
        retrain: The options of a training that follows the search.
        config: The options of the search.
        data: The images of both.
    """
    options = misfits(retrain, data)
    if SPACES.build(config.space).unused(retrain.layers):  # cells by depth, of a longer search
        options["layers"] = config.layers
    return options
