"""The command that lists runs: as a table, as CSV or as JSON. It imports no PyTorch."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darts_bio.config import RunsConfig
from darts_bio.errors import printable
from darts_bio.reports.run_table import COLUMNS
from darts_bio.storage.run_list import list_runs as runs_in
from darts_bio.storage.run_summary import RunSummary

WIDEST = 32
"""Characters of a cell of the table, but for the path; a longer text is cut."""
CSV_COLUMNS = (
    "path", "kind", "dataset", "strategy", "rules", "seeds", "epoch", "epochs",
    "held_out_mean", "held_out_deviation", "test_mean", "test_deviation",
    "parameters", "transport", "seconds", "state", "damage",
)  # fmt: skip


def list_runs(config: RunsConfig) -> int:
    """Print the runs of a folder, and return 0."""
    root = Path(config.folder or "runs")
    runs = runs_in(root, where=config.where, sort=config.sort)
    if config.json:
        text = json.dumps([run.as_dict() for run in runs], indent=1) + "\n"
    elif config.csv:
        text = csv_text(runs)
    elif runs:
        text = table(runs, root)
    else:
        text = f"no runs in {printable(str(root))}" + (" are like that\n" if config.where else "\n")
    # A terminal may not know all letters of a name.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 0


def table(runs: Sequence[RunSummary], root: Path) -> str:
    """Return runs as a table with aligned columns, their paths from `root` on.

    >>> run = RunSummary(Path("runs/a"), "train", "finished", seeds=(0, 1), test=(0.96, 0.98))
    >>> print(table([run], Path("runs")), end="")
    run  kind   data  strategy  rules  seed  epochs  held-out %  test %         params  transport %  time  state
    a    train  -     -         -      0-1   0       -           97.00 +- 1.41  -       -            -     finished
    """
    rows = [["run", *COLUMNS]]
    for run in runs:
        texts = [_cut(printable(show(run))) or "-" for show in COLUMNS.values()]
        rows.append([printable(os.path.relpath(run.path, root)), *texts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [
        printable(f"{os.path.relpath(run.path, root)}: {run.damage}") for run in runs if run.damage
    ]
    return "\n".join(lines) + "\n"


def csv_text(runs: Sequence[RunSummary]) -> str:
    r"""Return runs as CSV; several values of a cell have spaces between them.

    >>> csv_text([RunSummary(Path("=a"), "train", "finished")]).splitlines()[1][:11]
    "'=a,train,,"
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        values = run.as_dict()
        writer.writerow([_csv_cell(values[name]) for name in CSV_COLUMNS])
    return file.getvalue()


def _cut(text: str) -> str:
    """Return a text of the table, cut to its width."""
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def _csv_cell(value: Any) -> Any:
    """Return a value as a cell of CSV; a text that a spreadsheet would compute is quoted."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    value = printable(value)
    return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value
