"""Run a search in stages: a sequence of searches, each among the candidates the last one left.

All of it lies in one run folder, with a folder for each stage, which is an ordinary run:

stage-1, stage-2, ...    the searches; `candidates.json` in each, what stands on every edge
genotype.json            the genotype of the last stage that ended or was stopped
metrics.jsonl            the numbers of the epochs of all stages
report.md                all of it in words

A run that was stopped or killed goes on in the stage where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from darts_bio.config import SearchConfig
from darts_bio.config.stages import Stage
from darts_bio.data.datasets import ImageData
from darts_bio.distributed import rank
from darts_bio.errors import InputError
from darts_bio.runs.running import Result, has_begun
from darts_bio.spaces import CandidateTable
from darts_bio.storage.logs import METRICS_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text
from darts_bio.strategies import GradientStrategy
from darts_bio.training.meters import Numbers
from darts_bio.training.place import StagePlace, candidates_by_edge
from darts_bio.training.search import Search
from darts_bio.training.stages import take_over

CANDIDATES_FILE = "candidates.json"
"""The file of a stage's folder that holds the candidates of each edge."""

R = TypeVar("R", bound=Result)


def each_stage(
    config: SearchConfig,
    images: ImageData,
    device: torch.device,
    open_folder: Callable[[], RunFolder],
    perform: Callable[[Search, RunFolder, Sequence[str]], R],
    after: Callable[[RunFolder, Search, list[R]], None],
) -> None:
    """Make the searches of all stages, or go on with them; none begins after one that was stopped.

    Args:
        config: The options of the whole search, with `stages`.
        images: The images.
        device: Where it runs.
        open_folder: Opens the folder of the whole search, once all stages could be built.
        perform: Runs the search of a stage in its folder, with lines for the console, and returns
            its result.
        after: Called after a stage that no other has followed yet, with the folder of the whole
            search, the search of the stage and the results so far.

    Raises:
        InputError: A stage cannot be built, wherever it stands.
    """
    stages = config.of_stages()
    places = places_of(stages)
    _try(stages, places, images, device)
    whole = open_folder()
    task: Search | None = None
    results: list[R] = []
    for number, ((stage, options), place) in enumerate(zip(stages, places, strict=True), 1):
        table = None if task is None else table_after(task, stage)
        search = Search(options, images, device, replace(place, table=table))
        if stage.keeps_weights:
            assert task is not None
            take_over(search, task)
        task = search
        path = whole.path / f"stage-{number}"
        options = replace(options, out=str(path), resume=has_begun(path))
        folder = RunFolder.open("search", options, whole.command)
        if rank() == 0:
            kept = candidates_by_edge(search.table, search.space.edges)
            write_text(path / CANDIDATES_FILE, json.dumps(kept, indent=1) + "\n")
        results.append(perform(search, folder, [_line(number, stages, search)]))
        whole.command = folder.command  # that which began the run
        if results[-1].finished and has_begun(whole.path / f"stage-{number + 1}"):
            continue  # of a run that is resumed: what it has written since is newer
        after(whole, search, results)
        if not results[-1].finished:
            return


def places_of(stages: Sequence[tuple[Stage, SearchConfig]]) -> list[StagePlace]:
    """Return where each stage stands, but for its candidates.

    >>> pair = "stage, stage(candidates=4, keeps_weights=True)"
    >>> for place in places_of(SearchConfig(stages=f"{pair}, stage", epochs=25).of_stages()):
    ...     print(place.first_epoch, "of", place.schedule, "after", place.epochs_before)
    0 of 50 after 0
    25 of 50 after 25
    0 of 25 after 50
    """
    epochs = [options.epochs for _, options in stages]
    anew = [number for number, (stage, _) in enumerate(stages) if not stage.keeps_weights]
    places = []
    for number in range(len(stages)):
        begin = max(first for first in anew if first <= number)
        end = min((first for first in anew if first > number), default=len(stages))
        places.append(
            StagePlace(
                schedule=sum(epochs[begin:end]),
                first_epoch=sum(epochs[begin:number]),
                epochs_before=sum(epochs[:number]),
            )
        )
    return places


def table_after(search: Search, stage: Stage) -> CandidateTable:
    """Return the candidates that a search leaves to the stage after it.

    On each edge they are the strongest ones, as the genotype is derived: pairs of operation and
    rule, whatever they have in common.
    """
    if stage.candidates is None:
        return search.table
    weights = search.strategy.final_weights(search.strategy_state)
    return search.table.strongest(weights, stage.candidates)


def numbers_of(results: Sequence[Result]) -> tuple[Numbers, ...]:
    """Return the numbers of the epochs of all stages; steps and epochs are counted through."""
    numbers: list[Numbers] = []
    steps = epochs = 0
    for number, result in enumerate(results, 1):
        for of_epoch in result.epochs:
            step, epoch = steps + of_epoch["step"], epochs + of_epoch["epoch"]
            numbers.append({**of_epoch, "step": step, "epoch": epoch, "stage": number})
        steps, epochs = steps + result.step, epochs + len(result.epochs)
    return tuple(numbers)


def write_numbers(folder: RunFolder, numbers: Sequence[Numbers]) -> None:
    """Write the numbers of the epochs of all stages into the folder of the whole search."""
    records = [json.dumps({"event": "epoch", **of_epoch}) + "\n" for of_epoch in numbers]
    write_text(folder.path / METRICS_FILE, "".join(records))


def _try(
    stages: Sequence[tuple[Stage, SearchConfig]],
    places: Sequence[StagePlace],
    images: ImageData,
    device: torch.device,
) -> None:
    """Build each stage with all candidates, so that bad input is met before hours have passed."""
    before: Search | None = None
    most = sys.maxsize  # candidates that an edge has in the stage before
    for (stage, options), place in zip(stages, places, strict=True):
        search = Search(options, images, device, place)
        if not isinstance(search.strategy, GradientStrategy):
            raise InputError(
                "--stages: expected a strategy whose alpha follows a gradient, found "
                f"{options.strategy}; leave one of both out"
            )
        kinds = {search.space.kind(t) for t in search.table.rows}
        if search.strategy_state.context.factorised and len(kinds) < len(search.table.rows):
            raise InputError(
                "--stages: expected an alpha of logits in a space whose cells differ by depth, "
                "where each depth keeps candidates of its own, found one of operations times rules "
                "(factorised, or that of rule_aware); leave one of both out"
            )
        if stage.candidates is not None and stage.candidates > most:
            raise InputError(
                f"--stages: candidates: expected at most the {most} that an edge has in the stage "
                f"before, found {stage.candidates}; lower it, or leave it out to keep all"
            )
        most = stage.candidates or min(most, _most_candidates(search))
        if stage.keeps_weights:
            assert before is not None
            take_over(search, before)
        before = search


def _most_candidates(search: Search) -> int:
    """Return the number of candidates of the edge that has most of them."""
    return max(search.table.shape(t)[1] for t in search.table.rows)


def _line(number: int, stages: Sequence[tuple[Stage, SearchConfig]], search: Search) -> str:
    """Return what the console says of a stage as it begins."""
    kept = (
        "the weights of the stage before" if stages[number - 1][0].keeps_weights else "new weights"
    )
    return (
        f"stage {number} of {len(stages)}: {search.config.layers} cells, at most "
        f"{_most_candidates(search)} candidates an edge, {kept}"
    )
