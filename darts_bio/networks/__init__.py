"""What is trained: the supernet and the discrete network of a genotype."""

from darts_bio.networks.cells import AuxiliaryHead
from darts_bio.networks.mixed import FoldedCell, MixedCell
from darts_bio.networks.network import Network, build_network
from darts_bio.networks.supernet import EdgeWeights, SuperNet

__all__ = ["AuxiliaryHead", "EdgeWeights", "FoldedCell", "MixedCell", "Network", "SuperNet", "build_network"]
