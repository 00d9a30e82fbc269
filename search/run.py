"""Search cells on a data set, over (operation, learning rule) pairs, and write the genotype found.

    python search/run.py                                            the embedded digits, on two CPU cores
    python search/run.py --dataset cifar10 --data-dir data          the protocol of DARTS (arXiv 1806.09055)
    python search/run.py --dataset cifar10 --rules bp               plain DARTS
    python search/run.py --seeds 4 --choose                         four searches, a choice, a full training
    python search/run.py --out RUN --resume                         go on with a run that was stopped
    torchrun --nproc-per-node 8 search/run.py ...                   one search on eight GPUs
    torchrun --nproc-per-node 8 search/run.py ... --seeds 8         eight searches, one a GPU

The run folder receives config.yaml, genotype.json, cells.svg, metrics.jsonl, TensorBoard events and
a checkpoint. Ctrl-C or SIGTERM ends the run after the present step; `--resume` then goes on as if
it had not been stopped.
"""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main(command="search"))
