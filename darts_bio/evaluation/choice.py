"""The choice among the genotypes of several searches, after DARTS (arXiv 1806.09055).

Searches from different seeds end in different cells, and a supernet's accuracy does not tell which
of them is good. So each is trained from scratch for a short time, and the one that is most accurate
on held-out training images is chosen. Test images have no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from darts_bio.errors import InputError

RULE = (
    "the highest accuracy on the held-out images; of equal ones the lowest loss on them, and of "
    "those the lowest seed"
)
"""The rule of choice in words."""


@dataclass(frozen=True)
class ChoiceCandidate:
    """A genotype that a search found, and what its network reached in a short training.

    Attributes:
        seed: The seed of the search, and of the training.
        genotype: What tells it from others (`Genotype.identity`).
        accuracy: The accuracy on the held-out images, in [0, 1]; None if the training diverged.
        loss: The mean cross entropy on them; None if the training diverged.

    >>> ChoiceCandidate(seed=2, genotype="digest 1f", accuracy=0.97, loss=0.1).seed
    2
    """

    seed: int
    genotype: str
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen among several, and why.

    Attributes:
        candidates: All of them, by seed.
        chosen: The one.
        reason: Which part of `RULE` decided, in words.

    >>> choice = choose([ChoiceCandidate(0, "digest 1f", 0.96, 0.2), ChoiceCandidate(1, "digest 1f", 0.97, 0.1)])
    >>> choice.alike
    ((0, 1),)
    """

    candidates: tuple[ChoiceCandidate, ...]
    chosen: ChoiceCandidate
    reason: str

    @property
    def alike(self) -> tuple[tuple[int, ...], ...]:
        """The seeds whose searches found the same genotype, for each that was found repeatedly."""
        seeds: dict[str, list[int]] = {}
        for candidate in self.candidates:
            seeds.setdefault(candidate.genotype, []).append(candidate.seed)
        return tuple(tuple(group) for group in seeds.values() if len(group) > 1)

    def to_json(self, **facts: object) -> str:
        """Return the choice as JSON, with further `facts` about how it was made.

        >>> choice = choose([ChoiceCandidate(0, "digest 1f", 0.96, 0.2), ChoiceCandidate(1, "digest 2e", 0.9, 0.3)])
        >>> json.loads(choice.to_json(epochs=100))["chosen"]
        0
        """
        content = {
            "rule": RULE,
            **facts,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "same_genotype": self.alike,
            "chosen": self.chosen.seed,
            "reason": self.reason,
        }
        return json.dumps(content, indent=2) + "\n"


def choose(candidates: Sequence[ChoiceCandidate]) -> Choice:
    """Choose the candidate of the highest accuracy; of equals the lowest loss, then the lowest seed.

    Raises InputError if the trainings of all candidates diverged.

    >>> choice = choose([
    ...     ChoiceCandidate(0, "digest 1f", accuracy=0.97, loss=0.15),
    ...     ChoiceCandidate(1, "digest 2e", accuracy=0.97, loss=0.12),
    ...     ChoiceCandidate(2, "digest 3d", accuracy=0.95, loss=0.10),
    ... ])
    >>> choice.chosen.seed, choice.reason
    (1, 'the lowest loss of 2 of the highest accuracy')
    """
    by_seed = tuple(sorted(candidates, key=lambda candidate: candidate.seed))
    measured = [
        (-candidate.accuracy, candidate.loss, candidate.seed, candidate)
        for candidate in by_seed
        if candidate.accuracy is not None and candidate.loss is not None
    ]
    if not measured:
        raise InputError(
            f"--choose: expected a training that does not diverge, found none of {len(by_seed)}; "
            "start anew in another --out with a smaller lr in --training"
        )
    *_, chosen = min(measured)
    losses = [c.loss for c in by_seed if c.accuracy == chosen.accuracy]  # of the most accurate
    if losses.count(chosen.loss) > 1:
        reason = f"the lowest seed of {losses.count(chosen.loss)} of the same accuracy and loss"
    elif len(losses) > 1:
        reason = f"the lowest loss of {len(losses)} of the highest accuracy"
    else:
        reason = "the highest accuracy"
    return Choice(by_seed, chosen, reason)
