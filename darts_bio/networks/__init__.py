"""What is trained, the supernet and the discrete network of a genotype; and what it costs."""

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
