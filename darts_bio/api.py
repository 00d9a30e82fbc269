"""The Python functions of this package: what the commands do, from a program or a notebook.

Their keyword options are those of the commands (`darts-bio search --help`), with the same protocols
and defaults.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from darts_bio.config import (
    CONFIG_FILE,
    AlignmentConfig,
    ImageNetConfig,
    RetrainConfig,
    RobustnessConfig,
    RunConfig,
    SearchConfig,
)
from darts_bio.config.files import kind_of, read_yaml, refuse_missing_plugins
from darts_bio.data.datasets import DATASETS, ImageData
from darts_bio.data.given import GIVEN, image_data
from darts_bio.errors import InputError, unknown_name
from darts_bio.runs.alignment import AlignmentResult, measure_alignment_of_run
from darts_bio.runs.files import epochs_of
from darts_bio.runs.fitting import misfits
from darts_bio.runs.options import complete
from darts_bio.runs.robustness import RobustnessResult, measure_robustness
from darts_bio.runs.running import Result, SeedResults, Watching
from darts_bio.runs.search import SearchResult
from darts_bio.runs.search import search as run_search
from darts_bio.runs.train import TrainResult
from darts_bio.runs.train import train as run_train
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.training.engine import Listener, Numbers
from darts_bio.training.trained import Trained, load_trained

C = TypeVar("C", bound=Any)


def search(
    dataset: Any = "digits",
    *,
    progress: bool = True,
    tensorboard: bool = True,
    listener: Listener | None = None,
    **options: Any,
) -> SearchResult | SeedResults[SearchResult]:
    """Search cells over (operation, learning rule) pairs.

    `dataset` is the name of a data set, a pair (images, labels) or a map-style dataset (see
    `data.given.image_data`). `progress` shows the run on standard error; `tensorboard` writes its
    events; `listener` hears of each step, record and epoch. All other options are those of
    `darts-bio search`, such as epochs, rules, strategy, space, channels, layers, seed, seeds,
    device, out, resume.

    Returns the genotype found, the numbers of each epoch and the run folder; for several `seeds` a
    `SeedResults` of such. Ctrl-C ends the run after the present step: the result says
    `finished=False`, and `resume=True` goes on.

    Raises InputError for bad input.

    >>> import darts_bio, tempfile
    >>> out = tempfile.mkdtemp()
    >>> found = darts_bio.search("digits", train_images=200, epochs=1, out=out, progress=False, tensorboard=False)
    >>> sorted(found.genotype.cells), found.finished, len(found.epochs)
    (['normal', 'reduce'], True, 1)
    """
    _check_listener(listener)
    config, data, command = _asked("search", SearchConfig, dataset, None, options)
    return run_search(config, command, data, _watching(progress, tensorboard, listener))


def train(
    genotype: Any,
    dataset: Any = "digits",
    *,
    test: Any = None,
    progress: bool = True,
    tensorboard: bool = True,
    listener: Listener | None = None,
    **options: Any,
) -> TrainResult | SeedResults[TrainResult]:
    """Train the network of a genotype from scratch, and measure it on the test images.

    `genotype` is a result of `search`, a genotype, or what `load_genotype` takes. `dataset` is the
    name of a data set, or a pair (images, labels) or a map-style dataset, with `test` of the same
    kind to measure on; what of the recipe does not fit such images, and is not given, is cut down
    to them (cutout, auxiliary head, batch). With `stem="imagenet"` and none of our data sets images
    are read from files, as by `darts-bio train-imagenet`. All other options are those of `darts-bio
    train`; `progress`, `tensorboard` and `listener` are as in `search`.

    Returns the network, its test accuracy, the numbers of each epoch and the run folder; for
    several `seeds` a `SeedResults` of such. Raises InputError for bad input.

    >>> import darts_bio, tempfile
    >>> trained = darts_bio.train(
    ...     "darts_v2", train_images=64, channels=2, epochs=1, batch_size=16, out=tempfile.mkdtemp(),
    ...     progress=False, tensorboard=False,
    ... )
    >>> type(trained.network).__name__, trained.accuracy == trained.epochs[-1]["test/accuracy"]
    ('Network', True)
    """
    _check_listener(listener)
    if not isinstance(genotype, (str, Path, Genotype, SearchResult)):
        raise InputError(
            "genotype: expected a result of search, a genotype, or a name, file or run folder, "
            f"found {genotype!r:.80}"
        )
    if isinstance(genotype, SearchResult):
        genotype = genotype.genotype
    chosen = genotype if isinstance(genotype, Genotype) else None
    kind: type[RetrainConfig | ImageNetConfig] = RetrainConfig
    ours = not isinstance(dataset, str) or (dataset in DATASETS and dataset != "digits")
    if options.get("stem") == "imagenet" and not ours:
        kind, dataset = ImageNetConfig, "" if dataset == "digits" else dataset
    options = {"genotype": str(genotype) if chosen is None else _spelled(chosen), **options}
    if test is None and not isinstance(dataset, (str, ImageData)):
        raise InputError(
            "train: expected test images beside those of `dataset`; give test=(images, labels)"
        )
    config, data, command = _asked("train", kind, dataset, test, options, chosen)
    return run_train(config, command, chosen, data, _watching(progress, tensorboard, listener))


def attack(
    runs: Any,
    dataset: Any = None,
    *,
    test: Any = None,
    progress: bool = True,
    tensorboard: bool = True,
    **options: Any,
) -> RobustnessResult:
    """Attack trained networks, and tell how far the result can be believed.

    `runs` is a result of `train`, a run folder, or several of either. The options are those of
    `darts-bio robustness` (attacks, eps, gradients, images, corruptions, transfer, ...). Images
    that were handed over to the training are handed over again, by `dataset` and `test`. Needs
    torchattacks (`darts_bio.errors.install_hint("attacks")`).

    Returns all numbers, the doubts about them and the run folder. Raises InputError for bad input.
    """
    several = runs if isinstance(runs, (tuple, list)) else [runs]
    options = {"checkpoint": tuple(str(_folder(run)) for run in several), **options}
    config = _complete(RobustnessConfig, options)
    console = sys.stderr if progress else None
    return measure_robustness(
        config, _called("attack", options), console, tensorboard, _given(dataset, test)
    )


def align(run: Any, dataset: Any = None, *, test: Any = None, **options: Any) -> AlignmentResult:
    """Measure how near a trained network's learning is to backpropagation, layer by layer.

    `run` is a result of `train` or a run folder. The options are those of `darts-bio alignment`
    (batches, data_dir, device). Images that were handed over to the training are handed over again,
    by `dataset` and `test`. Returns the table, also written into the run folder. Raises InputError
    for bad input.
    """
    config = _complete(AlignmentConfig, {"checkpoint": str(_folder(run)), **options})
    return measure_alignment_of_run(config, _given(dataset, test))


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it.

    `kind` is the command that made it, `options` those of its configuration, `epochs` the numbers
    of each epoch; `genotype` is that found or trained, if there is one.
    """

    folder: Path
    kind: str
    options: dict[str, Any]
    epochs: tuple[Numbers, ...]
    genotype: Genotype | None

    def trained(self) -> Trained:
        """Read the trained network from the checkpoint, with what it takes to use it. Raises
        InputError if there is none: the run is no training, or has not ended an epoch.
        """
        return load_trained(self.folder)


def load_run(folder: str | Path) -> Run:
    """Read what a run folder holds. Nothing in it is executed.

    Raises InputError if it is not a run folder, or if the run needs plug-ins that are not imported.

    >>> import darts_bio, tempfile
    >>> out = tempfile.mkdtemp()
    >>> quiet = {"progress": False, "tensorboard": False}
    >>> found = darts_bio.search("digits", train_images=200, epochs=1, out=out, **quiet)
    >>> darts_bio.load_run(out).genotype == found.genotype
    True
    """
    folder = _folder(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: expected a run folder, found no {CONFIG_FILE} there")
    kind: type[RunConfig] = kind_of(path, SearchConfig)
    refuse_missing_plugins(folder)
    file = folder / GENOTYPE_FILE
    return Run(
        folder,
        kind.command,
        read_yaml(path, kind),
        epochs_of(folder),
        read_genotype(file) if file.is_file() else None,
    )


def _asked(
    name: str,
    kind: type[C],
    dataset: Any,
    test: Any,
    options: dict[str, Any],
    genotype: Genotype | None = None,
) -> tuple[C, ImageData | None, str]:
    """The configuration, the images if they were handed over, and the call as it would be
    written.
    """
    data = None
    if not isinstance(dataset, str):
        data, dataset = image_data(dataset, test), GIVEN
    elif test is not None:
        raise InputError(
            f"test: expected together with images in `dataset`, found {dataset!r}, which brings "
            "its own"
        )
    options = {"dataset": dataset, **options}
    space = None if genotype is None else genotype.space
    config = _complete(kind, options, space)
    begun = (
        bool(config.resume) and Path(config.out or "", CONFIG_FILE).is_file()
    )  # "auto" may begin
    if data is not None and not begun:
        fitting = {
            option: value
            for option, value in misfits(config, data).items()
            if option not in options
        }
        config = replace(config, **fitting)
    return config, data, _called(name, options)


def _given(dataset: Any, test: Any) -> ImageData | None:
    """The images that a training was handed over, if they are handed over again; both parts of
    them.
    """
    if dataset is None and test is None:
        return None
    if isinstance(dataset, str) or not (
        isinstance(dataset, ImageData) or (dataset is not None and test is not None)
    ):
        raise InputError(
            "dataset, test: expected both as they were handed over to the training, or neither of "
            "them"
        )
    return image_data(dataset, test)


def _check_listener(listener: Any) -> None:
    if not (listener is None or isinstance(listener, Listener)):
        raise InputError(
            "listener: expected an object of a subclass of darts_bio.Listener, found "
            f"{listener!r:.80}"
        )


def _complete(kind: type[C], options: dict[str, Any], space: str | None = None) -> C:
    known = {field.name for field in fields(kind)}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    made: C = complete(kind, options, space=space)
    return made


def _watching(progress: bool, tensorboard: bool, listener: Listener | None) -> Watching:
    return Watching(sys.stderr if progress else None, tensorboard, listener)


def _folder(run: Any) -> Path:
    if isinstance(run, (Result, Run, SeedResults)):
        return run.folder
    if not isinstance(run, (str, Path)):
        raise InputError(f"run: expected a result or the name of a run folder, found {run!r:.80}")
    return Path(run)


def _spelled(genotype: Genotype) -> str:
    """Name a genotype that has no file, in the options of its run."""
    return f"given, {genotype.identity()}"


def _called(name: str, options: dict[str, Any]) -> str:
    return f"darts_bio.{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
