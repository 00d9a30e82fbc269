"""The commands that make a run: each hands its configuration to `darts_bio.runs`, and prints what
came of it.
"""

from __future__ import annotations

import sys

from darts_bio.config import AlignmentConfig, RobustnessConfig, SearchConfig, TrainingConfig, flag
from darts_bio.config.options import plain
from darts_bio.distributed import launcher, process_group, rank
from darts_bio.errors import install_hint
from darts_bio.invocation import called, line
from darts_bio.reports.card import CARD_FILE, spread
from darts_bio.runs.alignment import measure_alignment_of_run
from darts_bio.runs.robustness import measure_robustness
from darts_bio.runs.running import SeedResults, Watching
from darts_bio.runs.search import CELLS_FIGURE, SearchResult
from darts_bio.runs.search import search as run_search
from darts_bio.runs.train import train as run_train
from darts_bio.spaces import GENOTYPE_FILE, text_of


def search(config: SearchConfig) -> int:
    """Search, print the genotypes found, and the command that trains each."""
    with process_group():
        result = run_search(
            config, called(launcher()), watching=Watching(sys.stderr, tensorboard=True)
        )
        if rank() > 0:
            return result.exit_code
        if isinstance(result, SeedResults):
            for seed, own in result.seeds.items():
                print(f"seed {seed}:\n{own.genotype}\n")
                if own.finished:
                    print(f"next, train it: {_next(own)}\n")
            print(f"report: {result.folder / CARD_FILE}")
        else:
            _show(result)
        if not result.finished:
            _say_resume(config, str(result.folder))
        return result.exit_code


def _show(result: SearchResult) -> None:
    if text := text_of(result.genotype):
        print(text)
    if result.known is not None:
        known = ", ".join(f"{name} {value:.2f} %" for name, value in result.known.items())
        print(f"known accuracy of these operations under bp: {known or 'not in the table'}")
    print(
        f"{result.genotype}\n\ngenotype: {result.folder / GENOTYPE_FILE}\nfigure:   "
        f"{result.folder / CELLS_FIGURE}"
    )
    print(f"report:   {result.folder / CARD_FILE}")
    if result.finished:
        print(f"next, train it: {_next(result)}")


def _next(result: SearchResult) -> str:
    options = [("genotype", str(result.folder)), *result.next_options.items()]
    words = [word for name, value in options for word in (flag(name), _word(value))]
    return line("train", *words, launcher=launcher())


def _word(value: object) -> str:
    """Write an option's value as the command line reads it."""
    value = plain(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _say_resume(config: SearchConfig | TrainingConfig | RobustnessConfig, folder: str) -> None:
    plugins = ["--plugin", ",".join(config.plugin)] if config.plugin else []
    resume = line(config.command, "--out", folder, "--resume", *plugins, launcher=launcher())
    print(f"stopped; go on with: {resume}")


def train(config: TrainingConfig) -> int:
    """Train, and print the result."""
    with process_group():
        result = run_train(
            config, called(launcher()), watching=Watching(sys.stderr, tensorboard=True)
        )
        if rank() > 0:
            return result.exit_code
        if not result.finished:
            _say_resume(config, str(result.folder))
        elif isinstance(result, SeedResults):
            first = next(iter(result.seeds.values()))
            accuracies = {seed: own.accuracy for seed, own in result.seeds.items()}
            print(
                *(f"seed {seed}: {100 * accuracy:.2f} %" for seed, accuracy in accuracies.items()),
                sep="\n",
            )
            print(
                f"{first.measured}: {spread(list(accuracies.values()))}\nreport: "
                f"{result.folder / CARD_FILE}"
            )
        else:
            print(f"{result.measured}: {100 * result.accuracy:.2f} % after {config.epochs} epochs")
            print(f"parameters:    {result.parameters:,}\nrun folder:    {result.folder}")
            print(f"report:        {result.folder / CARD_FILE}")
        return result.exit_code


def robustness(config: RobustnessConfig) -> int:
    """Attack, and print where the report lies."""
    result = measure_robustness(config, called(launcher()), sys.stderr, tensorboard=True)
    if not result.finished:
        _say_resume(config, str(result.folder))
        return result.exit_code
    print(f"doubts:  {len(result.doubts) or 'none'}")
    print(f"report:  {result.folder / CARD_FILE}")
    return 0


def alignment(config: AlignmentConfig) -> int:
    """Measure, and print the table."""
    result = measure_alignment_of_run(config)
    print(f"{result.alignment}\n\nwrote {result.numbers}")
    if result.figure is None:
        print(f"no figure: matplotlib is not installed ({install_hint('plot')})", file=sys.stderr)
    else:
        print(f"wrote {result.figure}")
    return 0
