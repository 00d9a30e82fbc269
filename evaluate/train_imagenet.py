"""Train a genotype's network from scratch on ImageNet, or on images of its kind.

    python evaluate/train_imagenet.py --genotype X --data-dir imagenet         the protocol of DARTS (arXiv 1806.09055)
    python evaluate/train_imagenet.py --genotype X --data-dir imagenet --protocol p_darts
    torchrun --nproc-per-node 8 evaluate/train_imagenet.py --genotype X --data-dir imagenet --protocol p_darts
    python evaluate/train_imagenet.py --genotype X --out RUN --resume          go on with a run that was stopped

--data-dir holds train/CLASS/*.jpg and val/CLASS/*.jpg, or tar files of these; --dataset names what
else timm reads. The result is the last epoch's accuracy on val; nothing is chosen by it. Compare
genotypes under one protocol only: of the two published ones the second is 1.3 points better for the
same genotype.
"""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main(command="train-imagenet"))
