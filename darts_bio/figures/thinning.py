"""Leave out what a figure or a table has no room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MOST_POINTS = 1000
"""The most points of a line that are drawn: more than a panel has pixels in x."""


def thinned(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, evenly spaced, the first and the last among them.

    >>> thinned(range(1, 11), most=4), thinned([1, 2], most=4)
    ([1, 4, 7, 10], [1, 2])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def extremes(
    points: Sequence[tuple[float, float]], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """Return at most so many of a line's points (x, y): the least and greatest y of each stretch.

    So a peak is drawn however long the line is. The first and the last point stay.

    >>> line = [(float(x), 0.0) for x in range(10_000)]
    >>> line[1234] = (1234.0, 9.0)
    >>> len(extremes(line)) <= MOST_POINTS, (1234.0, 9.0) in extremes(line)
    (True, True)
    """
    if len(points) <= most:
        return list(points)
    count, kept = most // 2 - 1, {0, len(points) - 1}
    for part in range(count):
        stretch = range(part * len(points) // count, (part + 1) * len(points) // count)
        finite = [i for i in stretch if math.isfinite(points[i][1])] or list(stretch[:1])
        kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]
