"""What can be chosen: operations, candidates, cells; and genotypes, the choices made."""

from darts_bio.spaces import darts as _darts  # noqa: F401  (registers the space)
from darts_bio.spaces import nb201 as _nb201  # noqa: F401
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
    shipped_names,
    text_of,
)
from darts_bio.spaces.load import GENOTYPE_FILE, load_genotype, read_genotype
from darts_bio.spaces.nb201 import from_nb201_text, is_nb201, to_nb201_text
from darts_bio.spaces.nb201_table import Nb201Table
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
    "read_genotype",
    "shipped_names",
    "text_of",
    "to_nb201_text",
]
