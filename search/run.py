"""Search cells on a data set, over (operation, learning rule) pairs, and write the genotype found.

    python search/run.py                                            the embedded digits, on two CPU cores
    python search/run.py --dataset cifar10 --data-dir data          the protocol of DARTS (arXiv 1806.09055)
    python search/run.py --dataset cifar10 --rules bp               plain DARTS
    python search/run.py --out RUN --resume                         go on with a run that was stopped
    torchrun --nproc-per-node 8 search/run.py --strategy eg         individuals measured by eight processes

The run folder receives config.yaml, genotype.json, cells.svg, metrics.jsonl, TensorBoard events and a checkpoint.
Ctrl-C or SIGTERM ends the run after the present step; `--resume` then goes on as if it had not been stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from darts_bio.command_line import run_script
from darts_bio.config import SearchConfig
from darts_bio.errors import InputError
from darts_bio.registry import parse_spec


def main(config: SearchConfig) -> int:
    from darts_bio.distributed import process_group

    with process_group():
        return search_cells(config)


def search_cells(config: SearchConfig) -> int:
    from darts_bio.data.datasets import load_data
    from darts_bio.distributed import launcher, rank
    from darts_bio.monitoring.report import SearchMonitor, resume_line, retrain_line
    from darts_bio.runtime import select_device, stop_on_signals
    from darts_bio.spaces import Nb201Table, is_nb201, to_nb201_text
    from darts_bio.training.engine import Silent, fit
    from darts_bio.training.run_folder import RunFolder
    from darts_bio.training.search import Search

    table = None
    if config.table is not None:
        if parse_spec(config.space)[0] != "nb201":
            raise InputError(f"--table: expected --space nb201, whose cells it knows, found {config.space}")
        table = Nb201Table(Path(config.table))
    device = select_device(config.device)
    data = load_data(config.dataset, config.data_dir, config.image_size, config.train_images, config.seed)
    search = Search(config, data, device)
    folder = RunFolder.open("search", config, [*launcher(), *sys.argv])
    if rank() > 0:
        with stop_on_signals() as stop:
            fit(search, folder, Silent(), stop, log_every=config.log_every)
        return 0
    with stop_on_signals() as stop, SearchMonitor(search, folder) as monitor:
        outcome = fit(search, folder, monitor, stop, log_every=config.log_every)
        genotype = monitor.write_genotype(outcome.step)
    if is_nb201(genotype):
        print(to_nb201_text(genotype))
    if table is not None:
        found = table.accuracies(genotype)
        known = ", ".join(f"{name} {value:.2f} %" for name, value in (found or {}).items())
        print(f"known accuracy of these operations under bp: {known or 'not in the table'}")
    print(f"{genotype}\n\ngenotype: {folder.genotype_path}\nfigure:   {monitor.figure_path}")
    print(retrain_line(config, folder) if outcome.finished else resume_line(sys.argv, folder))
    return 0 if outcome.finished else stop.exit_code


if __name__ == "__main__":
    sys.exit(run_script(SearchConfig, main, (__doc__ or "").split("\n")[0]))
