"""Attack trained networks, and say how far the result can be believed.

    python evaluate/robustness.py --checkpoint RUN                       RUN: a run folder of evaluate's trainings
    python evaluate/robustness.py --checkpoint RUN,RUN --gradients true,rule --attacks "fgsm,pgd(restarts=5)"
    python evaluate/robustness.py --checkpoint RUN,RUN --transfer pgd --corruptions all
    python evaluate/robustness.py --out DIR --resume                     go on with one that was stopped

Attacks work on pixels in [0, 1] and change each by at most eps (in 1/255). They climb along the
exact gradient of the network's loss, whatever rule it has learned by; --gradients true,rule shows
what the rule's own backward pass would have made of it. Needs torchattacks: pip install
'darts-bio[attacks]' && pip install --no-deps torchattacks.
"""

import sys

from darts_bio.cli import main

if __name__ == "__main__":
    sys.exit(main(command="robustness"))
