"""EG-NAS (Cai 2024, AAAI 38) as its published code does it: what `eg(published=True)` is.

With p = softmax(alpha) the shares of the present architecture, one generation is

1. individuals v = p + 0.01 n + sigma z, n and z from N(0, 1), each edge of them scaled to length 1;
   their edge weights are softmax(v);
2. each one's value is its loss on one validation batch, plus `novelty` times its similarity to the
   present architecture if its accuracy is at least as high as that one's, else minus it. The
   similarity is the mean of (cosine of an edge of v and of p + 1) / 2, over edges and cell types;
3. the individual of least value moves the architecture: alpha <- alpha + step softmax(softmax(v)).
   So alpha only grows, by a share of each candidate.

(github.com/caicaicheng/EG-NAS, train_search.py. It stops with an error in the first generation, where
a call lacks an argument.) z has one seed: it is the same in all epochs, and in all of an epoch's
samples, so that one of these is enough; sigma stays 1, since what it falls with is never counted up.
There the generation comes before an epoch, on half a batch, with batch norm's running statistics;
here after it, on a whole batch, with that batch's statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.strategies.base import Measure, masked_softmax

SPREAD = 0.01
"""The standard deviation of n, by which the distribution's mean is off the architecture."""


class Generation(NamedTuple):
    """What came of a generation of P individuals.

    Attributes:
        values: What was minimized, (P,) on the CPU.
        best: The edge weights of the individual of least value, (edges, candidates) per cell type.
    """

    values: Tensor
    best: dict[str, Tensor]


def generation(
    present: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    individuals: Mapping[str, Tensor],
    measure: Measure,
    novelty: float,
) -> Generation:
    """Measure the individuals of a generation beside the present architecture, on one batch.

    Args:
        present: p, (edges, candidates) per cell type.
        masks: True where there is a candidate; of the same shapes.
        individuals: p + 0.01 n + sigma z, (P, edges, candidates) per cell type, 0 where padded.
        measure: The search's measure.
        novelty: The weight of the similarity.
    """
    directions = {t: F.normalize(v, dim=-1) for t, v in individuals.items()}
    weights = {t: masked_softmax(v, masks[t]) for t, v in directions.items()}
    beside = {t: torch.cat([present[t].unsqueeze(0), w]) for t, w in weights.items()}
    losses, accuracies = measure(beside, 1)
    cosines = [
        F.cosine_similarity(v, present[t].unsqueeze(0), dim=-1).mean(1)  # (P, edges) -> (P,)
        for t, v in directions.items()
    ]
    similarity = (torch.stack(cosines).mean(0) + 1) / 2
    no_worse = accuracies[1:] >= accuracies[0]
    sign = torch.where(no_worse, 1.0, -1.0).cpu()
    values = losses[1:].cpu() + novelty * sign * similarity.cpu()
    winner = int(values.argmin())
    return Generation(values, {t: w[winner] for t, w in weights.items()})


def moved(
    present: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    step: float,
) -> dict[str, Tensor]:
    """Return softmax(alpha + step softmax(best)), where softmax(alpha) is the present architecture.

    All are (edges, candidates) per cell type.

    >>> present, mask = torch.tensor([[0.5, 0.5]]), torch.tensor([[True, True]])
    >>> moved({"cell": present}, {"cell": mask}, {"cell": torch.tensor([[1.0, 0.0]])}, step=0.1)
    {'cell': tensor([[0.5116, 0.4884]])}
    """
    # log p differs from alpha by a constant per edge, which a softmax does not see.
    return {
        t: masked_softmax(p.log() + step * masked_softmax(best[t], masks[t]), masks[t])
        for t, p in present.items()
    }
