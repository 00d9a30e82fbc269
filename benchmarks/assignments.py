"""A network in which nothing but rules is chosen, for the benchmarks of rule assignments.

It has five cells of two edges each, with sep_conv_3x3 the only operation, so that ten edges have a
rule each. An assignment names them: those of the cell at the stem first, in each cell that of the
older input first.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, as_completed
from typing import Any

import torch
import torch.nn.functional as F

import darts_bio
from darts_bio.config import SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.spaces import SPACES, Candidate, Cell, Edge, Genotype
from darts_bio.training.engine import run_epoch
from darts_bio.training.search import Search

CELLS, EDGES = 5, 10
SPACE = f"by_depth(cells={CELLS}, space=darts(nodes=1, operations=(sep_conv_3x3,)))"
COMMON: dict[str, Any] = {"channels": 8, "layers": CELLS, "lr": 0.1, "batch_size": 32}
COMMON |= {"crop_padding": 1, "flip": False, "cutout": 0}
TRAINING = COMMON | {"epochs": 8, "auxiliary": 0.0, "drop_path": 0.0}
SEARCHING = COMMON | {"epochs": 12, "space": SPACE}

Assignment = tuple[str, ...]
"""The rule of each edge."""

Source = tuple[str, str | None, int | None]
"""The data set, its folder, and the number of images to train on."""

DIGITS: Source = ("digits", None, None)


@functools.cache
def images(
    dataset: str, data_dir: str | None, train_images: int | None, test_images: int = 2000
) -> ImageData:
    """Return the images of all trainings and searches; this process then runs in one thread.

    Images of 32x32 pixels are shrunk to 16x16, each four pixels to their mean, and their first
    `test_images` test images stand for all: they are measured after every epoch.
    """
    torch.set_num_threads(1)
    data = load_data(dataset, data_dir, None, train_images, 0)
    if data.image_size != (32, 32):
        return data

    def shrunk(split: Split, count: int) -> Split:
        images = F.avg_pool2d(split.images[:count].float(), 2).round().byte()
        return Split(images, split.labels[:count])

    return ImageData(
        shrunk(data.train, len(data.train)), shrunk(data.test, test_images), data.classes
    )


def genotype(assignment: Assignment) -> Genotype:
    """Return the network whose edges have these rules."""
    cells = {}
    for number, cell_type in enumerate(SPACES.build(SPACE).cell_types):
        rules = assignment[2 * number : 2 * number + 2]
        edges = tuple(
            Edge(2, source, Candidate("sep_conv_3x3", rule)) for source, rule in enumerate(rules)
        )
        cells[cell_type] = Cell(edges, (2,))
    return Genotype(SPACE, cells)


def search(
    source: Source, strategy: str, rules: Sequence[str], seed: int, **options: Any
) -> Assignment:
    """Return the assignment that a search finds."""
    config = SearchConfig(
        dataset=source[0],
        strategy=strategy,
        rules=tuple(rules),
        seed=seed,
        **(SEARCHING | options),
    )
    task = Search(config, images(*source), torch.device("cpu"))
    for epoch in range(config.epochs):
        run_epoch(task, epoch)
    cells = task.genotype().cells.values()
    return tuple(str(edge.candidate.rule) for cell in cells for edge in cell.edges)


def train(source: Source, assignment: Assignment, seed: int) -> tuple[Assignment, int, float]:
    """Train an assignment from a seed; return both, and its test error in percent."""
    with tempfile.TemporaryDirectory() as place:
        quiet = {"progress": False, "tensorboard": False, "device": "cpu"}
        result = darts_bio.train(
            genotype(assignment), images(*source), seed=seed, out=place, **quiet, **TRAINING
        )
    return assignment, seed, 100 * (1 - result.accuracy)


def train_missing(
    pool: Executor,
    source: Source,
    wanted: Iterable[tuple[Assignment, int]],
    errors: dict[str, dict[str, float]],
    save: Callable[[], None],
) -> None:
    """Train each wanted (assignment, seed) whose error is not known yet.

    Args:
        pool: The processes that train.
        source: The images.
        wanted: Assignments and seeds; one may occur several times.
        errors: Test errors in percent by the text of the assignment and the seed; filled in here.
        save: Called after each training.
    """
    trainings = [
        pool.submit(train, source, assignment, seed)
        for assignment, seed in dict.fromkeys(wanted)
        if str(seed) not in errors.get(text(assignment), {})
    ]
    for done, future in enumerate(as_completed(trainings), 1):
        assignment, seed, error = future.result()
        errors.setdefault(text(assignment), {})[str(seed)] = error
        save()
        print(f"trained {done} of {len(trainings)}", file=sys.stderr)


def text(assignment: Assignment) -> str:
    """Return an assignment in one line, with a bar between cells."""
    cells = [" ".join(assignment[i : i + 2]) for i in range(0, len(assignment), 2)]
    return " | ".join(cells)


def read(written: str) -> Assignment:
    """Return the assignment that `text` wrote."""
    return tuple(rule for rule in written.split() if rule != "|")
