"""The campaign of mutants notices what it looks for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from faults_files import Trial, measured

from darts_bio.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs forks and /proc")


def refuse(message: str) -> None:
    raise InputError(message)


DEEDS: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "read"),
    "a refusal": (lambda: refuse("expected a file, found none"), "refused"),
    "an error": (lambda: [][0], "traceback"),
    "code": (lambda: exec("1 + 1"), "did more than read"),
    "a refusal after code": (lambda: (exec("1"), refuse("no")), "did more than read"),
    "a folder": (lambda: os.mkdir("made"), "did more than read"),
    "a file": (lambda: Path("made.txt").write_text("x"), "did more than read"),
    "a process": (lambda: os.system("true"), "did more than read"),
    "an end": (lambda: os._exit(9), "ended by 9"),
    "nothing, once more": (lambda: None, "read"),
}


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_each_deed_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trials = [Trial(name, deed) for name, (deed, _) in DEEDS.items()]
    found = {trial.name: end for trial, end, *_ in measured(trials)}
    assert found == {name: end for name, (_, end) in DEEDS.items()}


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_time_and_memory_are_those_of_the_file() -> None:
    blocks = [b"x" * 2**16 for _ in range(2400)]  # of the heap, where freed memory is kept
    del blocks[:-1]  # what lies above the rest keeps the heap from shrinking

    def work() -> None:
        held = b"x" * (100 * 2**20)
        until = time.process_time() + 0.2
        while time.process_time() < until:
            assert held

    ((_, _, idle_s, idle_mib, _),) = measured([Trial("idle", lambda: None)])
    ((_, _, cpu_s, mib, _),) = measured([Trial("work", work)])
    assert cpu_s > idle_s + 0.1
    assert idle_mib < 50 < 95 < mib < 300
