"""Checkpoints that cannot lie, and records that are there exactly once, wherever a run is killed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import equal, events_of, killed, records_of, same_runs

from darts_bio.config import SearchConfig
from darts_bio.errors import InputError
from darts_bio.monitoring.boards import FitBoard
from darts_bio.runs.running import Watching, perform
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.storage.checksum import GrowingDigest, digest, fault_of
from darts_bio.storage.logs import marks_of
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.engine import Outcome, never
from darts_bio.training.meters import Numbers, Sums

CONFIG = SearchConfig(log_every=1)


class Walk:
    """A task of two epochs of two steps that draws, learns, and measures at length."""

    epochs, steps_per_epoch, images_per_step = 2, 2, 1
    finished, measures = False, True

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.subject, self.weight = {"data set": "a walk"}, torch.ones(8)

    def begin_epoch(self, epoch: int) -> None: ...

    def synchronize(self) -> None: ...

    def statistics(self) -> list[torch.Tensor]:
        return []

    def learning_rates(self) -> Numbers:
        return {"lr/weights": 0.5}

    def step(self, t: int) -> dict[str, Sums]:
        self.weight = self.weight / 3 + torch.rand(8)
        return {"train": Sums(("train/loss",), self.weight.sum().double().view(1), 3)}

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        self.weight = self.weight + torch.rand(1)
        return {"test/loss": self.weight.mean().item()}

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


def walk(out: Path, resume: bool = False, save_every: float = 300.0, board: bool = True) -> Outcome:
    """The command: begun, or gone on with by `resume`."""
    config = replace(CONFIG, out=str(out), resume=resume, save_every=save_every)
    folder = RunFolder.open("search", config, "walk")
    watching = Watching(tensorboard=board)
    return perform(Walk(), folder, [], watching, lambda _: [], lambda: FitBoard(folder), facts={})[
        0
    ]


def walk_again(out: Path) -> None:
    """The same command, and with --resume where its message says so."""
    try:
        walk(out)
    except InputError as error:
        if "or go on with it by --resume" not in str(error):
            raise
        walk(out, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert not killed(lambda: walk(out))
    return out


def test_what_is_compared(whole: Path) -> None:
    """Four records and two epochs, in metrics.jsonl and in TensorBoard's events."""
    events = [(r["event"], r["step"]) for r in records_of(whole)["metrics.jsonl"]]
    of_first, of_second = ([("record", n), ("record", n + 1), ("epoch", n + 1)] for n in (1, 3))
    assert events == of_first + of_second
    steps = [(step, tag) for step, tag, _ in events_of(whole).elements()]
    assert sorted(step for step, tag in steps if tag == "train/loss") == [1, 2, 3, 4]
    assert sorted(step for step, tag in steps if tag == "epoch/test_loss") == [2, 4]
    assert [step for step, tag in steps if tag == "run/text_summary"] == [0]
    assert [step for step, tag in steps if tag == "_hparams_/session_start_info"] == [4]
    assert len([tag for _, tag in steps if tag == "machine/images_per_second"]) == 4


def killed_and_resumed(whole: Path, place: Path, points: range) -> int:
    """Kill a run at each of these operations, go on, and compare; return where it came to its end."""
    for at in points:
        out = place / str(at)
        if not killed(partial(walk, out), at):
            return at
        assert not killed(partial(walk_again, out)), at
        same_runs(out, whole)
    return points.stop


def test_killed_at_some_file_operations(whole: Path, tmp_path: Path) -> None:
    """At each of a run's birth, then at each thirteenth."""
    assert killed_and_resumed(whole, tmp_path, range(1, 10)) == 10
    assert killed_and_resumed(whole, tmp_path, range(11, 1000, 13)) > 100


@pytest.mark.slow
def test_killed_at_any_file_operation(whole: Path, tmp_path: Path) -> None:
    assert killed_and_resumed(whole, tmp_path, range(1, 1000)) > 100


def test_saved_at_each_step_it_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    walk(tmp_path / "run", save_every=0.0)
    same_runs(tmp_path / "run", whole)


class Stopped(Exception):  # noqa: N818  (no error, as KeyboardInterrupt is none)
    """Stands for a kill, at a certain step."""


def ended_at(step: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run that is saved at each step end at the beginning of this one, counted from 0."""
    whole_step = Walk.step

    def fail(self: Walk, t: int) -> dict[str, Sums]:
        if t == step:
            raise Stopped
        return whole_step(self, t)

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "step", fail)
        with pytest.raises(Stopped):
            walk(out, save_every=0.0)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "flipped": lambda path: flip(path, 8 * 500),
    "other bytes": lambda path: path.write_bytes(bytes(1000)),
}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()  # another file, as after a copy: the one before may share its bytes on the disk
    path.write_bytes(content)


class TestCheckpoints:
    def test_no_flipped_bit_is_read(self, whole: Path, tmp_path: Path) -> None:
        """Of all bits none; of some the whole way."""
        content = bytearray((whole / "checkpoint.pt").read_bytes())
        path, bits = tmp_path / "checkpoint.pt", range(8 * len(content))
        read = random.Random(0).sample(bits, 50)
        for bit in bits:
            content[bit // 8] ^= 1 << bit % 8
            assert fault_of(bytes(content)) is not None
            if bit in read:
                path.write_bytes(content)
                with pytest.raises(InputError, match="checkpoint.pt: not a readable checkpoint"):
                    read_checkpoint(path, "search")
            content[bit // 8] ^= 1 << bit % 8
        assert fault_of(bytes(content)) is None

    def test_pytorch_alone_would_read_one(self, whole: Path, tmp_path: Path) -> None:
        """Which is why there is a checksum: a weight's bit."""
        state = torch.load(whole / "checkpoint.pt", weights_only=True)
        place = (
            (whole / "checkpoint.pt").read_bytes().index(state["task"]["weight"].numpy().tobytes())
        )
        (tmp_path / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
        flip(tmp_path / "checkpoint.pt", 8 * place)
        damaged = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert not equal(damaged["task"]["weight"], state["task"]["weight"])
        with pytest.raises(InputError, match="its checksum does not fit"):
            read_checkpoint(tmp_path / "checkpoint.pt", "search")

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_the_one_before_stands_in(
        self, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        out = tmp_path / "run"
        ended_at(3, out, monkeypatch)
        DAMAGES[damage](out / "checkpoint.pt")
        said = r"checkpoint.pt: not a readable checkpoint.*; the run goes on from "
        with pytest.warns(UserWarning, match=f"{said}checkpoint-before.pt, of step 2$"):
            walk(out, resume=True)
        same_runs(out, whole)

    def test_a_damaged_one_never_takes_the_place_of_the_one_before(
        self, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        ended_at(3, out, monkeypatch)
        flip(out / "checkpoint.pt", 4000)
        folder = RunFolder.open("search", replace(CONFIG, out=str(out), resume=True), "walk")
        state = folder.load()
        assert state is not None
        folder.save(state)
        for name in ("checkpoint.pt", "checkpoint-before.pt"):
            assert read_checkpoint(out / name, "search")["step"] == 2

    @pytest.mark.parametrize("other", ["damaged, too", "missing"])
    def test_without_any_that_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
    ) -> None:
        out = tmp_path / "run"
        ended_at(3, out, monkeypatch)
        flip(out / "checkpoint.pt", 4000)
        (out / "checkpoint-before.pt").unlink()
        if other != "missing":
            (out / "checkpoint-before.pt").write_bytes(b"PK")
        before = records_of(out)
        with pytest.raises(
            InputError,
            match=rf"does not fit: .*\), and checkpoint-before.pt beside it is {other}; put one",
        ):
            walk(out, resume=True)
        assert records_of(out) == before


class TestBirth:
    def test_a_file_that_is_not_this_run_s_is_never_overwritten(self, tmp_path: Path) -> None:
        texts = {"config.yaml": replace(CONFIG, seed=3).to_yaml(), "notes.txt": "mine"}
        for name, text in texts.items():
            out = tmp_path / name
            out.mkdir()
            (out / name).write_text(text)
            with pytest.raises(InputError, match="exists and is not empty"):
                walk(out)
            assert {path.name: path.read_text() for path in out.iterdir()} == {name: text}

    def test_the_same_command_begins_a_run_that_has_saved_nothing(
        self, whole: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        RunFolder.open("search", replace(CONFIG, out=str(out)), "walk")
        (out / ".checkpoint.pt.partial").write_bytes(b"PK")
        walk(out)
        same_runs(out, whole)


class TestRecords:
    @pytest.mark.parametrize("content", [b"", b"\x00\xff" * 2000, b'{"step": 1}\n' * 200])
    def test_other_ones_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        out = tmp_path / "run"
        ended_at(3, out, monkeypatch)
        (out / "metrics.jsonl").write_bytes(content)
        found = "others" if content else "only 0"
        with pytest.raises(
            InputError, match=rf"metrics.jsonl: expected the \d+ bytes .* found {found}; put the"
        ):
            walk(out, resume=True)
        assert (out / "metrics.jsonl").read_bytes() == content

    def test_without_them_the_run_goes_on_with_a_word(
        self, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        ended_at(3, out, monkeypatch)
        (out / "metrics.jsonl").unlink()
        with pytest.warns(UserWarning, match="metrics.jsonl: missing; the run goes on, and its"):
            walk(out, resume=True)
        kept = records_of(whole)["metrics.jsonl"][-2:]
        assert records_of(out)["metrics.jsonl"] == kept  # of step 4, its end of the epoch included
        assert equal(*(read_checkpoint(run / "checkpoint.pt", "search") for run in (out, whole)))

    def test_a_binary_file_is_told_in_one_line(self, tmp_path: Path) -> None:
        from darts_bio.storage.logs import read_records

        (tmp_path / "metrics.jsonl").write_bytes(b"\x80\n{}\n")
        with pytest.raises(InputError, match="metrics.jsonl: line 1: expected a record, .* put"):
            read_records(tmp_path / "metrics.jsonl")

    def test_a_save_reads_only_what_is_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log's digest goes on from that of the save before, whatever is done to the file."""
        read: list[int] = []
        extend = GrowingDigest.extend

        def counted(self: GrowingDigest, *args: Any) -> None:
            before = self.length
            extend(self, *args)
            read.append(self.length - before)

        monkeypatch.setattr(GrowingDigest, "extend", counted)
        path, digests = tmp_path / "metrics.jsonl", dict[str, GrowingDigest]()
        for count in range(1, 6):
            with path.open("ab") as file:
                file.write(b'{"step": 1}\n' * 100)
            marks = marks_of(tmp_path, digests)["metrics.jsonl"]
            assert marks == {"bytes": 1200 * count, "digest": digest(path.read_bytes())}
        assert read == [1200] * 5
        written = path.read_bytes()
        path.write_bytes(b"x" * 6000)  # others: the next run does not take them for its own
        assert marks_of(tmp_path, digests)["metrics.jsonl"]["digest"] == digest(written)
        path.write_bytes(b"x" * 5)
        assert marks_of(tmp_path, digests)["metrics.jsonl"]["digest"] == digest(b"x" * 5)
