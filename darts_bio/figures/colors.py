"""The colors of figures: one for each learning rule, the same in all of them, and those of lines.

Each pair of rules' colors differs by at least 20 in CIEDE2000, for normal sight and, as Machado et
al. (2009) simulate them, for deuteranopia and protanopia; `tests/test_colors.py` computes it. They
were found by numerical search in sRGB: simulated annealing from the best of many random starts, which
held the least difference over all pairs and the three kinds of sight at 20, the contrast with white
at 1.75 and the difference from `NO_RULE` at 12, and within that sought the greatest differences for
normal sight. With a contrast of 2 it found 19.9 for twelve colors, with 3 not even 19 for ten. There
is no room for a thirteenth rule: colors of other rules differ for normal sight alone, and legends
name all. Lines of candidates without weights are dashed, those of several rules have strips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

RULE_COLORS: Mapping[str, str] = {
    "bp": "#2b00f1",
    "fa": "#788300",
    "usf": "#d5978b",
    "frsf": "#38d2f6",
    "brsf": "#ebbb03",
    "kolen_pollack": "#2f81ff",
    "weight_mirror": "#928195",
    "dfa": "#003900",
    "dkp": "#686756",
    "hebbian": "#090005",
    "predictive": "#524d64",
    "pfa": "#00004e",
}
"""The color of each rule of this package."""

FURTHER_COLORS = ("#d55e00", "#cc79a7", "#882255", "#009e73", "#ff5577", "#aa00aa")
"""Colors of all other rules."""
NO_RULE = "#c1c1c1"
"""The color of candidates without weights, which have no rule."""
SEVERAL = "#444444"
"""The color of a line that stands for cells with different rules."""
LINE_COLORS = tuple(
    RULE_COLORS[rule]
    for rule in ("bp", "usf", "fa", "frsf", "hebbian", "brsf", "kolen_pollack", "predictive")
)
"""The colors of lines that stand for no rule, in the order in which they are taken."""


def rule_colors(rules: Iterable[str | None]) -> dict[str | None, str]:
    """Map each rule to its color, in the order of the legend.

    The colors of known rules are fixed. The color of any other follows from its name, so that it is
    the same in all figures, unless two such rules of a figure would have the same. None stands for
    candidates without weights.

    >>> rule_colors(["usf", None, "bp"])
    {'bp': '#2b00f1', 'usf': '#d5978b', None: '#c1c1c1'}
    """
    names = set(rules)
    colors: dict[str | None, str] = {
        rule: color for rule, color in RULE_COLORS.items() if rule in names
    }
    for rule in sorted(rule for rule in names if rule is not None and rule not in RULE_COLORS):
        # Python's own hash of a text differs from process to process.
        digest = hashlib.blake2b(rule.encode("utf-8", "replace"), digest_size=8).digest()
        start = int.from_bytes(digest, "big")
        candidates = [
            FURTHER_COLORS[(start + i) % len(FURTHER_COLORS)] for i in range(len(FURTHER_COLORS))
        ]
        unused = [color for color in candidates if color not in colors.values()]
        colors[rule] = (unused or candidates)[0]
    return colors | ({None: NO_RULE} if None in names else {})


def group_colors(rules: Mapping[str, str]) -> dict[str, str]:
    """Map groups of networks to colors: that of its rule for a group under a single rule.

    `rules` has the rule of each group; what is no rule of this package, such as several, gets a
    color that no other group has, as long as there are some.

    >>> group_colors({"plain": "bp", "mixed": "bp, usf"})["plain"] == RULE_COLORS["bp"]
    True
    """
    known: dict[str, str] = {}
    for group, rule in rules.items():
        # Of two groups under one rule, the first has its color.
        if rule in RULE_COLORS and RULE_COLORS[rule] not in known.values():
            known[group] = RULE_COLORS[rule]
    others = [group for group in rules if group not in known]
    free = [color for color in (*LINE_COLORS, *RULE_COLORS.values()) if color not in known.values()]
    free = free or list(LINE_COLORS)
    return known | {group: free[i % len(free)] for i, group in enumerate(others)}
