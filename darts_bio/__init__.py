"""darts_bio: architecture search over (operation, learning rule) pairs, after BioNAS (arXiv 2507.13485).

    >>> import darts_bio
    >>> genotype = darts_bio.load_genotype("bionas_darts")
    >>> network = darts_bio.build_network(genotype, channels=8, layers=3, num_classes=10)
    >>> with darts_bio.true_gradients(network):
    ...     pass

Importing it is light: what needs PyTorch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from darts_bio.networks import build_network as build_network
    from darts_bio.rules import audit as audit
    from darts_bio.rules import convert as convert
    from darts_bio.rules import draw_feedback as draw_feedback
    from darts_bio.rules import true_gradients as true_gradients
    from darts_bio.spaces import load_genotype as load_genotype

_HOMES = {
    "audit": "darts_bio.rules",
    "build_network": "darts_bio.networks",
    "convert": "darts_bio.rules",
    "draw_feedback": "darts_bio.rules",
    "load_genotype": "darts_bio.spaces",
    "true_gradients": "darts_bio.rules",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'darts_bio' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
