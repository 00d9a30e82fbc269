"""Known accuracies of NAS-Bench-201's cells, looked up in a table that a user has.

A table is a JSON file, `{"|op~0|+|...|": {"cifar10": 93.1, ...}, ...}` or `{"|op~0|+|...|": 93.1,
...}`, or a CSV file whose header is `arch,cifar10,...`. The benchmark's own file is a pickle of
several GB: it is not read here, since a pickle may run anything; its API writes such a table in a
few lines (README).
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from darts_bio.errors import InputError, first_line
from darts_bio.spaces.genotype import Genotype
from darts_bio.spaces.nb201 import is_nb201, to_nb201_text

UNNAMED = "accuracy"


class Nb201Table:
    """The accuracies, in per cent by data set, of cells in text form."""

    def __init__(self, path: Path) -> None:
        """Raises InputError unless the file is such a table."""
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--table {path}: cannot be read as text ({first_line(error)}); expected a JSON or "
                "CSV file"
            ) from None
        self._rows = (
            _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_json(text, path)
        )
        if not any(re.fullmatch(r"\|\S+~0\|\+\|\S+~1\|\+\|\S+~2\|", cell) for cell in self._rows):
            raise InputError(
                f"--table {path}: expected cells such as "
                "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|, found "
                f"{next(iter(self._rows))[:60]!r}"
            )

    def accuracies(self, genotype: Genotype) -> dict[str, float] | None:
        """Those of a genotype's operations, under bp as the benchmark trained them; None if they
        are not in the table.

        Raises InputError for a genotype of another space.
        """
        if not is_nb201(genotype):
            raise InputError(
                f"--table {self.path}: expected a genotype of the space nb201, found "
                f"{genotype.space}"
            )
        return self._rows.get(to_nb201_text(genotype, rules=False))


def _from_json(text: str, path: Path) -> dict[str, dict[str, float]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--table {path}: not a JSON file ({first_line(error)}); a CSV file has a name in .csv"
        ) from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"--table {path}: expected an object of cells and their accuracies")
    rows = {}
    for cell, value in data.items():
        named = value if isinstance(value, dict) else {UNNAMED: value}
        rows[cell] = {
            name: _number(entry, f"--table {path}: {cell}") for name, entry in named.items()
        }
    return rows


def _from_csv(text: str, path: Path) -> dict[str, dict[str, float]]:
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    if len(lines) < 2 or len(lines[0]) < 2:
        raise InputError(
            f"--table {path}: expected a header such as arch,cifar10 and a line for each cell"
        )
    names = lines[0][1:]
    rows = {}
    for number, (cell, *values) in enumerate(lines[1:], 2):
        if len(values) != len(names):
            raise InputError(
                f"--table {path}, line {number}: expected {len(names) + 1} entries, found "
                f"{len(values) + 1}"
            )
        rows[cell.strip()] = {
            name: _number(value, f"--table {path}, line {number}")
            for name, value in zip(names, values, strict=True)
        }
    return rows


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
        if not isinstance(value, bool) and 0 <= number <= 100:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{where}: expected an accuracy in per cent, found {str(value)[:40]!r}")
