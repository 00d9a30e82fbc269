"""Train a genotype's network from scratch on small images, and measure it on the test images.

    python evaluate/train_cifar.py --genotype RUN                               a search's run folder, on the digits
    python evaluate/train_cifar.py --genotype darts_v2 --dataset cifar10        the protocol of DARTS (arXiv 1806.09055)
    python evaluate/train_cifar.py --genotype X --dataset cifar10 --protocol fast --seeds 3
    python evaluate/train_cifar.py --genotype X --out RUN --resume              go on with a run that was stopped
    torchrun --nproc-per-node 8 evaluate/train_cifar.py --genotype X ...        the same on eight GPUs

The result is the last epoch's accuracy. Test images are only measured on: nothing is chosen by them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from darts_bio.command_line import import_plugins, run_script
from darts_bio.config import RetrainConfig


def space_of(values: Mapping[str, Any]) -> str:
    """The space of the genotype that is asked for."""
    from darts_bio.spaces import load_genotype

    import_plugins(values.get("plugin", ()))
    return load_genotype(values["genotype"]).space if values.get("genotype") else "darts"


def main(config: RetrainConfig) -> int:
    from darts_bio.runs import train

    return train(config)


if __name__ == "__main__":
    sys.exit(run_script(RetrainConfig, main, (__doc__ or "").split("\n")[0], space_of=space_of))
