"""The paper's tables (BioNAS, arXiv 2507.13485), by this package's own commands.

    python benchmarks/reproduce/run.py --dry-run                all tables: commands, and what they cost
    python benchmarks/reproduce/run.py T1 --dry-run             one of T1, T2, T3, T4, T5, F3
    python benchmarks/reproduce/run.py T1 --data-dir data       makes it; run again, it goes on
    python benchmarks/reproduce/run.py --small                  everything at toy sizes, on a CPU, in minutes

Runs lie in --keep, one for each seed, and tables share them. Each command has `--resume auto`: what
has ended is not made again, and what was stopped or killed goes on. Ctrl-C stops a run in good
order, and this command with it. Whatever has ended is then printed beside the published numbers and
written to benchmarks/results/reproduce-TABLE.json. --small shows that all commands and files fit
together; its numbers mean nothing, and stay in --keep.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from measuring import RESULTS, command, keep_results, run, spread
from recipes import RUNS, TABLES, Row

from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError, unknown_name
from darts_bio.runtime import hardware, select_device
from darts_bio.storage.run_summary import FINISHED, RunSummary, summarize

SECONDS_A_DAY = 86400
ALIGNMENT = "alignment.json"
"""The file that `darts-bio alignment` writes into the folder of a training."""


@dataclass(frozen=True)
class Setting:
    """Where runs and data lie, how many seeds there are, and whether sizes are toys."""

    keep: Path
    data: Mapping[str, str]
    seeds: int
    small: bool

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder that a run of a seed writes into."""
        return self.keep / (RUNS[name].inside or name) / f"seed-{seed}"

    def words(self, name: str, seed: int) -> list[str]:
        """Return the command of a run, as the words behind `python -m darts_bio`."""
        recipe = RUNS[name]
        options = {**recipe.options, **(recipe.small if self.small else {})}
        if self.small:
            options["device"] = "cpu"
        if recipe.inside is None:
            options |= {"seed": str(seed), "out": str(self.folder(name, seed)), "resume": "auto"}
        folders = {each: str(self.folder(each, seed)) for each in RUNS}
        words = [recipe.command]
        for option, value in options.items():
            for place, path in {**self.data, **folders}.items():
                value = value.replace(f"{{{place}}}", path)
            words += [f"--{option}", value]
        return words


def plan(tables: Sequence[str], setting: Setting) -> Iterator[str]:
    """The lines of a dry run: for each table its commands of the first seed, and what they cost.

    A run that an earlier table has is not made again for a later one.
    """
    made: dict[str, None] = {}
    for table in tables:
        names = TABLES[table].runs()
        yield f"# {table}. {TABLES[table].title}"
        for name in names:
            if name not in made:
                yield f"# {name}: {RUNS[name].hours:g} GPU-hours"
                yield shlex.join(["python", "-m", "darts_bio", *setting.words(name, 0)])
        if again := [name for name in names if name in made]:
            yield f"# as above: {', '.join(again)}"
        made |= dict.fromkeys(names)
        yield ""
    hours = sum(RUNS[name].hours for name in made)
    others = "".join(f", {seed}" for seed in range(1, setting.seeds))
    yield f"# for seeds 0{others}, of which 0 is shown: {hours * setting.seeds:.1f} GPU-hours"


def make(tables: Sequence[str], setting: Setting) -> None:
    """Make the runs of some tables, a seed after the other; what has ended is not made again.

    Raises InputError if a command ends otherwise than well.
    """
    for seed in range(setting.seeds):
        for name in dict.fromkeys(name for table in tables for name in TABLES[table].runs()):
            words = setting.words(name, seed)
            if made(name, setting.folder(name, seed)):
                continue
            print(shlex.join(["python", "-m", "darts_bio", *words]), file=sys.stderr)
            code = subprocess.run([sys.executable, "-m", "darts_bio", *words]).returncode
            if code:
                raise InputError(
                    f"{name}, seed {seed}: expected exit code 0, found {code}; the same command goes on"
                )


def made(name: str, folder: Path) -> bool:
    """Whether a run has come to its end."""
    if RUNS[name].inside:
        return (folder / ALIGNMENT).exists()
    return finished(folder) is not None


def finished(folder: Path) -> RunSummary | None:
    """Return what is told of the run in a folder; None unless it has come to its end."""
    summary = summarize(folder) if folder.exists() else None
    return summary if summary is not None and summary.state == FINISHED else None


def measured(row: Row, folder: Path) -> float | None:
    """The number of a row, from the folder of its run; None if the run has not ended."""
    summary = finished(folder)
    if summary is None:
        return None
    if row.measure == "accuracy":
        return 100 * summary.test[0]
    if row.measure == "GPU-days":
        return None if summary.seconds is None else summary.seconds / SECONDS_A_DAY
    if row.measure == "variance":
        path = folder / ALIGNMENT
        return json.loads(path.read_text())["gradient_variance"] if path.exists() else None
    attack, gradient = row.measure.split(", ")
    [network] = json.loads((folder / "results.json").read_text())["networks"]
    if not network["clean"]:  # nothing was right that could be attacked
        return 0.0
    [accuracy] = {
        entry["accuracy"]
        for entry in network["attacks"]
        if entry["attack"].partition("(")[0] == attack
        and (entry["gradients"], entry["eps"]) == (gradient, 8.0)
    }
    return 100 * accuracy


def collected(table: str, setting: Setting) -> dict[str, dict[str, Any]]:
    """Return what there is of a table: for each row the published number and those of the seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for row in TABLES[table].rows:
        found = {
            seed: measured(row, setting.folder(row.run, seed)) for seed in range(setting.seeds)
        }
        by_seed = {str(seed): value for seed, value in found.items() if value is not None}
        rows[row.label] = {"published": row.published, "measure": row.measure, "seeds": by_seed}
    return rows


def shown(table: str, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of a table in Markdown, with what is known about it."""
    lines = [
        f"## {table}. {TABLES[table].title}",
        "",
        "| | published | here | n |",
        "|---|---|---|---|",
    ]
    for label, row in rows.items():
        values = list(row["seeds"].values())
        digits = 3 if row["measure"] in ("GPU-days", "variance") else 2
        here = spread(values, digits) if values else "not run"
        published = "" if row["published"] is None else str(row["published"])
        lines.append(f"| {label} | {published} | {here} | {len(values)} |")
    return [*lines, "", " ".join(TABLES[table].remarks)]


def pictures(place: Path) -> None:
    """Write digits as folders of pictures of 32x32 pixels, for the toy size of ImageNet."""
    data = load_data("digits", train_images=32)
    for part, split in {"train": data.train, "validation": data.test[:32]}.items():
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = place / part / str(int(label)) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).resize((32, 32)).convert("RGB").save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--dry-run", action="store_true", help="print the commands and their costs")
    parser.add_argument("--small", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--seeds", type=int, metavar="N", help="default: 3, with --small 1")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="default: runs/reproduce[-small]")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="of CIFAR")
    parser.add_argument("--imagenet-dir", default="imagenet", metavar="DIR")
    parser.add_argument("--imagenet16-dir", default="ImageNet16", metavar="DIR")
    options = parser.parse_args()
    for table in options.tables:
        if table not in TABLES:
            raise unknown_name("table", table, TABLES)
    keep = options.keep or Path("runs", "reproduce-small" if options.small else "reproduce")
    data = {"cifar": options.data_dir, "imagenet": options.imagenet_dir}
    data |= {"imagenet16": options.imagenet16_dir, "pictures": str(keep / "pictures")}
    setting = Setting(keep, data, options.seeds or (1 if options.small else 3), options.small)
    tables = options.tables or list(TABLES)
    if options.dry_run:
        print("\n".join(plan(tables, setting)))
        return
    if options.small:
        pictures(keep / "pictures")
    try:
        make(tables, setting)
    finally:
        machine = hardware(select_device("cpu" if options.small else "auto"))
        for table in tables:
            rows = collected(table, setting)
            print("\n".join(shown(table, rows)), end="\n\n")
            path = keep / f"{table}.json" if options.small else RESULTS / f"reproduce-{table}.json"
            about = {"command": command(), "date": datetime.date.today().isoformat()}
            about |= {"hardware": machine, "torch": torch.__version__}
            about |= {"python": platform.python_version(), "small": options.small}
            keep_results(path, {**about, "title": TABLES[table].title, "rows": rows})


if __name__ == "__main__":
    run(main)
