"""Architecture search over (operation, learning rule) pairs, after BioNAS (arXiv 2507.13485).

Search a cell, then train its network from scratch:

    import darts_bio

    searched = darts_bio.search("digits")       # or "cifar10", (images, labels), a torch Dataset
    trained = darts_bio.train(searched, "digits")
    print(searched.genotype, trained.accuracy, trained.folder)

Build a published network, or put any PyTorch model under a learning rule:

>>> import darts_bio
>>> genotype = darts_bio.load_genotype("bionas_darts")
>>> network = darts_bio.build_network(genotype, channels=4, layers=3, num_classes=10)
>>> type(network).__name__
'Network'

    model = darts_bio.convert(any_pytorch_model, "usf")

Importing the package is light: a name that needs PyTorch is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from darts_bio.version import __version__

# Public name -> the module that defines it, imported by `__getattr__` below at the first use.
_HOMES = {
    "BatchManhattan": "darts_bio.optimizers",
    "InputError": "darts_bio.errors",
    "Listener": "darts_bio.training.listeners",
    "align": "darts_bio.api",
    "attach": "darts_bio.rules",
    "attack": "darts_bio.api",
    "audit": "darts_bio.rules",
    "build_network": "darts_bio.networks",
    "convert": "darts_bio.rules",
    "revert": "darts_bio.rules",
    "draw_feedback": "darts_bio.rules",
    "hebbian_block": "darts_bio.training.hebbian",
    "hebbian_pretraining": "darts_bio.training.hebbian",
    "learner": "darts_bio.learners",
    "list_runs": "darts_bio.storage.run_list",
    "load_genotype": "darts_bio.spaces",
    "load_run": "darts_bio.api",
    "load_trained": "darts_bio.training.trained",
    "search": "darts_bio.api",
    "search_and_train": "darts_bio.api",
    "train": "darts_bio.api",
    "true_gradients": "darts_bio.rules",
}

# The same names once more, for type checkers and editors, which do not run `__getattr__`.
if TYPE_CHECKING:
    from darts_bio.api import align as align
    from darts_bio.api import attack as attack
    from darts_bio.api import load_run as load_run
    from darts_bio.api import search as search
    from darts_bio.api import search_and_train as search_and_train
    from darts_bio.api import train as train
    from darts_bio.errors import InputError as InputError
    from darts_bio.learners import learner as learner
    from darts_bio.networks import build_network as build_network
    from darts_bio.optimizers import BatchManhattan as BatchManhattan
    from darts_bio.rules import attach as attach
    from darts_bio.rules import audit as audit
    from darts_bio.rules import convert as convert
    from darts_bio.rules import draw_feedback as draw_feedback
    from darts_bio.rules import revert as revert
    from darts_bio.rules import true_gradients as true_gradients
    from darts_bio.spaces import load_genotype as load_genotype
    from darts_bio.storage.run_list import list_runs as list_runs
    from darts_bio.training.hebbian import hebbian_block as hebbian_block
    from darts_bio.training.hebbian import hebbian_pretraining as hebbian_pretraining
    from darts_bio.training.listeners import Listener as Listener
    from darts_bio.training.trained import load_trained as load_trained

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import the public name from its module when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'darts_bio' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, which are not there before their first use, for completion."""
    return sorted(__all__)
