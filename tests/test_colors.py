"""The colors of rules: how far apart they are for everybody, by CIEDE2000 written out here.

The formula is checked against pairs of the paper's own table: G. Sharma, W. Wu and E. N. Dalal, "The
CIEDE2000 color-difference formula", Color Research and Application 30 (2005), table 1. Deuteranopia
and protanopia are simulated by the matrices for linear RGB of G. M. Machado, M. M. Oliveira and
L. A. F. Fernandes, "A physiologically-based model for simulation of color vision deficiency", IEEE
TVCG 15 (2009), at severity 1.
"""

from __future__ import annotations

import itertools
from math import atan2, cos, degrees, exp, hypot, pi, radians, sin, sqrt

import numpy as np
import pytest

from darts_bio.figures.colors import (
    FURTHER_COLORS,
    LINE_COLORS,
    NO_RULE,
    RULE_COLORS,
    group_colors,
    rule_colors,
)
from darts_bio.rules import RULES

Lab = tuple[float, float, float]

SEEN = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
TO_XYZ = np.array(  # IEC 61966-2-1, white D65
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color: str) -> np.ndarray:
    """Linear RGB (3,) of a color "#rrggbb"."""
    srgb = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(color: str, seen: str) -> Lab:
    """CIELAB of a color as it is seen."""
    xyz = TO_XYZ @ np.clip(SEEN[seen] @ linear(color), 0, 1) / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).tolist()
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def ciede2000(first: Lab, second: Lab) -> float:
    """The difference of two colors, equations 2 to 22 of Sharma et al., all weights 1."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean = (hypot(a1, b1) + hypot(a2, b2)) / 2
    g = (1 - sqrt(mean**7 / (mean**7 + 25**7))) / 2
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = hypot(a1, b1), hypot(a2, b2)
    h1, h2 = degrees(atan2(b1, a1)) % 360, degrees(atan2(b2, a2)) % 360
    turn = h2 - h1
    if c1 * c2 == 0:
        turn = 0.0
    elif turn > 180:
        turn -= 360
    elif turn < -180:
        turn += 360
    dl, dc, dh = l2 - l1, c2 - c1, 2 * sqrt(c1 * c2) * sin(radians(turn) / 2)
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, h1 + h2
    if c1 * c2 != 0:
        if abs(h1 - h2) > 180:
            hue += 360 if hue < 360 else -360
        hue /= 2
    t = (
        1
        - 0.17 * cos(radians(hue - 30))
        + 0.24 * cos(radians(2 * hue))
        + 0.32 * cos(radians(3 * hue + 6))
        - 0.20 * cos(radians(4 * hue - 63))
    )
    turned = 30 * exp(-(((hue - 275) / 25) ** 2))
    rc = 2 * sqrt(chroma**7 / (chroma**7 + 25**7))
    sl = 1 + 0.015 * (light - 50) ** 2 / sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rt = -sin(2 * turned * pi / 180) * rc
    return sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * (dc / sc) * (dh / sh))


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
        ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
        ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
        ((50.0, -0.001, 2.49), (50.0, 0.0009, -2.49), 4.8045),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
        ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
        ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_formula_gives_the_published_differences(
    first: Lab, second: Lab, difference: float
) -> None:
    assert ciede2000(first, second) == pytest.approx(difference, abs=1e-4)
    assert ciede2000(second, first) == pytest.approx(difference, abs=1e-4)


def least_difference(first: str, second: str) -> float:
    """The difference of two colors for whom they differ least."""
    return min(ciede2000(lab(first, seen), lab(second, seen)) for seen in SEEN)


def contrast_with_white(color: str) -> float:
    """The contrast of WCAG 2: (1 + 0.05) / (Y + 0.05)."""
    return 1.05 / (float(TO_XYZ[1] @ linear(color)) + 0.05)


def test_the_colors_of_all_rules_differ_for_everybody() -> None:
    assert set(RULE_COLORS) == set(RULES.names())
    for (one, first), (other, second) in itertools.combinations(RULE_COLORS.items(), 2):
        assert least_difference(first, second) >= 20, (one, other)
    # Lines without a rule are dashed, too; they and the ground, which is white in dark pages as
    # well, are no rule for anybody.
    for rule, color in RULE_COLORS.items():
        assert least_difference(color, NO_RULE) >= 12, rule
        assert contrast_with_white(color) >= 1.75, rule


def test_lines_have_the_colors_of_rules_and_so_differ() -> None:
    assert set(LINE_COLORS) <= set(RULE_COLORS.values())
    assert len(set(LINE_COLORS)) == len(LINE_COLORS)


def test_rules_keep_their_colors_and_others_follow_from_their_name() -> None:
    assert rule_colors(RULE_COLORS) == RULE_COLORS
    others = [f"mine(a={i})" for i in range(len(FURTHER_COLORS))]
    colors = rule_colors([*others, "usf", None, "bp"])
    assert list(colors) == ["bp", "usf", *others, None]
    assert [colors[rule] for rule in ("bp", "usf", None)] == [
        RULE_COLORS["bp"],
        RULE_COLORS["usf"],
        NO_RULE,
    ]
    assert {colors[rule] for rule in others} == set(FURTHER_COLORS)
    # Written out: a hash that changes from one process to the next would fail here.
    assert rule_colors(["mine(a=1)"]) == {"mine(a=1)": FURTHER_COLORS[3]}
    assert len(rule_colors(f"rule{i}" for i in range(20))) == 20


def test_groups_of_networks_have_the_colors_of_their_rules() -> None:
    colors = group_colors({"a": "bp", "b": "bp", "c": "fa, bp", "d": "usf", "e": "fa(scale=2)"})
    assert (colors["a"], colors["d"]) == (RULE_COLORS["bp"], RULE_COLORS["usf"])
    assert len(set(colors.values())) == 5
    assert len(group_colors({f"{i}": "mixed" for i in range(40)})) == 40
