"""Train a genotype's network from scratch on small images, and measure it on the test images.

    python evaluate/train_cifar.py --genotype RUN                               a search's run folder, on the digits
    python evaluate/train_cifar.py --genotype darts_v2 --dataset cifar10        the protocol of DARTS (arXiv 1806.09055)
    python evaluate/train_cifar.py --genotype X --dataset cifar10 --protocol fast --seeds 3
    python evaluate/train_cifar.py --genotype X --out RUN --resume              go on with a run that was stopped
    torchrun --nproc-per-node 8 evaluate/train_cifar.py --genotype X ...        the same on eight GPUs

The result is the last epoch's accuracy. Test images are only measured on: nothing is chosen by
them.
"""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main(command="train"))
