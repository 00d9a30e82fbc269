"""Train a genotype's network from scratch and measure it on the test images.

    python evaluate/train_cifar.py --genotype RUN                               a search's run folder, on the digits
    python evaluate/train_cifar.py --genotype darts_v2 --dataset cifar10        the protocol of DARTS (arXiv 1806.09055)
    python evaluate/train_cifar.py --genotype X --out RUN --resume              go on with a run that was stopped

The result is the last epoch's accuracy. Test images are only measured on: nothing is chosen by them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darts_bio.command_line import import_plugins, run_script
from darts_bio.config import RetrainConfig


def space_of(values: Mapping[str, Any]) -> str:
    """The space of the genotype that is asked for."""
    from darts_bio.spaces import load_genotype

    import_plugins(values.get("plugin", ()))
    return load_genotype(values["genotype"]).space if values.get("genotype") else "darts"


def main(config: RetrainConfig) -> int:
    from darts_bio.monitoring.report import TrainingMonitor, resume_line
    from darts_bio.networks import parameters
    from darts_bio.runtime import select_device, stop_on_signals
    from darts_bio.spaces import GENOTYPE_FILE, load_genotype, read_genotype
    from darts_bio.training.data import load_data
    from darts_bio.training.engine import fit
    from darts_bio.training.retrain import Retraining
    from darts_bio.training.run_folder import RunFolder

    device = select_device(config.device)
    # A resumed run keeps the genotype it began with, whatever has become of the file it was read from.
    genotype = (
        read_genotype(Path(config.out, GENOTYPE_FILE))
        if config.out and config.resume
        else load_genotype(config.genotype)
    )
    data = load_data(config.dataset, config.data_dir, config.image_size, config.train_images, config.seed)
    training = Retraining.of_genotype(config, genotype, data, device)
    folder = RunFolder.open("train", config, ["python", *sys.argv], genotype=genotype)
    with stop_on_signals() as stop, TrainingMonitor(training, folder) as monitor:
        outcome = fit(training, folder, monitor, stop, log_every=config.log_every)
    if not outcome.finished:
        print(resume_line(sys.argv, folder))
        return stop.exit_code
    print(f"test accuracy: {100 * outcome.numbers['test/accuracy']:.2f} % after {config.epochs} epochs")
    print(f"parameters:    {parameters(training.network):,}\nrun folder:    {folder.path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(RetrainConfig, main, (__doc__ or "").split("\n")[0], space_of=space_of))
