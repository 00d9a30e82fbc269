"""Search spaces (what can be chosen) and genotypes (what was chosen).

A space says which cells there are and which candidates, pairs of an operation and a learning rule,
compete on each of their edges. A genotype is the outcome of a search: one candidate an edge.

>>> from darts_bio.spaces import SPACES, load_genotype
>>> space = SPACES.build("darts")
>>> edges, candidates = space.table(("usf", "fa")).shape("normal")
>>> print(f"{edges} edges with {candidates} candidates each")
14 edges with 12 candidates each
>>> genotype = load_genotype("bionas_darts")
>>> print(genotype.cells["normal"])
  node 2: skip_connect <- 0,  skip_connect <- 1
  node 3: sep_conv_3x3:frsf <- 1,  sep_conv_3x3:usf <- 2
  node 4: sep_conv_3x3:usf <- 0,  skip_connect <- 1
  node 5: sep_conv_3x3:frsf <- 1,  max_pool_3x3 <- 0

Spaces, operations and text forms are registries, which accept members from outside:

>>> from darts_bio.spaces import OPERATIONS, TEXT_FORMS
>>> "nb201" in SPACES, "sep_conv_3x3" in OPERATIONS, "nb201" in TEXT_FORMS
(True, True, True)
>>> OPERATIONS.summaries()["max_pool_3x3"]
'Pool by the maximum of 3x3 windows.'
"""

from darts_bio.spaces import by_depth as _by_depth  # noqa: F401  (these register their spaces)
from darts_bio.spaces import darts as _darts  # noqa: F401
from darts_bio.spaces import nb201 as _nb201  # noqa: F401
from darts_bio.spaces import robust_darts as _robust_darts  # noqa: F401
from darts_bio.spaces.base import SPACES, CandidateTable, Space
from darts_bio.spaces.darts_text import from_darts_text
from darts_bio.spaces.genotype import (
    TEXT_FORMS,
    Candidate,
    Cell,
    Edge,
    Genotype,
    TextForm,
    from_json,
    shipped_folder,
    shipped_names,
    text_of,
)
from darts_bio.spaces.load import GENOTYPE_FILE, load_genotype, read_genotype
from darts_bio.spaces.nb201 import from_nb201_text, is_nb201, to_nb201_text
from darts_bio.spaces.nb201_table import Nb201Table
from darts_bio.spaces.neighbors import neighbors, random_neighbor
from darts_bio.spaces.operations import OPERATIONS

__all__ = [
    "GENOTYPE_FILE",
    "OPERATIONS",
    "SPACES",
    "TEXT_FORMS",
    "Candidate",
    "CandidateTable",
    "Cell",
    "Edge",
    "Genotype",
    "Nb201Table",
    "Space",
    "TextForm",
    "from_darts_text",
    "from_json",
    "from_nb201_text",
    "is_nb201",
    "load_genotype",
    "neighbors",
    "random_neighbor",
    "read_genotype",
    "shipped_folder",
    "shipped_names",
    "text_of",
    "to_nb201_text",
]
