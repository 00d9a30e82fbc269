"""Trained networks side by side, and the test images that they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, drawn
from darts_bio.data.sources import Labeled, Source, source_of
from darts_bio.errors import InputError
from darts_bio.rules import audit
from darts_bio.training.engine import evaluate
from darts_bio.training.retrain import config_of_run
from darts_bio.training.run_folder import CHECKPOINT_FILE, METRICS_FILE, read_records
from darts_bio.training.trained import PixelNetwork, Trained, load_trained


@dataclass(frozen=True)
class Subject:
    """A trained network. `group` is what seeds of one training have in common; `clean` the test
    accuracy, measured as the training does, and `logged` that of the training's log, if there is
    one.
    """

    name: str
    group: str
    folder: Path
    trained: Trained
    model: PixelNetwork
    """On the device; from pixels in [0, 1] to logits."""
    clean: float
    logged: float | None

    @property
    def rules(self) -> str:
        """The learning rules of its layers, that of most parameters first."""
        sizes: dict[str, int] = {}
        for row in audit(self.trained.network).rows:
            sizes[row.rule or "bp"] = sizes.get(row.rule or "bp", 0) + row.parameters
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
    """Read the networks of run folders, and `images` of their test images (uint8), drawn by the
    seed, on the device.

    The images are those of the runs, or of `data`.

    Raises InputError if a folder holds no training, or the test images differ from one to the next.
    """
    places = [place for source in checkpoints for place in _with_seeds(Path(source))]
    names = _names([folder for folder, _ in places])
    if len(set(names)) < len(names):
        raise InputError(f"--checkpoint: expected each run once, found {', '.join(checkpoints)}")
    groups = _names([group for _, group in places])
    subjects: list[Subject] = []
    shared: Split | None = None
    for (folder, _), name, group in zip(places, names, groups, strict=True):
        subject, split = _load(folder, name, group, device, data_dir, images, seed, data)
        if shared is not None and not (
            subject.trained.classes == subjects[0].trained.classes
            and torch.equal(split.images, shared.images)
            and torch.equal(split.labels, shared.labels)
        ):
            raise InputError(
                f"--checkpoint {folder}: expected the test images of {places[0][0]}, found others; "
                "measure networks of "
                "different data in runs of their own"
            )
        subjects.append(subject)
        shared = split
    assert shared is not None
    return subjects, shared


def groups_of(subjects: Sequence[Subject]) -> dict[str, list[Subject]]:
    """The seeds of each training."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        groups.setdefault(subject.group, []).append(subject)
    return groups


def _with_seeds(source: Path) -> list[tuple[Path, Path]]:
    """(run folder, that which its seeds share) for each seed."""
    if source.is_file():
        source = source.parent
    seeds = sorted(path.parent for path in source.glob(f"seed-*/{CHECKPOINT_FILE}"))
    return [(seed, source) for seed in seeds] or [(source, source)]


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: their paths from the last folder that all lie in."""
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
    config = config_of_run(folder)
    trained = load_trained(folder)
    source = source_of(replace(config, data_dir=data_dir or config.data_dir), device, data)
    try:
        if source.classes != trained.classes or source.image_size != trained.image_size:
            raise InputError(
                f"--checkpoint {folder}: expected the data it was trained on, "
                f"{len(trained.classes)} classes of "
                f"{'x'.join(map(str, trained.image_size))}, found {len(source.classes)} of "
                f"{'x'.join(map(str, source.image_size))}; name them by --data-dir"
            )
        trained.network.to(device)
        result = "test_averaged" if config.ema else "test"
        counted = _Counted(source.measured("test"))
        clean = evaluate(trained.network, counted, prefix=result, amp=config.amp)[
            f"{result}/accuracy"
        ]
        chosen = drawn("the test images", counted.images, min(images, counted.images), seed)
        split = _chosen(source, chosen)
    finally:
        source.close()
    epochs = [
        record
        for record in read_records(folder / METRICS_FILE, trained.step)
        if record["event"] == "epoch"
    ]
    logged = epochs[-1].get(f"{result}/accuracy") if epochs else None
    return Subject(
        name, group, folder, trained, trained.on_pixels().to(device), clean, logged
    ), split


class _Counted:
    """Batches as they are, and how many images they held."""

    def __init__(self, batches: Iterable[Labeled]) -> None:
        self._batches, self.images = batches, 0

    def __iter__(self) -> Iterator[Labeled]:
        for x, labels in self._batches:
            self.images += len(labels)
            yield x, labels


def _chosen(source: Source, chosen: Tensor) -> Split:
    """The test images of these numbers, in ascending order, uint8 as they were before they were
    normalised.
    """
    numbers, start = chosen.sort().values, 0
    images, labels = [], []
    mean, std = (
        values.view(-1, 1, 1) for values in (source.normalisation.mean, source.normalisation.std)
    )
    for x, classes in source.measured("test"):
        own = numbers[(numbers >= start) & (numbers < start + len(classes))] - start
        start += len(classes)
        if len(own):
            own = own.to(x.device)
            images.append(((x[own] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8))
            labels.append(classes[own])
    return Split(torch.cat(images), torch.cat(labels))
