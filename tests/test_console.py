"""What the console shows of a run: lines that fit a terminal, plain ones for a file, or nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from darts_bio.cli import main
from darts_bio.config import SearchConfig
from darts_bio.monitoring import console
from darts_bio.monitoring.console import FitConsole
from darts_bio.runs.running import Watching
from darts_bio.runs.search import search
from darts_bio.training.listeners import Progress

NUMBERS = {
    "train/loss": 1.5123,
    "train/accuracy": 0.25,
    "valid/loss": 2.4456,
    "valid/accuracy": 0.97314,
}
LONG = {**NUMBERS, "valid_averaged/loss": 1.25, "valid_averaged/accuracy": 0.5}


class Terminal:
    """A terminal of so many columns: what is written to its `stream` is `shown`."""

    def __init__(self, columns: int) -> None:
        self._master, end = os.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(end, "w", encoding="utf-8")

    def shown(self) -> list[str]:
        """The texts that stood in a line of the screen, one after the other."""
        self.stream.flush()
        os.set_blocking(self._master, False)
        read = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._master, 1 << 16):
                read += part
        text = read.decode()
        return [frame for line in text.split("\n") for frame in line.split("\r")]

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture(params=[80, 60])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("COLUMNS", str(request.param))
    terminal = Terminal(request.param)
    yield terminal
    terminal.close()


def shown_run(stream: TextIO, numbers: dict[str, float], scale: int = 1) -> None:
    """Two epochs of two steps, `scale` times as many, of which the last two are shown."""
    epochs = 2 * scale
    with FitConsole(stream, lambda progress: ["note: begins"], name="seed 3") as shown:
        shown.on_start(Progress(2 * epochs - 4, 2 * epochs, epochs - 1, epochs))
        for step in range(2 * epochs - 3, 2 * epochs + 1):
            progress = Progress(step, 2 * epochs, (step + 1) // 2, epochs)
            shown.on_step(progress, 64)
            shown.on_record(progress, numbers)
            if progress.ends_epoch:
                shown.on_measure(1, 10)
                shown.on_epoch(progress, numbers)


@pytest.mark.parametrize(("numbers", "scale"), [(NUMBERS, 25), (NUMBERS, 100_000), (LONG, 25)])
def test_no_line_is_wider_than_the_terminal(
    terminal: Terminal, numbers: dict[str, float], scale: int
) -> None:
    shown_run(terminal.stream, numbers, scale)
    frames = terminal.shown()
    room = int(os.environ["COLUMNS"])
    assert max(map(len, frames)) <= room
    epochs = [frame for frame in frames if f"epoch {2 * scale}/" in frame]
    assert len(epochs) == 1
    assert "train 1.512 25.00%" in epochs[0]
    if (room, scale, len(numbers)) == (80, 25, 4):
        wanted = "seed 3  epoch 50/50  step 100/100  train 1.512 25.00%  valid 2.446 97.31%"
        assert epochs[0] == wanted
        assert any("measures, batch 1/10]" in frame for frame in frames if "%|" in frame)


def test_a_file_has_plain_lines_with_all_there_is() -> None:
    stream = io.StringIO()
    shown_run(stream, NUMBERS)
    first, *epochs, last = stream.getvalue().splitlines()
    assert first == "note: begins"
    numbers = r"train 1\.512 25\.00%  valid 2\.446 97\.31%"
    for number, line in enumerate(epochs, 1):
        place = rf"seed 3  epoch {number}/2  step {2 * number}/4"
        assert re.fullmatch(rf"{place}  {numbers}  \d+ images/s  0:00 left", line)
    assert len(epochs) == 2
    assert last == "seed 3  time: 0:00"


def test_a_run_that_goes_on_says_from_where_its_time_counts() -> None:
    stream = io.StringIO()
    shown_run(stream, NUMBERS, scale=2)
    assert stream.getvalue().splitlines()[-1] == "seed 3  time since step 4: 0:00"


def test_a_search_says_that_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    options = SearchConfig(
        space="darts(nodes=1, operations=(none, skip_connect))", rules="fa", channels=2, layers=3,
        strategy="eg(population=5, samples=1, batches=2)", regularizers="", epochs=1, batch_size=8,
        train_images=16, crop_padding=1, device="cpu", out=str(tmp_path / "run"), seed=4,
    )  # fmt: skip
    stream = io.StringIO()
    search(options, "test", watching=Watching(console=stream))
    lines = stream.getvalue().splitlines()
    measured = [line for line in lines if "measures, " in line]
    assert measured[:2] == [
        f"seed 4  epoch 1/1  step 1/1  measures, batch {number}/2" for number in (1, 2)
    ]
    assert not re.search(r"[\r\x1b]", stream.getvalue())


def test_quiet_shows_results_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--space", "nb201", "--strategy", "random", "--rules", "fa"]
    assert main([*words, "--out", str(tmp_path / "loud")]) == 0
    loud = capsys.readouterr()
    assert main([*words, "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    quiet = capsys.readouterr()
    assert loud.err
    assert quiet.err == ""
    assert quiet.out == loud.out.replace("loud", "quiet")
    assert "quiet" not in (tmp_path / "quiet" / "config.yaml").read_text()
