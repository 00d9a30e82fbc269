"""Runs listed from the files of their folders, without PyTorch.

A run is a folder with a config.yaml. Where its folder holds one for each of several seeds, for each
stage, or the searches and trainings of `--choose`, what is told of it is told of these together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from darts_bio.config import CONFIG_FILE, RUNS, SearchConfig
from darts_bio.errors import InputError, printable, unknown_name
from darts_bio.registry import split_specs
from darts_bio.storage.run_summary import (
    ATTRIBUTES,
    DAMAGED,
    SILENT_S,
    RunSummary,
    is_group,
    seconds_silent,
    summarize,
    whole,
)
from darts_bio.storage.status import DEAD, FINISHED, RUNNING, STOPPED, is_alive, read_status


def list_runs(
    folder: str | Path = "runs", *, where: str | Sequence[str] = (), sort: str | None = None
) -> list[RunSummary]:
    """List the runs in and below a folder; symbolic links are not followed.

    Args:
        folder: The folder.
        where: Which runs to list, such as "strategy=darts, dataset=digits": all of the conditions
            hold. A name is an attribute of `RunSummary` or an option of the run. A spec is found by
            its name too, a list by each of its entries, and "rules=(fa, usf)" as a whole.
        sort: What to sort by, such as "test/accuracy": an attribute, an option, or a number of the
            last epoch. Accuracies begin with the highest, all else with the lowest; runs without a
            value come last. By default runs are sorted by path.

    Raises:
        InputError: There is no such folder, or no run has anything of a name.

    >>> import darts_bio, tempfile
    >>> out = tempfile.mkdtemp()
    >>> quiet = {"progress": False, "tensorboard": False}
    >>> _ = darts_bio.search("digits", train_images=200, epochs=1, out=f"{out}/a", **quiet)
    >>> for run in darts_bio.list_runs(out, where="dataset=digits", sort="valid/accuracy"):
    ...     print(run.path.name, run.kind, run.state, run.epoch, run.rules)
    a search finished 1 ('fa', 'usf', 'brsf', 'frsf')
    """
    root = Path(folder)
    try:
        exists = root.is_dir()
    except (OSError, ValueError):  # such as a name that is too long
        exists = False
    if not exists:
        raise InputError(
            f"{printable(str(root))[:200]}: expected a folder of runs, found no folder"
        )
    runs = _read_all(root)
    options = {f.name for cls in RUNS.values() for f in fields(cls)}
    known = {*ATTRIBUTES, *options, *(name for run in runs for name in run.options)}
    for name, text in _conditions(where):
        if name not in known:
            raise unknown_name("name in --where", name, known)
        runs = [run for run in runs if _matches(run.value(name), text)]
    if sort is None:
        return runs
    known |= {name for run in runs for name in run.numbers}
    name = sort if "/" in sort else sort.replace("-", "_")
    if runs and name not in known:
        raise unknown_name("name in --sort", sort, known)
    return sorted(runs, key=lambda run: _order(name, run.value(name)))


def _conditions(where: str | Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the conditions of `where` as (name, text)."""
    for condition in split_specs(where) if isinstance(where, str) else where:
        name, equals, text = condition.partition("=")
        if not equals or not name.strip() or name.rstrip()[-1] in "<>!" or text.startswith("="):
            raise InputError(
                "--where: expected conditions NAME=VALUE, such as strategy=darts (equality only, by "
                f"one =; to order runs by a number: --sort NAME), found {condition!r:.150}"
            )
        yield name.strip().replace("-", "_"), text.strip()


def _matches(value: Any, text: str) -> bool:
    """Tell whether a value is what the text of a condition says."""
    if isinstance(value, (list, tuple)):
        if text[:1] + text[-1:] in ("()", "[]"):
            entries = split_specs(text[1:-1])
            return len(entries) == len(value) and all(map(_matches, value, entries))
        return any(_matches(entry, text) for entry in value)
    if isinstance(value, (bool, type(None))):
        return text.lower() == str(value).lower()
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    value = str(value)
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    # "darts" finds darts(lr=0.01), too.
    return text in (value, value.partition("(")[0])


def _order(name: str, value: Any) -> tuple[bool, bool, Any]:
    """Return what runs are sorted by: numbers come before texts, and runs without a value last."""
    if value is None or value == "" or value == ():
        return True, True, ""
    if isinstance(value, (int, float)):
        best_first = name.endswith("accuracy") or name in ("held_out", "test")
        return False, False, -value if best_first else value
    return False, True, str(value)


def _read_all(root: Path) -> list[RunSummary]:
    """Read all runs in and below a folder, sorted by path."""
    paths = [Path(place) for place, _, names in os.walk(root) if CONFIG_FILE in names]
    paths = sorted(path for path in paths if (path / CONFIG_FILE).is_file())
    below: dict[Path, list[RunSummary]] = {path: [] for path in paths}
    runs = []
    for path in reversed(paths):  # what lies within a folder comes before it
        run = summarize(path)
        run = _of_parts(run, below[path][::-1]) or run
        runs.append(run)
        for place in path.parents:
            if place in below:
                below[place].append(run)
    return runs[::-1]


def _of_parts(run: RunSummary, below: Sequence[RunSummary]) -> RunSummary | None:
    """Return what is told of a run with the runs that it consists of; None if it has none.

    `below` are all runs below its folder.
    """
    options = run.options
    if not run.kind or not is_group(options):
        return None
    seeds = whole(options.get("seeds")) or 1
    several = in_stages = False
    if options.get("choose") is True:
        parts = [part for part in below if not is_group(part.options)]
        shown = [part for part in parts if part.path == run.path / "final"]
        complete = bool(shown)
        # A short training that diverged does not end the run.
        decisive = shown or parts
    elif several := seeds > 1:
        parts = shown = decisive = _within(run, below, "seed-")
        complete = len(parts) >= seeds
    else:
        in_stages = True
        parts = decisive = _within(run, below, "stage-")
        shown, complete = parts[-1:], len(parts) >= len(options["stages"])
    ended = next((part for part in decisive if part.state in (DEAD, DAMAGED)), None)
    names = set[str]().union(*(part.numbers for part in shown))
    numbers = {
        name: fmean(part.numbers[name] for part in shown)
        for name in sorted(names)
        if all(name in part.numbers for part in shown)
    }
    times = [part.seconds for part in parts if part.seconds is not None]
    epochs = [part.epoch for part in (parts if in_stages else shown)]
    return replace(
        run,
        state=run.state if run.state == DAMAGED else _state_of_parts(run.path, decisive, complete),
        damage=run.damage or (ended.damage if ended else ""),
        strategy=run.strategy or _common(shown, "strategy") or "",
        rules=run.rules or _common(shown, "rules") or (),
        seeds=tuple(seed for part in shown for seed in part.seeds) if several else run.seeds,
        epoch=sum(epochs) if in_stages else min(epochs, default=0),
        epochs=_epochs_of_stages(run) if in_stages else _common(shown, "epochs"),
        held_out=tuple(value for part in shown for value in part.held_out),
        test=tuple(value for part in shown for value in part.test),
        parameters=_common(shown, "parameters"),
        transport=_common(shown, "transport"),
        seconds=sum(times) if times else None,
        data=_common(shown, "data") or "",
        numbers=numbers,
    )


def _within(run: RunSummary, below: Sequence[RunSummary], prefix: str) -> list[RunSummary]:
    """Return the runs right within a folder whose names are a prefix and a number, in its order."""
    parts = [
        part for part in below if part.path.parent == run.path and part.path.name.startswith(prefix)
    ]
    return sorted(parts, key=lambda part: (len(part.path.name), part.path.name))


def _state_of_parts(path: Path, parts: Sequence[RunSummary], complete: bool) -> str:
    """Return the state of a run that consists of others; `complete` if none of these is missing."""
    states = {part.state for part in parts}
    for state in (RUNNING, DAMAGED, DEAD, STOPPED):
        if state in states:
            return state
    if complete:
        return FINISHED
    # Between two of its parts, unless the process that made the last one is gone.
    alive: bool | None = None
    for part in parts:
        try:
            alive = alive or is_alive(read_status(part.path) or {})
        except (OSError, ValueError):
            continue
    if alive is None:
        alive = (
            min((seconds_silent(each.path) for each in parts), default=seconds_silent(path))
            < SILENT_S
        )
    return RUNNING if alive else DEAD


def _epochs_of_stages(run: RunSummary) -> int | None:
    """Return how many epochs the stages of a search have together; None if that cannot be told."""
    try:
        config = SearchConfig(**{**run.options, "seeds": 1, "choose": False})
        return sum(options.epochs for _, options in config.of_stages())
    except (InputError, TypeError):  # of another version, or with a plug-in
        return None


def _common(runs: Sequence[RunSummary], name: str) -> Any:
    """Return an attribute that all runs share; None if they differ."""
    values = {getattr(run, name) for run in runs}
    return values.pop() if len(values) == 1 else None
