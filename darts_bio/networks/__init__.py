"""What is trained: the supernet of a search and the discrete network of a genotype.

Both are a `backbone.CellNetwork`: a stem, a stack of cells, a classifier. In the supernet a cell
computes all candidates of each edge, mixed by edge weights; in the discrete network it computes
those that a genotype kept. The cells of the supernet come in three forms that compute the same:
`MixedCell` is fast, `FoldedCell` keeps less in memory, `reference.ReferenceCell` is slow and
obvious.

>>> import torch
>>> from darts_bio.networks import EdgeWeights, FoldedCell, MixedCell, SuperNet
>>> from darts_bio.spaces import SPACES
>>> space = SPACES.build("nb201")
>>> sizes = {"channels": 4, "layers": 3, "num_classes": 10}
>>> fast = SuperNet(space, ["bp", "fa"], cell=MixedCell, **sizes)
>>> frugal = SuperNet(space, ["bp", "fa"], cell=FoldedCell, **sizes)
>>> images = torch.zeros(2, 3, 8, 8)
>>> edge_weights: EdgeWeights = {"cell": torch.full((6, 7), 1 / 7)}  # 6 edges, 7 candidates
>>> fast(images, edge_weights).shape, frugal(images, edge_weights).shape
(torch.Size([2, 10]), torch.Size([2, 10]))
"""

from darts_bio.networks.auxiliary import AuxiliaryHead
from darts_bio.networks.cells import build_candidate
from darts_bio.networks.costs import multiply_adds, parameters
from darts_bio.networks.mixed import FoldedCell, MixedCell
from darts_bio.networks.network import Network, build_network
from darts_bio.networks.stems import STEMS, CifarStem, Stem
from darts_bio.networks.supernet import EdgeWeights, SuperNet

__all__ = [
    "STEMS",
    "AuxiliaryHead",
    "CifarStem",
    "EdgeWeights",
    "FoldedCell",
    "MixedCell",
    "Network",
    "Stem",
    "SuperNet",
    "build_candidate",
    "build_network",
    "multiply_adds",
    "parameters",
]
