"""Runs listed from their folders: real ones, stopped and killed ones, and files that no run wrote."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import StopAfter

import darts_bio
from darts_bio.cli import main
from darts_bio.errors import InputError
from darts_bio.rules import audit
from darts_bio.runs.running import SeedResults
from darts_bio.runs.search import SearchResult
from darts_bio.runs.train import TrainResult
from darts_bio.storage.records import BLOCK, epochs_from_end, last_record, lines_from_end
from darts_bio.storage.run_summary import RunSummary
from darts_bio.storage.status import StatusFile, read_status

QUIET: dict[str, Any] = {"progress": False, "tensorboard": False, "device": "cpu"}
SMALL: dict[str, Any] = {**QUIET, "channels": 2, "train_images": 32, "batch_size": 8, "epochs": 2}
SEARCH: dict[str, Any] = {**SMALL, "space": "darts(nodes=1)", "rules": "usf", "log_every": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def found(place: Path) -> SearchResult:
    result = darts_bio.search("digits", out=str(place / "search"), **SEARCH)
    assert isinstance(result, SearchResult)
    return result


@pytest.fixture(scope="module")
def trained(place: Path, found: SearchResult) -> SeedResults[TrainResult]:
    options = {**SMALL, "epochs": 1, "layers": 3, "seeds": 2, "out": str(place / "trained")}
    result = darts_bio.train(str(found.folder), "digits", **options)
    assert isinstance(result, SeedResults)
    return result


def made(folder: Path, config: str = "dataset: digits\nepochs: 2\n", **files: str) -> Path:
    """A run folder of these texts, by the names of files with `_` for the dot."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def epoch_line(epoch: int, **numbers: float) -> str:
    named = {name.replace("_", "/"): value for name, value in numbers.items()}
    record = {"event": "epoch", "step": 10 * epoch, "epoch": epoch, **named, "seconds": 1.5}
    return json.dumps(record) + "\n"


def one(folder: Path) -> RunSummary:
    (run,) = darts_bio.list_runs(folder)
    return run


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["runs", *words]) == 0
    return capsys.readouterr().out


def test_what_runs_say_of_themselves(
    place: Path, found: SearchResult, trained: SeedResults[TrainResult]
) -> None:
    search, several, *seeds = darts_bio.list_runs(place)
    assert [run.path for run in (search, several)] == [found.folder, trained.folder]
    assert (search.kind, search.state, search.seeds) == ("search", "finished", (0,))
    assert (search.dataset, search.rules) == ("digits", ("usf",))
    assert search.held_out == (found.epochs[-1]["valid/accuracy"],)
    assert (search.test, search.epoch, search.epochs) == ((), 2, 2)
    assert (several.kind, several.state, several.seeds) == ("train", "finished", (0, 1))
    assert several.strategy == search.strategy == search.options["strategy"]
    assert several.test == tuple(result.accuracy for result in trained.seeds.values())
    for run, result in zip(seeds, trained.seeds.values(), strict=True):
        assert (run.path, run.test) == (result.folder, (result.accuracy,))
        assert run.parameters == several.parameters == result.parameters
        share = audit(result.network).share
        assert 0 < share < 1
        assert run.transport == several.transport == pytest.approx(share)
    values = several.as_dict()
    assert values["test_mean"] == pytest.approx(statistics.mean(several.test))
    assert values["test_deviation"] == pytest.approx(statistics.stdev(several.test))
    assert several.seconds == pytest.approx(sum(run.seconds or 0 for run in seeds))


def test_a_run_that_was_stopped_goes_on_to_its_end(tmp_path: Path) -> None:
    options = {**SEARCH, "out": str(tmp_path / "run")}
    darts_bio.search("digits", listener=StopAfter(2), **options)
    assert (one(tmp_path).state, one(tmp_path).epoch) == ("stopped", 1)
    darts_bio.search("digits", resume=True, **options)
    assert (one(tmp_path).state, one(tmp_path).epoch) == ("finished", 2)
    for name in ("checkpoint.pt", "checkpoint-before.pt"):
        (tmp_path / "run" / name).write_bytes(b"PK")
    with pytest.raises(InputError, match="checkpoint"):
        darts_bio.search("digits", resume=True, **options)
    # A run that cannot go on keeps the status that it had.
    assert (read_status(tmp_path / "run") or {})["state"] == "finished"


class TestState:
    def test_an_error_leaves_a_dead_run_that_names_it(self, tmp_path: Path) -> None:
        made(tmp_path / "run")
        status = StatusFile(tmp_path / "run")
        status.begin()
        assert one(tmp_path).state == "running"
        error = RuntimeError("the disk is on fire")
        status.__exit__(RuntimeError, error, None)
        assert (one(tmp_path).state, one(tmp_path).damage) == ("dead", "the disk is on fire")

    @pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="the system tells of no process"
    )
    def test_a_process_that_was_killed_leaves_a_dead_run(self, tmp_path: Path) -> None:
        made(tmp_path / "run")
        with StatusFile(tmp_path / "run") as file:
            file.begin()
            status = read_status(tmp_path / "run") or {}
            # As if another process had written it.
            with subprocess.Popen(["sleep", "60"]) as other:
                began = Path(f"/proc/{other.pid}/stat").read_text().split()[21]
                status["process"] |= {"pid": other.pid, "began": int(began)}
                (tmp_path / "run" / "status.json").write_text(json.dumps(status))
                assert one(tmp_path).state == "running"
                other.kill()
                os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # its parent looks away
                assert one(tmp_path).state == "dead"
            # Its number may be that of another process since.
            status["process"]["pid"] = os.getpid()
            (tmp_path / "run" / "status.json").write_text(json.dumps(status))
            assert one(tmp_path).state == "dead"

    def test_of_another_machine_the_age_of_the_files_tells(self, tmp_path: Path) -> None:
        process = {"host": "elsewhere.example", "pid": os.getpid(), "began": 1}
        status = json.dumps({"state": "running", "process": process})
        run = made(tmp_path / "run", status_json=status)
        assert one(tmp_path).state == "running"
        os.utime(run / "config.yaml", (0, time.time() - 3600))
        assert one(tmp_path).state == "dead"

    @pytest.mark.parametrize(
        ("files", "state"),
        [
            ({"metrics_jsonl": epoch_line(2)}, "finished"),
            ({"results_json": "{}"}, "finished"),
            ({"report_md": "# A run"}, "stopped"),
            ({}, "dead"),
        ],
    )
    def test_of_earlier_versions_the_files_tell(
        self, tmp_path: Path, files: dict[str, str], state: str
    ) -> None:
        run = made(tmp_path / "run", **files)
        for path in run.iterdir():
            os.utime(path, (0, 0))
        assert one(tmp_path).state == state

    @pytest.mark.parametrize(
        ("ends", "state"),
        [
            (("finished", "finished"), "finished"),
            (("finished", "stopped"), "stopped"),
            (("dead", "finished"), "dead"),
            (("finished",), "dead"),  # killed between the two: no process is left
        ],
    )
    def test_of_several_seeds(self, tmp_path: Path, ends: tuple[str, ...], state: str) -> None:
        run = made(tmp_path / "run", "seeds: 2\nepochs: 3\n")
        for seed, end in enumerate(ends):
            made(
                run / f"seed-{seed}",
                f"seed: {seed}\nepochs: 3\n",
                status_json=json.dumps({"state": end}),
                metrics_jsonl=epoch_line(3 - seed, test_accuracy=0.5 + seed / 4),
                checkpoint_pt="",
            )
            torch.save({}, run / f"seed-{seed}" / "checkpoint.pt")
        for path in tmp_path.rglob("*"):
            os.utime(path, (0, 0))
        group = darts_bio.list_runs(tmp_path)[0]
        assert (group.state, group.epoch) == (state, 3 if len(ends) == 1 else 2)
        assert group.test == (0.5, 0.75)[: len(ends)]

    def test_of_stages_and_of_a_choice(self, tmp_path: Path) -> None:
        done = {"status_json": '{"state": "finished"}', "metrics_jsonl": epoch_line(3)}
        staged = made(tmp_path / "a", "epochs: 3\nstages: [stage, stage]\nrules: [fa]\n")
        made(staged / "stage-1", **done)
        made(staged / "stage-2", status_json='{"state": "stopped"}')
        chosen = made(tmp_path / "b", "choose: true\nseeds: 2\nrules: [fa]\n")
        made(chosen / "choice" / "seed-0", status_json='{"state": "dead", "reason": "diverged"}')
        final = {**done, "metrics_jsonl": epoch_line(4, test_accuracy=0.75)}
        made(chosen / "final", "seed: 1\nepochs: 4\ngenotype: x\n", **final)
        runs = {run.path.name: run for run in darts_bio.list_runs(tmp_path)}
        assert (runs["a"].state, runs["a"].epoch, runs["a"].epochs) == ("stopped", 3, 6)
        assert (runs["b"].state, runs["b"].test, runs["b"].epochs) == ("finished", (0.75,), 4)


class TestDamage:
    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("config.yaml", b"\xff\xfe\x00"),
            ("config.yaml", b"a: [1"),
            ("config.yaml", b"- 1\n- 2\n"),
            ("config.yaml", b"seed: 1\nseed: 2\n"),
            ("config.yaml", b"#" * (1 << 17)),
            ("config.yaml", b"[" * 2000),
            ("genotype.json", b"{"),
            ("genotype.json", b"[" * 100_000),
            ("genotype.json", b" " * (1 << 21)),
            ("genotype.json", b"[]"),
            ("metrics.jsonl", b"\x00" * 4000),
            ("metrics.jsonl", b"[1]\n[2]\n"),
            ("metrics.jsonl", b'{"event": "epoch", "step": 1e9, "epoch": null}\n'),
            ("metrics.jsonl", b"x" * (3 << 20)),
            ("checkpoint.pt", b"PK\x03\x04"),
            ("status.json", b"running"),
            ("status.json", b'{"state": "\\u001b[2J"}'),
            ("status.json", b"[" * 60_000),
        ],
    )
    def test_a_damaged_file_is_named(
        self, tmp_path: Path, file: str, content: bytes, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = made(tmp_path / "run", metrics_jsonl=epoch_line(1), status_json='{"state": "dead"}')
        torch.save({}, run / "checkpoint.pt")
        assert one(tmp_path).state == "dead"
        (run / file).write_bytes(content)
        text = printed(capsys, str(tmp_path))
        assert text.splitlines()[1].endswith("damaged")
        assert text.splitlines()[2].startswith(f"run: {file}: ")
        assert len(text) < 1000
        json.loads(printed(capsys, str(tmp_path), "--json"))

    def test_a_checkpoint_that_is_missing_is_missed_by_a_run_that_could_go_on(
        self, tmp_path: Path
    ) -> None:
        run = made(
            tmp_path / "run", metrics_jsonl=epoch_line(1), status_json='{"state": "stopped"}'
        )
        assert one(tmp_path).damage == (
            "checkpoint.pt: missing, though metrics.jsonl tells of step 10"
        )
        (run / "status.json").write_text('{"state": "finished"}')
        assert one(tmp_path).state == "finished"

    def test_values_that_no_run_writes_are_passed_over(self, tmp_path: Path) -> None:
        config = "seed: [1, {a: 2}]\nseeds: many\nepochs: 1e400\nlr: .nan\ndataset: 2026-11-29\n"
        numbers = '"test/accuracy": NaN, "valid/accuracy": "high", "train/loss": 1e999}\n'
        made(
            tmp_path / "run",
            config + f"channels: {10**40}\nstages: true\n",
            metrics_jsonl='{"event": "epoch", "step": 1, "epoch": 1, ' + numbers,
            status_json='{"state": "finished", "parameters": "x", "process": {"pid": []}}',
            genotype_json='{"cells": {"a": 1, "b": {"edges": [2, {"rule": 3}, {"rule": "fa"}]}}}',
        )
        run = one(tmp_path)
        assert (run.seeds, run.epochs, run.parameters, run.test) == ((), None, None, ())
        assert dict(run.numbers) == {}
        assert dict(run.options) == {"seeds": "many", "epochs": "1e400", "stages": True}
        assert json.loads(json.dumps(run.as_dict(), allow_nan=False))

    def test_what_no_run_is_is_not_listed(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").mkdir()
        (tmp_path / "loop").symlink_to(tmp_path)
        assert darts_bio.list_runs(tmp_path) == []
        with pytest.raises(InputError, match="expected a folder of runs"):
            darts_bio.list_runs("a" * 300)


HOSTILE = "=x\x1b[2J\u202e|\n\udcff,\"'é"


def test_hostile_names_cannot_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.dumps({"dataset": "@sum\x1b]0;", "strategy": "\x9b31m" * 50, "rules": ["-1"]})
    made(tmp_path / HOSTILE, config, status_json='{"state": "dead", "reason": "\\u001b[2J"}')
    text = printed(capsys, str(tmp_path))
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert len(text.splitlines()) == 3
    assert max(map(len, text.splitlines())) < 300
    rows = list(csv.DictReader(io.StringIO(printed(capsys, str(tmp_path), "--csv"))))
    assert len(rows) == 1
    for name in ("dataset", "rules"):
        assert rows[0][name].startswith("'")
    assert all(c.isprintable() for value in rows[0].values() for c in value)
    (run,) = json.loads(printed(capsys, str(tmp_path), "--json"))
    assert Path(run["path"]).name == HOSTILE
    code = (
        f"import sys; from darts_bio.cli import main; sys.exit(main(['runs', {str(tmp_path)!r}]))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


class TestChoosing:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        for name, strategy, rules, seed, accuracy in (
            ("a", "darts(lr=0.01)", ["fa", "usf"], 0, 0.5),
            ("b", "gdas", ["usf"], 1, 0.9),
            ("c", "darts", ["usf", "bp"], 1, 0.7),
        ):
            config = {"strategy": strategy, "rules": rules, "seed": seed, "amp": "none"}
            files = {"metrics_jsonl": epoch_line(1, test_accuracy=accuracy, train_loss=accuracy)}
            made(tmp_path / name, json.dumps(config), **files, status_json='{"state": "finished"}')
        made(tmp_path / "d", "rules: [fa]\nspace: darts\n")
        return tmp_path

    @pytest.mark.parametrize(
        ("where", "names"),
        [
            ("strategy=darts", "ac"),
            ("strategy = 'darts(lr=0.01)'", "a"),
            ("strategy=darts(lr=0.01)", "a"),
            ("rules=usf", "abc"),
            ("rules=(usf, bp)", "c"),
            ("rules=usf, seed=1", "bc"),
            ("seed=1.0, state=finished, amp=none", "bc"),
            ("space=darts", "d"),
            ("seed=many", ""),
            ("data-dir=none", "abcd"),
            ("", "abcd"),
        ],
    )
    def test_where(self, runs: Path, where: str, names: str) -> None:
        assert "".join(run.path.name for run in darts_bio.list_runs(runs, where=where)) == names

    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("test/accuracy", "bcad"),
            ("test", "bcad"),
            ("train/loss", "acbd"),
            ("seed", "abcd"),
            ("strategy", "cabd"),
            ("state", "dabc"),
        ],
    )
    def test_sort(self, runs: Path, sort: str, names: str) -> None:
        (runs / "d" / "status.json").write_text('{"state": "dead"}')
        assert "".join(run.path.name for run in darts_bio.list_runs(runs, sort=sort)) == names

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--where", "strat=darts"], "did you mean 'state' or 'strategy'"),
            (
                ["--where", "darts"],
                "--where: expected conditions NAME=VALUE, such as strategy=darts",
            ),
            (
                ["--where", "test>50"],
                "equality only, by one =; to order runs by a number: --sort NAME), found",
            ),
            (["--where", "strategy==darts"], "strategy=darts (equality only, by one =; "),
            (["--where", "test>=50"], "NAME=VALUE, such as strategy=darts (equality only"),
            (["--sort", "test/acc"], "did you mean 'test/accuracy'"),
            (["--csv", "--json"], "found both"),
        ],
    )
    def test_what_is_not_understood(
        self, runs: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["runs", str(runs), *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


class TestRecords:
    @pytest.mark.parametrize("width", [1, 10, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
    def test_lines_across_blocks(self, tmp_path: Path, width: int) -> None:
        lines = [bytes([97 + number % 26]) * width for number in range(9)]
        for end in (b"", b"\n", b"\n\n"):
            (tmp_path / "file").write_bytes(b"\n".join(lines) + end)
            assert list(lines_from_end(tmp_path / "file")) == lines[::-1]

    def test_a_line_too_long_hides_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"first\n" + b'{"x": 1}' * (1 << 19) + b"\nlast")
        assert list(lines_from_end(tmp_path / "file")) == [b"last", b"", b"first"]

    def test_a_last_line_that_was_cut_off_is_no_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(epoch_line(1) + epoch_line(2) + epoch_line(3)[:-20])
        assert (last_record(path) or {})["epoch"] == 2
        assert [record["epoch"] for record in epochs_from_end(path)] == [2, 1]


BLOCKED = """
import json, sys, time
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "torchvision", "timm", "tensorboard"):
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, NoTorch())
from darts_bio.cli import main
code = main(["runs", sys.argv[1]])
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(json.dumps([code, time.process_time(), 1024 * int(peak)]), file=sys.stderr)
"""


def listed_apart(folder: Path) -> tuple[str, float, float]:
    """What a process without PyTorch prints of a folder, its CPU seconds and its peak of memory."""
    words = [sys.executable, "-c", BLOCKED, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, seconds, peak = json.loads(done.stderr)
    assert code == 0
    return done.stdout, seconds, peak


def test_fifty_runs_in_a_second_without_torch(tmp_path: Path, found: SearchResult) -> None:
    for number in range(50):
        shutil.copytree(found.folder, tmp_path / f"{number:02}")
    text, seconds, _ = listed_apart(tmp_path)
    assert len(text.splitlines()) == 51
    assert text.count("finished") == 50
    assert seconds < 1


def test_a_million_records_are_not_held(tmp_path: Path) -> None:
    records = 1_000_000
    line = '{"event": "record", "step": 11, "epoch": 2, "train/loss": 2.5}\n'
    made(tmp_path / "run", metrics_jsonl=epoch_line(1, valid_accuracy=0.25) + line * records)
    torch.save({}, tmp_path / "run" / "checkpoint.pt")
    text, seconds, peak = listed_apart(tmp_path)
    assert "25.00" in text
    assert peak < len(line) * records  # less than the file alone would take
    assert seconds < 3
