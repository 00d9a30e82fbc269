"""From a configuration to a report: a training, and a measurement of robustness."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from darts_bio.command_line import read_yaml
from darts_bio.config import CONFIG_FILE, RobustnessConfig, TrainingConfig
from darts_bio.data.sources import open_source
from darts_bio.distributed import launcher, process_group, rank, text_from_first, world_size
from darts_bio.errors import InputError
from darts_bio.evaluation.corruptions import CORRUPTIONS
from darts_bio.evaluation.robustness import Measurement, Plan
from darts_bio.evaluation.subjects import load_subjects
from darts_bio.monitoring.report import TrainingMonitor, resume_line
from darts_bio.monitoring.robustness_report import RobustnessMonitor
from darts_bio.networks import parameters
from darts_bio.reports.card import CARD_FILE, seeds_card, spread
from darts_bio.runtime import select_device, stop_on_signals
from darts_bio.spaces import GENOTYPE_FILE, Genotype, load_genotype, read_genotype
from darts_bio.training.engine import Outcome, Silent, fit
from darts_bio.training.retrain import Retraining, new_network
from darts_bio.training.run_folder import RunFolder, write_text


def train(config: TrainingConfig) -> int:
    """Trains the network of a genotype, or one for each seed, alone or with the other processes of torchrun.

    Prints the result and returns the exit code. Raises InputError for bad input.
    """
    with process_group():
        _check_seeds(config)
        device = select_device(config.device)
        # A resumed run keeps the genotype it began with, whatever has become of the file it was read from.
        genotype = (
            read_genotype(Path(config.out, GENOTYPE_FILE))
            if config.out and config.resume
            else load_genotype(config.genotype)
        )
        run = _train_one if config.seeds == 1 else _train_seeds
        return run(config, genotype, device)


def _check_seeds(config: TrainingConfig) -> None:
    """Raises InputError if a run of several seeds goes on with fewer of them, or that of one with several."""
    if not config.resume:
        return
    there = read_yaml(Path(config.out or "", CONFIG_FILE), type(config)).get("seeds", 1)
    if there == 1 and config.seeds > 1:
        raise InputError(
            f"--seeds: {config.out} is the run of one seed, found {config.seeds}; start anew in another --out"
        )
    if config.seeds < there:
        raise InputError(f"--seeds: expected at least the {there} of {config.out}, found {config.seeds}")


def _train_one(config: TrainingConfig, genotype: Genotype, device: torch.device) -> int:
    run = _fit(config, genotype, device, lambda: _open_folder(config, genotype))
    if rank() > 0:
        return run.exit_code
    if not run.outcome.finished:
        print(resume_line(sys.argv, run.folder))
        return run.exit_code
    print(f"{run.training.result_in_words}: {100 * run.accuracy:.2f} % after {config.epochs} epochs")
    print(f"parameters:    {parameters(run.training.network):,}\nrun folder:    {run.folder.path}")
    print(f"report:        {run.folder.path / CARD_FILE}")
    return 0


def _train_seeds(config: TrainingConfig, genotype: Genotype, device: torch.device) -> int:
    """A folder in which each seed has a run folder of its own; those that are there are gone on with."""
    whole: RunFolder | None = None
    results: dict[int, float] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        own = replace(config, seed=seed, seeds=1)

        def open_folder(own: TrainingConfig = own) -> RunFolder:
            nonlocal whole  # opened once the first training stands, so that bad input leaves nothing behind
            if whole is None:
                whole = _open_folder(config, genotype)
                if rank() == 0:  # there may be more seeds than when the run began
                    write_text(whole.path / CONFIG_FILE, config.to_yaml())
            path = whole.path / f"seed-{own.seed}"
            begun = bool(text_from_first("begun" if (path / CONFIG_FILE).exists() else ""))
            return _open_folder(replace(own, out=str(path), resume=begun), genotype)

        run = _fit(own, genotype, device, open_folder)
        assert whole is not None
        if not run.outcome.finished:
            if rank() == 0:
                print(resume_line(sys.argv, whole))
            return run.exit_code
        results[seed] = run.accuracy
    if rank() == 0 and whole is not None:
        write_text(whole.path / CARD_FILE, seeds_card(run.training, run.folder, results))
        print(*(f"seed {seed}: {100 * accuracy:.2f} %" for seed, accuracy in results.items()), sep="\n")
        print(f"{run.training.result_in_words}: {spread(list(results.values()))}\nreport: {whole.path / CARD_FILE}")
    return 0


def _open_folder(config: TrainingConfig, genotype: Genotype) -> RunFolder:
    return RunFolder.open("train", config, [*launcher(), *sys.argv], genotype=genotype)


@dataclass(frozen=True)
class _Run:
    """How a training ended; `exit_code` is 0 unless it was stopped."""

    training: Retraining
    folder: RunFolder
    outcome: Outcome
    exit_code: int

    @property
    def accuracy(self) -> float:
        return self.outcome.numbers[self.training.result]


def _fit(
    config: TrainingConfig, genotype: Genotype, device: torch.device, open_folder: Callable[[], RunFolder]
) -> _Run:
    source = open_source(config, device)
    try:
        training = Retraining(config, new_network(config, genotype, source), source, device)
        folder = open_folder()
        with stop_on_signals() as stop:
            if rank() > 0:
                outcome = fit(training, folder, Silent(), stop, log_every=config.log_every)
            else:
                with TrainingMonitor(training, folder) as monitor:
                    outcome = fit(training, folder, monitor, stop, log_every=config.log_every)
                    monitor.write_report(outcome.step)
        return _Run(training, folder, outcome, 0 if outcome.finished else stop.exit_code)
    finally:
        source.close()


SAVE_EVERY_S = 60.0


def measure_robustness(config: RobustnessConfig) -> int:
    """Attacks the networks of the configuration's checkpoints, or goes on with that.

    Prints where the report lies and returns the exit code. Raises InputError for bad input.
    """
    with process_group():
        if world_size() > 1:
            raise InputError(
                f"expected one process, found {world_size()}; leave torchrun out, or measure some of the networks in "
                "each of several runs"
            )
    plan = Plan(
        attacks=config.attacks,
        eps=config.eps,
        gradients=config.gradients,  # type: ignore[arg-type]
        draws=config.draws,
        transfer=config.transfer,
        corruptions=CORRUPTIONS.names() if config.corruptions == ("all",) else config.corruptions,
    )
    device = select_device(config.device)
    subjects, images = load_subjects(
        config.checkpoint, device, data_dir=config.data_dir, images=config.images, seed=config.seed
    )
    networks = {subject.name: subject.model for subject in subjects}
    measured = Measurement(networks, images, plan, batch_size=config.batch_size, seed=config.seed)
    folder = RunFolder.open("robustness", config, ["python", *sys.argv])
    earlier, state = 0.0, folder.load()
    if state is not None:
        measured.load_state_dict(state["measured"])
        earlier = state["seconds"]
    began = saved = time.monotonic()

    def save() -> None:
        folder.save({"measured": measured.state_dict(), "seconds": earlier + time.monotonic() - began})

    with stop_on_signals() as stop, RobustnessMonitor(folder, measured) as monitor:
        monitor.on_start(subjects)
        try:
            for job in measured.run():
                monitor.on_batch(job)
                if stop:
                    print(resume_line(sys.argv, folder))
                    return stop.exit_code
                if time.monotonic() - saved > SAVE_EVERY_S:
                    save()
                    saved = time.monotonic()
        finally:  # whatever ends it, what was found is kept
            save()
        found = monitor.write_report(subjects, earlier + time.monotonic() - began)
    print(f"doubts:  {len(found)}" if found else "doubts:  none")
    print(f"report:  {folder.path / CARD_FILE}")
    return 0
