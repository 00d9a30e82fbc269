"""Which measurements fit into the minutes that a GPU is lent for: the plan of on_gpu.py, a function
of plain values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PATIENCE = 2.0
"""A measurement is cut off where it takes longer than this many times what it was expected to, and
SLACK_S."""

SLACK_S = 10.0
MOST_TRIES = 3

Outcome = Literal["done", "failed", "unfinished", "cut off", "begun"]
"""How the last try ended. "begun": it did not, since this program itself was killed meanwhile."""


@dataclass(frozen=True)
class Item:
    """A measurement. `name` is "STAGE: words", STAGE a letter.

    `seconds` is how long it is expected to take. `least` is from how many on it is worth going on,
    for one that has a state of its own to go on from; None for one that is made in one go.
    `together`: other such ones may run meanwhile, since no time is measured. `after` names the item
    whose result it needs.
    """

    name: str
    seconds: float
    least: float | None = None
    together: bool = False
    after: str = ""

    @property
    def stage(self) -> str:
        return self.name[0]


@dataclass(frozen=True)
class State:
    """Holds what is known of an item: how the last try ended and its seconds, the tries, and their
    seconds in all.
    """

    outcome: Outcome
    last: float
    tries: int = 1
    spent: float = 0.0


@dataclass(frozen=True)
class Decision:
    """That an item is made, with the `seconds` it is granted, or that it is not (0 seconds), and
    why.
    """

    item: Item
    seconds: float = 0.0
    why: str = ""


def needed(item: Item, state: State | None) -> float:
    """Seconds that an item takes, as far as is known: one that did not end in time is believed to
    take twice that.
    """
    if item.least is None and state is not None and state.outcome in ("cut off", "unfinished"):
        return max(item.seconds, 2 * state.last)
    return item.seconds


def plan(
    items: Sequence[Item],
    states: Mapping[str, State],
    seconds: float,
    shares: Mapping[str, float],
    *,
    at_once: int = 1,
    tried: Collection[str] = (),
    waiting: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> list[Decision]:
    """Decide what becomes of each item that is not done, in the order in which they are to be made.

    That is the order of `items`, but for those by which a stage takes more than its share of the
    time: these come last, so that no stage starves those after it. `shares` holds the seconds of
    each stage, of all calls together, and `states` what earlier calls, and this one, have come to.
    An item goes on at the seconds that are left, if these suffice. `at_once` items that are made
    together take a share of the time each. `tried` were made in this call already; `waiting` says
    why items cannot be made yet.
    """
    own = {item.name for item in items}
    used = {stage: 0.0 for stage in shares}
    for name, state in states.items():
        if name in own:
            used[name[0]] += state.spent
    within: list[Item] = []
    beyond: list[Item] = []
    for item in items:
        state = states.get(item.name)
        if state is not None and state.outcome == "done":
            continue
        cost = needed(item, state) / (at_once if item.together else 1)
        fits = used[item.stage] + (item.least or cost) <= shares[item.stage]
        (within if fits else beyond).append(item)
        used[item.stage] += cost
    decisions, left = [], seconds
    for item in within + beyond:
        state = states.get(item.name)
        seconds_needed = needed(item, state)
        reason = _reason(item, state, states, tried, waiting or {})
        if reason:
            decisions.append(Decision(item, why=reason))
        elif seconds_needed <= left and item.least is None:
            decisions.append(Decision(item, min(left, patience * seconds_needed + SLACK_S)))
            left -= seconds_needed / (at_once if item.together else 1)
        elif item.least is not None and item.least <= left:
            decisions.append(Decision(item, left))
            left -= min(left, seconds_needed)
        else:
            wanted = seconds_needed if item.least is None else item.least
            more = "" if item.least is None else f" at least, {seconds_needed:.0f} s in all"
            decisions.append(
                Decision(
                    item, why=f"needs about {wanted:.0f} s{more}; {max(0.0, left):.0f} s are left"
                )
            )
    return decisions


def _reason(
    item: Item,
    state: State | None,
    states: Mapping[str, State],
    tried: Collection[str],
    waiting: Mapping[str, str],
) -> str:
    """Say why an item is not made whatever the time; empty if nothing stands against it."""
    if state is not None and state.outcome == "failed":
        return "failed with this code; it is tried again once the code has changed"
    if (
        state is not None
        and state.outcome == "begun"
        and state.tries >= MOST_TRIES
        and item.least is None
    ):
        return f"begun {state.tries} times, and the machine or this program went away each time"
    if item.name in tried:
        return f"{state.outcome if state else 'tried'} in this call; goes on in the next"
    if item.name in waiting:
        return waiting[item.name]
    if item.after and (item.after not in states or states[item.after].outcome != "done"):
        return f"needs the result of '{item.after}' first"
    return ""
