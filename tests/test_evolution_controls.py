"""benchmarks/evolution.py: the control that learns nothing, and the table beside it."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import PAIR, begin
from torch import Tensor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def evolution(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("evolution")


def test_what_is_drawn_moves_nothing_is_drawn_anew_and_has_the_widths_of_eg(
    evolution: Any,
) -> None:
    strategy, state = begin("eg(population=400, samples=1, novelty=0)", PAIR, epochs=5)
    before = copy.deepcopy(state.state_dict())
    met: list[Tensor] = []

    def measure(weights: dict[str, Tensor], batches: int) -> tuple[Tensor, Tensor]:
        assert batches == strategy.measured_batches
        met.append(weights["normal"][:, 0])  # (P, candidates) of an edge
        losses = torch.arange(400.0) + 3
        return losses, losses

    made = [evolution.drawn_generation(strategy, state, number, measure) for number in range(5)]
    assert made == [{"evolution/best_fitness": -3.0, "evolution/mean_fitness": -202.5}] * 5
    for name, value in state.state_dict()["weights"].items():
        assert torch.equal(value, before["weights"][name])
    saved, now = before["samplers"][0], state.state_dict()["samplers"][0]
    assert all(
        torch.equal(now[name], value) if isinstance(value, Tensor) else now[name] == value
        for name, value in saved.items()
    )
    # The width falls from 1 to 0.2. Of the last two generations so few shares are cut at zero that
    # distances from the architecture are proportional to it; the ratio of two estimates from 400
    # individuals of several candidates each is off by some 4 % (standard deviation).
    spreads = [float(shares.std(0).mean()) for shares in met]
    assert spreads[3] / spreads[4] == pytest.approx(0.4 / 0.2, rel=0.2)
    assert spreads == sorted(spreads, reverse=True)
    units = [(shares - shares.mean(0)) / shares.std(0) for shares in met[3:]]
    assert abs(float((units[0] * units[1]).mean())) < 5 / 400**0.5  # independent draws


def test_the_table_compares_rises_and_ends_by_seed(
    evolution: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_seed(first: float, last: float, moves: float) -> dict[str, Any]:
        axes = {"least": 0.5, "most": 1.0}
        return {"best": [first, 9.0, last], "architecture": [-1.0, 0.0, moves - 1], "axes": axes}

    runs = {
        "eg": [of_seed(-2.0, -1.0, 0.5), of_seed(-2.0, -0.5, 0.5), of_seed(-3.0, -1.0, 0.5)],
        evolution.DRAWN: [of_seed(-2.0, -1.5, 0.0)] * 3,
    }
    table = evolution.report(runs)
    eg, drawn = table["eg"], table[evolution.DRAWN]
    # Of the eight signs of three differences of one sign two give a sum as large: p = 1/4.
    assert eg["best"] == {"first": [-2.0, -2.0, -3.0], "last": [-1.0, -0.5, -1.0], "p": 0.25}
    assert eg["above drawn"] == {"differences": [0.5, 1.0, 0.5], "p": 0.25}
    assert drawn["above drawn"] == {"differences": [0.0, 0.0, 0.0], "p": 1.0}
    assert eg["axes"] == 2.0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| 1.500 +- 0.500 (0.250) |" in lines[2]  # the rise
    assert "| 0.667 +- 0.289 (0.250) |" in lines[2]  # above what is drawn
