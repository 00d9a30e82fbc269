"""Attack trained networks, and say how far the result can be believed.

    python evaluate/robustness.py --checkpoint RUN                       RUN: a run folder of evaluate's trainings
    python evaluate/robustness.py --checkpoint RUN,RUN --gradients true,rule --attacks "fgsm,pgd(restarts=5)"
    python evaluate/robustness.py --checkpoint RUN,RUN --transfer pgd --corruptions all
    python evaluate/robustness.py --out DIR --resume                     go on with one that was stopped

Attacks work on pixels in [0, 1] and change each by at most eps (in 1/255). They climb along the exact gradient of the
network's loss, whatever rule it has learned by; --gradients true,rule shows what the rule's own backward pass would
have made of it. Needs torchattacks: pip install 'darts-bio[attacks]' && pip install --no-deps torchattacks.
"""

from __future__ import annotations

import sys

from darts_bio.command_line import run_script
from darts_bio.config import RobustnessConfig


def main(config: RobustnessConfig) -> int:
    from darts_bio.runs import measure_robustness

    return measure_robustness(config)


if __name__ == "__main__":
    sys.exit(run_script(RobustnessConfig, main, (__doc__ or "").split("\n")[0]))
