"""Whether two runs differ by more than chance, by what both measured under the same conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXACT = 20
"""The most pairs whose signs are all tried; of more, 2^20 draws of the signs are."""


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of a sign-flip test of paired differences.

    It is the share of all 2^n choices of their signs under which their sum is as far from 0. No p
    is below 2 / 2^n.

    >>> paired_p([1.0, 2.0, 3.0]), paired_p([1.0, -1.0])
    (0.25, 1.0)
    """
    totals = np.zeros(1)
    draws = np.random.default_rng(0)
    for difference in differences:
        if len(differences) <= EXACT:
            totals = np.concatenate((totals + difference, totals - difference))
        else:
            totals = totals + difference * draws.choice((-1.0, 1.0), 2**EXACT)
    # Sums of the same values in another order may round otherwise.
    return float(np.mean(np.abs(totals) >= abs(sum(differences)) - 1e-12))
