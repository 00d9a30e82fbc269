"""Say what to do after a run: in a few words at the head of its report, and how in a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darts_bio.reports.markdown import block

NEXT = "How to go on"
"""The heading of the section."""
RESUME = "The command below, with this folder as `--out` and `--resume`, goes on with it."
"""How to go on with a run that was stopped."""


@dataclass(frozen=True)
class NextStep:
    """Says what to do next.

    Attributes:
        step: The step in a few words.
        how: The lines of the section on it.

    >>> step = NextStep("go on with the search", [RESUME])
    >>> step.entry
    '**Next:** go on with the search; see "How to go on".'
    >>> step.section()[:2]
    ['## How to go on', '']
    """

    step: str
    how: Sequence[str]

    @property
    def entry(self) -> str:
        """The entry of the list at the head of the report."""
        return f'**Next:** {self.step}; see "{NEXT}".'

    def section(self) -> list[str]:
        """Return the section of the report."""
        return [f"## {NEXT}", "", *self.how, ""]


def after_search(
    finished: bool,
    command: str | None,
    sizes: str,
    instead: str | None = None,
    advice: Sequence[str] = (),
) -> NextStep:
    """Return what to do with what a search found.

    Args:
        finished: Whether the search came to its end.
        command: The command line that trains the genotype; None if its images have no name.
        sizes: What is said of the size of the network that it trains.
        instead: What is better than a training, in a few words; None if nothing is.
        advice: The lines on that.
    """
    if not finished:
        return NextStep("go on with the search", [RESUME])
    train = ["`darts_bio.train(result, ...)` trains it, on the images that you handed over."]
    if command is not None:
        how = "Train it:" if instead is None else "Train it nevertheless:"
        train = [how, "", *block(command, "sh"), "", sizes]
    return NextStep(instead or "train the genotype", [*advice, *train])
