"""What a search without a supernet says and writes while it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.errors import InputError, unknown_name
from darts_bio.figures.charts import write_chart
from darts_bio.figures.curves import draw_best
from darts_bio.registry import WAY_OF_ONES_OWN, parse_spec
from darts_bio.reports import page
from darts_bio.reports.black_box import BEST_FIGURE, black_box_card
from darts_bio.reports.markdown import counted
from darts_bio.runtime import precision_notes
from darts_bio.spaces import Genotype
from darts_bio.storage.logs import EVALUATIONS_FILE
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import writing
from darts_bio.strategies import BLACK_BOX_STRATEGIES, STRATEGIES
from darts_bio.training.black_box import BlackBoxSearch
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers


def is_black_box(config: SearchConfig) -> bool:
    """Return whether the strategy of a search is one without a supernet.

    Raises:
        InputError: If there is no such strategy, or if a number of queries is given to one that
            makes none.

    >>> is_black_box(SearchConfig(strategy="local_search")), is_black_box(SearchConfig())
    (True, False)
    """
    name, _ = parse_spec(config.strategy)
    if name in BLACK_BOX_STRATEGIES:
        return True
    if name not in STRATEGIES:
        known = (*STRATEGIES, *BLACK_BOX_STRATEGIES)
        raise unknown_name("strategy", name, known, own=WAY_OF_ONES_OWN)
    for option in ("queries", "query"):
        if getattr(config, option) is not None:
            raise InputError(
                f"--{option}: expected a strategy that makes queries, {', '.join(BLACK_BOX_STRATEGIES)}"
                f", found {config.strategy}; leave it out"
            )
    return False


def introduction(task: BlackBoxSearch) -> list[str]:
    """Return the console's lines on what is queried, and how."""
    config = task.config
    if config.query is not None:
        how = f"each looked up in {config.table}, {config.query}"
    else:
        how = (
            f"each a training of {counted(config.epochs, 'epoch')}, {task.steps_per_epoch} steps, on "
            f"{task.halves[0]} images, measured on {task.halves[1]} others"
        )
    lines = [f"search on {config.dataset}, {task.device}: {task.epochs} queries, {how}"]
    return [*lines, *task.notes(), *precision_notes(task.device, config.amp)]


class EvaluationsFile(Listener):
    """A listener that appends a line to evaluations.jsonl for each query.

    A line holds what `training.black_box.QueryResult` says; its genotype is the content of a genotype
    file.
    """

    def __init__(self, search: BlackBoxSearch, folder: RunFolder) -> None:
        self._search, self._path = search, folder.path / EVALUATIONS_FILE

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        latest = self._search.latest
        assert latest is not None
        line = latest.plain() | {"genotype": json.loads(latest.genotype.to_json())}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_report(
    task: BlackBoxSearch,
    folder: RunFolder,
    genotype: Genotype,
    queries: Sequence[Mapping[str, Any]],
    known: Mapping[str, float] | None,
    next_command: str | None,
    sizes: str,
) -> None:
    """Write best.svg and the report; the arguments are those of `black_box_card`."""
    if queries:
        write_chart(folder.path / BEST_FIGURE, draw_best(queries), task.config.charts)
    card = black_box_card(task, folder, genotype, queries, known, next_command, sizes)
    page.write_report(folder.path, card)
