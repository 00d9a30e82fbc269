"""A run's folder has one owner: others are refused until it has ended, however it ended."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from several import several

from darts_bio.cli import main
from darts_bio.errors import InputError
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.owner import LOCK_FILE, own, owning
from darts_bio.storage.run_folder import is_filled
from darts_bio.training.search import Search

RUN = shlex.split(
    "search --epochs 2 --channels 2 --layers 3 --train-images 16 --batch-size 8 --rules fa "
    "--crop-padding 1 --device cpu --space darts(nodes=1,operations=(none,skip_connect)) --out run"
)


def resumed(number: int, count: int) -> None:
    """One of several that go on with the same run; the owner waits until the others have ended."""
    del os.environ["WORLD_SIZE"]  # each is a run of its own
    step = Search.step

    def slow(self: Search, t: int) -> Any:
        deadline = time.monotonic() + 60
        while len(list(Path().glob("*.refused"))) < count - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return step(self, t)

    Search.step = slow  # type: ignore[method-assign]
    code = main([*RUN, "--resume", "auto"])
    if code == 2:
        Path(f"{number}.refused").touch()
    sys.exit(code)


def test_of_several_that_resume_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Search.step
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            Search, "step", lambda *args: [step(*args), signal.raise_signal(signal.SIGINT)][0]
        )
        assert main(RUN) == 130
    ended = several(4, resumed, 4, place=tmp_path)
    assert sorted(str(process.code) for process in ended) == ["0", "2", "2", "2"], ended
    for process in ended:
        if process.code == 2:
            (line,) = process.errors.splitlines()
            assert line.startswith("error: run: in use by process "), line
    assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", "search")["step"] == 2
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_with_the_process_its_lock_ends(tmp_path: Path) -> None:
    """A child of the owner lives on, as workers that read images may for some seconds."""
    owner = os.fork()
    if owner == 0:
        own(tmp_path)
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        (tmp_path / "child").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    os.kill(int((tmp_path / "child").read_text()), 0)  # it lives
    (tmp_path / "child").rename(tmp_path.with_name("child"))
    assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == owner
    assert not is_filled(tmp_path)
    with owning():
        own(tmp_path)
        own(tmp_path)  # nothing is refused within one process
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    os.kill(int(tmp_path.with_name("child").read_text()), signal.SIGKILL)


class TestWithoutLocks:
    """On a file system that knows none, what the file says counts."""

    @pytest.fixture(autouse=True)
    def _refusing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(file: Any, operation: int) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)

    @pytest.mark.parametrize(
        ("host", "process", "refusal"),
        [
            (None, os.getppid(), "wait for its end, or end it"),
            ("node7", 1, "end it there, or, if that machine is down, delete "),
            (None, 2**22 + 1, None),  # above the largest number of a process
        ],
    )
    def test_an_owner_that_may_be_at_work_is_respected(
        self, host: str | None, process: int, refusal: str | None, tmp_path: Path
    ) -> None:
        owner = {"host": host or os.uname().nodename, "process": process, "since": "2026-11-29"}
        (tmp_path / LOCK_FILE).write_text(json.dumps(owner))
        with owning():
            if refusal is None:
                own(tmp_path)
                return
            with pytest.raises(InputError) as caught:
                own(tmp_path)
        assert f"in use by process {process} on {owner['host']} since 2026-11-29; {refusal}" in str(
            caught.value
        )
        assert json.loads((tmp_path / LOCK_FILE).read_text()) == owner
