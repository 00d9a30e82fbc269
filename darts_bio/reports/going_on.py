"""Say what to do after a run: in a few words at the head of its report, and how in a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from darts_bio.config import SearchConfig
from darts_bio.registry import parse_spec
from darts_bio.reports.collapse import Collapse
from darts_bio.reports.findings import Findings
from darts_bio.reports.markdown import block, code, counted
from darts_bio.spaces import SPACES, Space
from darts_bio.strategies import STRATEGIES, Context, Strategy
from darts_bio.strategies.gradient import GradientStrategy

NEXT = "How to go on"
"""The heading of the section."""
RESUME = "The command below, with this folder as `--out` and `--resume`, goes on with it."
"""How to go on with a run that was stopped."""
FOLDERS = "Reports leave folders out: where this one is not below yours, give its path."
"""What a command in a report has to be completed by."""
FASTER, LARGEST_RATE = 10, 0.1
"""How many times its rate of alpha is advised where little has been decided, and the largest."""
AGAINST_COLLAPSE = ("partial_channels", "beta_decay", "oles", "eigenvalue_stop")
"""Regularizers against cells of which too much has no weights."""
AGAINST_SKIPS = ("skip_dropout", "auxiliary_skip", "skip_limit", "skip_stop")
"""Regularizers against skip connections alone."""


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
        how = "Train it:" if instead is None else "To train this one anyway:"
        train = [how, "", *block(command, "sh"), "", f"{sizes} {FOLDERS}".strip()]
    return NextStep(instead or "train the genotype", [*advice, *train])


def after_supernet(
    config: SearchConfig, found: Findings, finished: bool, command: str | None, sizes: str
) -> NextStep:
    """Return what to do after a search with a supernet: no training of a guess or of mere skips.

    Args:
        config: The options of the search.
        found: What it found.
        finished: Whether it came to its end.
        command: The command line that trains the genotype; None if its images have no name.
        sizes: What is said of the size of the network that it trains.
    """
    return after_search(finished, command, sizes, *doubts(config, found))


def doubts(config: SearchConfig, found: Findings) -> tuple[str | None, list[str]]:
    """Return what is better than to train what a search with a supernet found, and how.

    The first is a few words, None if nothing is better; the second are the lines on it, and on
    what else is in doubt.

    Args:
        config: The options of the search.
        found: What it found.
    """
    collapse, advice = found.collapse, list[str]()
    instead: str | None = None
    if found.undecided:
        advice += _longer(config)
        instead = longer_or_faster(config)
    elif found.unsettled:
        advice += [
            f"The genotype has just changed, and may well change again. {_epochs(config)}",
            "",
        ]
    if collapse.marked or collapse.hollow:
        advice += _against_collapse(config, collapse)
    if instead is None and collapse.hollow:
        instead = "search again with fewer skips and poolings"
    elif instead is None and found.unsettled:
        instead = "search longer"
    return instead, advice


def longer_or_faster(config: SearchConfig) -> str:
    """Return in a few words what to do where a search decided little."""
    return "search longer" + (", or move alpha faster" if _faster(config) else "")


def move_faster(config: SearchConfig) -> str:
    """Return sentences that say how alpha moves faster; "" where it cannot, or is fast already."""
    faster = _faster(config)
    if faster is None:
        return ""
    spec, rate = code(f'--strategy "{faster}"'), STRATEGIES.build(config.strategy).lr
    return (
        f"Or let alpha move faster, as by {spec}: its rate was {rate:g}. It decides more then, "
        "which need not be better."
    )


def _epochs(config: SearchConfig) -> str:
    """Return the sentences that say how to search longer."""
    epochs = config.epochs
    return (
        f"Search longer first: this search had {counted(epochs, 'epoch')}. A new one has as many as you "
        f"like, say by the command under Repeat with `--epochs {2 * epochs}` and another `--out`."
    )


def _against_collapse(config: SearchConfig, collapse: Collapse) -> list[str]:
    """Return the lines on cells of which too much has no weights."""
    used = {parse_spec(spec)[0] for spec in config.regularizers}
    known = (*AGAINST_COLLAPSE, *(AGAINST_SKIPS if collapse.marked else ()))
    left = [code(name) for name in known if name not in used]
    remedies = ""
    if left and isinstance(STRATEGIES.build(config.strategy), GradientStrategy):
        remedies = f" Among the `--regularizers` there are some against it: {', '.join(left)}."
    if collapse.kinds[0].poolings:
        remedies += " Or leave the poolings out of the operations of `--space`."
    return [
        f"{collapse.kinds[0].in_words()} have no weights. They may have won since they are easy to "
        f"train through, not since they are good: compare with cells that have fewer.{remedies}",
        "",
    ]


def _faster(config: SearchConfig) -> str | None:
    """Return the spec of a search's strategy with a larger rate of alpha.

    None if the rate is large, or if alpha has none (`StrategyState.learning_rates`).
    """
    strategy: Strategy[Any] = STRATEGIES.build(config.strategy)
    rate = getattr(strategy, "lr", None)
    if not (isinstance(rate, float) and rate < LARGEST_RATE and is_dataclass(strategy)):
        return None
    # Whether alpha moves at that rate a state of it tells, and that of a search's beginning will do.
    space: Space = SPACES.build(config.space)
    table, cpu = space.table(config.rules), torch.device("cpu")
    context = Context(space, table, config.seed, cpu, config.epochs, steps_per_epoch=1)
    if "alpha" not in strategy.begin(context).learning_rates():
        return None
    # Those of operations and, where they have one of their own, of rules.
    faster = {
        name: min(LARGEST_RATE, float(f"{FASTER * getattr(strategy, name):.2g}"))
        for name in ("lr", "rule_lr")
        if hasattr(strategy, name)
    }
    return STRATEGIES.spec(replace(strategy, **faster))


def _longer(config: SearchConfig) -> list[str]:
    """Return the lines that advise against a training of what is mostly undecided."""
    advice = " ".join(filter(None, (_epochs(config), move_faster(config))))
    return [
        f"{advice} Most edges of this genotype are undecided, so another seed may well find another "
        "one, and a training of it would tell little.",
        "",
    ]
