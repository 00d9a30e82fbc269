"""Compare runs side by side, from their folders to a folder with the report.

report.md      table, paired test, options that differ
curves.svg     losses and accuracies over the epochs, a line a run
cells-N.svg    the cells of the genotypes
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from darts_bio.config import CONFIG_FILE, ReportConfig
from darts_bio.errors import InputError, printable
from darts_bio.evaluation.subjects import names_of
from darts_bio.figures.cells import draw_genotype
from darts_bio.reports.page import write_report
from darts_bio.reports.side_by_side import (
    CURVES_FIGURE,
    Compared,
    doubts,
    draw_side_by_side,
    side_by_side,
)
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.training.engine import Numbers
from darts_bio.training.records import epochs_from_end
from darts_bio.training.run_folder import METRICS_FILE, new_folder, write_text
from darts_bio.training.run_list import list_runs
from darts_bio.training.run_summary import RunSummary, finite


def compare_runs(config: ReportConfig) -> tuple[Path, list[str]]:
    """Write the report on the runs of `config`; return its folder, and why they cannot be compared.

    Raises:
        InputError: Something named is no run folder, or is named twice.
    """
    folders = [Path(run) for run in config.runs]
    names = names_of(folders)
    if len(set(names)) < len(names):
        raise InputError(
            f"report: expected each run once, found {', '.join(map(printable, names))}"
        )
    compared, genotypes = [], []
    for name, folder in zip(names, folders, strict=True):
        listed = list_runs(folder)
        if not listed or listed[0].path != folder:
            raise InputError(
                f"{printable(str(folder))}: expected a run folder, found no {CONFIG_FILE}"
            )
        run, *below = listed
        within = [each for each in below if each.path.parent == folder]
        seeds = [each for each in within if each.path.name.startswith("seed-")]
        final = [each for each in within if each.path.name == "final"]
        seeds = seeds or final or [run]
        cells, missing = _genotypes(run, seeds)
        compared.append(Compared(name, run, seeds, _means(seeds), missing=missing))
        genotypes.append(cells)
    out = new_folder("report", config.out, resumable=False)
    for number, (each, cells) in enumerate(zip(compared, genotypes, strict=True)):
        files: dict[str, str] = {}
        for title, genotype in cells.items():
            files[title] = f"cells-{number + 1}-{len(files) + 1}.svg"
            write_text(out / files[title], draw_genotype(genotype).svg())
        compared[number] = replace(each, cells=files)
    if any(each.epochs for each in compared):
        write_text(out / CURVES_FIGURE, draw_side_by_side(compared).svg())
    write_report(out, side_by_side(compared))
    return out, doubts(compared)


def _genotypes(run: RunSummary, seeds: Sequence[RunSummary]) -> tuple[dict[str, Genotype], str]:
    """Return the genotypes of a run by what has them, each once, and why there is none."""
    found: dict[str, Genotype] = {}
    seeds_of: dict[str, list[str]] = {}
    missing = "no genotype"
    for each in seeds:
        try:
            genotype = read_genotype(each.path / GENOTYPE_FILE)
        except InputError as error:
            missing = str(error)
            continue
        found[genotype.identity()] = genotype
        seeds_of.setdefault(genotype.identity(), []).append(",".join(map(str, each.seeds)))
    titles = {f"seed {', '.join(seeds_of[key])}": genotype for key, genotype in found.items()}
    return titles, "" if titles else missing


def _means(seeds: Sequence[RunSummary]) -> list[Numbers]:
    """Return the numbers of the epochs, means over the seeds that have one, first to last."""
    by_epoch: dict[int, list[Numbers]] = {}
    for each in seeds:
        for epoch, numbers in _epochs(each.path / METRICS_FILE):
            by_epoch.setdefault(epoch, []).append(numbers)
    means = []
    for epoch, several in sorted(by_epoch.items()):
        names = dict.fromkeys(itertools.chain.from_iterable(several))
        mean = {name: fmean(each[name] for each in several if name in each) for name in names}
        means.append({"epoch": float(epoch), **mean})
    return means


def _epochs(path: Path) -> Iterator[tuple[int, Numbers]]:
    """Yield the numbers of epochs in a file of records, last to first; none if it is unreadable."""
    try:
        for record in epochs_from_end(path):
            yield record["epoch"], finite(record)
    except OSError:
        return
