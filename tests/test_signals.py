"""Runs that are asked to leave, or whose console is lost: nothing that was computed is."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH
from killing import same_runs
from several import several
from signaling import PHASES, SIGNALED, files_of, saved_step, signaled

from darts_bio.cli import main
from darts_bio.runtime import STOP_SIGNALS, stop_on_signals
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.search import Search

# Two epochs of two steps.
RUN = shlex.split(
    "--epochs 2 --channels 2 --layers 3 --train-images 32 --batch-size 8 --rules fa --lr 0.01 "
    "--crop-padding 1 --device cpu --space darts(nodes=1,operations=(none,skip_connect))"
)


SHORT = ("first checkpoint", "update", "last step", "report")
"""The phases of a search that the quick tests look at, beside those of the test of two seeds."""


def interrupted(_: int, phase: str, number: signal.Signals, words: list[str]) -> None:
    """A process that runs a search and is sent a signal in a phase of it."""
    calls = 0

    def sending(function: Any, at: int) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), number)
            return function(*args, **options)

        return call

    owner, name, at = {
        "start-up": (Search, "__init__", 1),
        "step": (Search, "step", 1),
        "saving": (RunFolder, "save", 2),  # that of the first epoch
        "evaluation": (Search, "end_epoch", 1),
        "between seeds": (Search, "__init__", 2),
    }[phase]
    setattr(owner, name, sending(getattr(owner, name), at))
    sys.exit(main([*RUN, *words], command="search"))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def saved(run: Path) -> dict[str, Any]:
    state = read_checkpoint(run / "checkpoint.pt", "search")
    return {name: state[name] for name in ("step", "ended", "last", "task")}


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Have signals their ordinary effect, also where the tests run under nohup or in the background."""
    numbers = (signal.SIGHUP, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search of two seeds that nothing disturbs."""
    out = tmp_path_factory.mktemp("signals") / "whole"
    assert main([*RUN, "--seeds", "2", "--out", str(out)], command="search") == 0
    return out


@pytest.mark.parametrize(
    ("phase", "number", "steps"),
    [
        ("start-up", signal.SIGUSR1, None),
        ("step", signal.SIGUSR1, 1),
        ("saving", signal.SIGQUIT, 3),  # asked after each step, so one more is made
        ("evaluation", signal.SIGHUP, 2),
        ("between seeds", signal.SIGHUP, 4),
    ],
)
def test_a_signal_loses_no_step_and_the_resumed_run_is_the_same(
    phase: str, number: signal.Signals, steps: int | None, whole: Path, tmp_path: Path
) -> None:
    words = ["--seeds", "2", "--out", "run"]
    (ended,) = several(1, interrupted, phase, number, words, place=tmp_path)
    # Before a run handles signals, and between two, there is nothing to save: the process dies.
    died = phase in ("start-up", "between seeds")
    assert ended.code == (-number if died else 128 + number), ended.errors
    first = tmp_path / "run" / "seed-0"
    if steps is None:
        assert not (tmp_path / "run").exists()
    else:
        assert saved(first)["step"] == steps
        assert not (tmp_path / "run" / "seed-1").exists()
    resume = ["--seeds", "2", "--out", str(tmp_path / "run"), "--resume", "auto"]
    assert main([*RUN, *resume], command="search") == 0
    for seed in ("seed-0", "seed-1"):
        assert same(saved(tmp_path / "run" / seed), saved(whole / seed))


# Signals in turns: `benchmarks/faults.py --kinds signals` sends each in each phase.
IN_TURNS = [
    pytest.param(
        kind,
        phase,
        STOP_SIGNALS[place % len(STOP_SIGNALS)],
        id=f"{kind}, {phase}",
        marks=[] if kind == "search" and phase in SHORT else pytest.mark.slow,
    )
    for kind in PHASES
    for place, phase in enumerate(PHASES[kind])
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a kind that nothing disturbs, made once."""
    place = tmp_path_factory.mktemp("undisturbed")

    def run(kind: str) -> Path:
        out = place / kind
        if not out.exists():
            assert signaled(SIGNALED[kind], out) == (0, 4)
        return out

    return run


def test_each_phase_is_a_call_that_there_is() -> None:
    for phase in (phase for phases in PHASES.values() for phase in phases.values()):
        assert callable(getattr(phase.owner, phase.name))


@pytest.mark.parametrize(("kind", "phase", "number"), IN_TURNS)
def test_a_signal_in_a_phase_of_a_run(
    kind: str,
    phase: str,
    number: signal.Signals,
    undisturbed: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """It leaves by the code that is documented, with all steps that it had begun, and goes on."""
    if sys.platform != "linux":
        pytest.skip("needs forks")
    config, out, whole = SIGNALED[kind], tmp_path / "run", undisturbed(kind)
    code, begun = signaled(config, out, PHASES[kind][phase], number)
    assert code == PHASES[kind][phase].exit_code(number), out.with_name("run.log").read_text()
    assert saved_step(out, config.command) == begun
    assert signaled(config, out) == (0, 4 - begun)
    same_runs(out, whole, config.command)
    assert files_of(out) == files_of(whole)


def test_a_warning_and_the_signal_after_it_leave_once_with_the_code_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SLURM warns by SIGUSR1 and sends SIGTERM at the limit; only the same one again ends at once."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    now = time.monotonic()
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        monkeypatch.setattr("time.monotonic", lambda: now + 100)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == 138
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    "redirect",
    [
        pytest.param("2>&1 | head -n 1", id="reader gone"),
        pytest.param(">/dev/full 2>&1", id="disk full", marks=pytest.mark.slow),
        pytest.param(">&- 2>&- <&-", id="closed", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_console_is_lost_goes_on_to_its_end(
    redirect: str, whole: Path, tmp_path: Path
) -> None:
    if "/dev/full" in redirect and not Path("/dev/full").exists():
        pytest.skip("needs Linux' /dev/full")
    command = shlex.join([sys.executable, SEARCH, *RUN, "--out", "run"])
    line = f"({command}; echo $? >code) {redirect}" if "|" in redirect else f"{command} {redirect}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, timeout=120, capture_output=True, check=False
    )
    code = (tmp_path / "code").read_text().strip() if "|" in redirect else str(done.returncode)
    assert code == "0", done.stderr
    assert same(saved(tmp_path / "run"), saved(whole / "seed-0"))
    names = {path.name.partition("tfevents")[0] for path in (tmp_path / "run").iterdir()}
    assert names == {path.name.partition("tfevents")[0] for path in (whole / "seed-0").iterdir()}
