"""Search, train, attack, align and load runs from a program or a notebook.

Each function does what the command of its name does. Its keyword options are those of the command
(`darts-bio search --help`; `attack` is `darts-bio robustness`, `align` is `darts-bio alignment`),
with the same protocols and defaults; `search_and_train` is `darts-bio search --choose`. A wrong
option or value raises `InputError`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, overload

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
from darts_bio.invocation import portable
from darts_bio.runs.alignment import (
    AlignmentResult,
    ComparisonResult,
    compare_alignment_of_runs,
    measure_alignment_of_run,
)
from darts_bio.runs.choice import ChoiceResult
from darts_bio.runs.choice import search_and_train as run_search_and_train
from darts_bio.runs.files import epochs_of
from darts_bio.runs.fitting import misfits
from darts_bio.runs.options import complete
from darts_bio.runs.robustness import RobustnessResult, measure_robustness
from darts_bio.runs.running import Result, SeedResults, Watching
from darts_bio.runs.search import SearchResult
from darts_bio.runs.search import search as run_search
from darts_bio.runs.train import TrainResult
from darts_bio.runs.train import train as run_train
from darts_bio.runtime import as_in_a_new_process
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.training.listeners import Listener
from darts_bio.training.meters import Numbers
from darts_bio.training.trained import Trained, load_trained

C = TypeVar("C", bound=Any)


@as_in_a_new_process()
def search(
    dataset: Any = "digits",
    *,
    progress: bool = True,
    tensorboard: bool = True,
    listener: Listener | None = None,
    **options: Any,
) -> SearchResult | SeedResults[SearchResult]:
    """Search cells over (operation, learning rule) pairs.

    Ctrl-C stops the run after the current step: the result then has `finished=False`, and the same
    call with `resume=True` continues it.

    Args:
        dataset: The name of a data set, a pair (images, labels), or a map-style dataset of (image,
            label) pairs (see `darts_bio.data.given.image_data`).
        progress: Whether to show the run on standard error.
        tensorboard: Whether to write TensorBoard events into the run folder.
        listener: Called at each step, record and epoch; an object of a subclass of
            `darts_bio.Listener`.
        **options: The options of `darts-bio search`, such as `epochs`, `rules`, `strategy`,
            `space`, `channels`, `layers`, `stages`, `seed`, `seeds`, `device`, `out`, `resume`.

    Returns:
        The derived genotype, the numbers of each epoch and the run folder; with `seeds` above 1 a
        `SeedResults` that holds such a result for each seed.

    Raises:
        InputError: For an unknown option or a value that is not possible.

    Example:
        >>> import darts_bio, tempfile
        >>> result = darts_bio.search(
        ...     "digits", train_images=200, epochs=1, out=tempfile.mkdtemp(),
        ...     progress=False, tensorboard=False,
        ... )
        >>> sorted(result.genotype.cells), result.finished, len(result.epochs)
        (['normal', 'reduce'], True, 1)
    """
    _check_listener(listener)
    config, data, command = _configure("search", SearchConfig, dataset, None, options)
    if config.choose:
        raise InputError(
            "choose: expected False for a search alone, found True; call darts_bio.search_and_train"
        )
    return run_search(config, command, data, _watching(config, progress, tensorboard, listener))


@as_in_a_new_process()
def search_and_train(
    dataset: Any = "digits",
    *,
    test: Any = None,
    progress: bool = True,
    tensorboard: bool = True,
    listener: Listener | None = None,
    **options: Any,
) -> ChoiceResult:
    """Search from several seeds, choose one of the genotypes, and train its network in full.

    This is the protocol of DARTS (arXiv 1806.09055): each genotype is trained from scratch for
    `choice_epochs`, the one most accurate on held-out training images is chosen, and the test
    images are first seen by its full training. Ctrl-C stops it at any stage, and the same call with
    `resume=True` continues it.

    Args:
        dataset: As in `search`.
        test: As in `train`.
        progress: Whether to show the run on standard error.
        tensorboard: Whether to write TensorBoard events into the run folder.
        listener: As in `search`; it hears of all searches and trainings, one after the other.
        **options: The options of `search`. `seeds` has to be given, as 4 in DARTS; `choice_epochs`
            and `training`, such as "auto(epochs=300)", are those of the trainings.

    Returns:
        The chosen genotype, the test accuracy, the results of all stages and the run folder.

    Raises:
        InputError: For an unknown option or a value that is not possible.

    Example:
        >>> import darts_bio, tempfile
        >>> result = darts_bio.search_and_train(
        ...     "digits", seeds=2, train_images=64, epochs=1, batch_size=32, choice_epochs=1,
        ...     training="auto(epochs=2, channels=2)", out=tempfile.mkdtemp(),
        ...     progress=False, tensorboard=False,
        ... )
        >>> seed = result.choice.chosen.seed
        >>> result.genotype == result.searches.seeds[seed].genotype
        True
        >>> result.accuracy == result.final.epochs[-1]["test/accuracy"]
        True
    """
    _check_listener(listener)
    _check_test("search_and_train", dataset, test)
    config, data, command = _configure(
        "search_and_train", SearchConfig, dataset, test, {**options, "choose": True}
    )
    return run_search_and_train(
        config, command, data, _watching(config, progress, tensorboard, listener)
    )


@as_in_a_new_process()
def train(
    genotype: Any,
    dataset: Any = None,
    *,
    test: Any = None,
    progress: bool = True,
    tensorboard: bool = True,
    listener: Listener | None = None,
    **options: Any,
) -> TrainResult | SeedResults[TrainResult]:
    """Train the network of a genotype from scratch, and measure it on the test images.

    With `stem="imagenet"` images are read from files, as by `darts-bio train-imagenet`, unless
    `dataset` is given as one of the named in-memory data sets or as images.

    Args:
        genotype: A result of `search`, a `Genotype`, or anything `load_genotype` takes: a name, a
            file, a run folder or a DARTS-style string.
        dataset: The name of a data set, a pair (images, labels), or a map-style dataset. For images
            that are handed over, options of the recipe that you do not give are reduced until they
            fit (cutout, auxiliary head, batch size). None for "digits", or with `stem="imagenet"`
            for the image files in the folder `data_dir`.
        test: The test images, of the same kind as `dataset`; required where `dataset` is not a
            name.
        progress: Whether to show the run on standard error.
        tensorboard: Whether to write TensorBoard events into the run folder.
        listener: As in `search`.
        **options: The options of `darts-bio train` or `darts-bio train-imagenet`.

    Returns:
        The network, its test accuracy, the numbers of each epoch and the run folder; with `seeds`
        above 1 a `SeedResults` that holds such a result for each seed.

    Raises:
        InputError: For an unknown option or a value that is not possible.

    Example:
        >>> import darts_bio, tempfile
        >>> trained = darts_bio.train(
        ...     "darts_v2", train_images=64, channels=2, epochs=1, batch_size=16,
        ...     out=tempfile.mkdtemp(), progress=False, tensorboard=False,
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
    genotype_object = genotype if isinstance(genotype, Genotype) else None
    genotype_text = str(genotype) if genotype_object is None else _name_unsaved(genotype_object)
    config_class: type[RetrainConfig | ImageNetConfig] = RetrainConfig
    in_files = dataset is None or (isinstance(dataset, str) and dataset not in DATASETS)
    if options.get("stem") == "imagenet" and in_files:
        config_class = ImageNetConfig
    if dataset is None:
        dataset = "" if config_class is ImageNetConfig else "digits"
    options = {"genotype": genotype_text, **options}
    _check_test("train", dataset, test)
    config, data, command = _configure(
        "train", config_class, dataset, test, options, genotype_object
    )
    watching = _watching(config, progress, tensorboard, listener)
    return run_train(config, command, genotype_object, data, watching)


@as_in_a_new_process()
def attack(
    runs: Any,
    dataset: Any = None,
    *,
    test: Any = None,
    progress: bool = True,
    tensorboard: bool = True,
    **options: Any,
) -> RobustnessResult:
    """Attack trained networks, and list the reasons to doubt the measured robustness.

    Needs torchattacks (`darts_bio.errors.install_hint("attacks")`).

    Args:
        runs: A result of `train`, a run folder, or a list of either.
        dataset: The training images, if they were handed over to `train`; None where it was given
            the name of a data set.
        test: The test images that were handed over to `train` together with `dataset`.
        progress: Whether to show the measurement on standard error.
        tensorboard: Whether to write TensorBoard events into the run folder.
        **options: The options of `darts-bio robustness`, such as `attacks`, `eps` (in 1/255),
            `gradients`, `images`, `corruptions`, `transfer`.

    Returns:
        All numbers, the doubts about them and the folder of the measurement.

    Raises:
        InputError: For an unknown option or value, or a run that holds no trained network.

    Example:
        >>> import darts_bio, tempfile
        >>> quiet = {"progress": False, "tensorboard": False}
        >>> trained = darts_bio.train(
        ...     "darts_v2", train_images=64, channels=2, epochs=1, batch_size=16,
        ...     out=tempfile.mkdtemp(), **quiet,
        ... )
        >>> result = darts_bio.attack(
        ...     trained, attacks="fgsm", eps=8, images=20, out=tempfile.mkdtemp(), **quiet
        ... )
        >>> result.finished, result.numbers["images"], len(result.numbers["networks"])
        (True, 20, 1)
    """
    run_list = runs if isinstance(runs, (tuple, list)) else [runs]
    options = {"checkpoint": tuple(str(_folder(run)) for run in run_list), **options}
    config = _complete(RobustnessConfig, options)
    command = _call_text("attack", options)
    console = sys.stderr if progress and not config.quiet else None
    return measure_robustness(config, command, console, tensorboard, _images_again(dataset, test))


@overload
def align(
    runs: list[Any] | tuple[Any, ...], dataset: Any = None, *, test: Any = None, **options: Any
) -> ComparisonResult: ...


@overload
def align(
    runs: str | Path | Result | Run | SeedResults[Any],
    dataset: Any = None,
    *,
    test: Any = None,
    **options: Any,
) -> AlignmentResult: ...


@as_in_a_new_process()
def align(
    runs: Any, dataset: Any = None, *, test: Any = None, **options: Any
) -> AlignmentResult | ComparisonResult:
    """Measure how near trained networks' learning is to backpropagation, layer by layer.

    Args:
        runs: A result of `train` or a run folder; a list of either is compared side by side.
        dataset: The training images, if they were handed over to `train`; None where it was given
            the name of a data set.
        test: The test images that were handed over to `train` together with `dataset`.
        **options: The options of `darts-bio alignment`: `batches`, `data_dir`, `device`, and `out`,
            the folder of a comparison.

    Returns:
        The table of layers (angles in degrees), and the files in the run folder that hold it. Of a
        list the comparison, with a `table()` in Markdown and a `figure()`, and the result of each.

    Raises:
        InputError: For an unknown option or value, or a run that is not a training.

    Example:
        >>> import darts_bio, tempfile
        >>> trained = darts_bio.train(
        ...     "bionas_darts", train_images=64, channels=2, epochs=1, batch_size=16,
        ...     out=tempfile.mkdtemp(), progress=False, tensorboard=False,
        ... )
        >>> result = darts_bio.align(trained, batches=2)
        >>> stem = result.alignment.layers[0]  # bp carries the error by the weight itself
        >>> stem.label, round(stem.feedback_angle, 3)
        ('stem, Conv2d:bp', 0.0)
        >>> other = darts_bio.train(
        ...     "darts_v1", train_images=64, channels=2, epochs=1, batch_size=16,
        ...     out=tempfile.mkdtemp(), progress=False, tensorboard=False,
        ... )
        >>> compared = darts_bio.align([trained, other], batches=2, out=tempfile.mkdtemp())
        >>> compared.comparison.table().startswith("| layer |"), len(compared.runs)
        (True, 2)
    """
    several = isinstance(runs, (tuple, list))
    folders = tuple(str(_folder(run)) for run in (runs if several else [runs]))
    config = _complete(AlignmentConfig, {"checkpoint": folders, **options})
    images = _images_again(dataset, test)
    if several:
        return compare_alignment_of_runs(config, images)
    return measure_alignment_of_run(config, images)


@dataclass(frozen=True)
class Run:
    """A run as it was read from its folder (see `load_run`).

    `kind` is the command that made it, such as "search" or "train"; `options` are the options in
    its config.yaml; `epochs` holds the numbers of each epoch, first to last; `genotype` is the one
    that was derived or trained, None if the folder has none.
    """

    folder: Path
    kind: str
    options: dict[str, Any]
    epochs: tuple[Numbers, ...]
    genotype: Genotype | None

    def trained(self) -> Trained:
        """Read the trained network from the checkpoint, with its classes and normalization.

        Raises InputError if the checkpoint holds none: the run is not a training, or was stopped
        before the end of its first epoch.
        """
        return load_trained(self.folder)


def load_run(folder: str | Path) -> Run:
    """Read the options, the numbers and the genotype of a run from its folder.

    Nothing in the folder is executed. Raises InputError if it is not a run folder, or if the run
    needs plug-ins that are not imported.

    >>> import darts_bio, tempfile
    >>> out = tempfile.mkdtemp()
    >>> quiet = {"progress": False, "tensorboard": False}
    >>> result = darts_bio.search("digits", train_images=200, epochs=1, out=out, **quiet)
    >>> run = darts_bio.load_run(out)
    >>> run.kind, run.options["epochs"], run.genotype == result.genotype
    ('search', 1, True)
    """
    folder = _folder(folder)
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise InputError(f"{folder}: expected a run folder, found no {CONFIG_FILE} there")
    config_class: type[RunConfig] = kind_of(config_path, SearchConfig)
    refuse_missing_plugins(folder)
    genotype_path = folder / GENOTYPE_FILE
    return Run(
        folder,
        config_class.command,
        read_yaml(config_path, config_class),
        epochs_of(folder),
        read_genotype(genotype_path) if genotype_path.is_file() else None,
    )


def _configure(
    function: str,
    config_class: type[C],
    dataset: Any,
    test: Any,
    options: dict[str, Any],
    genotype: Genotype | None = None,
) -> tuple[C, ImageData | None, str]:
    """Turn the arguments of `search` or `train` into a run's configuration, images and command.

    Returns the configuration, the images if they were handed over (None where a data set is named),
    and the text of the call to `darts_bio.{function}`, which the run records as its command.
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
    config = _complete(config_class, options, space)
    # resume="auto" also starts a new run, where the folder holds none yet.
    resumed = bool(config.resume) and Path(config.out or "", CONFIG_FILE).is_file()
    # A run that is resumed was fitted to its images when it began.
    if data is not None and not resumed:
        fitting = {
            option: value
            for option, value in misfits(config, data).items()
            if option not in options
        }
        config = replace(config, **fitting)
    return config, data, _call_text(function, options)


def _images_again(dataset: Any, test: Any) -> ImageData | None:
    """Return the images that a training was handed over, now handed over again for a measurement.

    None if neither argument is given. Raises InputError if only one of them is.
    """
    if dataset is None and test is None:
        return None
    both_given = dataset is not None and test is not None
    if isinstance(dataset, str) or not (isinstance(dataset, ImageData) or both_given):
        raise InputError(
            "dataset, test: expected both as they were handed over to the training, or neither of "
            "them"
        )
    return image_data(dataset, test)


def _check_test(function: str, dataset: Any, test: Any) -> None:
    """Raise InputError if images are handed over to a training without test images."""
    if test is None and not isinstance(dataset, (str, ImageData)):
        raise InputError(
            f"{function}: expected test images beside those of `dataset`; give test=(images, "
            "labels)"
        )


def _check_listener(listener: Any) -> None:
    """Raise InputError unless `listener` is None or a `Listener`."""
    if not (listener is None or isinstance(listener, Listener)):
        raise InputError(
            "listener: expected an object of a subclass of darts_bio.Listener, found "
            f"{listener!r:.80}"
        )


def _complete(config_class: type[C], options: dict[str, Any], space: str | None = None) -> C:
    """Build a configuration from keyword options; raise InputError for an unknown one."""
    known = {field.name for field in fields(config_class)}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    config: C = complete(config_class, options, space=space)
    return config


def _watching(
    config: RunConfig, progress: bool, tensorboard: bool, listener: Listener | None
) -> Watching:
    """Return the ways in which a run is shown; `quiet` among its options wins over `progress`."""
    return Watching(sys.stderr if progress and not config.quiet else None, tensorboard, listener)


def _folder(run: Any) -> Path:
    """Return the folder of a result, of a `Run`, or that a path names."""
    if isinstance(run, (Result, Run, SeedResults)):
        return run.folder
    if not isinstance(run, (str, Path)):
        raise InputError(
            f"run: expected a result or the name of a run folder, found {type(run).__name__}; for a "
            "model of your own there is darts_bio.evaluation.alignment.measure_alignment"
        )
    return Path(run)


def _name_unsaved(genotype: Genotype) -> str:
    """Return the text that names a genotype without a file in the options of its run."""
    return f"given, {genotype.identity()}"


def _call_text(function: str, options: dict[str, Any]) -> str:
    """Return the call that the user made, such as `darts_bio.search(epochs=1)`.

    A path is written as text, so that the call can be made again without an import.

    >>> _call_text("search", {"epochs": 1, "out": Path("runs/a")})
    "darts_bio.search(epochs=1, out='runs/a')"
    """
    texts = {n: str(v) if isinstance(v, Path) else v for n, v in options.items()}
    arguments = ", ".join(f"{name}={value!r}" for name, value in texts.items())
    return f"darts_bio.{function}({portable(arguments)})"
