"""The stages of a progressive search: what each of them has in place of the search's options.

P-DARTS (arXiv 1904.12760) and DrNAS (arXiv 2006.10355) search in stages, from many candidates in a
small supernet to few candidates in a large one. A stage is given as
`stage(candidates=5, layers=11)`. This module imports no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darts_bio.errors import InputError, check_whole
from darts_bio.registry import Registry, canonical_spec, split_specs

STAGES: Registry[type[Stage]] = Registry("stage of --stages")
"""The registry of stages, which has one member: options of a stage are parsed as specs are."""


@STAGES.register("stage")
@dataclass(frozen=True)
class Stage:
    """A stage of a search: its candidates, its weights, and options that it has of its own.

    What is None is as the search's option of that name says.

    Attributes:
        candidates: How many candidates each edge keeps, pairs of operation and rule: the strongest
            ones by the alpha of the stage before. None: all that there were.
        keeps_weights: Whether w, alpha and their optimizers go on from the stage before, with
            schedules that run over both; else all of them begin anew.
        layers: The cells of the supernet.
        channels: The channels of a node in the first cell.
        epochs: The length of the stage.
        regularizers: Regularizers that it has beside those of the search.

    >>> STAGES.build("stage(candidates=5, layers=11, regularizers=skip_dropout(rate=0.4))").own()
    {'layers': 11, 'regularizers': ('skip_dropout(rate=0.4)',)}
    """

    candidates: int | None = None
    keeps_weights: bool = False
    layers: int | None = None
    channels: int | None = None
    epochs: int | None = None
    regularizers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for a value that is none of its option."""
        if self.candidates is not None:  # of a single one there would be nothing to search
            check_whole("--stages: candidates", self.candidates, 2)
        if not isinstance(self.keeps_weights, bool):
            raise InputError(
                f"--stages: keeps_weights: expected True or False, found {self.keeps_weights!r}"
            )
        given: Any = self.regularizers
        specs = split_specs(given) if isinstance(given, str) else given
        if not isinstance(specs, (tuple, list)) or not all(isinstance(s, str) for s in specs):
            raise InputError(
                "--stages: regularizers: expected specs such as (partial_channels(k=4), "
                f"skip_dropout), found {given!r}"
            )
        object.__setattr__(self, "regularizers", tuple(map(canonical_spec, specs)))

    def own(self) -> dict[str, Any]:
        """Return the options of a search that the stage has of its own, by name."""
        names = ("layers", "channels", "epochs", "regularizers")
        return {
            name: getattr(self, name) for name in names if getattr(self, name) not in (None, ())
        }


def build_stages(specs: tuple[str, ...]) -> list[Stage]:
    """Return the stages of these specs.

    Raises:
        InputError: A spec is none of a stage, or the first stage asks for one before it.

    >>> [stage.candidates for stage in build_stages(("stage", "stage(candidates=5)"))]
    [None, 5]
    """
    stages: list[Stage] = [STAGES.build(spec) for spec in specs]
    for name in ("candidates", "keeps_weights"):
        if stages and getattr(stages[0], name):
            raise InputError(
                f"--stages: {name}: expected from the second stage on, since it takes up what the "
                "one before has found, found in the first; leave it out there"
            )
    return stages
