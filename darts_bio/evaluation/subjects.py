"""Trained networks side by side, and the test images that they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, drawn
from darts_bio.data.sources import Labeled, Source
from darts_bio.errors import InputError
from darts_bio.rules import count_rules
from darts_bio.storage.checkpoint import CHECKPOINT_FILE
from darts_bio.training.exported import located
from darts_bio.training.meters import evaluate
from darts_bio.training.retrain import config_of_run, source_of_run
from darts_bio.training.trained import PixelNetwork, Trained, load_trained


@dataclass(frozen=True)
class Subject:
    """A trained network that an evaluation is done to.

    Attributes:
        name: Tells it from the others; the end of its folder's path.
        group: The name that all seeds of one training share.
        folder: Its run folder, or that of its export.
        trained: The network and how it was trained.
        model: The network on the device, from pixels in [0, 1] to logits.
        clean: Its test accuracy, measured as the training does.
        logged: The test accuracy in the training's log, None if there is none.
    """

    name: str
    group: str
    folder: Path
    trained: Trained
    model: PixelNetwork
    clean: float
    logged: float | None

    @property
    def rules(self) -> str:
        """The learning rules of its layers, that of most parameters first."""
        sizes: dict[str, int] = {}
        for row in count_rules(self.trained.network).rows:
            rule = row.rule or "bp"  # a layer without a rule learns by backpropagation
            sizes[rule] = sizes.get(rule, 0) + row.parameters
        return ", ".join(sorted(sizes, key=lambda rule: -sizes[rule]))


def load_subjects(
    checkpoints: Sequence[str],
    device: torch.device,
    *,
    data_dir: str | None,
    images: int,
    seed: int,
    data: ImageData | None = None,
) -> tuple[list[Subject], Split]:
    """Read the networks of run folders, and test images that they share.

    Args:
        checkpoints: Run folders, their checkpoints, folders of several seeds, exports, or names of
            shipped networks.
        device: Where networks and images are put.
        data_dir: Where the data are, if not where the runs say.
        images: How many test images are drawn; all if there are not so many.
        seed: The seed of that draw.
        data: The data set, if the runs had theirs handed over in Python.

    Returns:
        The networks, in the order of the folders, and their images (n, C, H, W) uint8.

    Raises:
        InputError: If a folder holds no training, is named twice, or the test images differ from
            one to the next.
    """
    folders = [pair for source in checkpoints for pair in _with_seeds(located(source))]
    names = names_of([folder for folder, _ in folders])
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint: expected each run once, found {', '.join(checkpoints)}")
    groups = names_of([group for _, group in folders])
    subjects: list[Subject] = []
    shared: Split | None = None
    for (folder, _), name, group in zip(folders, names, groups, strict=True):
        subject, split = _load(folder, name, group, device, data_dir, images, seed, data)
        if shared is not None and not (
            subject.trained.classes == subjects[0].trained.classes
            and torch.equal(split.images, shared.images)
            and torch.equal(split.labels, shared.labels)
        ):
            raise InputError(
                f"--checkpoint {folder}: expected the test images of {folders[0][0]}, found "
                "others; measure networks of different data in runs of their own"
            )
        subjects.append(subject)
        shared = split
    assert shared is not None
    return subjects, shared


def groups_of(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """Return the seeds of each training, by the name that they share.

    >>> from types import SimpleNamespace as Fake
    >>> subjects = [Fake(name="usf/seed-0", group="usf"), Fake(name="usf/seed-1", group="usf")]
    >>> {group: [subject.name for subject in seeds] for group, seeds in groups_of(subjects).items()}
    {'usf': ['usf/seed-0', 'usf/seed-1']}
    """
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.group, []).append(subject)
    return groups


def _with_seeds(source: Path) -> list[tuple[Path, Path]]:
    """Return (run folder, folder that its seeds share) for each seed of a run.

    A run of one seed shares its folder with nobody. A checkpoint stands for its folder.
    """
    if source.is_file():
        source = source.parent
    seeds = sorted(path.parent for path in source.glob(f"seed-*/{CHECKPOINT_FILE}"))
    return [(seed, source) for seed in seeds] or [(source, source)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return what tells folders apart: their paths from the last folder that all lie in.

    >>> names_of([Path("runs/usf"), Path("runs/fa/seed-0")])
    ['usf', 'fa/seed-0']
    """
    common = os.path.commonpath({str(folder.absolute().parent) for folder in folders})
    return [os.path.relpath(folder.absolute(), common) for folder in folders]


def _load(
    folder: Path,
    name: str,
    group: str,
    device: torch.device,
    data_dir: str | None,
    images: int,
    seed: int,
    data: ImageData | None,
) -> tuple[Subject, Split]:
    """Read the network of a run folder, measure it, and draw test images, as `load_subjects` says.

    Raises InputError if it was trained on other data.
    """
    config = config_of_run(folder)
    trained = load_trained(folder)
    source = source_of_run(folder, config, device, data_dir, data)
    try:
        if source.classes != trained.classes or source.image_size != trained.image_size:
            raise InputError(
                f"--checkpoint {folder}: expected the data it was trained on, "
                f"{len(trained.classes)} classes of "
                f"{'x'.join(map(str, trained.image_size))}, found {len(source.classes)} of "
                f"{'x'.join(map(str, source.image_size))}; name them by --data-dir"
            )
        trained.network.to(device)
        # `load_trained` gives the averaged weights where a run kept such.
        result = "test_averaged" if config.ema else "test"
        counted = _Counted(source.measured("test"))
        accuracies = evaluate(trained.network, counted, prefix=result, amp=config.amp)
        clean = accuracies[f"{result}/accuracy"]
        # Only now is it known how many there are: damaged files are passed over.
        chosen = drawn("the test images", counted.images, min(images, counted.images), seed)
        split = _chosen(source, chosen)
    finally:
        source.close()
    model, logged = trained.on_pixels().to(device), trained.provenance.accuracy
    return Subject(name, group, folder, trained, model, clean, logged), split


class _Counted:
    """Batches as they are; `images` counts how many images they have held so far."""

    def __init__(self, batches: Iterable[Labeled]) -> None:
        self._batches, self.images = batches, 0

    def __iter__(self) -> Iterator[Labeled]:
        for x, labels in self._batches:
            self.images += len(labels)
            yield x, labels


def _chosen(source: Source, chosen: Tensor) -> Split:
    """Return the test images of these numbers (n,), in ascending order, as uint8 (n, C, H, W).

    A source gives normalized images; rounding gives back the bytes that they were before.
    """
    numbers, start = chosen.sort().values, 0
    images, labels = [], []
    mean = source.normalization.mean.view(-1, 1, 1)
    std = source.normalization.std.view(-1, 1, 1)
    for x, batch_labels in source.measured("test"):
        # The batch holds the images from `start` on; `places` are those of the chosen ones in it.
        in_batch = (numbers >= start) & (numbers < start + len(batch_labels))
        places = numbers[in_batch] - start
        start += len(batch_labels)
        if len(places):
            places = places.to(x.device)
            pixels = ((x[places] * std + mean) * 255).round().clamp(0, 255)
            images.append(pixels.to(torch.uint8))
            labels.append(batch_labels[places])
    return Split(torch.cat(images), torch.cat(labels))
