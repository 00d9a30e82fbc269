"""Compare runs side by side, from their folders to a folder with the report.

report.md      table, paired test, options that differ
curves.svg     losses and accuracies over the epochs, a line a run
cells-N.svg    the cells of the genotypes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from darts_bio.config import CONFIG_FILE, ReportConfig
from darts_bio.errors import InputError, printable
from darts_bio.evaluation.subjects import names_of
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.charts import write_chart
from darts_bio.figures.curves import draw_runs
from darts_bio.reports.card import CURVES_FIGURE
from darts_bio.reports.page import write_report
from darts_bio.reports.side_by_side import (
    Compared,
    doubts,
    side_by_side,
)
from darts_bio.spaces import GENOTYPE_FILE, Genotype, read_genotype
from darts_bio.storage.records import epochs_from_end
from darts_bio.storage.run_folder import METRICS_FILE, new_folder
from darts_bio.storage.run_list import list_runs
from darts_bio.storage.run_summary import RunSummary, finite
from darts_bio.storage.whole_files import write_text
from darts_bio.training.meters import Numbers


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
        epochs = [_epochs(each.path / METRICS_FILE) for each in seeds]
        compared.append(Compared(name, run, seeds, epochs, missing=missing))
        genotypes.append(cells)
    out = new_folder("report", config.out, resumable=False)
    for number, (each, cells) in enumerate(zip(compared, genotypes, strict=True)):
        files: dict[str, str] = {}
        for title, genotype in cells.items():
            files[title] = f"cells-{number + 1}-{len(files) + 1}.svg"
            write_text(out / files[title], draw_genotype(genotype).svg())
        compared[number] = replace(each, cells=files)
    named = {f"{number} {each.name}": each.epochs for number, each in enumerate(compared, 1)}
    if any(epochs for seeds in named.values() for epochs in seeds):
        write_chart(out / CURVES_FIGURE, draw_runs(named), config.charts)
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


def _epochs(path: Path) -> list[Numbers]:
    """Return the numbers of epochs in a file of records, first to last; none if it is unreadable."""
    try:
        epochs = [{**finite(record), "epoch": record["epoch"]} for record in epochs_from_end(path)]
    except OSError:
        return []
    return epochs[::-1]
