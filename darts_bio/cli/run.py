"""The commands that make a run: each passes its configuration to `darts_bio.runs` and prints."""

from __future__ import annotations

import sys
from typing import TextIO

from darts_bio.config import (
    AlignmentConfig,
    ReportConfig,
    RobustnessConfig,
    RunConfig,
    SearchConfig,
    TrainingConfig,
)
from darts_bio.distributed import rank
from darts_bio.errors import printable
from darts_bio.invocation import called, line
from darts_bio.process_group import launcher, process_group
from darts_bio.reports.card import CARD_FILE, on_images, spread
from darts_bio.reports.choice import measured
from darts_bio.reports.markdown import counted
from darts_bio.reports.search import accuracies_in_words
from darts_bio.runs.alignment import compare_alignment_of_runs, measure_alignment_of_run
from darts_bio.runs.choice import ChoiceResult, search_and_train
from darts_bio.runs.robustness import measure_robustness
from darts_bio.runs.running import SeedResults, Watching
from darts_bio.runs.search import CELLS_FIGURE, SearchResult, sizes_in_words, train_command
from darts_bio.runs.search import search as run_search
from darts_bio.runs.side_by_side import compare_runs
from darts_bio.runs.train import train as run_train
from darts_bio.spaces import GENOTYPE_FILE, text_of


def _console(config: RunConfig) -> TextIO | None:
    """Return where the progress of a run is shown: nowhere with `--quiet`."""
    return None if config.quiet else sys.stderr


def search(config: SearchConfig) -> int:
    """Search, then print the derived genotypes and the command that trains each; return the code.

    With `--choose` print instead which genotype was chosen, and its test accuracy. The exit code is
    0, or 128 plus the number of the signal that stopped the run.
    """
    with process_group():
        watching = Watching(_console(config), tensorboard=True)
        if config.choose:
            chosen = search_and_train(config, called(launcher()), watching=watching)
            if rank() == 0:
                _print_choice(config, chosen)
            return chosen.exit_code
        result = run_search(config, called(launcher()), watching=watching)
        if rank() > 0:
            return result.exit_code
        if isinstance(result, SeedResults):
            for seed, seed_result in result.seeds.items():
                print(f"seed {seed}:\n{seed_result.genotype}\n")
                if seed_result.finished:
                    print(
                        f"next, train it: {train_command(seed_result.folder, seed_result.next_options)}\n"
                    )
            print(f"report: {result.folder / CARD_FILE}")
        else:
            _print_search(config, result)
        if not result.finished:
            _say_resume(config, str(result.folder))
        return result.exit_code


def _print_search(config: SearchConfig, result: SearchResult) -> None:
    """Print the result of a search with one seed."""
    text = text_of(result.genotype)
    if text:
        print(text)
    if config.table is not None:
        known = accuracies_in_words(result.known) if result.known else "not in the table"
        print(f"known accuracy of these operations under bp: {known}")
    print(
        f"{result.genotype}\n\ngenotype: {result.folder / GENOTYPE_FILE}\nfigure:   "
        f"{result.folder / CELLS_FIGURE}"
    )
    print(f"report:   {result.folder / CARD_FILE}")
    if result.finished:
        print(f"next, train it: {train_command(result.folder, result.next_options)}")
        print(sizes_in_words(config, result.next_options))


def _print_choice(config: SearchConfig, result: ChoiceResult) -> None:
    """Print the result of several searches, the choice among them and the full training."""
    if result.choice is not None:
        for candidate in result.choice.candidates:
            accuracy, loss = measured(candidate)
            print(f"seed {candidate.seed}: accuracy on held-out images, %: {accuracy}, loss {loss}")
        print(f"chosen: seed {result.choice.chosen.seed}, {result.choice.reason}")
        print(f"{result.genotype}\n\ngenotype: {result.folder / GENOTYPE_FILE}")
        print(f"report:   {result.folder / CARD_FILE}")
    if result.final is not None and result.finished:
        measured_on = on_images(result.final.images)
        print(f"{result.final.measured}: {100 * result.accuracy:.2f} %{measured_on}")
    else:
        _say_resume(config, str(result.folder))


def _say_resume(config: SearchConfig | TrainingConfig | RobustnessConfig, folder: str) -> None:
    """Print the command line that resumes a run which was stopped."""
    plugins = ["--plugin", ",".join(config.plugin)] if config.plugin else []
    resume = line(config.command, "--out", folder, "--resume", *plugins, launcher=launcher())
    print(f"stopped; go on with: {resume}")


def train(config: TrainingConfig) -> int:
    """Train, print the test accuracy and where the report lies, and return the exit code."""
    with process_group():
        watching = Watching(_console(config), tensorboard=True)
        result = run_train(config, called(launcher()), watching=watching)
        if rank() > 0:
            return result.exit_code
        if not result.finished:
            _say_resume(config, str(result.folder))
        elif isinstance(result, SeedResults):
            first = next(iter(result.seeds.values()))
            accuracies = {seed: seed_result.accuracy for seed, seed_result in result.seeds.items()}
            for seed, accuracy in accuracies.items():
                print(f"seed {seed}: {100 * accuracy:.2f} %")
            measured_on = on_images(first.images)
            print(f"{first.measured}: {spread(list(accuracies.values()))}{measured_on}")
            print(f"report: {result.folder / CARD_FILE}")
        else:
            print(
                f"{result.measured}: {100 * result.accuracy:.2f} % after "
                f"{counted(config.epochs, 'epoch')}{on_images(result.images)}"
            )
            print(f"parameters:    {result.parameters:,}\nrun folder:    {result.folder}")
            print(f"report:        {result.folder / CARD_FILE}")
        return result.exit_code


def robustness(config: RobustnessConfig) -> int:
    """Attack networks, print the number of doubts and where the report lies; return the code."""
    result = measure_robustness(config, called(launcher()), _console(config), tensorboard=True)
    if not result.finished:
        _say_resume(config, str(result.folder))
        return result.exit_code
    print(f"doubts:  {len(result.doubts) or 'none'}")
    print(f"report:  {result.folder / CARD_FILE}")
    return 0


def alignment(config: AlignmentConfig) -> int:
    """Measure the alignment with backpropagation, print the table, and return 0."""
    if len(config.checkpoint) > 1:
        compared = compare_alignment_of_runs(config)
        print(f"{compared.comparison.table()}\nwrote {compared.folder}")
        return 0
    result = measure_alignment_of_run(config)
    print(f"{result.alignment}\n\nwrote {result.numbers}\nwrote {result.figure}")
    if result.epochs_figure is not None:
        print(f"wrote {result.epochs_figure}")
    return 0


def report(config: ReportConfig) -> int:
    """Compare runs, print whether they can be compared and where the report lies; return 0."""
    folder, doubts = compare_runs(config)
    for doubt in doubts:
        print(f"not comparable: {printable(doubt)}")
    print(f"report: {folder / CARD_FILE}")
    return 0
