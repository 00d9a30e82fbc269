"""Run the protocol of DARTS: several searches, a choice among them, a full training.

All of it lies in one run folder, with a folder for each stage, each an ordinary run:

searches/seed-N   the search of each seed
choice/seed-N     the short training of what it found, without the held-out images
choice.json       what these measured, which was chosen, and why
genotype.json     the genotype that was chosen
final             its training on all training images, which alone sees the test images
report.md         all of it in words

DARTS (arXiv 1806.09055) searches four times and chooses by a training of 100 epochs. It does not
say on which images: here half of the training images, drawn by the first seed, are held out, as a
search holds out half of them from w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from darts_bio.config import CONFIG_FILE, RetrainConfig, SearchConfig
from darts_bio.config.files import read_yaml
from darts_bio.data.datasets import ImageData
from darts_bio.distributed import first_before_the_others, gathered, rank
from darts_bio.errors import InputError, unknown_name
from darts_bio.evaluation.choice import Choice, ChoiceCandidate, choose
from darts_bio.monitoring.console import Console
from darts_bio.registry import parse_spec
from darts_bio.reports import findings, page
from darts_bio.reports.card import on_images
from darts_bio.reports.choice import choice_card
from darts_bio.runs.options import complete
from darts_bio.runs.running import Result, SeedResults, Watching, has_begun, started
from darts_bio.runs.search import (
    SearchResult,
    images_of,
    next_options,
    search,
    shown_command,
    unfit_options,
)
from darts_bio.runs.train import TrainResult, train
from darts_bio.spaces import GENOTYPE_FILE, Genotype
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text
from darts_bio.training.engine import DivergedError

CHOICE_FILE = "choice.json"
SEARCHES, CHOICE, FINAL = "searches", "choice", "final"
"""The folders of the three stages in that of the run."""

OF_THE_SEARCH = ("dataset", "data_dir", "image_size", "train_images", "device", "graphs", "plugin")
"""Options that the trainings take over from the searches."""

OF_THE_STAGES = (
    "genotype",
    "seed",
    "seeds",
    "data_seed",
    "holdout",
    "test_at_end",
    "out",
    "resume",
)
"""Options of the trainings that the stages set."""


@dataclass(frozen=True)
class ChoiceResult:
    """The result of several searches, of the choice among them, and of the full training.

    `searches` and `candidates` are the results of the searches and of the short trainings, by seed;
    `choice` says which of them was chosen and why; `final` is the result of the full training. What
    a run that was stopped has not reached is empty or None, and a candidate whose training diverged
    is absent.
    """

    folder: Path
    searches: SeedResults[SearchResult]
    candidates: Mapping[int, TrainResult]
    choice: Choice | None
    final: TrainResult | None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; `resume=True` continues one that was stopped."""
        return self.final is not None and self.final.finished

    @property
    def exit_code(self) -> int:
        """The command's exit status: 0, or 128 plus the number of the signal that stopped it."""
        final = () if self.final is None else (self.final,)
        stages = (self.searches, *self.candidates.values(), *final)
        return max(stage.exit_code for stage in stages)

    @property
    def genotype(self) -> Genotype | None:
        """The genotype that was chosen; None if the run was stopped before the choice."""
        return (
            None if self.choice is None else self.searches.seeds[self.choice.chosen.seed].genotype
        )

    @property
    def accuracy(self) -> float:
        """The test accuracy of the full training, in [0, 1]; NaN if it is not done."""
        return self.final.accuracy if self.final is not None and self.finished else float("nan")


def search_and_train(
    config: SearchConfig,
    command: str,
    data: ImageData | None = None,
    watching: Watching | None = None,
) -> ChoiceResult:
    """Search from several seeds, choose among what was found, and train that in full.

    Args:
        config: The options of the searches, with `choose`.
        command: The command or call that the run folder records.
        data: Images in place of the data set that the configuration names.
        watching: How the run is shown; by default it is not. A listener hears of all searches and
            trainings, one after the other.

    Raises:
        InputError: For options that cannot be met, or processes started differently.
    """
    watching = watching or Watching()
    with started(config) as config:
        if config.resume:
            _refuse_other_seeds(config)
        with first_before_the_others():  # the first process may have to download the data set
            images = data or images_of(config)
        short, full = trainings(config, images)
        folder = _Folder(config, command)
        searches = _searches(config, command, data, watching, folder)
        if not searches.finished:
            return ChoiceResult(folder.path, searches, {}, None, None)
        # The command that began the run, also where another one goes on with it.
        provenance = searches.seeds[config.seed].genotype.provenance
        command = str(provenance.get("command", command))
        stages = _Stages(config, command, data, watching, folder.path, images, short, searches)
        candidates = stages.short_trainings()
        if not all(result.finished for result in candidates.values()):
            return ChoiceResult(folder.path, searches, candidates, None, None)
        choice = _choose(searches, candidates, short)
        if rank() == 0:
            genotype = searches.seeds[choice.chosen.seed].genotype
            _write_choice(folder.path, choice, genotype, short, stages.trained_images)
        stages.write_report(candidates, choice, None)
        _say(watching, f"final: seed {choice.chosen.seed}, {choice.reason}")
        final = stages.trained(full, choice.chosen.seed, folder.path / FINAL)
        if final.finished:
            stages.write_report(candidates, choice, final)
        return ChoiceResult(folder.path, searches, candidates, choice, final)


@dataclass(frozen=True)
class _Stages:
    """The stages that follow upon the searches, and their report.

    `command` began the run; `data` are the images if they were handed over, `images` those that are
    learned from; `short` holds the options of the short trainings.
    """

    config: SearchConfig
    command: str
    data: ImageData | None
    watching: Watching
    path: Path
    images: ImageData
    short: RetrainConfig
    searches: SeedResults[SearchResult]

    @property
    def trained_images(self) -> int:
        """The number of images that a short training learns from."""
        return len(self.images.train) - self.short.holdout

    def trained(self, options: RetrainConfig, seed: int, path: Path) -> TrainResult:
        """Train what the search of a seed found, or go on with its training."""
        options = replace(options, seed=seed, genotype=f"{SEARCHES}/seed-{seed}")
        options = replace(options, out=str(path), resume=has_begun(path))
        genotype = self.searches.seeds[seed].genotype
        result = train(options, self.command, genotype, self.data, self.watching)
        assert isinstance(result, TrainResult)
        return result

    def short_trainings(self) -> dict[int, TrainResult]:
        """Make the short trainings, or go on with them; return their results by seed.

        One that diverges is absent; one that was stopped is the last.
        """
        candidates: dict[int, TrainResult] = {}
        for number, seed in enumerate(self.searches.seeds):
            _say(self.watching, f"choice: seed {seed}, {number + 1} of {self.config.seeds}")
            try:
                result = self.trained(self.short, seed, self.path / CHOICE / f"seed-{seed}")
            except DivergedError as error:
                _say(self.watching, f"seed {seed} cannot be chosen: {error}")
                continue
            candidates[seed] = result
            if not result.finished:
                break
        return candidates

    def write_report(
        self, candidates: Mapping[int, TrainResult], choice: Choice, final: TrainResult | None
    ) -> None:
        """Write report.md: all of it in words, as far as it has come."""
        if rank() > 0:
            return
        result = None
        if final is not None:
            accuracy = f"{100 * final.accuracy:.2f} %{on_images(final.images)}"
            result = f"{final.measured}: {accuracy}"
        seconds = {
            f"{len(self.searches.seeds)} searches": _seconds(*self.searches.seeds.values()),
            f"{len(candidates)} short trainings": _seconds(*candidates.values()),
        }
        if final is not None:
            seconds["the full training"] = _seconds(final)
        chosen = self.searches.seeds[choice.chosen.seed]
        card = choice_card(
            self.config,
            self.short,
            self.command,
            choice,
            chosen.genotype,
            result,
            findings.of_folder(self.config, chosen.genotype, chosen.folder),
            self.trained_images,
            seconds,
            _next_command(self.config, self.path, self.images),
        )
        page.write_report(self.path, card)


def trainings(config: SearchConfig, data: ImageData) -> tuple[RetrainConfig, RetrainConfig]:
    """Return the options of the short trainings and of the full one, but for seed and genotype.

    They are those of `config.training`, and otherwise of the protocol of the data set and space,
    cut down to what fits the images. The short ones hold out half of the training images, the same
    for all, and leave the test images alone.

    Raises:
        InputError: For an option that is unknown, impossible, or not the user's to set.

    >>> from darts_bio.data.datasets import load_data
    >>> config = SearchConfig(seeds=4, choose=True, training="auto(epochs=50)", choice_epochs=8)
    >>> short, full = trainings(config, load_data("digits"))
    >>> (short.epochs, short.holdout, short.test_at_end), (full.epochs, full.holdout)
    ((8, 719, False), (50, 0))
    """
    protocol, given = parse_spec(config.training)
    known = {field.name for field in fields(RetrainConfig)}
    for name in given:
        if name not in known:
            raise unknown_name("option of --training", name, known)
        if name in (*OF_THE_SEARCH, *OF_THE_STAGES):
            raise InputError(
                f"--training: {name} is set by the search, or by the stages of --choose; leave it "
                "out"
            )
    options = {name: getattr(config, name) for name in OF_THE_SEARCH} | {
        "protocol": protocol,
        "genotype": SEARCHES,
        "data_seed": config.seed_of_images,
        **given,
    }
    full = complete(RetrainConfig, options, space=config.space)
    short = replace(
        full, epochs=config.choice_epochs, holdout=len(data.train) // 2, test_at_end=False
    )

    def fitted(training: RetrainConfig) -> RetrainConfig:
        unfit = unfit_options(training, config, data)
        return replace(training, **{name: unfit[name] for name in unfit if name not in given})

    return fitted(short), fitted(full)


class _Folder:
    """The folder of the whole run, which is made or opened when its path is first asked for."""

    def __init__(self, config: SearchConfig, command: str) -> None:
        self._config, self._command = config, command
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """The path, which all processes ask for together at first."""
        if self._path is None:
            self._path = RunFolder.open("search", self._config, self._command).path
            if rank() == 0:  # options of the trainings may be others than when the run began
                write_text(self._path / CONFIG_FILE, self._config.to_yaml())
        return self._path


def _searches(
    config: SearchConfig,
    command: str,
    data: ImageData | None,
    watching: Watching,
    folder: _Folder,
) -> SeedResults[SearchResult]:
    """Make the searches of all seeds, or go on with them."""
    # All draw the same images, which the trainings draw, too.
    options = replace(config, choose=False, data_seed=config.seed_of_images, out=None, resume=False)
    if config.resume:
        path = folder.path / SEARCHES
        options = replace(options, out=str(path), resume=has_begun(path))
    result = search(options, command, data, watching, lambda: folder.path / SEARCHES)
    assert isinstance(result, SeedResults)
    return result


def _choose(
    searches: SeedResults[SearchResult], results: Mapping[int, TrainResult], short: RetrainConfig
) -> Choice:
    """Choose by what the short trainings measured at their end, in all processes alike."""
    candidates = []
    if rank() == 0:  # the others may have read the epochs before the last one was written
        loss = "valid_averaged/loss" if short.ema else "valid/loss"
        for seed, search in searches.seeds.items():
            digest, accuracy, last = search.genotype.identity(), None, {}
            if seed in results:
                accuracy, last = results[seed].accuracy, results[seed].epochs[-1]
            candidates.append(ChoiceCandidate(seed, digest, accuracy, last.get(loss)))
    return choose(gathered(candidates)[0])


def _seconds(*results: Result) -> float:
    """Return the seconds that runs took together; one that diverged is not among them."""
    return sum(result.epochs[-1]["seconds"] for result in results if result.epochs)


def _next_command(config: SearchConfig, folder: Path, images: ImageData) -> str | None:
    """Return the command line that trains what was chosen by the same recipe, from three seeds."""
    options = next_options(folder, config, images)
    if options:
        protocol, given = parse_spec(config.training)
        if protocol != RetrainConfig.protocol:
            options["protocol"] = protocol
        if config.train_images is not None:
            options |= {"train_images": config.train_images, "data_seed": config.seed_of_images}
        options |= {**given, "seeds": 3}
    return shown_command(folder, options)


def _write_choice(
    folder: Path, choice: Choice, genotype: Genotype, short: RetrainConfig, trained_images: int
) -> None:
    """Write choice.json, and the chosen genotype into genotype.json."""
    text = choice.to_json(
        epochs=short.epochs, trained_images=trained_images, held_out_images=short.holdout
    )
    write_text(folder / CHOICE_FILE, text)
    write_text(folder / GENOTYPE_FILE, genotype.to_json())


def _refuse_other_seeds(config: SearchConfig) -> None:
    """Raise InputError if a run is resumed with more seeds than its choice is among."""
    seeds = read_yaml(Path(config.out or "", CONFIG_FILE), SearchConfig).get("seeds", 1)
    if config.seeds != seeds:
        raise InputError(
            f"--seeds: expected the {seeds} of {config.out}, among which it chooses, found "
            f"{config.seeds}; leave it out, or start anew in another --out"
        )


def _say(watching: Watching, line: str) -> None:
    """Write a line on the console between two stages, if the run is shown there."""
    if rank() == 0 and watching.console is not None:
        Console(watching.console).say(line)
