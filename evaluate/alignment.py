"""How near a trained network's learning is to backpropagation, layer by layer: angles, cosines, gradient variance.

    python evaluate/alignment.py --checkpoint RUN                       RUN: a run folder of evaluate/train_cifar.py
    python evaluate/alignment.py --checkpoint RUN --data-dir data --batches 16

Prints a table and writes RUN/alignment.json, and RUN/alignment.svg where matplotlib is installed. The run's own
training batches are used. While a network trains, `train_cifar.py --alignment-every N` measures the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="the run folder of a retraining")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data lie, if not where the run found them")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="training batches to measure on [8]")
    parser.add_argument("--device", default="auto", metavar="NAME")
    arguments = parser.parse_args()

    from darts_bio.errors import InputError

    try:
        measure(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(arguments: argparse.Namespace) -> None:
    from darts_bio.errors import InputError, install_hint
    from darts_bio.evaluation.alignment import training_alignment
    from darts_bio.figures.alignment import draw_alignment
    from darts_bio.runtime import select_device
    from darts_bio.training.retrain import Retraining
    from darts_bio.training.run_folder import write_text

    if arguments.batches < 2:
        raise InputError(f"--batches: expected at least 2, found {arguments.batches}")
    folder = Path(arguments.checkpoint)
    training = Retraining.of_run(folder, select_device(arguments.device), arguments.data_dir)
    alignment = training_alignment(training, arguments.batches)
    print(alignment)
    write_text(folder / "alignment.json", json.dumps(alignment.as_dict(), indent=2) + "\n")
    print(f"\nwrote {folder / 'alignment.json'}")
    figure = folder / "alignment.svg"
    try:
        draw_alignment(alignment, figure)
        print(f"wrote {figure}")
    except ImportError:
        print(f"no figure: matplotlib is not installed ({install_hint('plot')})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
