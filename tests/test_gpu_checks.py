"""What benchmarks/on_gpu.py makes on a GPU runs: here on a CPU, at its smallest sizes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu_checks
from gpu_workers import Place

CASES = {case.name: case for case in gpu_checks.cases()}
QUICK = (
    "search by darts, none, memory normal",
    "search by darts(order=2), bf16, memory low",
    "search by gdas, none, memory low",
    "search by random, none, memory normal",
    "search by snas, bf16, memory normal",
    "search under usf(scale='match'), bf16",
    "search with backbone dfa",
    "training under kolen_pollack, bf16",
    "training against trades, none",
)
"""Of each kind one or two. All others are slow."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES],
)
def test_steps_are_made_both_ways_and_compared(name: str, tmp_path: Path) -> None:
    """On a CPU nothing is recorded, so that both ways are the same."""
    with torch.backends.cudnn.flags(enabled=True):  # which a case sets, as it pleases
        found = CASES[name](Place("cpu", True, tmp_path), None)  # type: ignore[arg-type]
    for losses in found["losses"].values():
        assert len(losses) == (0 if name.startswith("search by random,") else 3)
        assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    differences = {key: value for key, value in found.items() if key.endswith("differ_by")}
    assert list(differences.values()) == [0.0, 0.0, 0.0]


def test_the_quick_cases_are_there() -> None:
    assert set(QUICK) <= set(CASES)


@pytest.mark.slow
def test_the_other_stages_end(tmp_path: Path) -> None:
    """Speeds, kernels and the search, which only print on a CPU what a GPU makes of them."""
    script = Path(gpu_checks.__file__).with_name("on_gpu.py")
    command = [sys.executable, script, "--device", "cpu", "--dry-run"]
    command += ["--minutes", "9", "--stages", "b,c,d"]
    command += ["--keep", tmp_path / "keep", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    outcomes = {name: entry["outcome"] for name, entry in found["items"].items()}
    assert len(outcomes) > 15
    assert set(outcomes.values()) == {"done"}, outcomes
