"""What the files of a run's folder tell of it, read without PyTorch.

Nothing in a file is trusted: what is not as a run writes it is passed over, or makes the run
damaged, with a reason.
"""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from darts_bio.config import CONFIG_FILE, SearchConfig
from darts_bio.config.files import kind_of_options, raw_options
from darts_bio.errors import first_line
from darts_bio.storage.records import epochs_from_end, last_record
from darts_bio.storage.status import (
    DEAD,
    FINISHED,
    RUNNING,
    STATUS_FILE,
    STOPPED,
    is_alive,
    read_status,
)

DAMAGED = "damaged"
GENOTYPE, METRICS, CHECKPOINT, REPORT = (
    "genotype.json",
    "metrics.jsonl",
    "checkpoint.pt",
    "report.md",
)
"""Files of a run. The modules that write them, and name them too, import PyTorch."""
LONGEST_CONFIG, LONGEST_GENOTYPE = 1 << 16, 1 << 20
"""Bytes of a config.yaml and a genotype.json; a longer one is damaged."""
SILENT_S = 900.0
"""Seconds without a change of its files after which a run on another machine counts as dead."""
HELD_OUT = ("best/accuracy", "valid_averaged/accuracy", "valid/accuracy")
TEST = ("test_averaged/accuracy", "test/accuracy")
"""Names of the accuracy on held-out and on test images, that of the result first."""


@dataclass(frozen=True)
class RunSummary:
    """What the files of a run tell of it.

    Attributes:
        path: The run's folder.
        kind: The command that made it, such as "search" or "train"; "" if that cannot be told.
        state: "running", "finished", "stopped" (`--resume` goes on with it), "dead" (ended by an
            error, or killed) or "damaged".
        dataset: The data set.
        strategy: The strategy of the search; of a training, that which its genotype comes from.
        rules: The learning rules that are searched, or that the trained genotype has.
        seeds: The seed, or those of several runs in this folder.
        epoch: How many epochs are done; of several seeds the fewest.
        epochs: How many were asked for; None if that cannot be told.
        held_out: The accuracy on held-out images, in [0, 1], of each seed; empty if not measured.
            Of a search it is the supernet's, or that of the best query.
        test: The accuracy on the test images, likewise.
        parameters: The number of weights of the network or the supernet; None if not recorded.
        transport: The share of weights whose values carry the error down; None if not recorded.
        seconds: How long it ran, of several runs together; None if not recorded.
        damage: Why it is damaged or dead, in words; "" otherwise.
        data: The identity of the data; "" if not recorded.
        options: The options in its config.yaml.
        numbers: The numbers of its last epoch; of several seeds their means.

    >>> run = RunSummary(Path("runs/a"), "train", "finished", test=(0.96, 0.98))
    >>> run.value("state"), round(run.value("test"), 3)
    ('finished', 0.97)
    """

    path: Path
    kind: str
    state: str
    dataset: str = ""
    strategy: str = ""
    rules: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epoch: int = 0
    epochs: int | None = None
    held_out: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    parameters: int | None = None
    transport: float | None = None
    seconds: float | None = None
    damage: str = ""
    data: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """Return what a name stands for: an attribute, an option, or a number of the last epoch.

        Of several accuracies it is the mean. None if the run has nothing of that name.
        """
        if name in ("held_out", "test"):
            values = getattr(self, name)
            return fmean(values) if values else None
        if name in ATTRIBUTES:
            return getattr(self, name)
        return self.options.get(name.replace("-", "_"), self.numbers.get(name))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON, with mean and deviation of the accuracies."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("held_out", "test"):
            values = plain[name]
            plain[f"{name}_mean"] = self.value(name)
            plain[f"{name}_deviation"] = stdev(values) if len(values) > 1 else None
        return {name: _plain(value) for name, value in plain.items()}


ATTRIBUTES = tuple(f.name for f in fields(RunSummary) if f.name not in ("options", "numbers"))
"""The names of what a run is filtered and sorted by, beside its options and numbers."""


def summarize(path: Path) -> RunSummary:
    """Return what the files in a run's folder tell, but for those of runs below it.

    >>> summarize(Path("runs/none")).damage
    'config.yaml: No such file or directory'
    """
    try:
        _refuse_long(path / CONFIG_FILE, LONGEST_CONFIG)
        options = {
            name: value for name, value in raw_options(path / CONFIG_FILE).items() if _simple(value)
        }
    except (OSError, ValueError) as error:  # an InputError is a ValueError
        return RunSummary(path, "", DAMAGED, damage=_reason(path / CONFIG_FILE, error))
    damage = ""
    status: dict[str, Any] = {}
    genotype: dict[str, Any] = {}
    last: dict[str, Any] = {}
    epoch: dict[str, Any] = {}
    for name, read in (
        (STATUS_FILE, lambda: status.update(read_status(path) or {})),
        (GENOTYPE, lambda: genotype.update(_read_json(path / GENOTYPE))),
        (METRICS, lambda: _read_metrics(path / METRICS, last, epoch)),
        (CHECKPOINT, lambda: _check_checkpoint(path / CHECKPOINT)),
    ):
        try:
            read()
        except (OSError, ValueError) as error:
            damage = damage or _reason(path / name, error)
    kind = kind_of_options(options, SearchConfig).command
    numbers = finite(epoch)
    origin = genotype.get("provenance")
    search = options if kind == "search" else origin if isinstance(origin, dict) else {}
    rules = options.get("rules") if kind == "search" else _rules_of(genotype)
    seed = whole(options.get("seed"))
    run = RunSummary(
        path,
        kind,
        FINISHED,
        dataset=str(options.get("dataset") or options.get("data_dir") or ""),
        strategy=str(search.get("strategy") or ""),
        rules=tuple(map(str, rules)) if isinstance(rules, (list, tuple)) else (),
        seeds=() if seed is None else (seed,),
        epoch=whole(epoch.get("epoch")) or 0,
        epochs=whole(status.get("epochs")) or whole(options.get("epochs")),
        held_out=_first(numbers, HELD_OUT),
        test=_first(numbers, TEST),
        parameters=whole(status.get("parameters")),
        transport=_number(status.get("transport", numbers.get("objective/weight_transport_share"))),
        seconds=_number(last.get("seconds")),
        data=str(status.get("data") or ""),
        options=options,
        numbers=numbers,
    )
    state = _state(run, status)
    if last and state != FINISHED and not (path / CHECKPOINT).exists() and not is_group(options):
        damage = damage or f"{CHECKPOINT}: missing, though {METRICS} tells of step {last['step']}"
    if damage:
        return replace(run, state=DAMAGED, damage=damage)
    return replace(run, state=state, damage=str(status.get("reason") or "")[:200])


def _state(run: RunSummary, status: Mapping[str, Any]) -> str:
    """Return the state of a run whose files are whole."""
    path = run.path
    if not status:  # of an earlier version, or killed before it began
        if (run.epochs is not None and run.epoch >= run.epochs) or (path / "results.json").exists():
            return FINISHED
        if seconds_silent(path) < SILENT_S:
            return RUNNING
        return STOPPED if (path / REPORT).exists() else DEAD
    state = str(status["state"])
    if state != RUNNING:
        return state
    alive = is_alive(dict(status))
    alive = seconds_silent(path) < SILENT_S if alive is None else alive
    return RUNNING if alive else DEAD


def is_group(options: Mapping[str, Any]) -> bool:
    """Tell whether a folder with these options holds runs in place of one of its own.

    >>> is_group({"seeds": 3}), is_group({"seeds": 1, "stages": []})
    (True, False)
    """
    seeds = whole(options.get("seeds")) or 1
    stages = options.get("stages")
    in_stages = isinstance(stages, list) and len(stages) > 0
    return seeds > 1 or in_stages or options.get("choose") is True


def _read_metrics(path: Path, last: dict[str, Any], epoch: dict[str, Any]) -> None:
    """Read the last record and that of the last epoch; raise as `last_record` does."""
    if path.exists():
        last.update(last_record(path) or {})
        epoch.update(next(epochs_from_end(path), {}))


def _check_checkpoint(path: Path) -> None:
    """Raise ValueError if there is a checkpoint which is not whole: it is a zip archive."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError("not a whole checkpoint")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a mapping, empty if there is none; else ValueError."""
    if not path.is_file():
        return {}
    _refuse_long(path, LONGEST_GENOTYPE)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError("not a JSON file") from None
    if not isinstance(content, dict):
        raise ValueError("expected a genotype")
    return content


def _refuse_long(path: Path, longest: int) -> None:
    """Raise ValueError for a file of more bytes than a run writes."""
    size = path.stat().st_size
    if size > longest:
        raise ValueError(f"expected at most {longest:,} bytes, found {size:,}")


def _rules_of(genotype: Mapping[str, Any]) -> list[str]:
    """Return the rules that the edges of a genotype file have, sorted."""
    rules = set()
    cells = genotype.get("cells")
    for cell in cells.values() if isinstance(cells, dict) else ():
        edges = cell.get("edges") if isinstance(cell, dict) else None
        for edge in edges if isinstance(edges, list) else ():
            if isinstance(edge, dict) and isinstance(edge.get("rule"), str):
                rules.add(edge["rule"])
    return sorted(rules)


def seconds_silent(path: Path) -> float:
    """Return how many seconds ago a file of the run changed; of no run, since 1970.

    >>> seconds_silent(Path("runs/none")) > SILENT_S
    True
    """
    changed = 0.0
    for name in (CONFIG_FILE, METRICS, CHECKPOINT):
        try:
            changed = max(changed, (path / name).stat().st_mtime)
        except OSError:
            continue
    return time.time() - changed


def _reason(path: Path, error: Exception) -> str:
    """Return in a line why a file is damaged."""
    text = first_line(error).removeprefix(f"{path}: ")
    return f"{path.name}: {text}"


def _simple(value: Any) -> bool:
    """Tell whether a value of a YAML file is one that an option can have."""
    if isinstance(value, list):
        return all(not isinstance(entry, list) and _simple(entry) for entry in value)
    return value is None or isinstance(value, (str, bool)) or _number(value) is not None


def _number(value: Any) -> float | None:
    """Return a finite number of a reasonable size; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 2**63 or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """Return a whole number of a reasonable size; None for anything else.

    >>> whole(3), whole("3"), whole(True)
    (3, None, None)
    """
    return value if type(value) is int and abs(value) < 2**63 else None


def finite(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the measurements in a record of metrics.jsonl, but for those that are not finite.

    >>> finite({"event": "epoch", "step": 3, "test/loss": 2, "test/accuracy": float("nan")})
    {'test/loss': 2.0}
    """
    numbers = {name: _number(value) for name, value in record.items() if "/" in name}
    return {name: number for name, number in numbers.items() if number is not None}


def _first(numbers: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Return the number of the first name that there is one of; none if there is none."""
    return next(((numbers[name],) for name in names if name in numbers), ())


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return str(value) if isinstance(value, Path) else value
