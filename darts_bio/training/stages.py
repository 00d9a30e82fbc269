"""What a stage of a progressive search takes over from the one before.

P-DARTS (arXiv 1904.12760) begins each stage anew, with fewer candidates in a deeper supernet.
DrNAS (arXiv 2006.10355) goes on with its weights: more of the channels go through the candidates
(`networks.widening`), and alpha, the optimizers and their schedules go on as well. Regularizers begin
anew in every stage.

`config.stages.Stage` holds the options of a stage; `runs.stages.each_stage` runs one after the other,
each among the candidates that `table_after` leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks.widening import widen
from darts_bio.optimizers import SGD
from darts_bio.rules import RULES, InitialLaw, LearningRule
from darts_bio.runtime import generator
from darts_bio.spaces import CandidateTable
from darts_bio.strategies import AlphaState

if TYPE_CHECKING:
    from darts_bio.training.search import Search


def take_over(search: Search, before: Search) -> None:
    """Go on with the weights, alpha and optimizers of the stage before, in place.

    Candidates that are gone are left behind. Where more channels go through the candidates than
    before, layers grow as `networks.widening` says, and momentum and feedback with them.

    Raises:
        InputError: If the supernet or alpha is of a kind that cannot go on.
    """
    _refuse_what_stays(search, before)
    _take_alpha(search, before)
    optimizers = [task.optimizer.optimizer for task in (search, before)]
    momenta: list[dict[Tensor, Tensor]] = []
    for optimizer in optimizers:
        momenta.append(
            {
                parameter: state["momentum_buffer"]
                for parameter, state in optimizer.state.items()
                if state.get("momentum_buffer") is not None
            }
        )
    mine, theirs = momenta
    if theirs:  # none where momentum is 0
        for parameter in search.optimizer.parameters:
            mine[parameter] = torch.zeros_like(parameter)
            optimizers[0].state[parameter]["momentum_buffer"] = mine[parameter]
    source = generator("cpu", "widening", search.config.seed, search.place.epochs_before)
    widen(search.supernet, before.supernet, source, [(mine, theirs)])


def _refuse_what_stays(search: Search, before: Search) -> None:
    """Raise InputError for a search that cannot go on with the state of the one before."""

    def refuse(expected: str, found: str, remedy: str = "leave keeps_weights out") -> None:
        raise InputError(f"--stages: keeps_weights: expected {expected}, found {found}; {remedy}")

    state = search.strategy_state
    for name in ("layers", "channels"):
        here, there = getattr(search.config, name), getattr(before.config, name)
        if here != there:
            refuse(f"the {there} {name} of the stage before", str(here))
    if search.supernet.shares_weights:
        refuse("weights of each rule's own", "weights that rules share")
    if not isinstance(state, AlphaState) or state.state_dict().keys() != SAVED:
        refuse("an alpha of logits alone", search.config.strategy)
    if state.context.factorised:
        refuse("an alpha of logits", "one of operations times rules (factorised)")
    if not isinstance(search.optimizer.optimizer, SGD):
        refuse("--optimizer sgd, nesterov or batch_manhattan", search.config.optimizer)
    others = [rule for rule in search.config.rules if not _grows(RULES.build(rule))]
    if others:
        refuse("rules whose feedback has the shape of the weight", ", ".join(others))
    partial, partial_before = search.supernet.partial, before.supernet.partial
    if partial > partial_before:
        refuse(f"a k of at most {partial_before}, the one before", str(partial), "lower it")


SAVED = {"parameters", "optimizer", "draws"}
"""What the state of a strategy consists of that keeps nothing but alpha, and can go on."""


@torch.no_grad()
def _take_alpha(search: Search, before: Search) -> None:
    """Take over the alpha of the candidates that are left, and what moves it."""
    mine, theirs = search.strategy_state, before.strategy_state
    assert isinstance(mine, AlphaState)
    assert isinstance(theirs, AlphaState)
    columns = columns_before(search.table, before.table)
    mine.draws = theirs.draws
    for name, parameter in mine.parameters.items():
        of_before = theirs.parameters[name]
        parameter.copy_(_left(of_before, columns.get(name)))
        moments = theirs.optimizer.state.get(of_before, {})
        for key, value in moments.items():
            is_moment = value.shape == of_before.shape
            kept = _left(value, columns.get(name)) if is_moment else value
            mine.optimizer.state[parameter][key] = kept.clone()


def columns_before(table: CandidateTable, before: CandidateTable) -> dict[str, Tensor]:
    """Return for each candidate its column in the table before: (edges, candidates), -1 if padded.

    >>> from darts_bio.spaces import SPACES
    >>> all_rules = SPACES.build("nb201").table(("fa", "usf"))
    >>> columns_before(SPACES.build("nb201").table(("usf",)), all_rules)["cell"][0]
    tensor([0, 1, 3, 5, 6])
    """
    return {
        t: torch.tensor(
            [
                [-1 if candidate is None else row_before.index(candidate) for candidate in row]
                for row, row_before in zip(rows, before.rows[t], strict=True)
            ]
        )
        for t, rows in table.rows.items()
    }


def _left(values: Tensor, columns: Tensor | None) -> Tensor:
    """Return the values of the candidates that are left, 0 where padded; (edges,) as they are."""
    if columns is None:  # of edges, not of candidates
        return values
    columns = columns.to(values.device)
    return values.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0.0)


def _grows(rule: LearningRule) -> bool:
    """Tell whether a rule's feedback has the shape of the weight, and so can grow as it does."""
    if rule.direct:
        return False
    law = InitialLaw(torch.Size((2, 3, 1, 1)), bound=1.0)
    state = rule.state(law, torch.Generator())
    return all(value.dim() == 0 or value.shape == law.shape for value in state.values())
