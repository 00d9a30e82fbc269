"""How near a trained network's learning is to backpropagation, layer by layer.

    python evaluate/alignment.py --checkpoint RUN                       RUN: a run folder of evaluate/train_cifar.py
    python evaluate/alignment.py --checkpoint RUN --data-dir data --batches 16
    python evaluate/alignment.py --checkpoint RUN,RUN,...               compares them, in a folder of its own

Prints a table of angles, cosines and gradient variance, and writes RUN/alignment.json and
RUN/alignment.svg. The run's own training batches are used. While a network trains,
`train_cifar.py --alignment-every N` measures the same; RUN/alignment-epochs.svg then shows the angles
over the epochs.
"""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main(command="alignment"))
